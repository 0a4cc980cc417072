"""Losses that are a mean over voxels: cross-entropy, weighted cross-entropy, focal.

Called as every loss, `loss(logits, target, weight=None)`, on (B, C, X, Y, Z). Their gradient does not fade where there
is no lesion, which is what they add to a loss of the Tversky family.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from tversky_seg.losses.soft_counts import (
    check_arguments,
    in_chunks,
    mean_over_batch,
    scaled,
    sum_over_processes,
)


class BCELoss(nn.Module):
    """Binary cross-entropy: the mean over voxels of -w (g log p + (1 - g) log(1 - p))."""

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits and target (B, C, X, Y, Z) -> a scalar >= 0."""
        check_arguments(logits, target, weight)
        x, g, w = _wide(logits, target, weight)
        total = functional.binary_cross_entropy_with_logits(x, g, w, reduction="sum")
        return mean_over_batch(total, n_voxels=logits.numel())


class WeightedBCELoss(nn.Module):
    """Binary cross-entropy in which a lesion voxel counts `positive_weight` times as much as another.

    Args:
        positive_weight: > 0, fixed. None: (N - sum p) / sum p of each class over the global batch, the adaptive weight
            of arXiv 2007.10033: predicted background over predicted lesion.
        detached: keep the gradient out of the adaptive weight. False as in that paper's released code; the network can
            then also lower its loss by claiming more lesion everywhere.
    """

    def __init__(self, *, positive_weight: float | None = None, detached: bool = False) -> None:
        super().__init__()
        if positive_weight is not None and not 0 < positive_weight < math.inf:
            raise ValueError(
                f"positive_weight must be > 0 and finite, got positive_weight={positive_weight}"
            )
        self.positive_weight, self.detached = positive_weight, detached

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits and target (B, C, X, Y, Z) -> a scalar >= 0."""
        check_arguments(logits, target, weight)
        x, g, w = _wide(logits, target, weight)
        missed, invented = g * functional.softplus(-x), (1 - g) * functional.softplus(x)
        if w is not None:
            missed, invented = w * missed, w * invented
        by_class = [
            part.transpose(0, 1).flatten(1).sum(1) for part in (missed, invented, x.sigmoid())
        ]
        n = torch.full_like(by_class[0], float(x[:, 0].numel()))
        missed, invented, lesion, n = sum_over_processes(torch.stack([*by_class, n]))
        share = (lesion.detach() if self.detached else lesion) / n
        positive_weight = ((1 - share) / share).clamp(1e-7, 1e7)
        if self.positive_weight is not None:
            positive_weight = torch.full_like(share, self.positive_weight)
        mean_loss: Tensor = ((positive_weight * missed + invented) / n).mean()
        return mean_loss


class FocalLoss(nn.Module):
    """Cross-entropy faded out where the network is already right (arXiv 1708.02002, eq. 5).

    The mean over voxels of alpha_t (1 - p_t)^gamma (-log p_t), with p_t = p, alpha_t = alpha on lesion voxels and
    p_t = 1 - p, alpha_t = 1 - alpha elsewhere. For targets between 0 and 1, 1 - p_t is sigmoid((1 - 2 g) logit) and the
    rest is linear in g, as in MONAI.

    Args:
        alpha: weight of lesion voxels, in [0, 1]; None weighs none. 0.75 is what arXiv 2007.10033 chose among 0.25 to
            0.83; the paper of the loss, and the code of arXiv 1803.11078, have 0.25.
        gamma: >= 0; 0 is (weighted) cross-entropy.
    """

    def __init__(self, *, alpha: float | None = 0.75, gamma: float = 2.0) -> None:
        super().__init__()
        if alpha is not None and not 0 <= alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1], got alpha={alpha}")
        if not 0 <= gamma < math.inf:
            raise ValueError(f"gamma must be >= 0 and finite, got gamma={gamma}")
        self.alpha, self.gamma = alpha, gamma

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits and target (B, C, X, Y, Z) -> a scalar >= 0."""
        check_arguments(logits, target, weight)
        weight = None if weight is None else weight.expand(logits.shape)
        total = _FocalSum.apply(logits, target, weight, self.alpha, self.gamma)  # type: ignore[no-untyped-call]
        return mean_over_batch(total, n_voxels=logits.numel())


class _FocalSum(torch.autograd.Function):
    """The sum of the focal loss over voxels; its gradient is made on the way and is all that is kept for backward."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        alpha: float | None,
        gamma: float,
    ) -> Tensor:
        wide = torch.promote_types(logits.dtype, torch.float32)
        gradient = torch.empty(logits.shape, dtype=wide, device=logits.device)
        chunks = [in_chunks(values.reshape(-1)) for values in (logits, target, gradient)]
        weights = [None] * len(chunks[0]) if weight is None else in_chunks(weight.reshape(-1))
        totals = [
            _focal_chunk(x.to(wide), g.to(wide), w, alpha=alpha, gamma=gamma, gradient=d)
            for x, g, d, w in zip(*chunks, weights, strict=True)
        ]
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        return torch.stack(totals).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor) -> tuple[Tensor | None, ...]:
        return scaled(ctx.saved_tensors[0], d_total).to(ctx.dtype), None, None, None, None


def _focal_chunk(
    x: Tensor, g: Tensor, w: Tensor | None, *, alpha: float | None, gamma: float, gradient: Tensor
) -> Tensor:
    """Sum of the focal loss over some voxels, all (N,); writes the derivative by the logits to `gradient`.

    With s = 1 - 2 g, m = sigmoid(s x) and the cross-entropy h: loss w alpha_t m^gamma h,
    derivative w alpha_t m^gamma (gamma (1 - m) s h + p - g).
    """
    sign = torch.rsub(g, 1, alpha=2)
    miss = (sign * x).sigmoid_()
    cross_entropy = x.relu().sub_(x.abs().sigmoid_().log_()).addcmul_(g, x, value=-1)
    factor = miss.pow(gamma)
    if alpha is not None:
        factor *= (g * (2 * alpha - 1)).add_(1 - alpha)
    if w is not None:
        factor *= w
    slope = torch.rsub(miss, 1).mul_(sign).mul_(cross_entropy).mul_(gamma).add_(x.sigmoid()).sub_(g)
    torch.mul(factor, slope, out=gradient)
    return torch.dot(factor, cross_entropy)


def _wide(
    logits: Tensor, target: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The three in float32, or in float64 for float64 logits."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(wide), target.to(wide), None if weight is None else weight.to(wide)
