"""Volumes of any size from overlapping windows: where they lie, how they are weighted, views of them, one mean."""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn.functional import pad

from tversky_seg.inference.tta import View, views
from tversky_seg.runtime.devices import autocast, to_device

logger = logging.getLogger("tversky_seg")

Sides = tuple[int, int, int]
Window = str | Callable[[int], ArrayLike] | NDArray[Any] | Tensor
SLAB = 16  # planes whose weights are summed at once
SMALLEST_HALVED = 64  # voxels of the longest side of a window that did not fit and may be halved


def spline_window(n: int, *, order: int = 2) -> NDArray[np.float64]:
    """Spline weights along one side of n voxels, in (0, 1]: with n even and 50 % overlap, neighbours add up to 1.

    Order 2 is the window of Hashemi et al. (arXiv:1803.11078, released code). That code divides the fused map by 4
    where 8 windows meet, so its probabilities are twice too large and its threshold of 0.5 is one of 0.25; here the map
    is divided by the weights that were in fact added up.
    """
    place = np.arange(n, dtype=np.float64) + 0.5
    ramp = np.minimum(place, n - place) * 2 / n  # a triangle, 1 in the centre
    return np.where(ramp <= 0.5, (2 * ramp) ** order / 2, 1 - (2 - 2 * ramp) ** order / 2)


def gaussian_window(n: int, *, sigma: float = 0.125) -> NDArray[np.float64]:
    """Gaussian weights along one side of n voxels, sigma as a share of the side (MONAI and nnU-Net take 1/8)."""
    offset = np.arange(n, dtype=np.float64) - (n - 1) / 2
    weights: NDArray[np.float64] = np.exp(-0.5 * (offset / (sigma * n)) ** 2)
    return weights


WINDOWS: Mapping[str, Callable[[int], ArrayLike]] = {
    "bspline": spline_window,
    "gaussian": gaussian_window,
    "uniform": np.ones,
}


def predict_volume(
    network: nn.Module,
    image: Tensor | NDArray[Any],
    *,
    patch_size: int | Sequence[int] | str,
    overlap: float = 0.5,
    window: Window = "bspline",
    batch_size: int = 1,
    tta: str | Sequence[str] = "none",
    foreground: Tensor | NDArray[Any] | None = None,
    image_scale: ArrayLike | None = None,
    device: torch.device | str | None = None,
    precision: str = "fp32",
    into: Tensor | None = None,
    share: float = 1.0,
) -> Tensor:
    """Probability of each class in each voxel of a volume of any size, from overlapping windows.

    Windows lie on a grid from the first voxel on, the last one pushed back to the border; a volume smaller than the
    window is padded with 0. Each voxel's probability is the weighted mean over the windows that cover it and their
    views. The network runs in eval mode (each module's mode is put back), laid out as it is fastest on the device, and
    is not otherwise touched. On a full CUDA device fewer windows are taken at once, then the sums move to the host,
    with one warning. Beside the network and the image, one float32 volume of the output's shape is held.

    Args:
        network: (B, C, *patch_size) -> logits (B, K, *patch_size).
        image: (C, X, Y, Z), as in training.
        patch_size: Sides of a window in voxels, one number or three; "whole": the volume in one window, halved with a
            warning as often as a CUDA device runs out of memory.
        overlap: Share of a window's side that the next one covers again, in [0, 1).
        window: Weights: "bspline", "gaussian", "uniform", a function from the side n to n weights, or an array of the
            window's shape. All must be positive.
        batch_size: Windows, or views of them, that go through the network together.
        tta: Views of each window: "none", "rotations180", "flips8", or a list as in `views.views`.
        foreground: (X, Y, Z) bool: windows without any of it are skipped, with the same result inside it. Voxels that
            no window covers get 0. None: all windows.
        image_scale: (C,) factors that the network's input is multiplied by, for images kept as integers; None: 1.
        device: Where to compute; the network is moved there. None: where the network is.
        precision: "fp32", "bf16" or "fp16" inside the network; sums are float32.
        into: (K, X, Y, Z) float32 on the CPU, to which `share` times the probability is added window by window, so that
            several networks need one volume; None: a new volume.
        share: As said; the shares of all that is added to a volume are 1 at most.

    Returns:
        (K, X, Y, Z) float32 on the CPU, in [0, 1]; `into` where that is given.

    Raises:
        ValueError: Arguments out of range, shapes that do not match, or a network that gives NaN.
    """
    check_windows(patch_size, overlap, window, batch_size)
    volume = _as_volume(image)
    settings: dict[str, Any] = {
        "overlap": overlap,
        "window": window,
        "batch_size": batch_size,
        "tta": tta,
        "foreground": foreground,
    }
    device = _device_of(network) if device is None else torch.device(device)
    run = partial(
        _predict,
        network,
        volume,
        image_scale=image_scale,
        device=device,
        precision=precision,
        **settings,
    )
    x, y, z = volume.shape[1:]
    is_whole = isinstance(patch_size, str)
    if into is not None and not is_whole and all(np.less_equal(_sides(patch_size), (x, y, z))):
        return run(sides=_sides(patch_size), into=into, share=share)
    probability = _whole(run, (x, y, z)) if is_whole else run(sides=_sides(patch_size))
    return probability if into is None else into.add_(probability, alpha=share)


def _as_volume(image: Tensor | NDArray[Any]) -> Tensor:
    """(C, X, Y, Z): float32, or int16 as it is."""
    if not isinstance(image, Tensor):
        kept = np.int16 if image.dtype == np.int16 else np.float32
        image = torch.from_numpy(np.require(image, kept, ["C", "W"]))
    if image.ndim != 4:
        raise ValueError(f"image must have the shape (C, X, Y, Z), got {tuple(image.shape)}")
    return image


def _whole(run: Callable[..., Tensor], sides: Sides) -> Tensor:
    """The volume in one window, or in the largest halves of it that fit into memory."""
    while True:
        try:
            return run(sides=sides)
        except torch.OutOfMemoryError:
            if max(sides) < SMALLEST_HALVED:
                raise
            sides = (-(-sides[0] // 2), -(-sides[1] // 2), -(-sides[2] // 2))
            logger.warning(
                "out of memory for the whole volume: windows of %s voxels instead", list(sides)
            )


def _predict(
    network: nn.Module,
    volume: Tensor,
    *,
    sides: Sides,
    overlap: float,
    window: Window,
    batch_size: int,
    tta: str | Sequence[str],
    foreground: Tensor | NDArray[Any] | None,
    image_scale: ArrayLike | None,
    device: torch.device,
    precision: str,
    into: Tensor | None = None,
    share: float = 1.0,
) -> Tensor:
    """As `predict_volume`, for one size of windows."""
    shape = volume.shape[1:]
    missing = [max(side - n, 0) for side, n in zip(sides, shape, strict=True)]
    before = [n // 2 for n in missing]
    if any(missing):
        volume = pad(
            volume,
            [n for b, m in zip(before[::-1], missing[::-1], strict=True) for n in (b, m - b)],
        )
    corners = _corners(volume.shape[1:], sides, overlap)
    if foreground is not None:
        corners = _with_foreground(corners, foreground, sides=sides, shape=shape, before=before)
    weights, seen = _weights(window, sides), views(tta)
    scale = (
        torch.ones(len(volume))
        if image_scale is None
        else torch.as_tensor(image_scale, dtype=torch.float32)
    )
    with _evaluating(to_device(network, device)):
        forward = partial(
            _forward, network, scale=scale.view(-1, 1, 1, 1), device=device, precision=precision
        )
        how: dict[str, Any] = {"views": seen, "batch_size": batch_size, "device": device}
        if into is not None:
            return _fuse(forward, volume, corners, weights, into=into, share=share, **how)
        probability = _fuse(forward, volume, corners, weights, **how)
    x, y, z = (slice(b, b + n) for b, n in zip(before, shape, strict=True))
    return probability[:, x, y, z].contiguous()


def check_windows(
    patch_size: int | Sequence[int] | str | None, overlap: float, window: Window, batch_size: int
) -> None:
    """ValueError for settings of windows that make no sense."""
    if patch_size is not None and patch_size != "whole":
        _sides(patch_size)
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must lie in [0, 1), got {overlap}")
    if isinstance(window, str) and window not in WINDOWS:
        raise ValueError(f"window must be one of {', '.join(WINDOWS)}, got {window}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")


def _sides(patch_size: int | Sequence[int] | str) -> Sides:
    sides: tuple[Any, ...] = (patch_size,) * 3 if isinstance(patch_size, int) else tuple(patch_size)
    if len(sides) != 3 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(
            f"patch_size must be one or three numbers >= 1, or whole, got {patch_size}"
        )
    return int(sides[0]), int(sides[1]), int(sides[2])


def _corners(shape: Sequence[int], sides: Sides, overlap: float) -> list[Sides]:
    """First voxels of the windows; no side of the volume is smaller than the window's."""
    steps = [max(int(side * (1 - overlap)), 1) for side in sides]
    last = [n - side for n, side in zip(shape, sides, strict=True)]
    x, y, z = ([*range(0, end, step), end] for end, step in zip(last, steps, strict=True))
    return list(itertools.product(x, y, z))


def _weights(window: Window, sides: Sides) -> Tensor:
    """The weight of each voxel of a window, (x, y, z) float32."""
    if isinstance(window, str):
        window = WINDOWS[window]
    if callable(window):
        x, y, z = (np.asarray(window(side), dtype=np.float64) for side in sides)
        window = x[:, None, None] * y[:, None] * z
    weights = torch.as_tensor(window, dtype=torch.float32)
    if weights.shape != sides or not (weights > 0).all():
        raise ValueError(
            f"window must give positive weights of shape {sides}, got shape {tuple(weights.shape)}"
        )
    return weights


def _with_foreground(
    corners: list[Sides],
    foreground: Tensor | NDArray[Any],
    *,
    sides: Sides,
    shape: Sequence[int],
    before: Sequence[int],
) -> list[Sides]:
    """The windows that hold a foreground voxel; the first one where none does, so that there is a result."""
    inside = np.asarray(foreground, dtype=bool)
    if inside.shape != tuple(shape):
        raise ValueError(
            f"foreground must have the image's shape {tuple(shape)}, got {inside.shape}"
        )
    boxes = (
        tuple(
            slice(max(c - b, 0), c - b + side)
            for c, b, side in zip(corner, before, sides, strict=True)
        )
        for corner in corners
    )
    return [
        corner for corner, box in zip(corners, boxes, strict=True) if inside[box].any()
    ] or corners[:1]


def _device_of(network: nn.Module) -> torch.device:
    tensors = itertools.chain(network.parameters(), network.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode, and afterwards each module's own mode again."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, is_training in modes:
            module.training = is_training


def _fuse(
    forward: Callable[..., list[Tensor]],
    volume: Tensor,
    corners: Sequence[Sides],
    weights: Tensor,
    *,
    views: Sequence[View],
    batch_size: int,
    device: torch.device,
    into: Tensor | None = None,
    share: float = 1.0,
) -> Tensor:
    """Weighted mean over windows and views, (K, X, Y, Z) float32 on the CPU; 0 where there is no window.

    What is added to a volume that is there is divided first, window by window, else the sum is at the end.
    """
    volume, weights = volume.to(device), weights.to(device)
    jobs = [(_box(corner, weights.shape), view) for corner in corners for view in views]
    total, factor, placed = into, weights, None
    done, has_warned = 0, False
    while done < len(jobs):
        batch = jobs[done : done + batch_size]
        try:
            probabilities = forward([(volume[:, *box], view) for box, view in batch])
        except torch.OutOfMemoryError:
            if batch_size == 1 and volume.device.type == "cpu":
                raise
            if batch_size == 1:
                volume, weights = volume.cpu(), weights.cpu()
                total = None if total is None else total.cpu()
            batch_size = max(batch_size // 2, 1)
            if not has_warned:
                logger.warning(
                    "out of memory on %s: fewer windows at once, sums on the host if need be",
                    device,
                )
            has_warned = True
            continue
        if total is None:
            total = torch.zeros(len(probabilities[0]), *volume.shape[1:], device=volume.device)
        for (box, _), probability in zip(batch, probabilities, strict=True):
            if into is not None and box != placed:  # the views of a window follow each other
                placed, factor = (
                    box,
                    weights * (share / len(views)) / _summed(box, corners, weights),
                )
            total[:, *box].addcmul_(probability.to(total.device), factor.to(total.device))
        done += len(batch)
    assert total is not None
    if into is None:
        _divide(total, corners, weights, n_views=len(views))
    if not torch.isfinite(total.sum()):
        raise ValueError("the network gave NaN; expected finite logits")
    return total.clamp_(0, 1).cpu()


def _divide(total: Tensor, corners: Sequence[Sides], weights: Tensor, *, n_views: int) -> None:
    """Divide in place by the weights that were added up, slab by slab, so that no second volume is held."""
    depth, n, m = weights.shape
    for start in range(0, total.shape[1], SLAB):
        slab = total[:, start : start + SLAB]
        sums = torch.zeros_like(slab[0])
        for x, y, z in corners:
            low, high = max(x, start), min(x + depth, start + len(sums))
            if low < high:
                sums[low - start : high - start, y : y + n, z : z + m] += weights[
                    low - x : high - x
                ]
        slab /= sums.mul_(n_views).clamp_(min=torch.finfo(torch.float32).tiny)


def _summed(box: tuple[slice, ...], corners: Sequence[Sides], weights: Tensor) -> Tensor:
    """The weights (x, y, z) that all windows add up to in the box of one of them."""
    sums = torch.zeros_like(weights)
    for corner in corners:
        offsets = [first - side.start for first, side in zip(corner, box, strict=True)]
        if all(abs(offset) < n for offset, n in zip(offsets, weights.shape, strict=True)):
            here = tuple(
                slice(max(o, 0), n + min(o, 0)) for o, n in zip(offsets, weights.shape, strict=True)
            )
            there = tuple(
                slice(max(-o, 0), n + min(-o, 0))
                for o, n in zip(offsets, weights.shape, strict=True)
            )
            sums[here] += weights[there]
    return sums


@torch.inference_mode()
def _forward(
    network: nn.Module,
    seen: Sequence[tuple[Tensor, View]],
    *,
    scale: Tensor,
    device: torch.device,
    precision: str,
) -> list[Tensor]:
    """Probabilities (K, x, y, z) float32 of some windows (C, x, y, z), each mirrored on the way in and back again."""
    windows = torch.stack(
        [_mirror(window.float() * scale.to(window.device), view) for window, view in seen]
    )
    with autocast(device, precision):
        logits = network(windows.to(device))
    if logits.ndim != 5 or logits.shape[2:] != windows.shape[2:]:
        raise ValueError(
            f"the network made {tuple(logits.shape)} of {tuple(windows.shape)}; expected equal sides"
        )
    probability = logits.float().sigmoid()
    return [
        _mirror(of_window, view) for of_window, (_, view) in zip(probability, seen, strict=True)
    ]


def _mirror(window: Tensor, view: View) -> Tensor:
    return window.flip([axis + 1 for axis in view]) if view else window


def _box(corner: Sides, sides: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(start, start + side) for start, side in zip(corner, sides, strict=True))
