"""Terms that count each lesion once, to be added to any loss.

    total = loss(logits, target, weight) + term(logits, target, lesions, weight)

Logits and target are (B, C, X, Y, Z), as for losses. `lesions` is the number of the lesion that
each voxel belongs to, 0 for none: components of the whole volume, cut to the patch, or their cells
(`data.preprocessing.lesion_cells`), which add the voxels around. A lesion counts where a voxel of
it lies in the patch, with a weight above 0; of a lesion that the patch cuts, the part inside
counts. The mean is over the lesions of the global batch, class by class, then over the classes that
have any. Without lesions a term is 0, and so is its gradient.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from tversky_seg.losses.blob import BlobLoss
from tversky_seg.losses.checks import check_arguments, checked_smooth, tversky_weights
from tversky_seg.losses.lesion_table import lesion_table, mean_over_lesions
from tversky_seg.losses.soft_counts import counting_dtype
from tversky_seg.losses.tversky import (
    AsymmetricSimilarityLoss,
    DiceLoss,
    FocalTverskyLoss,
    TverskyLoss,
)
from tversky_seg.metrics.overlap import tversky_index


class CellTerm(nn.Module):
    """One minus the Tversky index of each lesion's cell, the voxels nearest to it.

    The mean over lesions of 1 - TP / (TP + alpha FP + beta FN), with the soft counts of a cell.
    Missing half of a lesion costs the same whatever its size, and a false positive counts next to
    the lesion that it is near to. As CC-DiceCE (arXiv 2511.17146), there with Dice and with cells
    of the patch; here they are of the whole volume and end at `max_distance_mm`. A cell whose
    lesion lies outside the patch is left out.

    Args:
        weight: Factor of the term, >= 0.
        max_distance_mm: Distance from its lesion to which a cell reaches, > 0.
        alpha: Weight of false positives, >= 0.
        beta: Weight of false negatives, >= 0; one None: 1 - the other. Both None: those of the loss
            that the term is added to (`with_ratio_of`), otherwise 0.3 and 0.7.
        smooth: Voxels added to numerator and denominator. Every lesion has a voxel, so none are
            needed.
    """

    def __init__(
        self,
        *,
        weight: float = 1.0,
        max_distance_mm: float = 5.0,
        alpha: float | None = None,
        beta: float | None = None,
        smooth: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 < max_distance_mm < math.inf:
            raise ValueError(
                f"max_distance_mm must be > 0 and finite, got max_distance_mm={max_distance_mm}"
            )
        self.weight = _checked_weight(weight)
        self.max_distance_mm = float(max_distance_mm)
        self.has_own_ratio = not (alpha is None and beta is None)
        self.alpha, self.beta = tversky_weights(alpha, beta)
        self.smooth = checked_smooth(smooth)

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        lesions: Tensor,
        weight: Tensor | None = None,
        *,
        n_labels: int | None = None,
    ) -> Tensor:
        """Compute the term, a scalar in [0, weight].

        Args:
            logits: (B, C, X, Y, Z).
            target: Of the same shape, in [0, 1].
            lesions: Cells, integers of the same shape.
            weight: Weight of each voxel; broadcasts to the logits.
            n_labels: Bound of the numbers in `lesions`; None: look for it, for which a GPU waits.
        """
        check_arguments(logits, target, weight)
        table = lesion_table(lesions, n_labels=n_labels)
        x = table.pick(logits).to(counting_dtype(logits))
        p = x.sigmoid()
        g = table.pick(target).to(x.dtype)
        w = torch.ones_like(x)
        if weight is not None:
            w = table.pick(weight.expand_as(logits)).to(x.dtype)
        # A lesion voxel with p = 0.8 and one beside it with p = 0.4: TP 0.8, FP 0.4, FN 0.2.
        tp = table.sums(w * p * g)
        fp = table.sums(w * p * (1 - g))
        fn = table.sums(w * (1 - p) * g)
        shortfall, is_counted = _shortfall(
            tp, fp, fn, alpha=self.alpha, beta=self.beta, smooth=self.smooth
        )
        return self.weight * mean_over_lesions(shortfall, is_counted)

    def extra_repr(self) -> str:
        """Settings, as repr() shows them."""
        return (
            f"weight={self.weight:g}, max_distance_mm={self.max_distance_mm:g}, "
            f"alpha={self.alpha:g}, beta={self.beta:g}, smooth={self.smooth:g}"
        )


class LargestProbabilityTerm(nn.Module):
    """The negative logarithm of each lesion's largest probability, softened: each must be found.

    The mean over lesions of -log p_max, with the power mean p_max = (mean p^sharpness)^(1 /
    sharpness) over the voxels of a lesion: between their mean (sharpness 1) and the largest of them
    (infinity). Lesions that no threshold brings back have a small largest probability
    (arXiv 2604.08015, which adds such a multiple-instance term to Dice + cross-entropy). It never
    looks at the background: false positives are the business of the loss that it is added to.

    Args:
        weight: Factor of the term, >= 0.
        sharpness: Exponent of the power mean, >= 1. With 10, a lesion of 8 voxels of which one is
            sure has p_max = 0.81, one of 1000 voxels 0.5.
    """

    max_distance_mm = None
    """Components are enough."""

    def __init__(self, *, weight: float = 0.1, sharpness: float = 10.0) -> None:
        super().__init__()
        if not 1 <= sharpness < math.inf:
            raise ValueError(f"sharpness must be >= 1 and finite, got sharpness={sharpness}")
        self.weight = _checked_weight(weight)
        self.sharpness = float(sharpness)

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        lesions: Tensor,
        weight: Tensor | None = None,
        *,
        n_labels: int | None = None,
    ) -> Tensor:
        """Compute the term, a scalar >= 0.

        Args:
            logits: (B, C, X, Y, Z).
            target: Of the same shape, in [0, 1]; lesion is above 0.5.
            lesions: Components or cells, integers of the same shape.
            weight: Voxels of weight 0 are left out; other weights do not matter here.
            n_labels: As in CellTerm.
        """
        check_arguments(logits, target, weight)
        is_inside = target > 0.5
        if weight is not None:
            is_inside = is_inside & (weight > 0)
        # Cells hold background too, which this term leaves out.
        table = lesion_table(lesions * is_inside, n_labels=n_labels)
        x = table.pick(logits).to(counting_dtype(logits))
        is_inside = table.pick(is_inside)
        # Logarithms: a probability of 1e-9 to the tenth power is 0 for float32.
        powers = self.sharpness * functional.logsigmoid(x)
        n = table.sums(is_inside.to(x.dtype))
        is_counted = n > 0
        # Without a gradient: it is subtracted and added again, which cancels.
        largest = table.largest(powers.detach())
        largest = torch.where(is_counted, largest, 0)
        relative = torch.where(is_inside, powers - table.spread(largest), -math.inf)
        mean = torch.where(is_counted, table.sums(relative.exp()) / n.clamp_min(1), 1)
        log_p_max = (largest + mean.log()) / self.sharpness
        return self.weight * mean_over_lesions(-log_p_max, is_counted)

    def extra_repr(self) -> str:
        """Settings, as repr() shows them."""
        return f"weight={self.weight:g}, sharpness={self.sharpness:g}"


class BlobTerm(nn.Module):
    """One minus the Tversky index of each lesion with all other lesions left out.

    The per-lesion part of the blob loss (arXiv 2205.08209): true positives and false negatives are
    the lesion's own, false positives those of the whole patch. Unlike in BlobLoss, lesions are
    those of the whole volume, so that nothing is looked for on the host, and each lesion of the
    batch weighs the same, whatever the number of lesions in its patch.

    Args:
        weight: Factor of the term, >= 0.
        alpha: Weight of false positives, as in CellTerm.
        beta: Weight of false negatives, as in CellTerm.
        smooth: As in CellTerm.
    """

    max_distance_mm = None
    """Components are enough."""

    def __init__(
        self,
        *,
        weight: float = 0.5,
        alpha: float | None = None,
        beta: float | None = None,
        smooth: float = 0.0,
    ) -> None:
        super().__init__()
        self.weight = _checked_weight(weight)
        self.has_own_ratio = not (alpha is None and beta is None)
        self.alpha, self.beta = tversky_weights(alpha, beta)
        self.smooth = checked_smooth(smooth)

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        lesions: Tensor,
        weight: Tensor | None = None,
        *,
        n_labels: int | None = None,
    ) -> Tensor:
        """Compute the term, a scalar in [0, weight].

        Args:
            logits: (B, C, X, Y, Z).
            target: Of the same shape, in [0, 1]; lesion is above 0.5.
            lesions: Components or cells, integers of the same shape.
            weight: Weight of each voxel; broadcasts to the logits.
            n_labels: As in CellTerm.
        """
        check_arguments(logits, target, weight)
        is_lesion = target > 0.5
        p = logits.to(counting_dtype(logits)).sigmoid()
        w = torch.ones_like(p) if weight is None else weight.to(p.dtype).expand_as(p)
        wp = w * p
        table = lesion_table(lesions * is_lesion, n_labels=n_labels)
        tp = table.sums(table.pick(wp))
        fn = table.sums(table.pick(w - wp))
        # The background of a patch is the same for each of its lesions.
        fp = (wp * ~is_lesion).sum((2, 3, 4))[..., None]
        shortfall, is_counted = _shortfall(
            tp, fp, fn, alpha=self.alpha, beta=self.beta, smooth=self.smooth
        )
        return self.weight * mean_over_lesions(shortfall, is_counted)

    def extra_repr(self) -> str:
        """Settings, as repr() shows them."""
        return (
            f"weight={self.weight:g}, alpha={self.alpha:g}, beta={self.beta:g}, "
            f"smooth={self.smooth:g}"
        )


def with_ratio_of(term: nn.Module, loss: nn.Module) -> nn.Module:
    """Give a term without alpha and beta of its own those of the loss that it is added to.

    Args:
        term: Any term. One with its own alpha or beta, or without any, is returned as it is.
        loss: Any loss; the first loss of the Tversky family in it decides. Without one the term
            keeps 0.3 and 0.7.
    """
    if not isinstance(term, CellTerm | BlobTerm) or term.has_own_ratio:
        return term
    ratio = _ratio_of(loss)
    if ratio is None:
        return term
    # A copy, so that the term may stand beside another loss elsewhere.
    following = copy.copy(term)
    following.alpha, following.beta = ratio
    return following


def _ratio_of(loss: nn.Module) -> tuple[float, float] | None:
    """Look for alpha and beta in a loss and in those that it is made of."""
    for part in loss.modules():
        if isinstance(part, TverskyLoss | AsymmetricSimilarityLoss | FocalTverskyLoss | BlobLoss):
            return part.alpha, part.beta
        if isinstance(part, DiceLoss):
            return 0.5, 0.5
    return None


def _checked_weight(weight: float) -> float:
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight must be >= 0 and finite, got weight={weight}")
    return float(weight)


def _shortfall(
    tp: Tensor, fp: Tensor, fn: Tensor, *, alpha: float, beta: float, smooth: float
) -> tuple[Tensor, Tensor]:
    """Compute one minus the Tversky index of each lesion, and tell which lesions there are."""
    is_counted = tp + fn > 0
    # A lesion that is not there would be 0 / 0, whose slope is NaN.
    fn = torch.where(is_counted, fn, 1)
    return 1 - tversky_index(tp, fp, fn, alpha=alpha, beta=beta, smooth=smooth), is_counted
