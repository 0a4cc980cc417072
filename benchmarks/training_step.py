"""Patches a second of a training step, beside MONAI's DynUNet in MONAI's fast loop; prints a Markdown table.

    python benchmarks/training_step.py --side 128 --steps 20        on a CUDA machine, as scripts/gpu_check.sh does

Ours is the step of `Trainer` (Tversky loss, AdamW, clipping). The peer's loop is that of MONAI's acceleration guide:
autocast, DiceCELoss, no clipping, no look at the loss. Batches lie on the device: loading is not measured here.
"""

import argparse
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from tversky_seg.losses import TverskyLoss
from tversky_seg.models import FCDenseNet3D, UNet3D
from tversky_seg.runtime.devices import pick_device
from tversky_seg.training.trainer import Trainer

PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}  # dense bf16, as their makers state
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "unet3d": lambda: UNet3D(in_channels=2, out_channels=1),
    "fc_densenet": lambda: FCDenseNet3D(in_channels=2, out_channels=1),
}


def our_step(
    name: str, *, precision: str, compile: bool, channels_last: bool, device: str
) -> Callable[..., object]:
    """A step of Trainer."""
    trainer = Trainer(
        model=NETWORKS[name](),
        loss=TverskyLoss(),
        precision=precision,
        compile=compile,
        device=device,
    )
    if channels_last:
        trainer.model.to(memory_format=torch.channels_last_3d)
    if compile:
        trainer.network = torch.compile(trainer.model)
    numbers = iter(range(1, trainer.max_steps))
    return lambda image, target: trainer.train_step(
        next(numbers), {"image": image, "target": target}
    )


def peer_step(*, precision: str, compile: bool, device: str) -> Callable[..., object]:
    """DynUNet in MONAI's fast loop."""
    from monai.losses import DiceCELoss
    from monai.networks.nets import DynUNet

    kernels, strides = [3] * 4, [1, 2, 2, 2]
    network: nn.Module = DynUNet(3, 2, 1, kernels, strides, strides[1:], filters=[16, 32, 64, 128])
    network = network.to(pick_device(device))
    optimizer, loss = torch.optim.AdamW(network.parameters()), DiceCELoss(sigmoid=True)
    forward = torch.compile(network) if compile else network

    def step(image: Tensor, target: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            value = loss(forward(image), target)
        value.backward()
        optimizer.step()

    return step


def settings(device: str) -> Iterator[tuple[str, Callable[[], Callable[..., object]], str]]:
    """Name, step and precision of each row."""
    ways = [
        ("fp32", False, False),
        ("bf16", False, False),
        ("bf16", True, False),
        ("bf16", False, True),
    ]
    for precision, compile, last in ways if device.startswith("cuda") else ways[:1]:
        words = " ".join([precision, *["compiled"] * compile, *["channels_last_3d"] * last])
        how = {"precision": precision, "compile": compile, "device": device}
        for name in NETWORKS:
            yield (
                f"{name}, {words}",
                lambda n=name, h=how, c=last: our_step(n, channels_last=c, **h),
                precision,
            )
        if not last:
            yield f"MONAI DynUNet, {words}", lambda h=how: peer_step(**h), precision


def measured(
    step: Callable[..., object], batch: tuple[Tensor, Tensor], *, n_steps: int
) -> tuple[float, float]:
    """Seconds of a step (the median), and peak memory in GiB on CUDA."""
    is_cuda = batch[0].is_cuda
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(n_steps + 3):
        started = time.perf_counter()
        step(*batch)
        if is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return sorted(times[3:])[
        n_steps // 2
    ], torch.cuda.max_memory_allocated() / 2**30 if is_cuda else float("nan")


def flops(step: Callable[..., object], batch: tuple[Tensor, Tensor]) -> float:
    """Floating-point operations of a step's convolutions and products, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step(*batch)
    return float(counter.get_total_flops())


def main() -> None:
    """Measure each way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    device = pick_device("auto")
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    peak = next((tflops for name, tflops in PEAK_TFLOPS.items() if name in card), float("nan"))
    torch.manual_seed(0)
    image = torch.randn(options.batch, 2, *[options.side] * 3, device=device)
    batch = image, (torch.rand_like(image[:, :1]) > 0.99).float()
    print(f"{card}, torch {torch.__version__}, patch {options.side}^3, batch {options.batch}\n")
    print(
        "| step | patches/s | peak memory (GiB) | share of the card's dense bf16 peak |\n|---|---|---|---|"
    )
    for name, make, precision in settings(device.type):
        step = make()
        n_operations = float("nan") if "compiled" in name else flops(step, batch)
        seconds, memory = measured(step, batch, n_steps=options.steps)
        share = n_operations / seconds / (peak * 1e12) if precision == "bf16" else float("nan")
        print(
            f"| {name} | {options.batch / seconds:.2f} | {memory:.2f} | {share:.1%} |", flush=True
        )


if __name__ == "__main__":
    main()
