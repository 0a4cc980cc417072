"""Histograms of probabilities, which rank voxels exactly and add up over cases.

A saved uint16 map holds 65,536 probabilities. The pooled curve of any number of cases needs no more
memory than that of one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tversky_seg.metrics.masks import FloatArray, IntArray, Mask, as_array
from tversky_seg.metrics.ranking import (
    PrecisionRecallCurve,
    counts_from_above,
    curve_of_counts,
    flat_scores,
    roc_area_of_counts,
)

N_LEVELS = 65_536
GOALS = {"dice": 1.0, "f2": 2.0}
"""The F_b that each goal of `choose_threshold` maximises."""


@dataclass(frozen=True, eq=False)
class ScoreHistogram:
    """Numbers of voxels and of lesion voxels at each probability 0, 1/65535, ..., 1."""

    n_voxels: IntArray
    """(65536,) all evaluated voxels."""
    n_positive: IntArray
    """(65536,) those of the reference."""

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        """Add the voxels of another histogram."""
        return ScoreHistogram(
            n_voxels=self.n_voxels + other.n_voxels,
            n_positive=self.n_positive + other.n_positive,
        )

    def average_precision(self) -> float:
        """Compute the area under the precision-recall curve; NaN without lesion voxels.

        As the function `average_precision`, with probabilities rounded to 1/65535.
        """
        levels = np.flatnonzero(self.n_positive)
        if not levels.size:
            return math.nan
        tp = counts_from_above(self.n_positive)[levels]
        n_predicted = counts_from_above(self.n_voxels)[levels]
        precision = tp / n_predicted
        # The mean of the precision over lesion voxels: each level counts once for each of its own.
        total = (self.n_positive[levels] * precision).sum()
        return float(total / self.n_positive.sum())

    def roc_auc(self) -> float:
        """Compute the area under the ROC curve; NaN where all voxels are lesion or none is.

        As the function `roc_auc`, with probabilities rounded to 1/65535.
        """
        levels = np.flatnonzero(self.n_positive)
        return roc_area_of_counts(
            self.n_positive[levels],
            n_level=self.n_voxels[levels],
            n_above=counts_from_above(self.n_voxels)[levels],
            n_positive_above=counts_from_above(self.n_positive)[levels],
            n_voxels=int(self.n_voxels.sum()),
        )

    def curve(self, *, every_level: bool = False) -> PrecisionRecallCurve:
        """Compute the precision-recall curve at the probabilities of lesion voxels.

        Its step-wise area needs no others.

        Args:
            every_level: Whether to give the points at the probabilities of all voxels, as
                `precision_recall_curve` does.
        """
        levels = np.flatnonzero(self.n_voxels if every_level else self.n_positive)
        # A level counts the voxels up to the next one that is given, so that none is lost.
        n_above = np.append(counts_from_above(self.n_voxels)[levels], 0)
        return curve_of_counts(
            levels / (N_LEVELS - 1),
            n_voxels=-np.diff(n_above),
            n_positive=self.n_positive[levels],
        )

    def at_or_above(self, thresholds: ArrayLike) -> tuple[IntArray, IntArray]:
        """Count lesion voxels, and all voxels, of `probability >= threshold`.

        Args:
            thresholds: (n,) thresholds in [0, 1].

        Returns:
            (n,) lesion voxels and (n,) all voxels.
        """
        levels = level_of(thresholds)
        n_positive = counts_from_above(self.n_positive)[levels]
        n_voxels = counts_from_above(self.n_voxels)[levels]
        return n_positive, n_voxels

    def f(self, b: float) -> FloatArray:
        """Compute F_b of the mask `probability >= k/65535` for each level k.

        (1+b^2) TP / (TP + FP + b^2 (TP + FN)); b = 1 is Dice (arXiv 1803.11078).

        Returns:
            (65536,) in [0, 1]; NaN where neither reference nor mask has a voxel.
        """
        tp = counts_from_above(self.n_positive)
        n_predicted = counts_from_above(self.n_voxels)
        numerator = (1 + b**2) * tp
        denominator = n_predicted + b**2 * self.n_positive.sum()
        scores = np.full(N_LEVELS, math.nan)
        np.divide(numerator, denominator, out=scores, where=denominator > 0)
        return scores


def score_histogram(
    probability: ArrayLike, reference: ArrayLike, mask: ArrayLike | None = None
) -> ScoreHistogram:
    """Count voxels and lesion voxels by probability, rounded to 1/65535.

    Exact for saved uint16 maps.

    Args:
        probability: Probabilities of any shape, in [0, 1].
        reference: 0/1 mask of the same shape.
        mask: Voxels to evaluate (0/1), all by default.

    Raises:
        ValueError: Probabilities outside [0, 1], and as for `precision_recall_curve`.
    """
    scores, positive = flat_scores(probability, reference, mask)
    return levels_histogram(to_levels(scores), positive)


def levels_histogram(levels: NDArray[np.uint16], positive: Mask) -> ScoreHistogram:
    """Count voxels and lesion voxels by level (see `to_levels`); both arrays of one shape."""
    # All voxels are counted in the order of memory, which needs no copy.
    n_voxels = np.bincount(levels.ravel(order="K"), minlength=N_LEVELS)
    n_positive = np.bincount(levels[positive], minlength=N_LEVELS)
    return ScoreHistogram(n_voxels, n_positive)


def to_levels(probability: ArrayLike) -> NDArray[np.uint16]:
    """Round probabilities to the nearest of the 65,536 levels 0 ... 65535.

    Args:
        probability: Probabilities of any shape, in [0, 1].

    Returns:
        Levels of the same shape.

    Raises:
        ValueError: Values outside [0, 1] or NaN; rounding errors up to 1e-6 are tolerated.
    """
    values = as_array(probability)
    # Half precision holds no more than 2,048 levels exactly.
    values = values.astype(np.result_type(values, np.float32), copy=False)
    if values.size:
        lowest = values.min()
        highest = values.max()
        # Not with "or": NaN fails every comparison, and must be refused.
        if not (lowest >= -1e-6 and highest <= 1 + 1e-6):
            raise ValueError(f"probability must lie in [0, 1], got {lowest:g} to {highest:g}")
    highest_level = N_LEVELS - 1
    rounded = np.rint(values * highest_level).clip(0, highest_level)
    levels: NDArray[np.uint16] = rounded.astype(np.uint16)
    return levels


def level_of(thresholds: ArrayLike) -> IntArray:
    """Find the lowest level whose probability reaches each threshold in [0, 1]."""
    # 3 * 0.2 is 0.6000000000000001, which must still be reached by level 39321, 0.6.
    exact = np.asarray(thresholds, np.float64) * (N_LEVELS - 1)
    return np.ceil(exact - 1e-6).astype(np.int64)


def choose_threshold(histograms: Iterable[ScoreHistogram], goal: str = "dice") -> float:
    """Choose the threshold that gives the highest mean Dice (or F2) over cases.

    It lies halfway between two levels of a saved probability map, so that thresholding before or
    after saving gives one mask. Of equally good thresholds the one nearest to 0.5 is taken.

    Args:
        histograms: One per validation case. Cases without lesion voxels are left out, since F is 0
            or undefined for them.
        goal: "dice" or "f2".

    Returns:
        Threshold in (0, 1) for `probability >= threshold`; 0.5 when no case has lesion voxels.

    Raises:
        ValueError: Unknown goal.
    """
    if goal not in GOALS:
        raise ValueError(f"goal must be one of {', '.join(GOALS)}, got {goal}")
    scores: list[FloatArray] = []
    for histogram in histograms:
        if histogram.n_positive.any():
            scores.append(histogram.f(GOALS[goal])[1:])  # level 0 would predict every voxel
    if not scores:
        return 0.5
    total = np.sum(scores, axis=0)
    # Sums of many cases differ by rounding where their Dice is equal.
    is_best = total >= total.max() * (1 - 1e-12)
    best = 1 + np.flatnonzero(is_best)
    level = best[np.abs(best - N_LEVELS / 2).argmin()]
    return float((level - 0.5) / (N_LEVELS - 1))
