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

from tversky_seg.metrics.overlap import tversky_index

NEVER_ZERO = (
    1e-20  # voxels, in place of smooth=0: no 0/0 where nothing is there and nothing is claimed
)
_graph_stays = getattr(
    torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True
)  # inside a backward
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
    formula = partial(
        _mean_shortfall, alpha=alpha, beta=beta, smooth=smooth or NEVER_ZERO, exponent=exponent
    )
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

    check_shapes(logits, target, weight)  # the target's values where they are read
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
        p = torch.empty(
            logits.shape,
            dtype=torch.promote_types(logits.dtype, torch.float32),
            device=logits.device,
        )
        parts = _parts(p, logits, target, weight)
        sums = torch.stack([_sums_of_row(row, squared=squared) for row in parts], 1).view(
            3, *logits.shape[:2]
        )
        with torch.set_grad_enabled(with_gradient):
            loss = loss_of_sums(sums.requires_grad_(with_gradient))
        if with_gradient:
            slopes = torch.autograd.grad(loss, sums)[0].flatten(1)
            for row, a, b in zip(parts, slopes[0].tolist(), slopes[1], strict=True):
                for part in row:
                    _into_gradient(*part, a=a, b=b, squared=squared)
            ctx.save_for_backward(p)
            ctx.dtype = logits.dtype
        return loss.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        return scaled(ctx.saved_tensors[0], d_loss).to(ctx.dtype), None, None, None, None, None


Part = tuple[Tensor, Tensor, Tensor, Tensor | None]  # some voxels' p, logits, g, w: (N,) each


def _parts(p: Tensor, logits: Tensor, target: Tensor, weight: Tensor | None) -> list[list[Part]]:
    """The voxels of each sample and class in parts that a cache holds: all is done to one before the next is read."""
    p_rows, logits_rows, target_rows = (
        [in_chunks(row) for row in _rows(each)] for each in (p, logits, target)
    )
    weight_rows = (
        [(None,) * len(row) for row in p_rows]
        if weight is None
        else [in_chunks(row) for row in _rows(weight)]
    )
    rows = zip(p_rows, logits_rows, target_rows, weight_rows, strict=True)
    return [list(zip(*chunks, strict=True)) for chunks in rows]


def _sums_of_row(row: list[Part], *, squared: bool) -> Tensor:
    """The three sums of a sample and class, (3,); fills in p. Refuses targets outside [0, 1]."""
    found = torch.stack([value for part in row for value in _sums(*part, squared=squared)]).view(
        len(row), -1
    )
    check_range(found[:, 3:])
    return found[:, :3].sum(0)


def _sums(
    p: Tensor, logits: Tensor, g: Tensor, w: Tensor | None, *, squared: bool
) -> tuple[Tensor, ...]:
    """The three sums over some voxels, and the least and largest value of the target; fills in p."""
    torch.sigmoid(logits.to(p.dtype), out=p)
    g = g.to(p.dtype)
    w = None if w is None else w.to(p.dtype)
    wg = g if w is None else w * g
    if squared:
        predicted, true = torch.dot(p, p if w is None else w * p), torch.dot(g, wg)
    else:
        predicted, true = p.sum() if w is None else torch.dot(p, w), wg.sum()
    return torch.dot(p, wg), predicted, true, *torch.aminmax(g)


def _into_gradient(
    p: Tensor, _: Tensor, g: Tensor, w: Tensor | None, *, a: float, b: Tensor, squared: bool
) -> None:
    """Write the gradient by the logits over p: w p (1 - p) (a g + b), or (a g + 2 b p) if squared.

    a and b are the slopes of the loss by the first two sums.
    """
    slope = torch.add(2 * b * p if squared else b, g.to(p.dtype), alpha=a)
    torch.ops.aten.sigmoid_backward.grad_input(slope, p, grad_input=p)  # slope p (1 - p)
    if w is not None:
        p.mul_(w)


def needs_gradient(logits: Tensor) -> bool:
    """Whether a backward pass can reach the logits; inside a Function's forward, autograd no longer tells."""
    return logits.requires_grad and torch.is_grad_enabled()


def scaled(kept: Tensor, factor: Tensor) -> Tensor:
    """A tensor kept for backward times a scalar: in place, unless the graph stays for another backward pass."""
    if (
        factor.device.type == "cpu"
        and not factor.requires_grad
        and factor == 1
        and not _graph_stays()
    ):
        return kept
    return kept * factor if _graph_stays() else kept.mul_(factor)


def in_chunks(voxels: Tensor) -> tuple[Tensor, ...]:
    """Views of a row of voxels: on the CPU of as many as its caches take for several tensors at once, else of all."""
    n = (
        math.ceil(voxels.numel() / (2**17 * torch.get_num_threads()))
        if voxels.device.type == "cpu"
        else 1
    )
    return voxels.chunk(n)


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
        raise ValueError(
            f"alpha and beta must be >= 0, finite and not both 0, got alpha={alpha:g}, beta={beta:g}"
        )
    return alpha, beta


def check_smooth(smooth: float) -> float:
    """The same number, refused where it is negative or not finite."""
    if not 0 <= smooth < math.inf:
        raise ValueError(f"smooth must be >= 0 and finite, got smooth={smooth}")
    return smooth


def check_arguments(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
    """Refuse what no loss here is defined for.

    Raises:
        ValueError: see `check_shapes` and `check_range`.
    """
    check_shapes(logits, target, weight)
    if target.dtype != torch.bool:
        check_range(target.detach())


def check_shapes(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
    """Refuse tensors that do not go together.

    Raises:
        ValueError: logits that are not floating point (B, C, X, ...) or hold no voxel, a target of another shape, a
            weight that does not broadcast to the logits.
    """
    if not logits.is_floating_point() or logits.ndim < 3 or not logits.numel():
        raise ValueError(
            f"logits must be floating point (B, C, X, Y, Z), got {logits.dtype} {tuple(logits.shape)}"
        )
    if target.shape != logits.shape:
        raise ValueError(
            f"target must have the logits' shape {tuple(logits.shape)}, got {tuple(target.shape)}"
        )
    if weight is not None and not _broadcasts(weight.shape, logits.shape):
        raise ValueError(
            f"weight must broadcast to {tuple(logits.shape)}, got {tuple(weight.shape)}"
        )


def check_range(target: Tensor) -> None:
    """Refuse values outside [0, 1], NaN among them.

    Raises:
        ValueError: with the least and the largest value.
    """
    low, high = (float(value) for value in torch.aminmax(target))
    if not (low >= 0 and high <= 1):
        raise ValueError(f"target must lie in [0, 1], got values from {low:g} to {high:g}")


def _broadcasts(shape: torch.Size, full: torch.Size) -> bool:
    return len(shape) <= len(full) and all(
        n in (1, m) for n, m in zip(reversed(shape), reversed(full), strict=False)
    )


def _rows(values: Tensor) -> Tensor:
    """(B, C, X, ...) as one row of voxels for each sample and class."""
    return values.reshape(values.shape[0] * values.shape[1], -1)
