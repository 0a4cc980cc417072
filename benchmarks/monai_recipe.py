"""Train MONAI's usual recipe on the cases of a manifest for a given time, and predict them.

    python benchmarks/monai_recipe.py MANIFEST OUTPUT_DIR [--network unet|dynunet] [--minutes 5]
        [--device cuda --patch 96]
    python evaluate.py predictions=OUTPUT_DIR manifest=MANIFEST output_dir=OUTPUT_DIR/evaluation

The manifest is that of one of our runs (`<run>/manifest.csv`), so the cases and the split are the
same. The recipe is that of MONAI's tutorials for MR: intensities normalised inside the foreground,
channel by channel; RandCropByPosNegLabel with as many positive as negative patches; mirrors, random
scale and shift; UNet (16 to 256 channels, two residual units per level, batch norm) or DynUNet (32
to 320 channels, instance norm, as nnU-Net plans it); DiceCE loss; Adam at 1e-3 with cosine decay
over the given time; sliding windows with Gaussian weights and half overlap. Only training counts as
time: by the clock, or by the CPU time of the process on a machine that has other work (--cpu-time).
On a GPU the network runs in bf16. Probabilities are written on the grid of the first modality.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from monai import transforms as mt
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.nets import DynUNet, UNet
from monai.utils import set_determinism
from torch import nn

from tversky_seg.data.case import Case
from tversky_seg.data.manifest import read_manifest
from tversky_seg.data.nifti import read_volume
from tversky_seg.inference.prediction_folder import write_prediction

KEYS = ("image", "label")
PATCHES_PER_BATCH = 2


def main() -> None:
    """Read the arguments; train, predict the test cases and print the number of steps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest", type=Path, help="manifest.csv of one of our runs")
    parser.add_argument("output_dir", type=Path, help="folder of the predictions")
    parser.add_argument("--network", choices=NETWORKS, default="unet", help="network (unet)")
    parser.add_argument("--minutes", type=float, default=5, help="time of training (5)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and patches (0)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (2)")
    parser.add_argument(
        "--cpu-time", action="store_true", help="the minutes are CPU time of this process"
    )
    parser.add_argument("--patch", type=int, default=64, help="side of a patch in voxels (64)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    set_determinism(options.seed)
    cases = read_manifest(options.manifest)
    network = NETWORKS[options.network](len(cases[0].images)).to(options.device)
    training = [load(case) for case in cases if case.split == "train"]
    n_steps = train(
        network,
        training,
        minutes=options.minutes,
        patch=options.patch,
        seed=options.seed,
        clock=time.process_time if options.cpu_time else time.perf_counter,
    )
    network.eval()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for case in cases:
        if case.split == "test":
            predict(network, case, patch=options.patch, output_dir=options.output_dir)
    print(json.dumps({"network": options.network, "steps": n_steps, "minutes": options.minutes}))


def make_unet(n_channels: int) -> nn.Module:
    """Make the U-Net of MONAI's tutorials."""
    return UNet(
        spatial_dims=3,
        in_channels=n_channels,
        out_channels=1,
        channels=(16, 32, 64, 128, 256),
        strides=(2, 2, 2, 2),
        num_res_units=2,
        norm="batch",
    )


def make_dynunet(n_channels: int) -> nn.Module:
    """Make the U-Net that nnU-Net would plan: five halvings, 32 to 320 channels."""
    return DynUNet(
        spatial_dims=3,
        in_channels=n_channels,
        out_channels=1,
        kernel_size=[3] * 6,
        strides=[1, 2, 2, 2, 2, 2],
        upsample_kernel_size=[2] * 5,
        filters=(32, 64, 128, 256, 320, 320),
        norm_name="instance",
    )


NETWORKS: dict[str, Callable[[int], nn.Module]] = {"unet": make_unet, "dynunet": make_dynunet}


def load(case: Case) -> dict[str, torch.Tensor]:
    """Load image (C, X, Y, Z) and label (1, X, Y, Z), cropped to the brain and normalised.

    A case without label gets its image alone.
    """
    files: dict[str, str | list[str]] = {"image": [str(path) for path in case.images.values()]}
    if case.label is not None:
        files["label"] = str(case.label)
    steps = mt.Compose(
        [
            mt.LoadImaged(files, ensure_channel_first=True),
            mt.CropForegroundd(files, source_key="image", select_fn=lambda values: values != 0),
            mt.NormalizeIntensityd("image", nonzero=True, channel_wise=True),
            mt.AsDiscreted("label", threshold=0.5, allow_missing_keys=True),
        ]
    )
    return steps(files)


def random_patches(
    cases: Sequence[dict[str, torch.Tensor]], *, patch: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Draw images and labels (B, C, patch, patch, patch) without end, each batch from one case."""
    steps = mt.Compose(
        [
            mt.RandCropByPosNegLabeld(
                KEYS, "label", [patch] * 3, pos=1, neg=1, num_samples=PATCHES_PER_BATCH
            ),
            mt.RandFlipd(KEYS, prob=0.5, spatial_axis=0),
            mt.RandFlipd(KEYS, prob=0.5, spatial_axis=1),
            mt.RandFlipd(KEYS, prob=0.5, spatial_axis=2),
            mt.RandScaleIntensityd("image", factors=0.1, prob=1.0),
            mt.RandShiftIntensityd("image", offsets=0.1, prob=1.0),
        ]
    )
    steps.set_random_state(seed)
    while True:
        for case in cases:
            samples = steps(case)
            image = torch.stack([sample["image"].as_tensor() for sample in samples])
            label = torch.stack([sample["label"].as_tensor() for sample in samples])
            yield image, label


def train(
    network: nn.Module,
    cases: Sequence[dict[str, torch.Tensor]],
    *,
    minutes: float,
    patch: int,
    seed: int,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Train for a given time, in seconds of the clock; return the number of steps."""
    device = next(network.parameters()).device
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    loss_function = DiceCELoss(sigmoid=True)
    start = clock()
    step = 0
    for image, label in random_patches(cases, patch=patch, seed=seed):
        # The schedule follows the clock, so that it ends when the time does.
        share_of_time = (clock() - start) / (60 * minutes)
        if share_of_time >= 1:
            break
        optimizer.param_groups[0]["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * share_of_time))
        optimizer.zero_grad()
        with half_on_gpu(device):
            logits = network(image.to(device))
        loss = loss_function(logits.float(), label.to(device))
        loss.backward()
        optimizer.step()
        step += 1
        if step % 20 == 0:
            print(
                f"step {step}, {share_of_time:.0%} of the time, loss {loss.item():.3f}", flush=True
            )
    return step


def predict(network: nn.Module, case: Case, *, patch: int, output_dir: Path) -> None:
    """Write probability and mask of one case."""
    image = load(case)["image"]
    device = next(network.parameters()).device
    with torch.inference_mode(), half_on_gpu(device):
        logits = sliding_window_inference(
            image[None].as_tensor().to(device),
            roi_size=[patch] * 3,
            sw_batch_size=2,
            predictor=network,
            overlap=0.5,
            mode="gaussian",
        )
    first = read_volume(next(iter(case.images.values())))
    probability = torch.zeros(first.data.shape)
    probability[cropped_box(image, first.data.shape)] = logits[0, 0].float().sigmoid().cpu()
    write_prediction(
        output_dir,
        case.case_id,
        probability[None].numpy(),
        first.affine,
        classes=("lesion",),
    )


def half_on_gpu(device: torch.device) -> torch.autocast:
    """Run the network in bf16 on a GPU, in float32 on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def cropped_box(image: torch.Tensor, shape: Sequence[int]) -> tuple[slice, ...]:
    """Find the box to which CropForeground cropped an image of a shape."""
    for operation in image.applied_operations:
        if operation["class"] == "CropForeground":
            # Voxels cut off: (x before, x after, y before, y after, z before, z after).
            cut = operation["extra_info"]["cropped"]
            before = cut[::2]
            after = cut[1::2]
            return tuple(slice(b, n - a) for b, n, a in zip(before, shape, after, strict=True))
    raise ValueError("the image was not cropped")


if __name__ == "__main__":
    main()
