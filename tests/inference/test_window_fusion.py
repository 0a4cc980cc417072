"""Fusion of windows: the same bits as a plain loop, no wait for a GPU, and what a full one does."""

import itertools
import logging
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.cuda import no_host_waits, on_gpu
from helpers.networks import Constant, Local, an_image
from tversky_seg.inference import window_fusion, window_memory
from tversky_seg.inference.sliding_window import SlidingWindow, predict_volume
from tversky_seg.inference.window_fusion import WindowNetwork, fuse
from tversky_seg.inference.window_memory import windows_at_once
from tversky_seg.inference.window_weights import window_weights
from tversky_seg.models import UNet3D
from tversky_seg.runtime.devices import to_device

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
VIEWS = [(), (0,), (1, 2)]


def corners(shape: tuple[int, ...], side: int) -> list[tuple[int, ...]]:
    starts = [sorted({*range(0, n - side, side // 2), n - side}) for n in shape]
    return list(itertools.product(*starts))


@torch.no_grad()
def plain_loop(
    network: nn.Module, image: Tensor, scale: Tensor, *, side: int, batch_size: int
) -> Tensor:
    """Predict with three views, one step a line."""
    weights = window_weights("bspline", (side,) * 3)
    total = torch.zeros(1, *image.shape[1:])
    sums = torch.zeros(image.shape[1:])
    passes = list(itertools.product(corners(image.shape[1:], side), VIEWS))
    for begin in range(0, len(passes), batch_size):
        batch = passes[begin : begin + batch_size]
        windows = []
        for corner, view in batch:
            box = [slice(c, c + side) for c in corner]
            window = image[:, *box].float() * scale.view(-1, 1, 1, 1)
            windows.append(window.flip([axis + 1 for axis in view]))
        probabilities = network(torch.stack(windows)).sigmoid()
        for (corner, view), probability in zip(batch, probabilities, strict=True):
            box = [slice(c, c + side) for c in corner]
            total[:, *box].addcmul_(probability.flip([axis + 1 for axis in view]), weights)
    for corner in corners(image.shape[1:], side):
        sums[tuple(slice(c, c + side) for c in corner)] += weights
    return (total / (3 * sums)).clamp(0, 1)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_on_the_cpu_it_has_the_bits_of_a_plain_loop(batch_size: int) -> None:
    torch.manual_seed(0)
    network = to_device(UNet3D(in_channels=2, out_channels=1, n_levels=2).eval(), CPU)
    image = (1000 * an_image(2, 24, 20, 17)).to(torch.int16)
    scale = torch.tensor([0.001, 0.002])
    expected = plain_loop(network, image, scale, side=16, batch_size=batch_size)
    settings: dict[str, Any] = {"patch_size": 16, "tta": ["none", "x", "yz"]}
    probability = predict_volume(
        network, image, image_scale=scale, batch_size=batch_size, **settings
    )
    assert torch.equal(probability, expected)


class Calls(TorchDispatchMode):
    """Counts the calls of torch's own functions."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.counts[str(func.overloadpacket)] += 1
        return func(*args, **(kwargs or {}))


def calls_of(shape: tuple[int, ...], **settings: Any) -> Counter[str]:
    with Calls() as calls:
        predict_volume(Constant(), an_image(1, *shape), patch_size=8, **settings)
    return calls.counts


def test_no_window_waits_and_each_costs_few_calls() -> None:
    predict_volume(Local(), an_image(1, 8, 8, 8), patch_size=8)  # makes the weights of the windows
    few = calls_of((8, 8, 12), batch_size=1, tta="flips8")
    many = calls_of((8, 8, 40), batch_size=1, tta="flips8")
    per_pass = {}
    for name in many:
        per_pass[name] = (many[name] - few[name]) / (8 * (9 - 2))
    waits = {"aten._local_scalar_dense", "aten._to_copy", "aten.nonzero", "aten.equal", "aten.item"}
    assert not [name for name in waits if per_pass.get(name)], per_pass
    assert per_pass["aten.mul"] == 1, "windows are cut out, converted and scaled in one call"
    assert per_pass["aten.addcmul_"] == 1
    computing = {name: n for name, n in per_pass.items() if name not in VIEWS_OF_TENSORS}
    assert sum(computing.values()) < 8, computing


VIEWS_OF_TENSORS = ("aten.slice", "aten.select", "aten.expand", "aten.unbind", "aten.view")


def test_all_windows_go_into_one_tensor_channels_last() -> None:
    seen = []

    class Watching(Local):
        def forward(self, image: Tensor) -> Tensor:
            seen.append((image.data_ptr(), len(image)))
            assert image.is_contiguous(memory_format=torch.channels_last_3d)
            return super().forward(image)

    predict_volume(Watching(), an_image(2, 24, 24, 24), patch_size=8, batch_size=50)
    assert [n for _, n in seen] == [50, 50, 25]
    assert len({pointer for pointer, _ in seen}) == 1


# How many at once


def test_auto_is_two_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert windows_at_once("auto", 27, (96, 96, 96), CPU) == 2
    assert windows_at_once("auto", 1, (96, 96, 96), CPU) == 1
    assert windows_at_once(5, 27, (96, 96, 96), CUDA) == 5
    assert windows_at_once(50, 27, (96, 96, 96), CUDA) == 27


@pytest.mark.parametrize(
    ("free_gib", "n_windows", "side", "expected"),
    [
        (70, 27, 96, 9),  # three batches of 9
        (70, 10, 96, 5),  # two of 5, not 9 and 1
        (70, 500, 32, 16),
        (70, 27, 128, 4),
        (4, 27, 96, 2),
        (0, 27, 96, 1),
    ],
)
def test_auto_follows_the_free_memory_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, free_gib: int, n_windows: int, side: int, expected: int
) -> None:
    monkeypatch.setattr(window_memory, "_free_bytes", lambda device, enough=0: free_gib * 2**30)
    assert windows_at_once("auto", n_windows, (side,) * 3, CUDA) == expected


# A full GPU


class OnFullGpu(WindowNetwork):
    """A network on a GPU, played by the CPU, that has room for so many windows at once."""

    room = 0
    batches: list[tuple[str, int]]

    def probabilities(self, windows: Tensor) -> Tensor:
        type(self).batches.append((self.device.type, len(windows)))
        if self.device.type == "cuda" and len(windows) > self.room:
            raise RuntimeError("GET was unable to find an engine to execute this computation")
        return self.network(windows).sigmoid()

    def on_the_host(self) -> WindowNetwork:
        copied = super().on_the_host()
        return OnFullGpu(copied.network, copied.scale, copied.device, copied.precision)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A device called cuda whose tensors lie on the host; lists where the volume moves."""
    moves = []

    def moved(tensor: Tensor, device: torch.device) -> Tensor:
        if tensor.dtype == torch.int16:
            moves.append(device.type)
        return tensor

    monkeypatch.setattr(window_fusion, "_moved", moved)
    monkeypatch.setattr(window_memory, "_free_bytes", lambda device, enough=0: 2**40)
    return moves


def integers(*shape: int) -> Tensor:
    return (3 * an_image(*shape)).to(torch.int16)


def fuse_on_gpu(network: nn.Module, image: Tensor, *, room: int, **settings: Any) -> Tensor:
    OnFullGpu.room, OnFullGpu.batches = room, []
    on_gpu = OnFullGpu(network, torch.ones(len(image), 1, 1, 1), CUDA, "fp32")
    windows = SlidingWindow(8)
    grid = windows.grid(corners(tuple(image.shape[1:]), 8), (8, 8, 8))
    return fuse(on_gpu, image, grid, batch_size=8, **settings)


def test_on_a_full_gpu_the_batch_is_halved_then_the_sums_and_the_network_go_to_the_host(
    gpu: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    image = integers(1, 16, 12, 8)
    network = UNet3D(in_channels=1, out_channels=1, n_levels=2, norm="batch").eval()
    expected = predict_volume(network, image, patch_size=8)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for room, first_batches in ((2, [6, 3]), (0, [6, 3, 1, 1])):
        caplog.clear()
        gpu.clear()
        probability = fuse_on_gpu(network, image, room=room)
        torch.testing.assert_close(probability, expected, atol=1e-5, rtol=0)
        tried = OnFullGpu.batches
        assert tried[: len(first_batches)] == [("cuda", n) for n in first_batches]
        assert {kind for kind, _ in tried[len(first_batches) :]} == {"cuda" if room else "cpu"}
        assert gpu == ["cuda"] if room else ["cuda", "cpu"]
        assert [record.levelname for record in caplog.records] == ["WARNING"]
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), "the network itself stays as it is"


def test_a_network_that_may_not_leave_its_gpu_is_out_of_memory(gpu: list[str]) -> None:
    with pytest.raises(RuntimeError, match="engine"):
        fuse_on_gpu(Local(), integers(1, 16, 8, 8), room=0, may_leave_device=False)


def test_volume_and_sums_start_on_the_host_where_a_gpu_says_that_they_do_not_fit(
    gpu: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = integers(1, 16, 12, 8)
    monkeypatch.setattr(window_memory, "_free_bytes", lambda device, enough=0: image.nbytes)
    with caplog.at_level(logging.WARNING):
        probability = fuse_on_gpu(Local(), image, room=8)
    assert gpu == ["cpu"]
    assert {kind for kind, _ in OnFullGpu.batches} == {"cuda"}
    torch.testing.assert_close(probability, predict_volume(Local(), image, patch_size=8))
    assert not caplog.records


# On a card


def a_gpu_case() -> tuple[nn.Module, np.ndarray, dict[str, Any]]:
    torch.manual_seed(0)
    network = UNet3D(in_channels=2, out_channels=1, n_levels=3, width=8).eval()
    image = (1000 * an_image(2, 70, 66, 50)).to(torch.int16).numpy()
    settings = {"patch_size": 32, "image_scale": [0.001, 0.0015], "tta": ["none", "xy"]}
    return network, image, settings


@on_gpu
@pytest.mark.parametrize("batch_size", [1, 5, "auto"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_a_gpu_gives_the_values_of_the_cpu(
    batch_size: int | str, precision: str, tolerance: float
) -> None:
    network, image, settings = a_gpu_case()
    expected = predict_volume(network, image, batch_size=2, **settings)
    network.to(CUDA)
    settings |= {"batch_size": batch_size, "precision": precision}
    probability = predict_volume(network, image, **settings)
    assert probability.device.type == "cpu"
    torch.testing.assert_close(probability, expected, atol=tolerance, rtol=0)
    added = torch.full_like(expected, 0.25)
    predict_volume(network, image, **settings, into=added, share=0.5)
    torch.testing.assert_close(added, 0.25 + 0.5 * expected, atol=tolerance, rtol=0)


@on_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_host_waits_for_no_window(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    network, image, settings = a_gpu_case()
    network.to(CUDA)
    settings |= {"precision": precision, "batch_size": 4}
    expected = predict_volume(network, image, **settings)
    run = window_fusion._Fusion.run

    def without_waits(fusion: Any) -> Tensor:
        with no_host_waits():
            return run(fusion)

    monkeypatch.setattr(window_fusion._Fusion, "run", without_waits)
    assert torch.equal(predict_volume(network, image, **settings), expected)


@on_gpu
@pytest.mark.parametrize("share", [0.25, 0.12])
def test_prediction_survives_with_a_share_of_the_memory_it_would_like(share: float) -> None:
    network = UNet3D(in_channels=2, out_channels=1, width=8).eval().to(CUDA)
    image = an_image(2, 96, 96, 96)
    settings: dict[str, Any] = {"patch_size": 64, "batch_size": 8}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    expected = predict_volume(network, image, **settings)
    peak = torch.cuda.max_memory_allocated()
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(share * peak / whole)
    try:
        probability = predict_volume(network, image, **settings)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    torch.testing.assert_close(probability, expected, atol=1e-4, rtol=0)
