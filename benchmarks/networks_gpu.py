"""What the networks' parts take on a GPU: norm, pooling, convolutions, a whole pass, its kernels.

    python benchmarks/networks_gpu.py [--compiled] [--all-networks] [--side 128]

Milliseconds of a forward and backward pass in bf16, by the GPU's own clock: the median of ten,
after three. It takes half a minute; --compiled adds torch.compile's version of the norm, and
--all-networks the two larger networks.
"""

import argparse
from collections.abc import Callable
from itertools import pairwise
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from tversky_seg.models import FCDenseNet3D, ResidualUNet3D, UNet3D
from tversky_seg.models.batch_norm import Layers
from tversky_seg.models.concatenation import concatenate
from tversky_seg.models.group_norm import GroupNorm
from tversky_seg.models.pooling import max_pool
from tversky_seg.runtime.devices import image_to_device, to_device

DEVICE = torch.device("cuda")
NDHWC = torch.channels_last_3d
NCDHW = torch.contiguous_format
LAYOUTS = {"NDHWC": NDHWC, "NCDHW": NCDHW}
LEVELS = ((16, 1), (32, 2), (64, 4), (128, 8))
"""Features of each level of the default network, and the divisor of its sides."""


def milliseconds(step: Callable[[], object], *, repeats: int = 10) -> float:
    """Return the median time of a step."""
    for _ in range(3):
        step()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    for event in events[:-1]:
        event.record()
        step()
    events[-1].record()
    torch.cuda.synchronize()
    gaps = [a.elapsed_time(b) for a, b in pairwise(events)]
    return median(gaps)


def forward_backward(module: Callable[[Tensor], Tensor], features: Tensor) -> float:
    """Time a module on features, with a gradient of its result's layout."""
    features = features.detach().requires_grad_()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        gradient = torch.randn_like(module(features))

    def step() -> None:
        features.grad = None
        with torch.autocast("cuda", dtype=torch.bfloat16):
            result = module(features)
        result.backward(gradient)

    return milliseconds(step)


def features(channels: int, side: int, layout: torch.memory_format) -> Tensor:
    drawn = torch.randn(2, channels, side, side, side, device=DEVICE, dtype=torch.bfloat16)
    return drawn.contiguous(memory_format=layout)


def norms(side: int, *, compiled: bool) -> None:
    print("\n| norm + ReLU | layout | ours | torch | torch compiled | bytes at 3 TB/s |")
    print("|---|---|---|---|---|---|")
    for channels, divisor in LEVELS:
        for name, layout in LAYOUTS.items():
            x = features(channels, side // divisor, layout)
            ours = GroupNorm(8, channels, relu=True).to(DEVICE)
            torchs = nn.Sequential(nn.GroupNorm(8, channels), nn.ReLU(inplace=True)).to(DEVICE)
            cells = [forward_backward(ours, x), forward_backward(torchs, x)]
            fastest = "-"
            if compiled and divisor == 1:
                fastest = f"{forward_backward(compiled_norm(ours), x):.3f}"
            # Two reads and a write forward; four reads and a write backward.
            floor = 8 * x.numel() * 2 / 3e9
            shape = f"(2, {channels}, {side // divisor}^3)"
            print(
                f"| {shape} | {name} | {cells[0]:.3f} | {cells[1]:.3f} | {fastest} | {floor:.3f} |"
            )


def compiled_norm(norm: GroupNorm) -> Callable[[Tensor], Tensor]:
    """Make what torch.compile makes of the norm in the features' type."""

    def plain(x: Tensor) -> Tensor:
        weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
        with torch.autocast("cuda", enabled=False):
            return F.relu(F.group_norm(x, 8, weight, bias))

    return torch.compile(plain, dynamic=False)


def pools(side: int) -> None:
    print("\n| max-pooling, concatenation, batch norm + ReLU | layout | ours | torch |")
    print("|---|---|---|---|")
    for channels, divisor in LEVELS[:2]:
        for name, layout in LAYOUTS.items():
            x = features(channels, side // divisor, layout)
            ours = forward_backward(max_pool, x)
            torchs = forward_backward(lambda x: F.max_pool3d(x, 2), x)
            shape = f"(2, {channels}, {side // divisor}^3)"
            print(f"| {shape} | {name} | {ours:.3f} | {torchs:.3f} |")
    for channels in (16, 48, 72):
        x = features(channels, side, NDHWC)
        ours = forward_backward(lambda x: concatenate((x, x)), x)
        torchs = forward_backward(lambda x: torch.cat((x, x), dim=1), x)
        print(f"| twice (2, {channels}, {side}^3) | NDHWC | {ours:.3f} | {torchs:.3f} |")
        layers = (nn.BatchNorm3d(channels), nn.ReLU(inplace=True))
        ours = forward_backward(Layers(*layers).to(DEVICE), x)
        torchs = forward_backward(nn.Sequential(*layers).to(DEVICE), x)
        print(f"| batch norm (2, {channels}, {side}^3) | NDHWC | {ours:.3f} | {torchs:.3f} |")


def convolutions(side: int) -> None:
    print("\n| convolution | side | NDHWC | TFLOP/s | NCDHW |")
    print("|---|---|---|---|---|")
    layers = [(nn.Conv3d(3, 16, 3, padding=1, bias=False), side)]
    for channels, divisor in LEVELS:
        conv = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        layers.append((conv, side // divisor))
    layers.append((nn.Conv3d(32, 16, 3, padding=1, bias=False), side))
    layers.append((nn.Conv3d(16, 1, 1), side))
    layers.append((nn.ConvTranspose3d(32, 16, 2, stride=2), side // 2))
    for layer, sides in layers:
        cells = []
        for layout in LAYOUTS.values():
            conv = layer.to(DEVICE, memory_format=layout)
            cells.append(forward_backward(conv, features(layer.in_channels, sides, layout)))
        # Forward, gradient of the features, gradient of the weights.
        flops = 3 * 2 * layer.weight.numel() * 2 * sides**3
        speed = flops / cells[0] / 1e9
        print(f"| {layer} | {sides} | {cells[0]:.3f} | {speed:.0f} | {cells[1]:.3f} |")


def networks(side: int, *, names: tuple[type[nn.Module], ...]) -> None:
    print("\n| network | eager ms | kernels ms | peak GiB | layout copies |")
    print("|---|---|---|---|---|")
    for build in names:
        torch.cuda.reset_peak_memory_stats()
        network = to_device(build(in_channels=3, out_channels=1), DEVICE)
        image = image_to_device(torch.randn(2, 3, side, side, side), DEVICE)

        def step(network: nn.Module = network, image: Tensor = image) -> None:
            network.zero_grad()
            with torch.autocast("cuda", dtype=torch.bfloat16):
                logits = network(image)
            logits.float().square().mean().backward()

        eager = milliseconds(step, repeats=5)
        table = kernel_times(step)
        in_kernels = sum(table.values())
        copies = 0.0
        for name, time in table.items():
            if "nchwToNhwc" in name or "nhwcToNchw" in name:
                copies += time
        peak = torch.cuda.max_memory_allocated() / 2**30
        print(
            f"| {build.__name__} | {eager:.1f} | {in_kernels:.1f} | {peak:.2f} | {copies:.2f} ms |"
        )
        print_kernels(table)
        del network, image, step
        torch.cuda.empty_cache()


def kernel_times(step: Callable[[], object]) -> dict[str, float]:
    """Return the milliseconds of each kernel of a step, the longest first."""
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        step()
        torch.cuda.synchronize()
    times = {}
    for row in profiler.key_averages():
        if row.device_type == torch.autograd.DeviceType.CUDA:
            times[f"{row.key[:90]} x{row.count}"] = row.self_device_time_total / 1000
    return dict(sorted(times.items(), key=lambda item: -item[1]))


def print_kernels(times: dict[str, float]) -> None:
    print("\n| kernel, times it runs | ms |\n|---|---|")
    for name, time in list(times.items())[:22]:
        print(f"| `{name}` | {time:.3f} |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=128, help="side of the patches")
    parser.add_argument("--compiled", action="store_true", help="also torch.compile's norm")
    parser.add_argument("--all-networks", action="store_true", help="also the larger networks")
    arguments = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, ", end="")
    print(f"cuDNN {torch.backends.cudnn.version()}, side {arguments.side}, batches of 2")
    norms(arguments.side, compiled=arguments.compiled)
    pools(arguments.side)
    convolutions(arguments.side)
    names: tuple[type[nn.Module], ...] = (UNet3D,)
    if arguments.all_networks:
        names = (UNet3D, ResidualUNet3D, FCDenseNet3D)
    networks(arguments.side, names=names)


if __name__ == "__main__":
    main()
