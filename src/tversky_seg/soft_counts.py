"""Soft voxel counts: the three sums that every loss of the Tversky family is made of, in closed form.

Sums are float32 or wider under any autocast, and one tensor of the logits' size is all that is kept for backward. Where
torch.distributed runs, counts and means are those of the global batch, the same on every process (so every process must
call its loss), and gradients are scaled for DDP, which averages them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


class _SoftSums(torch.autograd.Function):
    """Sums over voxels of w p g, w p, w g (squared: of w p g, w p^2, w g^2) for p = sigmoid(logits); (B, C) each."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None, squared: bool) -> tuple[Tensor, ...]:
        wide = torch.promote_types(logits.dtype, torch.float32)
        p, g = torch.sigmoid(_rows(logits).to(wide)), _rows(target).to(wide)
        w = None if weight is None else _rows(weight).to(wide)
        ctx.save_for_backward(p if logits.dtype == wide else logits, target, weight)
        ctx.shape, ctx.dtype, ctx.squared = logits.shape, logits.dtype, squared
        wg = g if w is None else w * g
        if squared:
            predicted, true = _dot(p, p if w is None else w * p), _dot(g, wg)
        else:
            predicted, true = p.sum(1) if w is None else _dot(p, w), wg.sum(1)
        return tuple(sums.view(logits.shape[:2]) for sums in (_dot(p, wg), predicted, true))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_tp: Tensor, d_predicted: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        kept, target, weight = ctx.saved_tensors
        p = kept if kept.dtype == d_tp.dtype else torch.sigmoid(_rows(kept).to(d_tp.dtype))
        gradient = _rows(target).to(d_tp.dtype) * d_tp.reshape(-1, 1)
        if ctx.squared:
            gradient.addcmul_(p, d_predicted.reshape(-1, 1), value=2)
        else:
            gradient += d_predicted.reshape(-1, 1)
        torch.ops.aten.sigmoid_backward.grad_input(gradient, p, grad_input=gradient)  # times p (1 - p)
        if weight is not None:
            gradient *= _rows(weight)
        return gradient.view(ctx.shape).to(ctx.dtype), None, None, None


class _SumOverProcesses(torch.autograd.Function):
    """Sum over all processes; the gradient is multiplied by their number, which DDP's averaging divides by."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * dist.get_world_size()


def soft_counts(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, *, squared: bool = False, over_batch: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Soft true positives, false positives and misses of each class, in (weighted) voxels.

    Args:
        logits: (B, C, X, Y, Z), any floating type.
        target: as the logits, in [0, 1]; any type.
        weight: of each voxel; broadcasts to the logits. No gradient flows into it, nor into the target.
        squared: sums of p^2 and g^2 in place of p and g, as in V-Net's Dice (arXiv 1606.04797).
        over_batch: add up the samples of the global batch.

    Returns:
        TP, FP, FN: each (C,), or (B, C) without `over_batch`; float32, or float64 for float64 logits.

    Raises:
        ValueError: see `check_arguments`.
    """
    check_arguments(logits, target, weight)
    weight = None if weight is None else weight.expand(logits.shape)
    with torch.autocast(logits.device.type, enabled=False):
        sums = torch.stack(_SoftSums.apply(logits, target, weight, squared))  # type: ignore[no-untyped-call]
    tp, predicted, true = sum_over_processes(sums.sum(1)) if over_batch else sums
    return tp, predicted - tp, true - tp


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of a small tensor over all processes; the tensor itself where there is one process."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return values
    return _SumOverProcesses.apply(values)  # type: ignore[no-any-return, no-untyped-call]


def mean_over_batch(total: Tensor, *, n_voxels: int) -> Tensor:
    """The mean over all voxels of the global batch, from the sum (any shape) and number of voxels of this process."""
    sums = sum_over_processes(torch.stack([total, torch.full_like(total, float(n_voxels))]))
    return sums[0] / sums[1]


def check_arguments(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
    """Refuse what no loss here is defined for.

    Raises:
        ValueError: logits that are not floating point (B, C, X, ...) or hold no voxel, a target of another shape or
            with values outside [0, 1], a weight that does not broadcast to the logits.
    """
    if not logits.is_floating_point() or logits.ndim < 3 or not logits.numel():
        raise ValueError(f"logits must be floating point (B, C, X, Y, Z), got {logits.dtype} {tuple(logits.shape)}")
    if target.shape != logits.shape:
        raise ValueError(f"target must have the logits' shape {tuple(logits.shape)}, got {tuple(target.shape)}")
    if target.dtype != torch.bool:
        low, high = (float(value) for value in torch.aminmax(target.detach()))
        if not (low >= 0 and high <= 1):
            raise ValueError(f"target must lie in [0, 1], got values from {low:g} to {high:g}")
    if weight is not None and not _broadcasts(weight.shape, logits.shape):
        raise ValueError(f"weight must broadcast to {tuple(logits.shape)}, got {tuple(weight.shape)}")


def _broadcasts(shape: torch.Size, full: torch.Size) -> bool:
    return len(shape) <= len(full) and all(n in (1, m) for n, m in zip(reversed(shape), reversed(full), strict=False))


def _rows(values: Tensor) -> Tensor:
    """(B, C, X, ...) as one row of voxels for each sample and class."""
    return values.reshape(values.shape[0] * values.shape[1], -1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Dot product of each row; one pass, no temporary, and never in TF32 as a matrix product may be."""
    return torch.stack([torch.dot(x, y) for x, y in zip(a, b, strict=True)])
