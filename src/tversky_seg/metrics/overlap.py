"""Overlap of a prediction with its reference: counts first, rates from counts.

`tversky_index` is the one rate that losses and reports share. Precision, sensitivity, Dice and
every F measure are settings of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from tversky_seg.metrics.masks import as_masks

if TYPE_CHECKING:
    from torch import Tensor

Number = TypeVar("Number", float, "Tensor")


def tversky_index(
    tp: Number, fp: Number, fn: Number, *, alpha: float, beta: float, smooth: float = 0.0
) -> Number:
    """Compute the share of true positives when false positives weigh alpha and misses weigh beta.

    (tp + smooth) / (tp + alpha fp + beta fn + smooth): arXiv 1706.05721, eq. 2. alpha = beta = 0.5
    is Dice, alpha = beta = 1 the Jaccard index, (1, 0) precision, (0, 1) sensitivity.

    Args:
        tp: True positives in voxels, hard or soft; a number, or a tensor of any shape.
        fp: False positives, as `tp`.
        fn: False negatives (missed), as `tp`.
        alpha: Weight of a false positive, >= 0.
        beta: Weight of a false negative, >= 0.
        smooth: Voxels added to numerator and denominator.

    Returns:
        The index in [0, 1]; NaN where the denominator is 0, which is when reference and prediction
        are both empty and smooth is 0.
    """
    denominator = tp + alpha * fp + beta * fn + smooth
    # For tensors 0 / 0 is NaN already; for numbers Python would raise an error.
    if isinstance(denominator, (int, float, np.generic)) and not denominator:
        return math.nan
    return (tp + smooth) / denominator


def f_weights(b: float) -> tuple[float, float]:
    """Compute the (alpha, beta) that make the Tversky index the F measure of `b`.

    Sensitivity then counts b times as much as precision. alpha = 1 / (1 + b^2),
    beta = b^2 / (1 + b^2): arXiv 1803.11078. b = 1 is Dice, b = 2 is (0.2, 0.8).

    Raises:
        ValueError: Negative or infinite `b`.
    """
    if not 0 <= b < math.inf:
        raise ValueError(f"b must be >= 0 and finite, got b={b}")
    alpha = 1 / (1 + b * b)
    beta = b * b / (1 + b * b)
    return alpha, beta


@dataclass(frozen=True)
class OverlapCounts:
    """Numbers of voxels, and the rates made of them. Rates with an empty denominator are NaN."""

    tp: int
    """True positives: in both masks."""
    fp: int
    """False positives: in the prediction alone."""
    fn: int
    """False negatives: in the reference alone."""
    tn: int
    """True negatives: in neither mask."""

    @property
    def dice(self) -> float:
        """Dice coefficient 2 tp / (2 tp + fp + fn); NaN where both masks are empty."""
        return self.f(1)

    @property
    def sensitivity(self) -> float:
        """Share of the reference that is predicted, tp / (tp + fn); NaN without reference."""
        return self._index(alpha=0, beta=1)

    @property
    def specificity(self) -> float:
        """Share of the background that is not predicted, tn / (tn + fp); NaN without background."""
        # Background takes the place of lesion: its true positives are tn, its misses fp.
        tn = float(self.tn)
        fp = float(self.fp)
        return tversky_index(tn, fp, 0.0, alpha=1, beta=0)

    @property
    def precision(self) -> float:
        """Share of the prediction that is right, tp / (tp + fp); NaN without prediction."""
        return self._index(alpha=1, beta=0)

    @property
    def jaccard(self) -> float:
        """Jaccard index tp / (tp + fp + fn); NaN where both masks are empty."""
        return self._index(alpha=1, beta=1)

    @property
    def mcc(self) -> float:
        """Matthews correlation coefficient of the masks, in [-1, 1]; NaN if one is empty or full.

        (tp tn - fp fn) / sqrt((tp + fp) (tp + fn) (tn + fp) (tn + fn)): Matthews 1975.
        """
        # Counts are Python integers: this product of a whole brain does not fit into 64 bits.
        lesion = (self.tp + self.fp) * (self.tp + self.fn)
        background = (self.tn + self.fp) * (self.tn + self.fn)
        spread = lesion * background
        if not spread:
            return math.nan
        covariance = self.tp * self.tn - self.fp * self.fn
        return covariance / math.sqrt(spread)

    @property
    def volume_difference(self) -> float:
        """Predicted minus reference volume, over the reference volume.

        Above 0 too much is predicted; NaN where the reference is empty.
        """
        n_reference = self.tp + self.fn
        if not n_reference:
            return math.nan
        return (self.fp - self.fn) / n_reference

    def f(self, b: float) -> float:
        """Compute the F measure, (1+b^2) tp / ((1+b^2) tp + b^2 fn + fp); b = 2 is F2.

        NaN where both masks are empty.
        """
        alpha, beta = f_weights(b)
        return self._index(alpha=alpha, beta=beta)

    def __add__(self, other: OverlapCounts) -> OverlapCounts:
        """Add the counts of another case."""
        return OverlapCounts(
            tp=self.tp + other.tp,
            fp=self.fp + other.fp,
            fn=self.fn + other.fn,
            tn=self.tn + other.tn,
        )

    def _index(self, *, alpha: float, beta: float) -> float:
        tp = float(self.tp)
        fp = float(self.fp)
        fn = float(self.fn)
        return tversky_index(tp, fp, fn, alpha=alpha, beta=beta)


def overlap_counts(prediction: ArrayLike, reference: ArrayLike) -> OverlapCounts:
    """Count the voxels in which two masks agree and differ.

    Args:
        prediction: Mask of any shape, bool or 0/1; a numpy array or a torch tensor on the CPU.
        reference: Mask of the same shape.

    Returns:
        The four counts; they add up to the number of voxels.

    Raises:
        ValueError: Shapes that differ, or other values than 0 and 1.
    """
    predicted, true = as_masks(prediction, reference)
    # Counting three masks and subtracting is faster than forming the four intersections.
    tp = int(np.count_nonzero(predicted & true))
    n_predicted = int(np.count_nonzero(predicted))
    n_reference = int(np.count_nonzero(true))
    fp = n_predicted - tp
    fn = n_reference - tp
    tn = true.size - tp - fp - fn
    return OverlapCounts(tp=tp, fp=fp, fn=fn, tn=tn)
