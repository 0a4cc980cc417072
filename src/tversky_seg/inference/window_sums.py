"""Sums of the weights of overlapping windows, in boxes of a volume."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Sides = tuple[int, int, int]
Box = tuple[slice, slice, slice]


def add_weights(sums: Tensor, weights: Tensor, corner: Sides, *, first_plane: int) -> None:
    """Add a window's weights to a slab (n, Y, Z) that begins at a plane."""
    x, y, z = corner
    depth, height, width = weights.shape
    # The planes that window and slab have in common.
    low = max(x, first_plane)
    high = min(x + depth, first_plane + len(sums))
    if low < high:
        planes = sums[low - first_plane : high - first_plane, y : y + height, z : z + width]
        planes += weights[low - x : high - x]


def sum_of_weights(box: Box, corners: Sequence[Sides], weights: Tensor) -> Tensor:
    """Sum the weights of all windows inside the box of one of them, (x, y, z)."""
    sums = torch.zeros_like(weights)
    for corner in corners:
        in_box = []
        in_window = []
        for start, side, n in zip(corner, box, weights.shape, strict=True):
            # A window that begins 3 voxels later covers our voxels from 3 on with its first ones.
            offset = start - side.start
            in_box.append(slice(max(offset, 0), n + min(offset, 0)))
            in_window.append(slice(max(-offset, 0), n - max(offset, 0)))
        if all(side.start < side.stop for side in in_box):
            sums[tuple(in_box)] += weights[tuple(in_window)]
    return sums
