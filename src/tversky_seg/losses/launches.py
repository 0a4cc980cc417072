"""Calls of the Triton kernels: where the voxels lie in memory, and how programs share them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tversky_seg.losses import kernels

BLOCK = 1024
"""Voxels that a program holds at a time."""
MAX_PROGRAMS = 1024
"""Programs per row; each takes every n-th block of it."""


@dataclass(frozen=True)
class Rows:
    """Arguments of a kernel: logits, target and weight as rows, each where it lies.

    Attributes:
        logits: (B, C, X, Y, Z), as they came.
        tensors: Logits, target and weight as rows (B, C, N): views where the voxels can be counted
            with one stride, else copies. Without weight the logits stand in its place.
        strides: Steps in memory between samples, classes and voxels of each of the three.
        is_weighted: Whether there is a weight.
    """

    logits: Tensor
    tensors: tuple[Tensor, Tensor, Tensor]
    strides: tuple[int, ...]
    is_weighted: bool

    @classmethod
    def of(cls, logits: Tensor, target: Tensor, weight: Tensor | None) -> Rows:
        """Flatten logits and target (B, C, X, Y, Z) and a weight that broadcasts to them."""
        x = logits.flatten(2)
        g = _readable(target).flatten(2)
        w = x
        if weight is not None:
            w = _readable(weight).expand(logits.shape).flatten(2)
        strides = (*x.stride(), *g.stride(), *w.stride())
        return cls(logits, (x, g, w), strides, weight is not None)

    @property
    def n_voxels(self) -> int:
        """Voxels of a row."""
        return self.tensors[0].shape[2]

    @property
    def n_rows(self) -> int:
        """Samples times classes."""
        return self.logits.shape[0] * self.logits.shape[1]

    @cached_property
    def n_programs(self) -> int:
        """Programs per row."""
        return min(math.ceil(self.n_voxels / BLOCK), MAX_PROGRAMS)

    @property
    def grid(self) -> tuple[int]:
        """Programs in all."""
        return (self.n_rows * self.n_programs,)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Voxels and programs of a row, and classes."""
        return self.n_voxels, self.n_programs, self.logits.shape[1]


def _empty_gradient(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Make a tensor like the logits, in their memory format, and its view as rows (B, C, N)."""
    gradient = torch.empty_like(logits)
    rows = gradient.flatten(2)
    if rows.data_ptr() != gradient.data_ptr():
        # Axes in an unusual order: the rows are a copy, not a view.
        gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
        rows = gradient.flatten(2)
    return gradient, rows


def _readable(values: Tensor) -> Tensor:
    """View bool as bytes: Triton's bool is one bit."""
    return values.view(torch.uint8) if values.dtype == torch.bool else values


def partial_soft_sums(rows: Rows, *, squared: bool) -> Tensor:
    """Add up w p g, w p and w g (squared: w p g, w p^2, w g^2), (3, rows, programs per row)."""
    partials = rows.logits.new_empty((3, rows.n_rows, rows.n_programs), dtype=torch.float32)
    kernels.soft_sums[rows.grid](
        *rows.tensors,
        partials,
        *rows.sizes,
        *rows.strides,
        partials.stride(0),
        WEIGHTED=rows.is_weighted,
        SQUARED=squared,
        BLOCK=BLOCK,
    )
    return partials


def tversky_indices(
    partials: Tensor, *, n_ratios: int, alpha: float, beta: float, smooth: float
) -> tuple[Tensor, Tensor]:
    """Compute Tversky indices of partial sums (3, R, programs per row).

    Args:
        partials: Sums of `partial_soft_sums`.
        n_ratios: R: an index of each row; number of classes: an index of each class.
        alpha: Weight of false positives.
        beta: Weight of false negatives.
        smooth: Voxels added to numerator and denominator, > 0.

    Returns:
        The indices, (n_ratios,), and their slopes by the sums of w p g and w p, (2, n_ratios).
    """
    indices = partials.new_empty(n_ratios)
    slopes = partials.new_empty((2, n_ratios))
    _, n_rows, n_programs = partials.shape
    kernels.tversky_indices[(n_ratios,)](
        partials,
        indices,
        slopes,
        n_rows,
        n_programs,
        partials.stride(0),
        n_ratios,
        float(alpha),
        float(beta),
        float(smooth),
        LANES=MAX_PROGRAMS,
    )
    return indices, slopes


def soft_sums_gradient(
    rows: Rows, slopes: Tensor, scale: Tensor | None, *, squared: bool
) -> Tensor:
    """Compute the gradient by the logits from the slopes by the sums.

    Args:
        rows: Logits, target and weight.
        slopes: Slopes of a value by the sums of w p g and w p, first on axis 0, then one for each
            row, or one for each class, contiguous.
        scale: Slopes of the loss by these values, contiguous; None: 1.

    Returns:
        (B, C, X, Y, Z) in the type and memory format of the logits.
    """
    gradient, of_rows = _empty_gradient(rows.logits)
    kernels.soft_sums_gradient[rows.grid](
        *rows.tensors,
        of_rows,
        slopes,
        slopes if scale is None else scale,
        *rows.sizes,
        *rows.strides,
        *of_rows.stride(),
        slopes[0].numel(),
        WEIGHTED=rows.is_weighted,
        SCALED=scale is not None,
        SQUARED=squared,
        BLOCK=BLOCK,
    )
    return gradient


def partial_focal_sums(rows: Rows, *, alpha: float | None, gamma: float) -> Tensor:
    """Add up the focal loss, (rows, programs per row)."""
    partials = rows.logits.new_empty((rows.n_rows, rows.n_programs), dtype=torch.float32)
    kernels.focal_sums[rows.grid](
        *rows.tensors,
        partials,
        *rows.sizes,
        *rows.strides,
        **_focal_settings(alpha, gamma),
        WEIGHTED=rows.is_weighted,
        BLOCK=BLOCK,
    )
    return partials


def focal_gradient(rows: Rows, scale: Tensor, *, alpha: float | None, gamma: float) -> Tensor:
    """Compute the gradient of the focal loss's sum by the logits, times `scale` (one number).

    Returns:
        (B, C, X, Y, Z) in the type and memory format of the logits.
    """
    gradient, of_rows = _empty_gradient(rows.logits)
    kernels.focal_gradient[rows.grid](
        *rows.tensors,
        of_rows,
        scale,
        *rows.sizes,
        *rows.strides,
        *of_rows.stride(),
        **_focal_settings(alpha, gamma),
        WEIGHTED=rows.is_weighted,
        BLOCK=BLOCK,
    )
    return gradient


def _focal_settings(alpha: float | None, gamma: float) -> dict[str, Any]:
    lesion = 1.0
    background = 1.0
    if alpha is not None:
        lesion = float(alpha)
        background = 1.0 - alpha
    power = int(gamma) if gamma in (0, 1, 2) else -1
    return {"lesion": lesion, "background": background, "gamma": float(gamma), "POWER": power}
