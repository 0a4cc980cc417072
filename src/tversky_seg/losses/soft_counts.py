"""Soft counts of voxels: every loss of the Tversky family is a formula of them.

Counts are float32 or wider, under any autocast: the sum of p over 64^3 voxels already exceeds the
largest fp16 number. On a GPU, kernels count (`losses.fused`). Elsewhere the backward pass is
written by hand and needs one tensor besides the arguments: p, over which it writes the gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tversky_seg.losses import fused
from tversky_seg.losses.checks import check_range, check_shapes
from tversky_seg.losses.global_batch import sum_over_processes

VOXELS_IN_CACHE = 2**17
"""Voxels per thread of which a CPU's caches hold several tensors at once."""
MAX_VOXELS = 2**30
"""Voxels in one operation on another device; torch.dot takes at most 2^31 - 1."""


def soft_counts(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    squared: bool = False,
    over_batch: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Count true positives, false positives and false negatives, each voxel by its probability.

    TP = sum w p g, FP = sum w p - TP, FN = sum w g - TP, with p = sigmoid(logits) and target g.

    Args:
        logits: Floating point of any width, (B, C, X, Y, Z).
        target: Of the same shape and any type, in [0, 1].
        weight: Weight of each voxel; broadcasts to the logits. Neither it nor the target gets a
            gradient.
        squared: Use sums of p^2 and g^2 in place of p and g, as V-Net's Dice (arXiv 1606.04797).
        over_batch: Add up the samples of the global batch.

    Returns:
        TP, FP and FN in (weighted) voxels, (C,), or (B, C) without `over_batch`; float32, or
        float64 for float64 logits.

    Raises:
        ValueError: See `check_shapes` and `check_range`.
    """
    check_shapes(logits, target, weight)
    with torch.autocast(logits.device.type, enabled=False):
        if fused.can_fuse(logits):
            sums = fused.soft_sums(logits, target, weight, squared=squared)
        else:
            sums = plain_soft_sums(logits, target, weight, squared=squared)
        if over_batch:
            sums = sum_over_processes(sums.sum(1))
    # Two voxels with p = (0.8, 0.6) and g = (1, 0): tp 0.8, predicted 1.4, true 1; FP 0.6, FN 0.2.
    tp, predicted, true = sums
    return tp, predicted - tp, true - tp


def plain_soft_sums(
    logits: Tensor, target: Tensor, weight: Tensor | None, *, squared: bool
) -> Tensor:
    """Add up as `fused.soft_sums`, on any device and for float64 too."""
    if weight is not None:
        weight = weight.expand(logits.shape)
    return _SoftSums.apply(  # type: ignore[no-any-return, no-untyped-call]
        logits, target, weight, squared
    )


class _SoftSums(torch.autograd.Function):
    """The sums over voxels of w p g, w p and w g (squared: w p g, w p^2 and w g^2), (3, B, C)."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None, squared: bool
    ) -> Tensor:
        p = torch.empty(logits.shape, dtype=counting_dtype(logits), device=logits.device)
        rows = _Rows.of(p, logits, target, weight)
        # One pass over memory: all sums of a part are taken while the caches hold it.
        sums_of_rows = []
        for row in range(rows.n_rows):
            parts = []
            for voxels in rows.slices():
                rows.compute_p(row, voxels)
                p_part, g, w = rows.part(row, voxels)
                check_range(g)
                parts.append(_sums(p_part, g, w, squared=squared))
            sums_of_rows.append(torch.stack(parts).sum(0))
        ctx.save_for_backward(logits, target, weight)
        ctx.p = p  # not saved by autograd, which would forbid writing over it in backward
        ctx.squared = squared
        return torch.stack(sums_of_rows, 1).view(3, *logits.shape[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_sums: Tensor) -> tuple[Tensor | None, ...]:
        """Turn the slopes of the loss by the sums, (3, B, C), into its gradient by the logits."""
        logits, target, weight = ctx.saved_tensors
        p = ctx.p
        ctx.p = None  # the gradient takes its place
        is_second_pass = p is None  # after retain_graph=True
        if is_second_pass:
            p = torch.empty(logits.shape, dtype=counting_dtype(logits), device=logits.device)
        rows = _Rows.of(p, logits, target, weight)
        slopes = d_sums.flatten(1)  # (3, B * C)
        for row in range(rows.n_rows):
            a, b, _ = slopes[:, row]
            for voxels in rows.slices():
                if is_second_pass:
                    rows.compute_p(row, voxels)
                _write_gradient(*rows.part(row, voxels), a=a, b=b, squared=ctx.squared)
        return p.to(logits.dtype), None, None, None


@dataclass(frozen=True)
class _Rows:
    """The voxels of each sample and class as one row, (B * C, X * Y * Z)."""

    p: Tensor
    logits: Tensor
    target: Tensor
    weight: Tensor | None

    @classmethod
    def of(cls, p: Tensor, logits: Tensor, target: Tensor, weight: Tensor | None) -> _Rows:
        """Flatten tensors (B, C, X, Y, Z)."""
        if weight is not None:
            weight = _as_rows(weight)
        return cls(_as_rows(p), _as_rows(logits), _as_rows(target), weight)

    @property
    def n_rows(self) -> int:
        """Samples times classes."""
        return len(self.p)

    def slices(self) -> list[slice]:
        """Parts of a row: all is done to one part before the next one is read."""
        return cache_sized_slices(self.p.shape[1], self.p.device)

    def compute_p(self, row: int, voxels: slice) -> None:
        """Compute the probability of some voxels from their logits."""
        x = self.logits[row, voxels]
        torch.sigmoid(x.to(self.p.dtype), out=self.p[row, voxels])

    def part(self, row: int, voxels: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        """Look up p, g and w of some voxels, (N,), g and w in the type of p, p as a view."""
        p = self.p[row, voxels]
        g = self.target[row, voxels].to(p.dtype)
        if self.weight is None:
            return p, g, None
        return p, g, self.weight[row, voxels].to(p.dtype)


def _as_rows(values: Tensor) -> Tensor:
    return values.reshape(values.shape[0] * values.shape[1], -1)


def _sums(p: Tensor, g: Tensor, w: Tensor | None, *, squared: bool) -> Tensor:
    """Add up w p g, w p and w g of some voxels (squared: w p g, w p^2 and w g^2), (3,)."""
    # Dot products need no tensor for the products.
    if w is None:
        wg = g
        predicted = torch.dot(p, p) if squared else p.sum()
    else:
        wg = w * g
        predicted = torch.dot(p, w * p) if squared else torch.dot(p, w)
    true = torch.dot(g, wg) if squared else wg.sum()
    return torch.stack([torch.dot(p, wg), predicted, true])


def _write_gradient(
    p: Tensor, g: Tensor, w: Tensor | None, *, a: Tensor, b: Tensor, squared: bool
) -> None:
    """Write the gradient by the logits of some voxels, (N,), over p.

    With the slopes a and b of the loss by the sums of w p g and w p, it is w (a g + b) p (1 - p);
    by the sum of w p^2, w (a g + 2 b p) p (1 - p).
    """
    if squared:
        b = 2 * b * p
    d_p = (a * g).add_(b)  # half the time of torch.addcmul with scalars
    # The operation behind torch's own sigmoid: d_p p (1 - p), in one pass.
    torch.ops.aten.sigmoid_backward.grad_input(d_p, p, grad_input=p)
    if w is not None:
        p.mul_(w)


def counting_dtype(logits: Tensor) -> torch.dtype:
    """Choose the type in which to count: float32, or float64 for float64 logits."""
    return torch.promote_types(logits.dtype, torch.float32)


def cache_sized_slices(n_voxels: int, device: torch.device) -> list[slice]:
    """Split a row of voxels so that the CPU's caches hold several tensors of one part.

    On other devices, one slice holds all voxels, up to a limit of torch.
    """
    size = min(n_voxels, MAX_VOXELS)
    if device.type == "cpu":
        n_slices = math.ceil(n_voxels / (VOXELS_IN_CACHE * torch.get_num_threads()))
        size = math.ceil(n_voxels / n_slices)
    return [slice(start, start + size) for start in range(0, n_voxels, size)]
