"""The losses. Every one is called `loss(logits, target, weight=None)` and returns a scalar to be minimised.

Logits and target are (B, C, X, Y, Z), one channel per foreground class (independent sigmoids), the target in [0, 1];
`weight` is any tensor that broadcasts to them. `alpha` weighs false positives and `beta` misses, whatever the letters
of the source. The arithmetic is in soft_counts.py; under torch.distributed, a loss is that of the global batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tversky_seg.losses.cross_entropy import BCELoss, FocalLoss, WeightedBCELoss
from tversky_seg.losses.overlap_losses import (
    AsymmetricSimilarityLoss,
    BlobLoss,
    FocalTverskyLoss,
    GeneralizedDiceLoss,
)
from tversky_seg.losses.soft_counts import check_smooth, check_weights, tversky_loss

__all__ = ["AsymmetricSimilarityLoss", "BCELoss", "BlobLoss", "CombinedLoss", "DiceLoss", "FocalLoss",
           "FocalTverskyLoss", "GeneralizedDiceLoss", "TverskyLoss", "WeightedBCELoss"]  # fmt: skip


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
            lesion-free sample then has about 600 times less gradient (docs/losses.md).
    """

    def __init__(
        self,
        *,
        alpha: float | None = None,
        beta: float | None = None,
        smooth: float = 1.0,
        over_batch: bool = True,
    ) -> None:
        super().__init__()
        self.alpha, self.beta = check_weights(alpha, beta)
        self.smooth, self.over_batch = check_smooth(smooth), over_batch

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits and target (B, C, X, Y, Z) -> a scalar in [0, 1]."""
        return tversky_loss(
            logits,
            target,
            weight,
            alpha=self.alpha,
            beta=self.beta,
            smooth=self.smooth,
            over_batch=self.over_batch,
        )


class DiceLoss(nn.Module):
    """One minus the soft Dice coefficient: the Tversky loss with alpha = beta = 0.5.

    Args:
        squared: V-Net's form (arXiv 1606.04797), 1 - 2 sum(p g) / sum(p^2 + g^2).
        smooth: as in TverskyLoss; twice as much in formulas written (2 TP + smooth) / (2 TP + FP + FN + smooth).
        over_batch: as in TverskyLoss.
    """

    def __init__(
        self, *, squared: bool = False, smooth: float = 1.0, over_batch: bool = True
    ) -> None:
        super().__init__()
        self.squared, self.smooth, self.over_batch = squared, check_smooth(smooth), over_batch

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits and target (B, C, X, Y, Z) -> a scalar in [0, 1]."""
        options = {"squared": self.squared, "over_batch": self.over_batch}
        return tversky_loss(
            logits, target, weight, alpha=0.5, beta=0.5, smooth=self.smooth, **options
        )


class CombinedLoss(nn.Module):
    """A weighted sum of losses, such as Tversky + focal or Dice + BCE; voxel weights go to each of them.

    Args:
        losses: one or more losses of this module.
        weights: the factor of each, >= 0; None: 1 each.
    """

    def __init__(
        self, *, losses: Sequence[nn.Module], weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)
        self.weights = (
            [1.0] * len(losses) if weights is None else [float(factor) for factor in weights]
        )
        if (
            not losses
            or len(self.weights) != len(losses)
            or not all(0 <= w < math.inf for w in self.weights)
        ):
            raise ValueError(
                f"expected a weight >= 0 for each of {len(losses)} losses (at least 1), got {weights}"
            )

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits and target (B, C, X, Y, Z) -> a scalar."""
        parts = [
            w * loss(logits, target, weight)
            for w, loss in zip(self.weights, self.losses, strict=True)
        ]
        return torch.stack(parts).sum()
