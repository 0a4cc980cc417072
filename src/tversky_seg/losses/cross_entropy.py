"""Losses that are a mean over voxels: cross-entropy, weighted cross-entropy, focal.

Called as every loss, `loss(logits, target, weight=None)`, on (B, C, X, Y, Z). Their gradient does
not fade where there is no lesion, which is what they add to a loss of the Tversky family.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from tversky_seg.losses import fused
from tversky_seg.losses.checks import check_arguments
from tversky_seg.losses.global_batch import mean_over_batch, n_processes, sum_over_processes
from tversky_seg.losses.soft_counts import cache_sized_slices, counting_dtype


class BCELoss(nn.Module):
    """Binary cross-entropy: the mean over voxels of -w (g log p + (1 - g) log(1 - p))."""

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compute the loss, a scalar >= 0, of logits and target (B, C, X, Y, Z)."""
        check_arguments(logits, target, weight)
        x, g, w = _widened(logits, target, weight)
        total = functional.binary_cross_entropy_with_logits(x, g, w, reduction="sum")
        return mean_over_batch(total, n_voxels=logits.numel())


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Compute BCELoss by whichever way is the fastest: on a GPU, by the kernels of the focal loss.

    The focal loss with gamma 0 fades nothing, so it is cross-entropy. On a CPU torch's own is 1.4
    times as fast.
    """
    loss = FocalLoss(alpha=None, gamma=0) if fused.can_fuse(logits) else BCELoss()
    return loss(logits, target, weight)  # type: ignore[no-any-return]


class WeightedBCELoss(nn.Module):
    """Binary cross-entropy in which a lesion voxel counts `positive_weight` times as much.

    Args:
        positive_weight: Fixed weight of lesion voxels, > 0. None: (N - sum p) / sum p of each class
            over the global batch, the adaptive weight of arXiv 2007.10033: predicted background
            over predicted lesion.
        detached: Keep the gradient out of the adaptive weight. False as in that paper's released
            code; the network can then also lower its loss by predicting more lesion everywhere.
    """

    def __init__(self, *, positive_weight: float | None = None, detached: bool = False) -> None:
        super().__init__()
        if positive_weight is not None and not 0 < positive_weight < math.inf:
            raise ValueError(
                f"positive_weight must be > 0 and finite, got positive_weight={positive_weight}"
            )
        self.positive_weight = positive_weight
        self.detached = detached

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compute the loss, a scalar >= 0, of logits and target (B, C, X, Y, Z)."""
        check_arguments(logits, target, weight)
        x, g, w = _widened(logits, target, weight)
        # softplus(-x) = log(1 + exp(-x)) = -log p, but finite where p rounds to 0.
        of_lesion = g * functional.softplus(-x)
        of_background = (1 - g) * functional.softplus(x)
        if w is not None:
            of_lesion = w * of_lesion
            of_background = w * of_background
        p = x.sigmoid()
        # Processes may have different numbers of samples, so voxels are counted with them.
        n_voxels = x.new_full((x.shape[1],), float(x[:, 0].numel()))
        n_counted = n_voxels
        if w is not None:
            # A voxel of weight 0 does not count: its probability must not move the others' weight.
            counts = (w != 0).expand(x.shape)
            p = p * counts
            n_counted = _sum_by_class(counts).to(x.dtype)
        parts = [_sum_by_class(of_lesion), _sum_by_class(of_background), _sum_by_class(p)]
        sums = sum_over_processes(torch.stack([*parts, n_voxels, n_counted]))
        of_lesion, of_background, predicted, n, n_counted = sums
        lesion_weight = self._lesion_weight(predicted / n_counted.clamp_min(1))
        by_class: Tensor = (lesion_weight * of_lesion + of_background) / n
        return by_class.mean()

    def extra_repr(self) -> str:
        """Settings, as repr() shows them."""
        return f"positive_weight={self.positive_weight}, detached={self.detached}"

    def _lesion_weight(self, share: Tensor) -> Tensor:
        """Weigh lesion voxels by the share of voxels predicted as lesion, per class, (C,)."""
        if self.positive_weight is not None:
            return torch.full_like(share, self.positive_weight)
        if self.detached:
            share = share.detach()
        # Limit the share, not the ratio: the slope of 1 / share overflows where p is 0 everywhere,
        # and infinity times the zero slope of a limit is NaN.
        share = share.clamp(1e-7, 1 - 1e-7)
        return (1 - share) / share


class FocalLoss(nn.Module):
    """Cross-entropy faded out where the network is already right (arXiv 1708.02002, eq. 5).

    The mean over voxels of alpha_t (1 - p_t)^gamma (-log p_t), with p_t = p and alpha_t = alpha on
    lesion voxels, p_t = 1 - p and alpha_t = 1 - alpha elsewhere. For targets between 0 and 1,
    1 - p_t is sigmoid((1 - 2 g) logit) and the rest is linear in g, as in MONAI.

    Args:
        alpha: Weight of lesion voxels, in [0, 1]; None weighs none. 0.75 is what arXiv 2007.10033
            chose among 0.25 to 0.83; the paper of the loss, and the code of arXiv 1803.11078, have
            0.25.
        gamma: Exponent of the fading, >= 0; 0 is (weighted) cross-entropy.
    """

    def __init__(self, *, alpha: float | None = 0.75, gamma: float = 2.0) -> None:
        super().__init__()
        if alpha is not None and not 0 <= alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1], got alpha={alpha}")
        if not 0 <= gamma < math.inf:
            raise ValueError(f"gamma must be >= 0 and finite, got gamma={gamma}")
        self.alpha = alpha
        self.gamma = gamma

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compute the loss, a scalar >= 0, of logits and target (B, C, X, Y, Z)."""
        check_arguments(logits, target, weight)
        arguments = (logits, target, weight)
        n_voxels = logits.numel()
        if not fused.can_fuse(logits):
            total = plain_focal_sum(*arguments, alpha=self.alpha, gamma=self.gamma)
        elif n_processes() > 1:
            total = fused.focal_sum(*arguments, alpha=self.alpha, gamma=self.gamma)
        else:
            share = 1 / n_voxels
            return fused.focal_sum(*arguments, alpha=self.alpha, gamma=self.gamma, share=share)
        return mean_over_batch(total, n_voxels=n_voxels)

    def extra_repr(self) -> str:
        """Settings, as repr() shows them."""
        return f"alpha={self.alpha}, gamma={self.gamma:g}"


def plain_focal_sum(
    logits: Tensor, target: Tensor, weight: Tensor | None, *, alpha: float | None, gamma: float
) -> Tensor:
    """Add up as `fused.focal_sum`, on any device and for float64 too."""
    if weight is not None:
        weight = weight.expand(logits.shape)
    with torch.autocast(logits.device.type, enabled=False):
        return _FocalSum.apply(  # type: ignore[no-any-return, no-untyped-call]
            logits, target, weight, alpha, gamma
        )


class _FocalSum(torch.autograd.Function):
    """The sum of the focal loss over voxels.

    The gradient is computed in the forward pass, which has all that it needs, and kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        alpha: float | None,
        gamma: float,
    ) -> Tensor:
        dtype = counting_dtype(logits)
        gradient = torch.empty(logits.shape, dtype=dtype, device=logits.device)
        # All samples and classes as one row of voxels.
        x_of_all = logits.reshape(-1)
        g_of_all = target.reshape(-1)
        d_of_all = gradient.view(-1)
        w_of_all = None if weight is None else weight.reshape(-1)
        sums = []
        for voxels in cache_sized_slices(logits.numel(), logits.device):
            x = x_of_all[voxels].to(dtype)
            g = g_of_all[voxels].to(dtype)
            w = None if w_of_all is None else w_of_all[voxels]
            d = d_of_all[voxels]
            sums.append(_focal_sum(x, g, w, alpha=alpha, gamma=gamma, gradient=d))
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        return torch.stack(sums).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        # One entry for each argument of forward: only the logits get a gradient.
        return (gradient * d_total).to(ctx.dtype), None, None, None, None


def _focal_sum(
    x: Tensor, g: Tensor, w: Tensor | None, *, alpha: float | None, gamma: float, gradient: Tensor
) -> Tensor:
    """Add up the focal loss of some voxels, all (N,), and write its slopes by the logits.

    With s = 1 - 2 g, m = sigmoid(s x) and the cross-entropy h, the loss is w alpha_t m^gamma h and
    its slope w alpha_t m^gamma (gamma (1 - m) s h + p - g).
    """
    # m = 1 - p_t, how wrong a voxel is: 1 - p on lesion (sign -1), p on background (sign 1).
    sign = 1 - 2 * g
    miss = (sign * x).sigmoid_()
    # relu(x) + log(1 + exp(-|x|)) - g x: finite however sure the network is
    cross_entropy = x.relu()
    cross_entropy.sub_(x.abs().sigmoid_().log_())
    cross_entropy.addcmul_(g, x, value=-1)
    factor = miss.pow(gamma)
    if alpha is not None:
        factor *= (2 * alpha - 1) * g + (1 - alpha)
    if w is not None:
        factor *= w
    # The method names end in _ where a tensor of this function is overwritten, to save memory.
    slope = (1 - miss).mul_(sign).mul_(cross_entropy).mul_(gamma)
    slope.add_(x.sigmoid()).sub_(g)
    torch.mul(factor, slope, out=gradient)
    return torch.dot(factor, cross_entropy)


def _sum_by_class(values: Tensor) -> Tensor:
    """Add up the voxels of each class: (B, C, X, Y, Z) -> (C,)."""
    return values.transpose(0, 1).flatten(1).sum(1)


def _widened(
    logits: Tensor, target: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Convert all three to float32, or to float64 for float64 logits."""
    dtype = counting_dtype(logits)
    if weight is not None:
        weight = weight.to(dtype)
    return logits.to(dtype), target.to(dtype), weight
