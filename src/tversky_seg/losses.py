"""The losses: the Tversky family, and sums of losses.

Every loss is called `loss(logits, target, weight=None)` and returns a scalar to be minimised. Logits and target are
(B, C, X, Y, Z), one channel per foreground class (independent sigmoids), the target in [0, 1]; `weight` is any tensor
that broadcasts to them. `alpha` weighs false positives and `beta` misses, whatever the letters of the source. Under
torch.distributed a loss is that of the global batch, on every process.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from tversky_seg.overlap import f_weights, tversky_index
from tversky_seg.soft_counts import soft_counts, sum_over_processes
from tversky_seg.voxel_losses import BCELoss, FocalLoss, WeightedBCELoss

__all__ = [
    "AsymmetricSimilarityLoss",
    "BCELoss",
    "CombinedLoss",
    "DiceLoss",
    "FocalLoss",
    "FocalTverskyLoss",
    "GeneralizedDiceLoss",
    "TverskyLoss",
    "WeightedBCELoss",
]

_NEVER_ZERO = 1e-20  # voxels, in place of smooth=0: no 0/0 where nothing is there and nothing is claimed


class TverskyLoss(nn.Module):
    """One minus the Tversky index: false positives weigh alpha, misses beta (arXiv 1706.05721, eq. 2-3).

    loss = 1 - mean over classes of (TP + smooth) / (TP + alpha FP + beta FN + smooth), with soft counts in voxels.

    Args:
        alpha: weight of false positives, >= 0; raise it for precision.
        beta: weight of misses, >= 0; raise it for sensitivity. Both None: 0.3 and 0.7, the paper's best; one None:
            1 - the other.
        smooth: added to numerator and denominator, in voxels. The paper names none. 1, as in its authors' later code
            (arXiv 1803.11078), is negligible beside the lesions of a batch, yet lets the loss of a batch without any
            fall from 1 to 0 as its false positives vanish.
        over_batch: take one ratio of the counts of the global batch. False: one ratio per sample, then the mean; a
            lesion-free sample then has about 1e4 times less gradient.
    """

    def __init__(
        self, *, alpha: float | None = None, beta: float | None = None, smooth: float = 1.0, over_batch: bool = True
    ) -> None:
        super().__init__()
        alpha, beta = tversky_weights(alpha, beta)
        self.index = partial(soft_index, alpha=alpha, beta=beta, smooth=_checked(smooth), over_batch=over_batch)

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits and target (B, C, X, Y, Z) -> a scalar in [0, 1]."""
        return 1 - self.index(logits, target, weight).mean()


class DiceLoss(nn.Module):
    """One minus the soft Dice coefficient: the Tversky loss with alpha = beta = 0.5.

    Args:
        squared: V-Net's form (arXiv 1606.04797), 1 - 2 sum(p g) / sum(p^2 + g^2).
        smooth: as in TverskyLoss; twice as much in formulas written (2 TP + smooth) / (2 TP + FP + FN + smooth).
        over_batch: as in TverskyLoss.
    """

    def __init__(self, *, squared: bool = False, smooth: float = 1.0, over_batch: bool = True) -> None:
        super().__init__()
        self.index = partial(
            soft_index, alpha=0.5, beta=0.5, smooth=_checked(smooth), over_batch=over_batch, squared=squared
        )

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits and target (B, C, X, Y, Z) -> a scalar in [0, 1]."""
        return 1 - self.index(logits, target, weight).mean()


class AsymmetricSimilarityLoss(nn.Module):
    """One minus the F measure in which sensitivity counts b times as much as precision (arXiv 1803.11078).

    The Tversky loss with alpha = 1 / (1 + b^2) and beta = b^2 / (1 + b^2).

    Args:
        b: >= 0; 1 is Dice. The paper tried 1 to 3 and found 1.5 best.
        squared: the form that ran in arXiv 2007.10033, 1 - (1 + b^2) sum(p g) / sum(b^2 g^2 + p^2).
        smooth: as in TverskyLoss.
        over_batch: as in TverskyLoss.
    """

    def __init__(self, *, b: float = 1.5, squared: bool = False, smooth: float = 1.0, over_batch: bool = True) -> None:
        super().__init__()
        alpha, beta = f_weights(b)
        self.index = partial(
            soft_index, alpha=alpha, beta=beta, smooth=_checked(smooth), over_batch=over_batch, squared=squared
        )

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits and target (B, C, X, Y, Z) -> a scalar in [0, 1]."""
        return 1 - self.index(logits, target, weight).mean()


class FocalTverskyLoss(nn.Module):
    """The Tversky loss of each class to the power 1 / gamma (arXiv 1810.07842), the mean over classes.

    gamma > 1 lowers the loss's slope where the index is small and raises it where it is nearly 1. In that paper alpha
    (0.7) weighs misses and beta (0.3) false positives: the other way round, with the same defaults.

    Args:
        alpha: weight of false positives, >= 0.
        beta: weight of misses, >= 0; None as in TverskyLoss.
        gamma: > 0; the paper took 4/3 from the range 1 to 3. 1 is the Tversky loss.
        smooth: as in TverskyLoss.
        over_batch: as in TverskyLoss.
    """

    def __init__(
        self,
        *,
        alpha: float | None = None,
        beta: float | None = None,
        gamma: float = 4 / 3,
        smooth: float = 1.0,
        over_batch: bool = True,
    ) -> None:
        super().__init__()
        if not 0 < gamma < math.inf:
            raise ValueError(f"gamma must be > 0 and finite, got gamma={gamma}")
        alpha, beta = tversky_weights(alpha, beta)
        self.gamma = gamma
        self.index = partial(soft_index, alpha=alpha, beta=beta, smooth=_checked(smooth), over_batch=over_batch)

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits and target (B, C, X, Y, Z) -> a scalar in [0, 1]."""
        missing = 1 - self.index(logits, target, weight)
        return missing.clamp_min(1e-7).pow(1 / self.gamma).mean()  # the slope of a root is infinite at 0


class GeneralizedDiceLoss(nn.Module):
    """One minus the Dice coefficient of all classes together, each weighted by 1 / size^2 (arXiv 1707.03237).

    loss = 1 - 2 sum_c w_c TP_c / sum_c w_c (2 TP_c + FP_c + FN_c), with w_c = 1 / (voxels of c in the target)^2 scaled
    so that the rarest class has weight 1. A class without voxels takes that weight too (1 / 0 otherwise); with nothing
    but background, the loss is the mean of p.

    Args:
        background: each class brings its complement 1 - p as another class, so that one class means the two-class
            formula of the paper. False: the classes alone; one class is then plain Dice.
        smooth: added to numerator and denominator as in TverskyLoss, in voxels of the rarest class. 0 by default: the
            background keeps the ratio defined.
        over_batch: as in TverskyLoss.
    """

    def __init__(self, *, background: bool = True, smooth: float = 0.0, over_batch: bool = True) -> None:
        super().__init__()
        self.background, self.smooth, self.over_batch = background, _checked(smooth), over_batch

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits and target (B, C, X, Y, Z) -> a scalar in [0, 1]."""
        tp, fp, fn = soft_counts(logits, target, weight, over_batch=self.over_batch)
        if self.background:
            tn = _total(logits, weight, over_batch=self.over_batch) - tp - fp - fn
            tp, fp, fn = torch.cat([tp, tn], -1), torch.cat([fp, fn], -1), torch.cat([fn, fp], -1)
        size = (tp + fn).detach()
        rarest = size.where(size > 0, math.inf).amin(-1, keepdim=True)
        importance = torch.where(size > 0, rarest / size, 1).square()
        tp, fp, fn = ((importance * counts).sum(-1) for counts in (tp, fp, fn))
        return 1 - tversky_index(tp, fp, fn, alpha=0.5, beta=0.5, smooth=self.smooth or _NEVER_ZERO).mean()


class CombinedLoss(nn.Module):
    """A weighted sum of losses, such as Tversky + focal or Dice + BCE; voxel weights go to each of them.

    Args:
        losses: one or more losses of this module.
        weights: the factor of each, >= 0; None: 1 each.
    """

    def __init__(self, *, losses: Sequence[nn.Module], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)
        self.weights = [1.0] * len(losses) if weights is None else [float(factor) for factor in weights]
        if not losses or len(self.weights) != len(losses) or not all(0 <= w < math.inf for w in self.weights):
            raise ValueError(f"expected a weight >= 0 for each of {len(losses)} losses (at least 1), got {weights}")

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits and target (B, C, X, Y, Z) -> a scalar."""
        parts = [w * loss(logits, target, weight) for w, loss in zip(self.weights, self.losses, strict=True)]
        return torch.stack(parts).sum()


def soft_index(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    *,
    alpha: float,
    beta: float,
    smooth: float,
    over_batch: bool,
    squared: bool = False,
) -> Tensor:
    """Soft Tversky index of each class, (C,) or (B, C); 1 where nothing is there, nothing claimed and smooth = 0."""
    tp, fp, fn = soft_counts(logits, target, weight, squared=squared, over_batch=over_batch)
    return tversky_index(tp, fp, fn, alpha=alpha, beta=beta, smooth=smooth or _NEVER_ZERO)


def tversky_weights(alpha: float | None, beta: float | None) -> tuple[float, float]:
    """The weights of false positives and misses; both None: 0.3 and 0.7, one None: 1 - the other."""
    if alpha is None:
        alpha = 0.3 if beta is None else 1 - beta
    beta = 1 - alpha if beta is None else beta
    if not (alpha >= 0 and beta >= 0 and 0 < alpha + beta < math.inf):
        raise ValueError(f"alpha and beta must be >= 0, finite and not both 0, got alpha={alpha:g}, beta={beta:g}")
    return alpha, beta


def _total(logits: Tensor, weight: Tensor | None, *, over_batch: bool) -> Tensor:
    """Voxels (or their weights) of each class, (C,) or (B, C); over the global batch with `over_batch`."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    if weight is None:
        voxels = torch.full(logits.shape[:2], float(logits[0, 0].numel()), dtype=wide, device=logits.device)
    else:
        voxels = weight.expand(logits.shape).sum(tuple(range(2, logits.ndim)), dtype=wide)
    return sum_over_processes(voxels.sum(0)) if over_batch else voxels


def _checked(smooth: float) -> float:
    if not 0 <= smooth < math.inf:
        raise ValueError(f"smooth must be >= 0 and finite, got smooth={smooth}")
    return smooth
