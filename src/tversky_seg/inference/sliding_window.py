"""Sliding window: the probability of a volume of any size, from a network that sees a part."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn.functional import pad

from tversky_seg.inference.tta import View, views
from tversky_seg.inference.window_fusion import WindowGrid, WindowNetwork, fuse
from tversky_seg.inference.window_memory import AUTO
from tversky_seg.inference.window_sums import Sides
from tversky_seg.inference.window_weights import WINDOWS, Window, window_weights
from tversky_seg.runtime.devices import is_out_of_memory, to_device

logger = logging.getLogger("tversky_seg")

# A checkpoint may come from a stranger, and its overlap must not take days: windows of 64 at half
# overlap cover 2000^3 voxels with fewer.
MAX_WINDOWS = 2**18
SMALLEST_HALVED = 64  # voxels: a window of "whole" whose longest side is shorter is not halved


@dataclass(frozen=True, eq=False)
class SlidingWindow:
    """Windows that cover a volume: size, overlap and weights, and how they pass the network.

    Attributes:
        patch_size: Sides of a window in voxels, one number or three; "whole": the volume in one
            window, halved with a warning as often as memory runs out.
        overlap: Share of a window's side that the next window covers again, in [0, 1).
        window: Weights of a window's voxels: "bspline", "gaussian", "uniform", a function from the
            side n to n weights, or an array of the window's shape. All must be positive.
        spline_order: Order of the window "bspline", at least 1.
        batch_size: Number of windows, or views of them, that pass the network together; "auto": 2
            on the CPU, on CUDA as many as the free memory suggests.
        tta: Views of each window: "none", "rotations180", "flips8", or a list as in `tta.views`.

    Raises:
        ValueError: A value out of its range.
    """

    patch_size: int | Sequence[int] | str
    overlap: float = 0.5
    window: Window = "bspline"
    spline_order: int = 2
    batch_size: int | str = AUTO
    tta: str | Sequence[str] = "none"

    def __post_init__(self) -> None:
        if not self.is_whole:
            _check_sides(self.patch_size)
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap must lie in [0, 1), got {self.overlap}")
        if isinstance(self.window, str) and self.window not in WINDOWS:
            raise ValueError(f"window must be one of {', '.join(WINDOWS)}, got {self.window}")
        if self.spline_order < 1:
            raise ValueError(f"spline_order must be >= 1, got {self.spline_order}")
        _check_batch_size(self.batch_size)
        views(self.tta)

    @property
    def is_whole(self) -> bool:
        """Whether the volume is predicted in one window."""
        return isinstance(self.patch_size, str) and self.patch_size == "whole"

    @property
    def sides(self) -> Sides:
        """The three sides of a window in voxels; undefined for "whole"."""
        if isinstance(self.patch_size, int):
            return (self.patch_size, self.patch_size, self.patch_size)
        x, y, z = map(int, self.patch_size)
        return (x, y, z)

    @property
    def views(self) -> tuple[View, ...]:
        """The axes that each view mirrors."""
        return views(self.tta)

    def grid(self, corners: Sequence[Sides], sides: Sides) -> WindowGrid:
        """Weigh windows of these sides at these corners."""
        weights = window_weights(self.window, sides, spline_order=self.spline_order)
        return WindowGrid(corners, weights, self.views)


def predict_volume(
    network: nn.Module,
    image: Tensor | NDArray[Any],
    *,
    patch_size: int | Sequence[int] | str,
    overlap: float = 0.5,
    window: Window = "bspline",
    batch_size: int | str = AUTO,
    tta: str | Sequence[str] = "none",
    foreground: Tensor | NDArray[Any] | None = None,
    image_scale: ArrayLike | None = None,
    device: torch.device | str | None = None,
    precision: str = "fp32",
    into: Tensor | None = None,
    share: float = 1.0,
) -> Tensor:
    """Predict the probability of each class in each voxel of a volume, from overlapping windows.

    Args:
        network: Module (B, C, *patch_size) -> logits (B, K, *patch_size); sigmoid is applied here.
        image: (C, X, Y, Z), as in training.
        patch_size: Sides of a window in voxels, one number or three, or "whole".
        overlap: Share of a window's side that the next window covers again, in [0, 1).
        window: Weights of a window's voxels; see `SlidingWindow`.
        batch_size: Number of windows, or views of them, that pass the network together, or "auto".
        tta: Views of each window: "none", "rotations180", "flips8", or a list as in `tta.views`.
        foreground: As in `predict_by_windows`, like all that follows.
        image_scale: Factors for images kept as integers.
        device: Device to compute on.
        precision: "fp32", "tf32", "bf16" or "fp16".
        into: Volume to add the probability to.
        share: Weight of this network in `into`.

    Returns:
        (K, X, Y, Z) float32 on the CPU, in [0, 1]; `into` if that is given.

    Raises:
        ValueError: Arguments out of range, shapes that do not match, or a network that gives NaN.
    """
    # The interface for users, in plain arguments; inside, `SlidingWindow` holds those of windows.
    windows = SlidingWindow(
        patch_size=patch_size, overlap=overlap, window=window, batch_size=batch_size, tta=tta
    )
    return predict_by_windows(
        network,
        image,
        windows,
        foreground=foreground,
        image_scale=image_scale,
        device=device,
        precision=precision,
        into=into,
        share=share,
    )


def predict_by_windows(
    network: nn.Module,
    image: Tensor | NDArray[Any],
    windows: SlidingWindow,
    *,
    foreground: Tensor | NDArray[Any] | None = None,
    image_scale: ArrayLike | None = None,
    device: torch.device | str | None = None,
    precision: str = "fp32",
    into: Tensor | None = None,
    share: float = 1.0,
) -> Tensor:
    """Predict the probability of each class in each voxel of a volume, from overlapping windows.

    Windows lie on a grid from the first voxel on, the last one pushed back to the border; a volume
    smaller than the window is padded with 0. Each voxel's probability is the weighted mean over the
    windows that cover it and their views. The network runs in eval mode (each module's mode is
    restored), laid out as it is fastest on the device, and is not otherwise touched. On a full
    device fewer windows pass the network at once, then volume and sums move to the host, then a
    copy of the network does, with one warning. Besides the network and the image, one float32
    volume of the output's shape is held; on CUDA a second one where `into` is given.

    Args:
        network: Module (B, C, *sides) -> logits (B, K, *sides).
        image: (C, X, Y, Z), as in training.
        windows: Size, overlap and weights of the windows, and their views.
        foreground: (X, Y, Z) bool. Windows without any of it are skipped, with the same result
            inside it; voxels that no window covers get 0. None: all windows are predicted.
        image_scale: (C,) factors of the network's input, for images kept as integers; None: 1.
        device: Device to compute on; the network is moved there. None: the network's own device.
        precision: "fp32", "tf32", "bf16" or "fp16" inside the network; sums are float32.
        into: (K, X, Y, Z) float32 on the CPU. `share` times the probability is added to it window
            by window, so that several networks need one volume. None: a new volume.
        share: Weight of this network in `into`; the weights of all networks sum to 1.

    Returns:
        (K, X, Y, Z) float32 on the CPU, in [0, 1]; `into` if that is given.

    Raises:
        ValueError: Arguments out of range, shapes that do not match, or a network that gives NaN.
    """
    volume = _as_volume(image)
    device = device_of(network) if device is None else torch.device(device)
    # Prepared cases are kept as int16: half of float32.
    if image_scale is None:
        scale = torch.ones(len(volume))
    else:
        scale = torch.as_tensor(image_scale, dtype=torch.float32)
    on_device = WindowNetwork(
        to_device(network, device), scale.view(-1, 1, 1, 1), device, precision
    )
    with _evaluating(network):
        # A sum can be extended in place only on the same grid: without padding, in known windows.
        # On a GPU the sums stay there until they are complete.
        if windows.is_whole:
            probability = _predict_whole(on_device, volume, windows, foreground)
        elif into is None or device.type != "cpu" or _is_smaller_than(volume, windows.sides):
            probability = _predict_padded(on_device, volume, windows, windows.sides, foreground)
        else:
            corners = _corners(volume.shape[1:], windows.sides, windows.overlap)
            if foreground is not None:
                corners = _with_foreground(corners, foreground, windows.sides, volume.shape[1:])
            grid = windows.grid(corners, windows.sides)
            return fuse(
                on_device, volume, grid, batch_size=windows.batch_size, into=into, share=share
            )
    if into is None:
        return probability
    return into.add_(probability, alpha=share)


def _as_volume(image: Tensor | NDArray[Any]) -> Tensor:
    """Return (C, X, Y, Z) as float32, or int16 as it is."""
    if not isinstance(image, Tensor):
        dtype = np.int16 if image.dtype == np.int16 else np.float32
        # torch needs writable memory and positive strides.
        image = torch.from_numpy(np.require(image, dtype, ["C", "W"]))
    if image.ndim != 4:
        raise ValueError(f"image must have the shape (C, X, Y, Z), got {tuple(image.shape)}")
    return image if image.dtype == torch.int16 else image.float()


def _predict_whole(
    network: WindowNetwork,
    volume: Tensor,
    windows: SlidingWindow,
    foreground: Tensor | NDArray[Any] | None,
) -> Tensor:
    """Predict the volume in one window, or in the largest halves of it that fit into memory."""
    x, y, z = volume.shape[1:]
    while True:
        is_smallest = max(x, y, z) < SMALLEST_HALVED
        try:
            return _predict_padded(
                network, volume, windows, (x, y, z), foreground, may_leave_device=is_smallest
            )
        except Exception as error:
            if not is_out_of_memory(error) or is_smallest:
                raise
        # Here and not above, since the error keeps the tensors of the failed attempt alive.
        # Rounded up, so that two windows cover the side.
        x = (x + 1) // 2
        y = (y + 1) // 2
        z = (z + 1) // 2
        logger.warning("out of memory for the whole volume: using windows of %d x %d x %d", x, y, z)


def _predict_padded(
    network: WindowNetwork,
    volume: Tensor,
    windows: SlidingWindow,
    sides: Sides,
    foreground: Tensor | NDArray[Any] | None,
    *,
    may_leave_device: bool = True,
) -> Tensor:
    """Predict a new volume by windows of one size; a smaller volume is padded and cut again."""
    shape = volume.shape[1:]
    n_before, padding = _padding(shape, sides)
    if any(padding):
        volume = pad(volume, padding)
    corners = _corners(volume.shape[1:], sides, windows.overlap)
    if foreground is not None:
        corners = _with_foreground(corners, foreground, sides, shape, n_before=n_before)
    grid = windows.grid(corners, sides)
    probability = fuse(
        network,
        volume,
        grid,
        batch_size=windows.batch_size,
        may_leave_device=may_leave_device,
    )
    # Without the padding, and free of the padded volume's memory.
    x, y, z = (slice(start, start + n) for start, n in zip(n_before, shape, strict=True))
    return probability[:, x, y, z].contiguous()


def _padding(shape: Sequence[int], sides: Sides) -> tuple[Sides, list[int]]:
    """Compute the padding before each axis, and all of it in the order of torch's `pad`."""
    n_before: list[int] = []
    padding: list[int] = []
    for n, side in zip(shape, sides, strict=True):
        n_missing = max(side - n, 0)
        n_first = n_missing // 2
        n_before.append(n_first)
        # `pad` begins with the last axis.
        padding = [n_first, n_missing - n_first, *padding]
    x, y, z = n_before
    return (x, y, z), padding


def _is_smaller_than(volume: Tensor, sides: Sides) -> bool:
    return any(n < side for n, side in zip(volume.shape[1:], sides, strict=True))


def _check_sides(patch_size: int | Sequence[int] | str) -> None:
    if isinstance(patch_size, int):
        sides: Sequence[Any] = (patch_size,) * 3
    else:
        sides = tuple(patch_size)
    if len(sides) != 3 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(
            f"patch_size must be one or three numbers >= 1, or whole, got {patch_size}"
        )


def _check_batch_size(batch_size: int | str) -> None:
    is_number = isinstance(batch_size, int) and batch_size >= 1
    if batch_size != AUTO and not is_number:
        raise ValueError(f"batch_size must be auto or >= 1, got {batch_size}")


def _corners(shape: Sequence[int], sides: Sides, overlap: float) -> list[Sides]:
    """List the first voxels of the windows; no side of the volume is smaller than the window's.

    A side of 20 voxels with windows of 8 at half overlap: 0, 4, 8, and 12 at the border.
    """
    starts = []
    for n, side in zip(shape, sides, strict=True):
        # Rounded down, so that the overlap is at least what was asked for.
        step = max(int(side * (1 - overlap)), 1)
        last = n - side
        starts.append([*range(0, last, step), last])
    n_windows = math.prod(map(len, starts))
    if n_windows > MAX_WINDOWS:
        raise ValueError(
            f"overlap of {overlap} and patch_size of {list(sides)} make {n_windows} windows of a "
            f"volume of {list(shape)} voxels, expected at most {MAX_WINDOWS}"
        )
    return [(x, y, z) for x, y, z in itertools.product(*starts)]


def _with_foreground(
    corners: list[Sides],
    foreground: Tensor | NDArray[Any],
    sides: Sides,
    shape: Sequence[int],
    *,
    n_before: Sides = (0, 0, 0),
) -> list[Sides]:
    """Choose the windows that hold a foreground voxel.

    Args:
        corners: First voxels of windows in the padded volume.
        foreground: (X, Y, Z) bool, without padding.
        sides: Sides of a window.
        shape: Sides of the volume without padding.
        n_before: Padding before each axis.
    """
    inside = np.asarray(foreground, dtype=bool)
    if inside.shape != tuple(shape):
        raise ValueError(
            f"foreground must have the image's shape {tuple(shape)}, got {inside.shape}"
        )
    chosen = []
    for corner in corners:
        # The window's box in the volume without padding, where it may begin before the first voxel.
        box = []
        for start, n_padded, side in zip(corner, n_before, sides, strict=True):
            box.append(slice(max(start - n_padded, 0), start - n_padded + side))
        window = inside[tuple(box)]
        # Most windows are decided by a few voxels; only the others are searched through.
        if window[::8, ::8, ::8].any() or window.any():
            chosen.append(corner)
    # Without any foreground the first window stays, so that there is a result of the right shape.
    return chosen or corners[:1]


def device_of(network: nn.Module) -> torch.device:
    """Return the device of a network's weights; the CPU if it has none."""
    for tensor in itertools.chain(network.parameters(), network.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode, and afterwards restore each module's own mode."""
    in_training = [module for module in network.modules() if module.training]
    if in_training:
        network.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True
