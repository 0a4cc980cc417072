"""Losses of the Tversky family, and the names of all others.

Every loss is called `loss(logits, target, weight=None)` and returns a scalar to be minimised. Logits and target are
(B, C, X, Y, Z), one channel per foreground class (independent sigmoids); `weight` is any tensor that broadcasts to
them. `alpha` always weighs false positives and `beta` misses. All of the family needs three sums over voxels only.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tversky_seg.overlap import f_weights, tversky_index

_NEVER_ZERO = 1e-20  # voxels, in place of smooth=0: no 0/0 where nothing is there and nothing is claimed


class _SoftSums(torch.autograd.Function):
    """Sums over voxels of w p g, w p^power and w g^power, (B, C) each, with p = sigmoid(logits); saves only p."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None, power: int) -> tuple[Tensor, ...]:
        wide = torch.promote_types(logits.dtype, torch.float32)
        p, g = torch.sigmoid(logits.to(wide)), target.to(wide)
        space = tuple(range(2, p.ndim))
        ctx.save_for_backward(p, target, weight)
        ctx.power, ctx.dtype = power, logits.dtype
        wp, wg = (p, g) if weight is None else (p * weight.to(wide), g * weight.to(wide))
        return (wp * g).sum(space), (wp * p if power == 2 else wp).sum(space), (wg * g if power == 2 else wg).sum(space)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_tp: Tensor, d_p: Tensor, d_g: Tensor) -> tuple[Tensor | None, ...]:
        p, target, weight = ctx.saved_tensors
        per_channel = (*d_tp.shape, *[1] * (p.ndim - 2))
        gradient = target * d_tp.view(per_channel)
        d_p = d_p.view(per_channel)
        gradient += 2 * d_p * p if ctx.power == 2 else d_p
        gradient = torch.ops.aten.sigmoid_backward.grad_input(gradient, p, grad_input=gradient)
        if weight is not None:
            gradient *= weight
        return gradient.to(ctx.dtype), None, None, None


class _SumOverProcesses(torch.autograd.Function):
    """Sum over all processes. The gradient is multiplied by their number, which DDP's averaging divides by."""

    @staticmethod
    def forward(ctx: Any, counts: Tensor) -> Tensor:
        total = counts.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * dist.get_world_size()


def check_arguments(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
    """Refuse what no loss here is defined for.

    Raises:
        ValueError: logits are not floating point or have fewer than 3 axes, target has another shape or values outside
            [0, 1], or the weight does not broadcast to the logits.
    """
    if not logits.is_floating_point() or logits.ndim < 3:
        raise ValueError(f"logits must be floating point (B, C, X, ...), got {logits.dtype} {tuple(logits.shape)}")
    if target.shape != logits.shape:
        raise ValueError(f"target must have the logits' shape {tuple(logits.shape)}, got {tuple(target.shape)}")
    if target.dtype != torch.bool and target.numel():
        low, high = (float(value) for value in torch.aminmax(target.detach()))
        if not (low >= 0 and high <= 1):
            raise ValueError(f"target must lie in [0, 1], got values from {low:g} to {high:g}")
    if weight is not None and not _broadcasts(weight, logits):
        raise ValueError(f"weight must broadcast to {tuple(logits.shape)}, got {tuple(weight.shape)}")


def _broadcasts(weight: Tensor, logits: Tensor) -> bool:
    sizes = zip(reversed(weight.shape), reversed(logits.shape), strict=False)
    return weight.ndim <= logits.ndim and all(size in (1, full) for size, full in sizes)


def soft_counts(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, *, squared: bool = False, over_batch: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Soft true positives, false positives and misses per class: (C,) over the batch, else (B, C). In float32 or wider.

    `squared` takes sums of p^2 and g^2 in place of p and g (V-Net's Dice). With `over_batch`, counts are those of the
    global batch: where torch.distributed runs, they are summed over its processes, so all of them must get here.
    """
    check_arguments(logits, target, weight)
    with torch.autocast(logits.device.type, enabled=False):
        sums = torch.stack(_SoftSums.apply(logits, target, weight, 2 if squared else 1))  # type: ignore[no-untyped-call]
    if over_batch:
        sums = sums.sum(1)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            sums = _SumOverProcesses.apply(sums)  # type: ignore[no-untyped-call]
    tp, predicted, true = sums
    return tp, predicted - tp, true - tp


class TverskyLoss(nn.Module):
    """One minus the Tversky index: false positives weigh alpha, misses weigh beta (arXiv 1706.05721, eq. 2-3).

    loss = 1 - mean over classes of (TP + smooth) / (TP + alpha FP + beta FN + smooth), soft counts in voxels.

    Args:
        alpha: weight of false positives, >= 0. Raise it for precision.
        beta: weight of false negatives, >= 0. Raise it for sensitivity. Both None: 0.3 and 0.7, the best setting of
            the paper; one None: 1 - the other.
        smooth: added to numerator and denominator, in voxels. The paper names none; 1 is what its authors' later code
            (arXiv 1803.11078) uses: negligible beside a batch's lesions, yet large enough that the loss of a batch
            without any falls from 1 to 0 as its false positives vanish.
        over_batch: counts are summed over the global batch (all processes too) before the ratio is taken. False: one
            ratio per sample, averaged; a lesion-free sample then has about 1e4 times less gradient.
    """

    def __init__(
        self, *, alpha: float | None = None, beta: float | None = None, smooth: float = 1.0, over_batch: bool = True
    ) -> None:
        super().__init__()
        self.alpha, self.beta = tversky_weights(alpha, beta)
        self.smooth, self.over_batch, self.squared = _check_smooth(smooth), over_batch, False

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits and target (B, C, X, Y, Z), weight broadcastable -> scalar in [0, 1]."""
        counts = soft_counts(logits, target, weight, squared=self.squared, over_batch=self.over_batch)
        return 1 - tversky_index(*counts, alpha=self.alpha, beta=self.beta, smooth=self.smooth or _NEVER_ZERO).mean()


class DiceLoss(TverskyLoss):
    """One minus the soft Dice coefficient: the Tversky loss with alpha = beta = 0.5.

    Args:
        squared: V-Net's form (arXiv 1606.04797), 1 - 2 sum(p g) / sum(p^2 + g^2).
        smooth: as in TverskyLoss; 2 smooth in formulas that write Dice as (2 TP + smooth) / (2 TP + FP + FN + smooth).
        over_batch: as in TverskyLoss.
    """

    def __init__(self, *, squared: bool = False, smooth: float = 1.0, over_batch: bool = True) -> None:
        super().__init__(alpha=0.5, beta=0.5, smooth=smooth, over_batch=over_batch)
        self.squared = squared


class AsymmetricSimilarityLoss(TverskyLoss):
    """One minus the F measure in which sensitivity counts b times precision (arXiv 1803.11078).

    Args:
        b: F measure's weight of sensitivity; the paper tried 1 to 3, best 1.5. It is the Tversky loss with
            alpha = 1 / (1 + b^2) and beta = b^2 / (1 + b^2).
        squared: the form of arXiv 2007.10033, 1 - (1 + b^2) sum(p g) / sum(b^2 g^2 + p^2).
        smooth: as in TverskyLoss.
        over_batch: as in TverskyLoss.
    """

    def __init__(self, *, b: float = 1.5, squared: bool = False, smooth: float = 1.0, over_batch: bool = True) -> None:
        alpha, beta = f_weights(b)
        super().__init__(alpha=alpha, beta=beta, smooth=smooth, over_batch=over_batch)
        self.squared = squared


def tversky_weights(alpha: float | None, beta: float | None) -> tuple[float, float]:
    """The weights of false positives and misses; both None: 0.3 and 0.7, one None: 1 - the other."""
    if alpha is None:
        alpha = 0.3 if beta is None else 1 - beta
    beta = 1 - alpha if beta is None else beta
    if not (alpha >= 0 and beta >= 0 and 0 < alpha + beta < float("inf")):
        raise ValueError(f"alpha and beta must be >= 0, finite and not both 0, got alpha={alpha:g}, beta={beta:g}")
    return alpha, beta


def _check_smooth(smooth: float) -> float:
    if not 0 <= smooth < float("inf"):
        raise ValueError(f"smooth must be >= 0 and finite, got smooth={smooth}")
    return smooth
