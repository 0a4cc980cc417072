"""Losses that are one minus a Tversky index: Tversky, Dice, asymmetric similarity, focal Tversky.

Logits and target are (B, C, X, Y, Z), one channel per foreground class (independent sigmoids), the
target in [0, 1]. `alpha` weighs false positives and `beta` false negatives, whatever the letters of
the source. Each class can be read on its own: they share their arithmetic, not their code.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from tversky_seg.losses.checks import checked_smooth, tversky_weights
from tversky_seg.losses.index_loss import index_loss
from tversky_seg.metrics.overlap import f_weights


class TverskyLoss(nn.Module):
    """One minus the Tversky index: false positives weigh alpha, false negatives beta.

    loss = 1 - mean over classes of (TP + smooth) / (TP + alpha FP + beta FN + smooth), with soft
    counts in voxels (arXiv 1706.05721, eq. 2-3).

    Args:
        alpha: Weight of false positives, >= 0; raise it for precision.
        beta: Weight of false negatives, >= 0; raise it for sensitivity. Both None: 0.3 and 0.7, the
            paper's best; one None: 1 - the other.
        smooth: Voxels added to numerator and denominator. The paper names none. 1, as in its
            authors' later code (arXiv 1803.11078), is negligible next to the lesions of a batch,
            yet lets the loss of a batch without lesions fall from 1 to 0 with its false positives.
        over_batch: Take one ratio of the counts of the global batch. False: one ratio per sample,
            then the mean; a lesion-free sample then has about 600 times less gradient
            (docs/losses.md).
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
        self.alpha, self.beta = tversky_weights(alpha, beta)
        self.smooth = checked_smooth(smooth)
        self.over_batch = over_batch

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compute the loss, a scalar in [0, 1], of logits and target (B, C, X, Y, Z)."""
        return index_loss(
            logits,
            target,
            weight,
            alpha=self.alpha,
            beta=self.beta,
            smooth=self.smooth,
            over_batch=self.over_batch,
        )

    def extra_repr(self) -> str:
        """Settings, as repr() shows them."""
        return (
            f"alpha={self.alpha:g}, beta={self.beta:g}, smooth={self.smooth:g}, "
            f"over_batch={self.over_batch}"
        )


class DiceLoss(nn.Module):
    """One minus the soft Dice coefficient: the Tversky loss with alpha = beta = 0.5.

    Args:
        squared: Take V-Net's form (arXiv 1606.04797), 1 - 2 sum(p g) / sum(p^2 + g^2).
        smooth: As in TverskyLoss. A formula written (2 TP + smooth) / (2 TP + FP + FN + smooth)
            takes twice as much for the same value.
        over_batch: As in TverskyLoss.
    """

    def __init__(
        self, *, squared: bool = False, smooth: float = 1.0, over_batch: bool = True
    ) -> None:
        super().__init__()
        self.squared = squared
        self.smooth = checked_smooth(smooth)
        self.over_batch = over_batch

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compute the loss, a scalar in [0, 1], of logits and target (B, C, X, Y, Z)."""
        # TP / (TP + FP / 2 + FN / 2) is 2 TP / (2 TP + FP + FN), the Dice coefficient.
        return index_loss(
            logits,
            target,
            weight,
            alpha=0.5,
            beta=0.5,
            smooth=self.smooth,
            squared=self.squared,
            over_batch=self.over_batch,
        )

    def extra_repr(self) -> str:
        """Settings, as repr() shows them."""
        return f"squared={self.squared}, smooth={self.smooth:g}, over_batch={self.over_batch}"


class AsymmetricSimilarityLoss(nn.Module):
    """One minus the F measure in which sensitivity counts b times as much as precision.

    The Tversky loss with alpha = 1 / (1 + b^2) and beta = b^2 / (1 + b^2) (arXiv 1803.11078).

    Args:
        b: Weight of sensitivity relative to precision, >= 0; 1 is Dice. The paper tried 1 to 3 and
            found 1.5 best.
        squared: Take the form that ran in arXiv 2007.10033,
            1 - (1 + b^2) sum(p g) / sum(b^2 g^2 + p^2).
        smooth: As in TverskyLoss.
        over_batch: As in TverskyLoss.
    """

    def __init__(
        self, *, b: float = 1.5, squared: bool = False, smooth: float = 1.0, over_batch: bool = True
    ) -> None:
        super().__init__()
        # The paper's b of 1.5 gives alpha 0.31 and beta 0.69.
        self.alpha, self.beta = f_weights(b)
        self.squared = squared
        self.smooth = checked_smooth(smooth)
        self.over_batch = over_batch

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compute the loss, a scalar in [0, 1], of logits and target (B, C, X, Y, Z)."""
        return index_loss(
            logits,
            target,
            weight,
            alpha=self.alpha,
            beta=self.beta,
            smooth=self.smooth,
            squared=self.squared,
            over_batch=self.over_batch,
        )

    def extra_repr(self) -> str:
        """Settings, as repr() shows them, and the weights that follow from b."""
        return (
            f"alpha={self.alpha:g}, beta={self.beta:g}, squared={self.squared}, "
            f"smooth={self.smooth:g}, over_batch={self.over_batch}"
        )


class FocalTverskyLoss(nn.Module):
    """The Tversky loss of each class to the power 1 / gamma, then the mean over classes.

    With gamma > 1 the slope is smaller where the index is small and larger where it is nearly 1
    (arXiv 1810.07842). In that paper alpha (0.7) weighs false negatives and beta (0.3) false
    positives: the letters change places, the defaults are the same.

    Args:
        alpha: Weight of false positives, >= 0.
        beta: Weight of false negatives, >= 0; None as in TverskyLoss.
        gamma: Inverse of the exponent, > 0. The paper took 4/3 from the range 1 to 3; 1 is the
            Tversky loss.
        smooth: As in TverskyLoss.
        over_batch: As in TverskyLoss.
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
        self.alpha, self.beta = tversky_weights(alpha, beta)
        self.gamma = gamma
        self.smooth = checked_smooth(smooth)
        self.over_batch = over_batch

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compute the loss, a scalar in [0, 1], of logits and target (B, C, X, Y, Z)."""
        # With gamma 4/3 a shortfall of 0.5 becomes 0.59, one of 0.01 becomes 0.03.
        return index_loss(
            logits,
            target,
            weight,
            alpha=self.alpha,
            beta=self.beta,
            smooth=self.smooth,
            over_batch=self.over_batch,
            exponent=1 / self.gamma,
        )

    def extra_repr(self) -> str:
        """Settings, as repr() shows them."""
        return (
            f"alpha={self.alpha:g}, beta={self.beta:g}, gamma={self.gamma:g}, "
            f"smooth={self.smooth:g}, over_batch={self.over_batch}"
        )
