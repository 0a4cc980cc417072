"""Training step and peak memory of each network, next to MONAI's nearest of the same widths.

    python benchmarks/networks.py [--size 64] [--repeats 15] [--threads 2] [--device auto]
                                  [--clock wall]

A step is forward, a sum over the logits, backward, Adam; all networks are laid out as the trainer
does it and take turns. The ratio is the median over turns of ours / MONAI's in the same turn.
Networks of one title differ in arithmetic (MONAI's UNet has one full-resolution convolution;
Shirokikh's residual U-Net twice the convolutions of DynUNet's), so the table also gives GFLOP of a
forward pass, and the ratio per GFLOP. Memory is what a fresh process adds from before its first
step. On a busy machine `OMP_WAIT_POLICY=passive` and `--clock cpu` (processor seconds of all
threads) still compare fairly.
"""

import argparse
import multiprocessing
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median

import monai
import torch
from monai.networks.nets import DynUNet, UNet
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tversky_seg.models import FCDenseNet3D, ResidualUNet3D, UNet3D
from tversky_seg.runtime.devices import pick_device, to_device, use_threads

CHANNELS = {"in_channels": 3, "out_channels": 1}


def dynunet(widths: tuple[int, ...], *, residual: bool = False) -> nn.Module:
    kernels = [3] * len(widths)
    strides = [1] + [2] * (len(widths) - 1)
    return DynUNet(
        3,
        3,
        1,
        kernels,
        strides,
        strides[1:],
        filters=widths,
        norm_name="batch",
        res_block=residual,
    )


def unet(widths: tuple[int, ...]) -> nn.Module:
    strides = [2] * (len(widths) - 1)
    return UNet(3, 3, 1, channels=widths, strides=strides, num_res_units=2, norm="batch")


NARROW = (16, 32, 64, 128)
WIDE = (16, 64, 128, 256)
Builders = dict[str, Callable[[], nn.Module]]
# Ours, then MONAI's, of the same widths and normalisation.
NETWORKS: dict[str, Builders] = {
    "U-Net, widths 16-128": {
        "UNet3D": lambda: UNet3D(**CHANNELS, norm="batch"),
        "MONAI DynUNet": lambda: dynunet(NARROW),
        "MONAI UNet": lambda: unet(NARROW),
    },
    "U-Net, widths 16-128, instance norm": {
        "UNet3D norm=instance": lambda: UNet3D(**CHANNELS, norm="instance"),
        "MONAI DynUNet norm=instance": lambda: DynUNet(
            3, 3, 1, [3] * 4, [1, 2, 2, 2], [2, 2, 2], filters=NARROW, norm_name="instance"
        ),
    },
    "Residual U-Net, widths 16-256": {
        "ResidualUNet3D": lambda: ResidualUNet3D(**CHANNELS),
        "MONAI DynUNet residual": lambda: dynunet(WIDE, residual=True),
        "MONAI UNet wide": lambda: unet(WIDE),
    },
    "FC-DenseNet, 12 x 4 (MONAI has none; DynUNet from the same 48 features)": {
        "FCDenseNet3D": lambda: FCDenseNet3D(**CHANNELS),
        "FCDenseNet3D checkpointing": lambda: FCDenseNet3D(**CHANNELS, checkpointing=True),
        "FCDenseNet3D compact": lambda: FCDenseNet3D(**CHANNELS, compact=True),
        "MONAI DynUNet from 48": lambda: dynunet((48, 96, 192, 384)),
    },
}
BUILDERS = {name: build for group in NETWORKS.values() for name, build in group.items()}


def training_step(name: str, *, size: int, device: torch.device) -> Callable[[], None]:
    """Make a function that does one training step of a network on the same random patches."""
    torch.manual_seed(0)
    network = to_device(BUILDERS[name](), device)
    optimizer = torch.optim.Adam(network.parameters())
    image = torch.randn(2, 3, size, size, size, device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        network(image).square().mean().backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def seconds(call: Callable[[], None], *, clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


def gigaflop(name: str, *, size: int) -> float:
    """Count the operations of a forward pass of the same batch, in 1e9; nothing is computed."""
    with torch.device("meta"):
        network = BUILDERS[name]().eval()
        image = torch.empty(2, 3, size, size, size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    return counter.get_total_flops() / 1e9


def peak_mib(name: str, size: int, threads: int, device: torch.device) -> float:
    """Measure the peak memory that three steps add to this process (CPU) or the device (CUDA)."""
    use_threads(threads)
    step = training_step(name, size=size, device=device)
    if device.type == "cuda":
        step()
        return torch.cuda.max_memory_allocated() / 2**20
    before = _resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the high-water mark so far
    for _ in range(3):
        step()
    return _resident_mib("VmHWM") - before


def _resident_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def compare(
    names: list[str], *, size: int, repeats: int, device: torch.device, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Measure the seconds of each network's steps; the networks take turns."""
    steps = {name: training_step(name, size=size, device=device) for name in names}
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeats):
        for name, step in steps.items():
            times[name].append(seconds(step, clock=clock))
    return times


def rows(group: Builders, args: argparse.Namespace) -> list[str]:
    """Measure one group as Markdown rows; ratios are the first network's to each other one's."""
    device = pick_device(args.device)
    ours = next(iter(group))
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    times = compare(list(group), size=args.size, repeats=args.repeats, device=device, clock=clock)
    work = {name: gigaflop(name, size=args.size) for name in group}
    context = multiprocessing.get_context("spawn")
    lines = []
    for name, build in group.items():
        ratio = median(a / b for a, b in zip(times[ours], times[name], strict=True))
        per_gigaflop = ratio * work[name] / work[ours]
        with context.Pool(1) as pool:
            peak = pool.apply(peak_mib, (name, args.size, args.threads, device))
        count = sum(p.numel() for p in build().parameters())
        ratios = f"{ratio:.2f} | {per_gigaflop:.2f}" if name != ours else "1 | 1"
        milliseconds = 1e3 * median(times[name])
        lines.append(
            f"| {name} | {count:,} | {work[name]:.1f} | {milliseconds:.0f} "
            f"| {ratios} | {peak:.0f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size", type=int, default=64, help="side of the patches, batch 2, 3 channels"
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--only", default="", help="run the groups whose title holds this")
    args = parser.parse_args()
    use_threads(args.threads)
    print(
        f"{date.today()}, torch {torch.__version__}, MONAI {monai.__version__}, "
        f"{platform.processor()}, {args.threads} threads, (2, 3, {args.size}^3) fp32, "
        f"{args.clock} clock, median of {args.repeats} turns\n"
    )
    print(
        "| network | parameters | GFLOP | ms a step | ours / this "
        "| ours / this, per GFLOP | peak MiB |"
    )
    print("|---|---|---|---|---|---|---|")
    for title, group in NETWORKS.items():
        if args.only in title:
            print(f"| **{title}** | | | | | | |")
            print("\n".join(rows(group, args)), flush=True)


if __name__ == "__main__":
    main()
