"""Augmentation on a GPU by two Triton kernels, in place of dozens of passes over a patch."""

from __future__ import annotations

import math
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tversky_seg.data.grids import Shape
from tversky_seg.data.patches.spatial import Places

BLOCK = 512
"""Voxels that a program computes."""

SIDE = 8
"""Side of the cube of voxels that a program moves."""


def can_fuse(values: Tensor) -> bool:
    """Tell whether the kernels exist for the device of a tensor; if not, torch does the same."""
    return values.is_cuda and type(values) is Tensor and _has_kernels(values.device)


@cache
def _has_kernels(device: torch.device) -> bool:
    """Tell whether Triton is there, works, and supports a GPU: compute capability 8.0 or later."""
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    channel = torch.zeros(1, 1, 1, device=device)
    try:
        change_values(channel, channel.byte(), scale=2.0)
    except ImportError:
        return False
    except Exception as error:  # Triton needs a C compiler and Python's headers
        warnings.warn(f"augmentation without kernels, since Triton failed: {error}", stacklevel=2)
        return False
    return True


def move(
    image: Tensor, scale: Tensor, labels: Tensor | None, places: Places, size: Shape
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Resample a box to a patch.

    Args:
        image: (C, x, y, z) integers.
        scale: (C,) factors from these to intensities.
        labels: (K, x, y, z) integers; None: only the image.
        places: Where in the box the voxels of the patch come from.
        size: Sides of the patch.

    Returns:
        The image (C, *size) float32, interpolated linearly, 0 outside the box; the labels of the
        nearest voxels (K, *size); and the brain (*size) uint8, 1 where any channel is not 0.
    """
    from tversky_seg.data.patches.change_kernels import move_kernel

    moved = scale.new_empty((len(image), *size))
    brain = image.new_empty(size, dtype=torch.uint8)
    moved_labels = None if labels is None else labels.new_empty((len(labels), *size))
    displacement = None
    if places.displacement is not None:
        displacement = places.displacement.values().contiguous()
    # Triton launches on the current device, whatever device the tensors are on.
    with torch.cuda.device_of(image):  # type: ignore[no-untyped-call]
        move_kernel[(math.prod(-(-n // SIDE) for n in size),)](
            image,
            scale,
            labels,
            places.by_x,
            places.by_y,
            places.by_z,
            displacement,
            moved,
            moved_labels,
            brain,
            *image.shape[1:],
            *size,
            len(image),
            0 if labels is None else len(labels),
            IS_ELASTIC=displacement is not None,
            WITH_LABELS=labels is not None,
            SIDE=SIDE,
        )
    return moved, moved_labels, brain


def change_values(
    channel: Tensor,
    brain: Tensor,
    *,
    gamma: float | None = None,
    contrast: float | None = None,
    scale: float | None = None,
    shift: float | None = None,
    noise_ranks: Tensor | None = None,
    noise_sd: float = 0.0,
    quantiles: Tensor | None = None,
) -> None:
    """Change the values of a channel (X, Y, Z) in place, as `intensity.IntensityChange` does."""
    from tversky_seg.data.patches.change_kernels import values_kernel

    low, high = None, None
    if gamma is not None or contrast is not None:
        low, high = channel.aminmax()
    with torch.cuda.device_of(channel):  # type: ignore[no-untyped-call]
        values_kernel[_n_programs(channel)](
            channel,
            brain,
            low,
            high,
            noise_ranks,
            quantiles,
            channel.numel(),
            _drawn_or(gamma, 1.0),
            _drawn_or(contrast, 0.0),
            _drawn_or(scale, 1.0),
            _drawn_or(shift, 0.0),
            noise_sd,
            HAS_RANGE=low is not None,
            HAS_NOISE=noise_ranks is not None,
            BLOCK=BLOCK,
        )


def _drawn_or(value: float | None, neutral: float) -> float:
    return neutral if value is None else float(value)


def _n_programs(patch: Tensor) -> tuple[Any]:
    return (-(-patch.numel() // BLOCK),)
