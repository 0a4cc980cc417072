"""Whole-volume prediction on a GPU next to MONAI's SlidingWindowInferer, with the same network.

`benchmarks/inference.py --device cuda` runs this. Both get a case of the host, kept as int16, and
give its probability on the host. Both take gaussian weights at half overlap and the same weights of
the network; MONAI has its importance map ready. "Default" is MONAI with the weights as torch lays
them out. The other two have the weights channels last, as ours: with windows as MONAI cuts them,
and turned to channels last as well.

Then a validation of several cases: with cases read and scored in threads while the GPU predicts,
and one after the other.
"""

import copy
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import SlidingWindowInferer
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from tversky_seg.data.grids import Geometry
from tversky_seg.data.preprocessing.prepared_case import PreparedCase
from tversky_seg.inference.loaded_case import load_case
from tversky_seg.inference.settings import Inference
from tversky_seg.inference.sliding_window import predict_by_windows, predict_volume
from tversky_seg.inference.window_memory import windows_at_once
from tversky_seg.inference.window_weights import Window
from tversky_seg.models import UNet3D
from tversky_seg.runtime.devices import autocast, to_device
from tversky_seg.runtime.overlap import OneBehind, read_ahead
from tversky_seg.training import validation

SHAPE = (3, 150, 182, 150)  # FLAIR, T1 and T2 of a head at 1 mm, cropped to the brain
SIDE = 96
SCALE = 1e-3
BATCH_SIZES: tuple[int | str, ...] = ("auto", 8, 4, 2, 1)
HEADER = (
    "\n| precision | windows at once | ours ms | MONAI, default ms | weights channels last "
    "| windows too | network alone ms | ours / MONAI default | ours / MONAI's fastest |"
    "\n|---|---|---|---|---|---|---|---|---|"
)

Predict = Callable[[], Any]


def compare_on_gpu(device: torch.device, *, repeats: int, seconds: float, n_kernels: int) -> None:
    """Print tables of both, in turn, for each number of windows at once, and what else is asked.

    Args:
        device: The GPU.
        repeats: Rounds of which the median is taken, after one that warms up.
        seconds: Time after which no further row begins.
        n_kernels: Kernels to list, by their time.
    """
    end = time.monotonic() + seconds
    torch.manual_seed(0)
    network = to_device(UNet3D(in_channels=SHAPE[0], out_channels=1).eval(), device)
    image = np.random.default_rng(0).normal(0, 1000, SHAPE).astype(np.int16)
    print(f"{SHAPE[0]} channels of {SHAPE[1:]}, {len(corners())} windows of {SIDE}^3, half overlap")
    print_table(network, image, "bf16", device, repeats=repeats, end=end)
    print_kernels(ours(network, image, "auto", "bf16"), n_kernels)
    if time.monotonic() < end:
        compare_validations(device, repeats=min(repeats, 3))
    print_table(network, image, "fp32", device, repeats=repeats, end=end)
    if time.monotonic() < end:
        largest = difference(network, image, device)
        print(f"\nLargest difference of the probabilities, fp32: {largest:.1e}")


def print_table(
    network: nn.Module,
    image: NDArray[np.int16],
    precision: str,
    device: torch.device,
    *,
    repeats: int,
    end: float,
) -> None:
    """Print a row for each number of windows at once, and the ratio of both at their best."""
    n_windows = len(corners())
    as_torch_does = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    best: dict[str, float] = {}
    print(HEADER)
    for batch_size in BATCH_SIZES:
        if time.monotonic() > end:
            print(f"| {precision} | {batch_size} | no time left |")
            continue
        n = windows_at_once(batch_size, n_windows, (SIDE,) * 3, device)
        calls = {
            "ours": ours(network, image, batch_size, precision),
            "default": monai(as_torch_does, image, n, precision, device, is_turned=False),
            "channels last": monai(network, image, n, precision, device, is_turned=False),
            "turned": monai(network, image, n, precision, device, is_turned=True),
            "network": alone(network, n, n_windows, precision, device),
        }
        times = in_turn(calls, repeats, device)
        fastest = min(times["default"], times["channels last"], times["turned"])
        of_row = {"ours": times["ours"], "default": times["default"], "fastest": fastest}
        for name, value in of_row.items():
            best[name] = min(value, best.get(name, value))
        label = str(n) if batch_size == n else f"{batch_size}: {n}"
        row = [precision, label, *(f"{1000 * value:.1f}" for value in times.values())]
        row += [f"{of_row['ours'] / of_row[name]:.2f}" for name in ("default", "fastest")]
        print(f"| {' | '.join(row)} |", flush=True)
    if best:
        print(
            f"\n{precision}, each with its best number of windows: ours / MONAI by default "
            f"**{best['ours'] / best['default']:.2f}**, at its fastest "
            f"**{best['ours'] / best['fastest']:.2f}**"
        )


def corners() -> list[Any]:
    """List the windows of MONAI's grid; ours has the same."""
    return list(dense_patch_slices(SHAPE[1:], (SIDE,) * 3, (SIDE // 2,) * 3))


def ours(
    network: nn.Module,
    image: NDArray[np.int16],
    batch_size: int | str,
    precision: str,
    *,
    window: Window = "gaussian",
) -> Predict:
    def predict() -> Tensor:
        return predict_volume(
            network,
            image,
            patch_size=SIDE,
            window=window,
            batch_size=batch_size,
            image_scale=[SCALE] * len(image),
            precision=precision,
        )

    return predict


def monai(
    network: nn.Module,
    image: NDArray[np.int16],
    batch_size: int,
    precision: str,
    device: torch.device,
    *,
    is_turned: bool,
    gives_probability: bool = False,
) -> Predict:
    inferer = SlidingWindowInferer(
        (SIDE,) * 3,
        sw_batch_size=batch_size,
        overlap=0.5,
        mode="gaussian",
        sw_device=device,
        device=device,
        cache_roi_weight_map=True,
    )

    def predictor(windows: Tensor) -> Tensor:
        if is_turned:
            windows = windows.contiguous(memory_format=torch.channels_last_3d)
        logits: Tensor = network(windows)
        return logits.float().sigmoid() if gives_probability else logits

    def predict() -> Tensor:
        on_device = torch.from_numpy(image).to(device).float()[None] * SCALE
        with torch.inference_mode(), autocast(device, precision):
            fused = inferer(on_device, predictor)
            assert isinstance(fused, Tensor)
            if not gives_probability:
                fused = fused.sigmoid()
        return fused[0].cpu()

    return predict


def alone(
    network: nn.Module, batch_size: int, n_windows: int, precision: str, device: torch.device
) -> Predict:
    """Pass as many windows through the network, which lie ready on the device."""
    windows = torch.randn(batch_size, SHAPE[0], *(SIDE,) * 3, device=device)
    windows = windows.contiguous(memory_format=torch.channels_last_3d)

    def predict() -> Tensor:
        logits = windows
        with torch.inference_mode(), autocast(device, precision):
            for first in range(0, n_windows, batch_size):
                logits = network(windows[: min(batch_size, n_windows - first)])
        return logits

    return predict


def in_turn(calls: dict[str, Predict], repeats: int, device: torch.device) -> dict[str, float]:
    """Time calls in turn; the median of each, in seconds, after a round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(1 + repeats):
        for name, call in calls.items():
            torch.cuda.synchronize(device)
            start = time.perf_counter()
            call()
            torch.cuda.synchronize(device)
            times[name].append(time.perf_counter() - start)
    return {name: median(values[1:]) for name, values in times.items()}


def difference(network: nn.Module, image: NDArray[np.int16], device: torch.device) -> float:
    """Compare with MONAI's fusion of probabilities, both by its gaussian, which has a floor."""
    weights = compute_importance_map((SIDE,) * 3, mode="gaussian", sigma_scale=0.125)
    theirs = monai(network, image, 4, "fp32", device, is_turned=True, gives_probability=True)()
    return float((ours(network, image, 4, "fp32", window=weights)() - theirs).abs().max())


def print_kernels(call: Predict, n_kernels: int) -> None:
    """Print the kernels of a call with the longest time, and the time of all."""
    call()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
    kernels = []
    for event in profile.key_averages():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            kernels.append((event.self_device_time_total / 1000, event.count, event.key))
    kernels.sort(reverse=True)
    total = sum(milliseconds for milliseconds, _, _ in kernels)
    print(f"\nKernels of ours in bf16, auto: {total:.1f} ms\n")
    print("| ms | calls | kernel |\n|---|---|---|")
    for milliseconds, n_calls, name in kernels[:n_kernels]:
        print(f"| {milliseconds:.2f} | {n_calls} | `{name[:90]}` |")


class AsTheFirstChannel(nn.Module):
    """A network that takes its time, and gives the first channel as logits."""

    def __init__(self) -> None:
        super().__init__()
        self.network = UNet3D(in_channels=SHAPE[0], out_channels=1)

    def forward(self, image: Tensor) -> Tensor:
        """Add nothing to the first channel."""
        logits: Tensor = image[:, :1] + 0 * self.network(image)
        return logits


def a_case(seed: int) -> PreparedCase:
    """Make a case of 40 balls, whose first channel is a logit of them."""
    rng = np.random.default_rng(seed)
    shape = (SHAPE[1], SHAPE[2], SHAPE[3])
    target = np.zeros(shape, np.uint8)
    for _ in range(40):
        centre = rng.integers(10, np.array(shape) - 10)
        x, y, z = (np.arange(n) - c for c, n in zip(centre, shape, strict=True))
        squares = x[:, None, None] ** 2 + y[:, None] ** 2 + z**2
        target[squares <= rng.integers(1, 6) ** 2] = 1
    blurred = ndimage.gaussian_filter(target.astype(np.float32), 1.0) * 12 - 6
    noise = ndimage.gaussian_filter(rng.standard_normal(shape).astype(np.float32), 1.5) * 12
    image = np.zeros(SHAPE, np.int16)
    image[0] = (blurred + noise) / SCALE
    voxels = np.arange(target.size, dtype=np.int32)
    arrays = {"image": image, "target": target[None], "foreground_voxels": voxels}
    scale = np.full(SHAPE[0], SCALE, np.float32)
    geometry = Geometry(shape, np.eye(4), shape, np.eye(4), (0, 0, 0), shape)
    return PreparedCase(f"case{seed}", f"case{seed}", geometry, scale, (40,), arrays=arrays)


def compare_validations(device: torch.device, *, repeats: int, n_cases: int = 2) -> None:
    """Print how long a validation takes, with and without threads, and its predictions alone."""
    network = to_device(AsTheFirstChannel().eval(), device)
    cases = [a_case(seed) for seed in range(n_cases)] * 4
    inference = Inference(patch_size=SIDE)

    def validated(*, in_thread: bool) -> None:
        # Whatever validation asks for.
        def ahead(items: Any, read: Any, **_: bool) -> Any:
            return read_ahead(items, read, in_thread=in_thread)

        def behind(**_: bool) -> OneBehind:
            return OneBehind(in_thread=in_thread)

        with mock.patch.multiple(validation, read_ahead=ahead, OneBehind=behind):
            validation.validate(
                network, cases=cases, classes=("lesion",), inference=inference, precision="bf16"
            )

    def predicted() -> None:
        for case in cases:
            loaded = load_case(case, device)
            predict_by_windows(
                network,
                loaded.image,
                inference.windows,
                image_scale=loaded.image_scale,
                precision="bf16",
            )

    calls = {
        "threads": partial(validated, in_thread=True),
        "one after the other": partial(validated, in_thread=False),
        "predictions alone": predicted,
    }
    times = in_turn(calls, repeats, device)
    words = ", ".join(f"{name} {value:.2f} s" for name, value in times.items())
    print(f"\nValidation of {len(cases)} cases: {words}")
