"""MONAI's usual recipe on the cases of a manifest: trained for a given time, predicted, and written for evaluate.py.

    python benchmarks/monai_recipe.py MANIFEST OUTPUT_DIR [--minutes 5] [--seed 0] [--threads 2] [--patch 64]
    python evaluate.py predictions=OUTPUT_DIR manifest=MANIFEST output_dir=OUTPUT_DIR/evaluation

The manifest is that of one of our runs (`<run>/manifest.csv`): the same cases, the same split. The recipe is that of
MONAI's tutorials for MR: intensities normalised inside the foreground channel by channel, RandCropByPosNegLabel with
as many positive as negative patches, mirrors, random scale and shift, UNet (16 to 256 channels, two residual units a
level, batch norm), DiceCE loss, Adam at 1e-3 with cosine decay over the time that is given, sliding windows with
Gaussian weights and half overlap. Only training counts as time. Probabilities are written on the first modality's grid.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from monai import transforms as mt
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.utils import set_determinism

from tversky_seg.data.case import Case
from tversky_seg.data.manifest import read_manifest
from tversky_seg.data.nifti import read_volume
from tversky_seg.inference.prediction_folder import write_prediction


def load(case: Case) -> dict[str, torch.Tensor]:
    """Image (C, X, Y, Z) and label (1, X, Y, Z) of a case, cropped to the brain and normalised."""
    images = [str(path) for path in case.images.values()]
    keys = ("image", "label")
    steps = mt.Compose(
        [
            mt.LoadImaged(keys, ensure_channel_first=True),
            mt.CropForegroundd(keys, source_key="image", select_fn=lambda values: values != 0),
            mt.NormalizeIntensityd("image", nonzero=True, channel_wise=True),
            mt.AsDiscreted("label", threshold=0.5),
        ]
    )
    return steps({"image": images, "label": str(case.label)})


def random_patches(cases: list[dict[str, torch.Tensor]], *, patch: int, samples: int, seed: int):
    """Batches (samples, C, patch^3) without end, each from one case."""
    keys = ("image", "label")
    steps = mt.Compose(
        [
            mt.RandCropByPosNegLabeld(
                keys, "label", [patch] * 3, pos=1, neg=1, num_samples=samples
            ),
            *(mt.RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(3)),
            mt.RandScaleIntensityd("image", factors=0.1, prob=1.0),
            mt.RandShiftIntensityd("image", offsets=0.1, prob=1.0),
        ]
    )
    steps.set_random_state(seed)
    step = 0
    while True:
        drawn = steps(cases[step % len(cases)])
        yield tuple(torch.stack([each[key].as_tensor() for each in drawn]) for key in keys)
        step += 1


def train(
    network: UNet, cases: list[dict[str, torch.Tensor]], arguments: argparse.Namespace
) -> int:
    """Adam for so many minutes; returns the number of steps."""
    optimizer, loss = torch.optim.Adam(network.parameters(), lr=1e-3), DiceCELoss(sigmoid=True)
    start, step, limit = time.perf_counter(), 0, 60 * arguments.minutes
    for image, label in random_patches(
        cases, patch=arguments.patch, samples=2, seed=arguments.seed
    ):
        passed = (time.perf_counter() - start) / limit
        if passed >= 1:
            return step
        optimizer.param_groups[0]["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * passed))
        optimizer.zero_grad()
        value = loss(network(image), label)
        value.backward()
        optimizer.step()
        step += 1
        if step % 20 == 0:
            print(f"step {step}, {passed:.0%} of the time, loss {value.item():.3f}", flush=True)
    return step


def predict(network: UNet, case: Case, arguments: argparse.Namespace) -> None:
    """Write probability and mask of one case."""
    prepared = load(case)
    with torch.inference_mode():
        logits = sliding_window_inference(
            prepared["image"][None].as_tensor(),
            [arguments.patch] * 3,
            2,
            network,
            overlap=0.5,
            mode="gaussian",
        )
    first = read_volume(next(iter(case.images.values())))
    probability = torch.zeros(first.data.shape)
    start = prepared["image"].applied_operations
    crop = next(
        each["extra_info"]["cropped"] for each in start if each["class"] == "CropForeground"
    )
    inside = tuple(slice(crop[2 * i], first.data.shape[i] - crop[2 * i + 1]) for i in range(3))
    probability[inside] = logits[0, 0].sigmoid()
    write_prediction(
        arguments.output_dir,
        case.case_id,
        probability[None].numpy(),
        first.affine,
        classes=("lesion",),
        threshold=0.5,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--patch", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    set_determinism(arguments.seed)
    cases = read_manifest(arguments.manifest)
    n_channels = len(cases[0].images)
    network = UNet(
        3,
        n_channels,
        1,
        channels=(16, 32, 64, 128, 256),
        strides=(2,) * 4,
        num_res_units=2,
        norm="batch",
    )
    n_steps = train(network, [load(case) for case in cases if case.split == "train"], arguments)
    network.eval()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for case in cases:
        if case.split == "test":
            predict(network, case, arguments)
    print(json.dumps({"steps": n_steps, "minutes": arguments.minutes}))


if __name__ == "__main__":
    main()
