"""Soft voxel counts, and losses that are a formula of them: in closed form, whatever the formula.

Counts are float32 or wider under any autocast. The gradient is made on the way forward, where all it needs is at hand,
and is all that is kept for backward. Where torch.distributed runs, counts and means are those of the global batch, the
same on every process (so every process must call its loss), and gradients are scaled for DDP, which averages them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from tversky_seg.overlap import tversky_index

NEVER_ZERO = 1e-20  # voxels, in place of smooth=0: no 0/0 where nothing is there and nothing is claimed
_graph_stays = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)  # inside a backward
Formula = Callable[[Tensor, Tensor, Tensor], Tensor]  # soft TP, FP, FN -> a scalar


def tversky_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    alpha: float,
    beta: float,
    smooth: float,
    over_batch: bool,
    squared: bool = False,
    exponent: float = 1.0,
) -> Tensor:
    """The mean over classes of (1 - Tversky index)^exponent; arguments as in TverskyLoss and `loss_of_counts`."""
    formula = partial(_mean_shortfall, alpha=alpha, beta=beta, smooth=smooth or NEVER_ZERO, exponent=exponent)
    return loss_of_counts(formula, logits, target, weight, squared=squared, over_batch=over_batch)


def _mean_shortfall(
    tp: Tensor, fp: Tensor, fn: Tensor, *, alpha: float, beta: float, smooth: float, exponent: float
) -> Tensor:
    shortfall = 1 - tversky_index(tp, fp, fn, alpha=alpha, beta=beta, smooth=smooth)
    if exponent != 1:
        shortfall = shortfall.clamp_min(1e-7).pow(exponent)  # the slope of a root is infinite at 0
    return shortfall.mean()


def loss_of_counts(
    formula: Formula,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    squared: bool = False,
    over_batch: bool = True,
) -> Tensor:
    """A loss that is a formula of soft true positives, false positives and misses, in (weighted) voxels.

    Args:
        formula: of TP, FP, FN, each (C,), or (B, C) without `over_batch`; differentiable.
        logits: (B, C, X, Y, Z), any floating type; p = sigmoid(logits).
        target: as the logits, in [0, 1]; any type.
        weight: of each voxel; broadcasts to the logits. No gradient flows into it, nor into the target.
        squared: count by sums of p^2 and g^2 in place of p and g, as in V-Net's Dice (arXiv 1606.04797).
        over_batch: add up the samples of the global batch.

    Returns:
        The scalar, in float32, or float64 for float64 logits.

    Raises:
        ValueError: see `check_arguments`.
    """

    def loss_of_sums(sums: Tensor) -> Tensor:  # (3, B, C)
        tp, predicted, true = sum_over_processes(sums.sum(1)) if over_batch else sums
        return formula(tp, predicted - tp, true - tp)

    check_arguments(logits, target, weight)
    weight = None if weight is None else weight.expand(logits.shape)
    with torch.autocast(logits.device.type, enabled=False):
        return _LossOfSums.apply(  # type: ignore[no-any-return, no-untyped-call]
            logits, target, weight, squared, loss_of_sums, needs_gradient(logits)
        )


class _LossOfSums(torch.autograd.Function):
    """A scalar function of the sums over voxels of w p g, w p, w g (squared: of w p g, w p^2, w g^2), (B, C) each."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        squared: bool,
        loss_of_sums: Callable[[Tensor], Tensor],
        with_gradient: bool,
    ) -> Tensor:
        wide = torch.promote_types(logits.dtype, torch.float32)
        p, g = torch.sigmoid(_rows(logits).to(wide)), _rows(target).to(wide)
        w = None if weight is None else _rows(weight).to(wide)
        sums = _sums(p, g, w, squared=squared).view(3, *logits.shape[:2])
        with torch.set_grad_enabled(with_gradient):
            loss = loss_of_sums(sums.requires_grad_(with_gradient))
        if with_gradient:
            slopes = torch.autograd.grad(loss, sums)[0].flatten(1)
            ctx.save_for_backward(_into_gradient(p, g, w, slopes, squared=squared).view(logits.shape))
            ctx.dtype = logits.dtype
        return loss.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        return scaled(ctx.saved_tensors[0], d_loss).to(ctx.dtype), None, None, None, None, None


def _sums(p: Tensor, g: Tensor, w: Tensor | None, *, squared: bool) -> Tensor:
    """The three sums of each row, (3, rows), from p, g, w (rows, N)."""
    wg = g if w is None else w * g
    if squared:
        return torch.stack([_dot(p, wg), _dot(p, p if w is None else w * p), _dot(g, wg)])
    return torch.stack([_dot(p, wg), p.sum(1) if w is None else _dot(p, w), wg.sum(1)])


def _into_gradient(p: Tensor, g: Tensor, w: Tensor | None, slopes: Tensor, *, squared: bool) -> Tensor:
    """Write the gradient by the logits over p: w p (1 - p) (a g + b), or (a g + 2 b p) if squared.

    The slopes a, b of the loss by the sums are (3, rows). In chunks, so that no second tensor of this size is needed.
    """
    for p_row, g_row, a, b in zip(p, g, slopes[0].tolist(), slopes[1], strict=True):
        for part, g_part in zip(in_chunks(p_row), in_chunks(g_row), strict=True):
            slope = torch.add(2 * b * part if squared else b, g_part, alpha=a)
            torch.ops.aten.sigmoid_backward.grad_input(slope, part, grad_input=part)  # slope p (1 - p)
    return p if w is None else p.mul_(w)


def needs_gradient(logits: Tensor) -> bool:
    """Whether a backward pass can reach the logits; inside a Function's forward, autograd no longer tells."""
    return logits.requires_grad and torch.is_grad_enabled()


def scaled(kept: Tensor, factor: Tensor) -> Tensor:
    """A tensor kept for backward times a scalar: in place, unless the graph stays for another backward pass."""
    return kept * factor if _graph_stays() else kept.mul_(factor)


def in_chunks(voxels: Tensor) -> tuple[Tensor, ...]:
    """Views of a row of voxels: on the CPU of as many as its cache takes for several tensors at once, else of all."""
    return voxels.chunk(math.ceil(voxels.numel() / 2**17) if voxels.device.type == "cpu" else 1)


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


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of a small tensor over all processes; the tensor itself where there is one process."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return values
    return _SumOverProcesses.apply(values)  # type: ignore[no-any-return, no-untyped-call]


def mean_over_batch(total: Tensor, *, n_voxels: int) -> Tensor:
    """The mean over all voxels of the global batch, from the sum (any shape) and number of voxels of this process."""
    sums = sum_over_processes(torch.stack([total, torch.full_like(total, float(n_voxels))]))
    return sums[0] / sums[1]


def check_weights(alpha: float | None, beta: float | None) -> tuple[float, float]:
    """The weights of false positives and misses; both None: 0.3 and 0.7, one None: 1 - the other."""
    if alpha is None:
        alpha = 0.3 if beta is None else 1 - beta
    beta = 1 - alpha if beta is None else beta
    if not (alpha >= 0 and beta >= 0 and 0 < alpha + beta < math.inf):
        raise ValueError(f"alpha and beta must be >= 0, finite and not both 0, got alpha={alpha:g}, beta={beta:g}")
    return alpha, beta


def check_smooth(smooth: float) -> float:
    """The same number, refused where it is negative or not finite."""
    if not 0 <= smooth < math.inf:
        raise ValueError(f"smooth must be >= 0 and finite, got smooth={smooth}")
    return smooth


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
