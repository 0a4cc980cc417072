"""The generalised Dice loss: one ratio of all classes together."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tversky_seg.losses.checks import checked_smooth
from tversky_seg.losses.global_batch import sum_over_processes
from tversky_seg.losses.soft_counts import counting_dtype, soft_counts
from tversky_seg.metrics.overlap import tversky_index


class GeneralizedDiceLoss(nn.Module):
    """One minus the Dice coefficient of all classes together, each weighted by 1 / size^2.

    loss = 1 - 2 sum_c w_c TP_c / sum_c w_c (2 TP_c + FP_c + FN_c), with
    w_c = 1 / (voxels of c in the target)^2 (arXiv 1707.03237), scaled so that the rarest class has
    weight 1. A class without voxels takes that weight too (1 / 0 otherwise). On a target of
    background alone, the loss of one class is the mean of p.

    Args:
        background: Add the complement 1 - p of each class as another class, so that one class means
            the two-class formula of the paper. False: the classes alone; one class is then Dice.
        squared: Take the form that ran in arXiv 2007.10033,
            1 - 2 sum_c w_c sum(p_c g_c) / sum_c w_c sum(p_c^2 + g_c^2), w_c = 1 / (1 + size_c^2).
        smooth: Voxels of the rarest class added to numerator and denominator, as in TverskyLoss.
            0 by default: the background keeps the ratio defined.
        over_batch: As in TverskyLoss.
    """

    def __init__(
        self,
        *,
        background: bool = True,
        squared: bool = False,
        smooth: float = 0.0,
        over_batch: bool = True,
    ) -> None:
        super().__init__()
        self.background = background
        self.squared = squared
        self.smooth = checked_smooth(smooth)
        self.over_batch = over_batch

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compute the loss, a scalar in [0, 1], of logits and target (B, C, X, Y, Z)."""
        tp, fp, fn = self._counts(logits, target, weight)
        size = (tp + fn).detach()
        # Sizes come from the target, so no gradient flows into them.
        importance = 1 / (1 + size.square()) if self.squared else _importance(size)
        tp = (importance * tp).sum(-1)
        fp = (importance * fp).sum(-1)
        fn = (importance * fn).sum(-1)
        dice = tversky_index(tp, fp, fn, alpha=0.5, beta=0.5, smooth=self.smooth)
        return 1 - dice.mean()

    def extra_repr(self) -> str:
        """Settings, as repr() shows them."""
        return (
            f"background={self.background}, squared={self.squared}, smooth={self.smooth:g}, "
            f"over_batch={self.over_batch}"
        )

    def _counts(
        self, logits: Tensor, target: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Count TP, FP and FN of each class, then of the background of each."""
        tp, fp, fn = soft_counts(
            logits, target, weight, squared=self.squared, over_batch=self.over_batch
        )
        if not self.background:
            return tp, fp, fn
        if self.squared:
            # The sum of (1 - p)^2 does not follow from the counts of the class. 1 - p is the
            # sigmoid of -logits.
            g = target.to(counting_dtype(logits))
            background_tp, background_fp, background_fn = soft_counts(
                -logits, 1 - g, weight, squared=True, over_batch=self.over_batch
            )
        else:
            # A false positive of a class is a false negative of its background.
            n_voxels = _n_voxels(logits, weight, over_batch=self.over_batch)
            background_tp = n_voxels - tp - fp - fn
            background_fp = fn
            background_fn = fp
        return (
            torch.cat([tp, background_tp], -1),
            torch.cat([fp, background_fp], -1),
            torch.cat([fn, background_fn], -1),
        )


def _importance(size: Tensor) -> Tensor:
    """Weigh each class by 1 / size^2, relative to the rarest class that has voxels.

    Sizes (10, 1000, 0) give (1, 1e-4, 1).
    """
    has_none = size <= 0
    # torch.where would copy these numbers to a GPU, and wait for it.
    rarest = size.masked_fill(has_none, math.inf).amin(-1, keepdim=True)
    return (rarest / size).masked_fill(has_none, 1).square()


def _n_voxels(logits: Tensor, weight: Tensor | None, *, over_batch: bool) -> Tensor:
    """Count the (weighted) voxels of each class, (C,) over the global batch, otherwise (B, C)."""
    dtype = counting_dtype(logits)
    if weight is None:
        n = float(logits[0, 0].numel())
        n_voxels = torch.full(logits.shape[:2], n, dtype=dtype, device=logits.device)
    else:
        n_voxels = weight.expand(logits.shape).flatten(2).sum(2, dtype=dtype)
    if over_batch:
        return sum_over_processes(n_voxels.sum(0))
    return n_voxels
