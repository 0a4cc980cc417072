"""Calls of the Triton kernels: where the voxels lie in memory, and how programs share them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tversky_seg.losses import kernels

BLOCK = 1024
"""Voxels that a program holds at a time."""
MAX_PROGRAMS = 1024
"""Programs per row; each takes every n-th block of it."""


class Rows(NamedTuple):
    """Arguments of a kernel: logits, target and weight as rows, each where it lies.

    Attributes:
        tensors: Logits, target and weight as rows (B, C, N): views where the voxels can be counted
            with one stride, else copies. Without weight the logits stand in its place.
        strides: Steps in memory between samples, classes and voxels of each of the three.
        sizes: Voxels and programs of a row, and classes.
        n_rows: Samples times classes.
        is_weighted: Whether there is a weight.
    """

    tensors: tuple[Tensor, Tensor, Tensor]
    strides: tuple[int, ...]
    sizes: tuple[int, int, int]
    n_rows: int
    is_weighted: bool

    @classmethod
    def of(cls, logits: Tensor, target: Tensor, weight: Tensor | None) -> Rows:
        """Flatten logits and target (B, C, X, Y, Z) and a weight that broadcasts to them."""
        x = logits.flatten(2)
        g = _readable(target).flatten(2)
        # A kernel wants a pointer, though it reads nothing there without weight.
        w = x
        if weight is not None:
            w = _readable(weight).expand(logits.shape).flatten(2)
        n_samples, n_classes, n_voxels = x.shape
        return cls(
            tensors=(x, g, w),
            strides=(*x.stride(), *g.stride(), *w.stride()),
            # No more programs than blocks; beyond the limit a program takes several.
            sizes=(n_voxels, min(math.ceil(n_voxels / BLOCK), MAX_PROGRAMS), n_classes),
            n_rows=n_samples * n_classes,
            is_weighted=weight is not None,
        )

    @property
    def grid(self) -> tuple[int]:
        """Programs in all."""
        return (self.n_rows * self.sizes[1],)


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
    shape = (3, rows.n_rows, rows.sizes[1])
    partials = rows.tensors[0].new_empty(shape, dtype=torch.float32)
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


def tversky_loss(
    partials: Tensor, *, n_ratios: int, alpha: float, beta: float, smooth: float, exponent: float
) -> tuple[Tensor, Tensor]:
    """Compute the mean of (1 - Tversky index)^exponent from partial sums (3, R, programs per row).

    Args:
        partials: Sums of `partial_soft_sums`.
        n_ratios: R: an index of each row; number of classes: an index of each class.
        alpha: Weight of false positives.
        beta: Weight of false negatives.
        smooth: Voxels added to numerator and denominator, > 0.
        exponent: Power of each shortfall.

    Returns:
        The mean, a scalar, and its slopes by the sums of w p g and w p, (2, n_ratios).
    """
    loss = partials.new_empty(())
    slopes = partials.new_empty((2, n_ratios))
    _, n_rows, n_programs = partials.shape
    # One program: a handful of sums, and another kernel would cost more than it computes.
    kernels.tversky_loss[(1,)](
        partials,
        loss,
        slopes,
        n_rows,
        n_programs,
        n_rows * n_programs,
        n_ratios,
        float(alpha),
        float(beta),
        float(smooth),
        float(exponent),
        IS_POWER=exponent != 1,
        LANES=MAX_PROGRAMS,
    )
    return loss, slopes


def soft_sums_gradient(
    logits: Tensor, rows: Rows, slopes: Tensor, scale: Tensor | None, *, squared: bool
) -> Tensor:
    """Compute the gradient by the logits from the slopes by the sums.

    Args:
        logits: (B, C, X, Y, Z).
        rows: Logits, target and weight.
        slopes: Slopes by the sums of w p g and w p, first on axis 0, then one for each row or one
            for each class, contiguous.
        scale: Factor of the slopes, a scalar; None: 1.

    Returns:
        (B, C, X, Y, Z) in the type and memory format of the logits.
    """
    gradient, of_rows = _empty_gradient(logits)
    kernels.soft_sums_gradient[rows.grid](
        *rows.tensors,
        of_rows,
        slopes,
        # Without scale any pointer will do, since none is read.
        slopes if scale is None else scale,
        *rows.sizes,
        *rows.strides,
        *of_rows.stride(),
        slopes.numel() // len(slopes),
        WEIGHTED=rows.is_weighted,
        SCALED=scale is not None,
        SQUARED=squared,
        BLOCK=BLOCK,
    )
    return gradient


def partial_focal_sums(rows: Rows, *, alpha: float | None, gamma: float, share: float) -> Tensor:
    """Add up the focal loss times `share`, (rows, programs per row)."""
    shape = (rows.n_rows, rows.sizes[1])
    partials = rows.tensors[0].new_empty(shape, dtype=torch.float32)
    kernels.focal_sums[rows.grid](
        *rows.tensors,
        partials,
        *rows.sizes,
        *rows.strides,
        *_focal_settings(alpha, gamma),
        share,
        POWER=_integer_power(gamma),
        WEIGHTED=rows.is_weighted,
        BLOCK=BLOCK,
    )
    return partials


def focal_gradient(
    logits: Tensor,
    rows: Rows,
    scale: Tensor,
    *,
    alpha: float | None,
    gamma: float,
    share: float,
) -> Tensor:
    """Compute the gradient of the focal loss's sum by the logits, times `share` and `scale`.

    Returns:
        (B, C, X, Y, Z) in the type and memory format of the logits.
    """
    gradient, of_rows = _empty_gradient(logits)
    kernels.focal_gradient[rows.grid](
        *rows.tensors,
        of_rows,
        scale,
        *rows.sizes,
        *rows.strides,
        *of_rows.stride(),
        *_focal_settings(alpha, gamma),
        share,
        POWER=_integer_power(gamma),
        WEIGHTED=rows.is_weighted,
        BLOCK=BLOCK,
    )
    return gradient


def _focal_settings(alpha: float | None, gamma: float) -> tuple[float, float, float]:
    """Return the weights of lesion and background, and gamma."""
    if alpha is None:
        return 1.0, 1.0, float(gamma)
    return float(alpha), 1.0 - alpha, float(gamma)


def _integer_power(gamma: float) -> int:
    """Return gamma where that is 0, 1 or 2, else -1."""
    # These powers are products; any other takes a logarithm and an exponential.
    return int(gamma) if gamma in (0, 1, 2) else -1
