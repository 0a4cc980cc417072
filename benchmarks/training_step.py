"""Patches a second of a training step, next to MONAI's DynUNet; prints a Markdown table.

    python benchmarks/training_step.py --side 128 --steps 20

Ours is the step of `Trainer` (Tversky loss, AdamW, clipping). The peer's loop is that of MONAI's
acceleration guide: autocast, DiceCELoss, no clipping, and the loss is never read. Batches lie on
the device: loading is not measured here. scripts/gpu_check.sh runs this on a CUDA machine.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import torch
from torch import nn

from tversky_seg.data.patches.batches import Batch
from tversky_seg.losses import TverskyLoss
from tversky_seg.models import FCDenseNet3D, UNet3D
from tversky_seg.runtime.devices import pick_device
from tversky_seg.training.trainer import Trainer

Step = Callable[[Batch], object]

N_CHANNELS = 2
N_WARM_UP_STEPS = 3
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}
"""Dense bf16, as stated by the makers of the cards."""

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "unet3d": lambda: UNet3D(in_channels=N_CHANNELS, out_channels=1),
    "fc_densenet": lambda: FCDenseNet3D(in_channels=N_CHANNELS, out_channels=1),
}
PEER = "MONAI DynUNet"


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    network: str
    precision: str
    compile: bool = False
    channels_last: bool = False

    def __str__(self) -> str:
        words = [self.network + ",", self.precision]
        if self.compile:
            words.append("compiled")
        if self.channels_last:
            words.append("channels_last_3d")
        return " ".join(words)


def settings_for(device: torch.device) -> list[Setting]:
    """List the rows that a device can show; on the CPU fp32 alone."""
    networks = [*NETWORKS, PEER]
    settings = [Setting(name, "fp32") for name in networks]
    if device.type == "cuda":
        settings += [Setting(name, "bf16") for name in networks]
        settings += [Setting(name, "bf16", compile=True) for name in networks]
        settings += [Setting(name, "bf16", channels_last=True) for name in NETWORKS]
    return settings


def make_step(setting: Setting, device: torch.device) -> Step:
    """Build the network of a row and return one step of its training."""
    if setting.network == PEER:
        return peer_step(setting, device)
    return our_step(setting, device)


def our_step(setting: Setting, device: torch.device) -> Step:
    """Return the step of `Trainer`."""
    trainer = Trainer(
        model=NETWORKS[setting.network](),
        loss=TverskyLoss(),
        precision=setting.precision,
        device=device.type,
    )
    if setting.channels_last:
        trainer.model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    if setting.compile:
        trainer.network = torch.compile(trainer.model)  # type: ignore[assignment]
    step_numbers = count(1)
    return lambda batch: trainer.train_step(next(step_numbers), batch)


def peer_step(setting: Setting, device: torch.device) -> Step:
    """Return the step of MONAI's fast loop around its DynUNet."""
    from monai.losses import DiceCELoss
    from monai.networks.nets import DynUNet

    network: nn.Module = DynUNet(
        spatial_dims=3,
        in_channels=N_CHANNELS,
        out_channels=1,
        kernel_size=[3, 3, 3, 3],
        strides=[1, 2, 2, 2],
        upsample_kernel_size=[2, 2, 2],
        filters=[16, 32, 64, 128],
    )
    network = network.to(device)
    optimizer = torch.optim.AdamW(network.parameters())
    loss = DiceCELoss(sigmoid=True)
    forward = torch.compile(network) if setting.compile else network

    def step(batch: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        is_bf16 = setting.precision == "bf16"
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bf16):
            value = loss(forward(batch.image), batch.target)
        value.backward()
        optimizer.step()

    return step


def make_batch(n_patches: int, side: int, device: torch.device) -> Batch:
    """Draw patches with 1 % of lesion voxels, on the device."""
    torch.manual_seed(0)
    image = torch.randn(n_patches, N_CHANNELS, side, side, side, device=device)
    target = (torch.rand_like(image[:, :1]) > 0.99).float()
    return Batch(
        image=image,
        target=target,
        components=None,
        case_ids=["synthetic"] * n_patches,
        starts=[[0, 0, 0]] * n_patches,
    )


def median_seconds(step: Step, batch: Batch, *, n_steps: int) -> float:
    """Measure the median time of a step, after a few to warm up."""
    seconds = []
    for number in range(N_WARM_UP_STEPS + n_steps):
        start = time.perf_counter()
        step(batch)
        if batch.image.is_cuda:
            torch.cuda.synchronize()
        if number >= N_WARM_UP_STEPS:
            seconds.append(time.perf_counter() - start)
    return sorted(seconds)[n_steps // 2]


def count_flops(step: Step, batch: Batch) -> float:
    """Count the floating-point operations of a step's convolutions, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step(batch)
    return float(counter.get_total_flops())


def peak_tflops_of(device_name: str) -> float:
    """Return the peak of a card; NaN for one that is not listed."""
    for card, tflops in PEAK_TFLOPS.items():
        if card in device_name:
            return tflops
    return float("nan")


def table_row(setting: Setting, batch: Batch, *, n_steps: int, peak_tflops: float) -> str:
    """Measure one setting and format it."""
    step = make_step(setting, batch.image.device)
    share_of_peak = float("nan")
    memory_gib = float("nan")
    # The counter does not see the operations of a compiled network.
    n_operations = float("nan") if setting.compile else count_flops(step, batch)
    if batch.image.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = median_seconds(step, batch, n_steps=n_steps)
    if batch.image.is_cuda:
        memory_gib = torch.cuda.max_memory_allocated() / 2**30
    if setting.precision == "bf16":
        share_of_peak = n_operations / seconds / (peak_tflops * 1e12)
    patches_per_second = len(batch.image) / seconds
    return f"| {setting} | {patches_per_second:.2f} | {memory_gib:.2f} | {share_of_peak:.1%} |"


def main() -> None:
    """Measure every setting that this device can show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=32, help="side of a patch in voxels")
    parser.add_argument("--batch", type=int, default=2, help="patches in a batch")
    parser.add_argument("--steps", type=int, default=3, help="steps to take the median of")
    options = parser.parse_args()
    device = pick_device("auto")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    batch = make_batch(options.batch, options.side, device)
    print(f"{name}, torch {torch.__version__}, patch {options.side}^3, batch {options.batch}\n")
    print("| step | patches/s | peak memory (GiB) | share of the card's dense bf16 peak |")
    print("|---|---|---|---|")
    for setting in settings_for(device):
        row = table_row(setting, batch, n_steps=options.steps, peak_tflops=peak_tflops_of(name))
        print(row, flush=True)


if __name__ == "__main__":
    main()
