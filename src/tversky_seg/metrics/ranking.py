"""How well probabilities rank lesion voxels above the rest: precision-recall curves and the area under them.

Two exact forms. `average_precision` takes any scores. `ScoreHistogram` counts voxels at the 65,536 probabilities that a
saved uint16 map can hold: histograms of cases add up, so the pooled curve of a cohort needs no more memory than one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tversky_seg.metrics.masks import Mask, as_array, as_mask

N_LEVELS = 65_536
GOALS = {"dice": 1.0, "f2": 2.0}


class PrecisionRecallCurve(NamedTuple):
    """Precision and recall of the mask `probability >= threshold`, by rising threshold, as scikit-learn orders them."""

    precision: NDArray[np.float64]
    """(n + 1,) in [0, 1]; the last is 1 by convention, belonging to no threshold."""
    recall: NDArray[np.float64]
    """(n + 1,) in [0, 1], falling; the last is 0. NaN before it without positives."""
    thresholds: NDArray[Any]
    """(n,) the distinct scores, rising."""


def precision_recall_curve(
    probability: ArrayLike, reference: ArrayLike, mask: ArrayLike | None = None
) -> PrecisionRecallCurve:
    """Precision and recall at every distinct score (Davis & Goadrich 2006).

    Args:
        probability: scores of any shape; higher means lesion.
        reference: 0/1 mask of the same shape.
        mask: voxels to judge (0/1), all by default.

    Returns:
        The curve; its recall is NaN without lesion voxels.

    Raises:
        ValueError: for shapes that differ, NaN scores, or a reference of other values than 0 and 1.
    """
    scores, positive = _flat(probability, reference, mask)
    levels, n_voxels = np.unique(scores, return_counts=True)
    n_positive = np.bincount(np.searchsorted(levels, scores[positive]), minlength=len(levels))
    return _curve(levels, n_voxels=n_voxels, n_positive=n_positive)


def average_precision(
    probability: ArrayLike, reference: ArrayLike, mask: ArrayLike | None = None
) -> float:
    """Area under the precision-recall curve: the mean, over lesion voxels, of the precision at each one's score.

    This is the step-wise area, sum of (recall_n - recall_(n-1)) * precision_n, without the interpolation that Davis &
    Goadrich (2006) warn against, and equals scikit-learn's `average_precision_score`. Only the scores of the lesion
    voxels and the number of voxels at or above each are needed. Tied scores count as one threshold.

    Args:
        probability: scores of any shape; higher means lesion.
        reference: 0/1 mask of the same shape.
        mask: voxels to judge (0/1), all by default.

    Returns:
        Area in [0, 1]; NaN without lesion voxels.

    Raises:
        ValueError: as for `precision_recall_curve`.
    """
    return ranking_areas(probability, reference, mask)[0]


def roc_auc(probability: ArrayLike, reference: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Area under the ROC curve: how often a lesion voxel scores above another voxel, ties counting half.

    Equals scikit-learn's `roc_auc_score`. Where lesion is rare it is near 1 for almost any map: prefer the PR area.

    Args:
        probability: scores of any shape; higher means lesion.
        reference: 0/1 mask of the same shape.
        mask: voxels to judge (0/1), all by default.

    Returns:
        Area in [0, 1]; NaN where all voxels are lesion or none is.

    Raises:
        ValueError: as for `precision_recall_curve`.
    """
    return ranking_areas(probability, reference, mask)[1]


def ranking_areas(
    probability: ArrayLike, reference: ArrayLike, mask: ArrayLike | None = None
) -> tuple[float, float]:
    """`average_precision` and `roc_auc`, for little more than the time of one."""
    scores, positive = _flat(probability, reference, mask)
    levels, n_positive = np.unique(scores[positive], return_counts=True)
    if not levels.size:
        return math.nan, math.nan
    rivals = np.sort(scores[scores >= levels[0]])
    n_above = rivals.size - np.searchsorted(rivals, levels)
    n_level = n_above - (rivals.size - np.searchsorted(rivals, levels, side="right"))
    found, total = _from_above(n_positive), int(n_positive.sum())
    precision = float((n_positive * (found / n_above)).sum() / total)
    return precision, _roc_area(
        n_positive, n_level=n_level, n_above=n_above, found=found, n_voxels=scores.size
    )


def trapezoid_area(curve: PrecisionRecallCurve) -> float:
    """Area under a precision-recall curve whose points are joined by straight lines; NaN without lesion voxels.

    Too favourable, as Davis & Goadrich (2006) warn: precision does not go straight from point to point. For
    comparison with papers that computed it so; everything else here uses `average_precision`.
    """
    return float(((curve.precision[1:] + curve.precision[:-1]) / 2 * -np.diff(curve.recall)).sum())


def f_curve(curve: PrecisionRecallCurve, b: float = 1.0) -> NDArray[np.float64]:
    """(n,) F_b at each threshold of a curve: 1 is Dice, 2 is F2 (arXiv 1803.11078); NaN without lesion voxels.

    (1+b^2) precision recall / (b^2 precision + recall), 0 where no lesion voxel is found.
    """
    precision, recall = curve.precision[:-1], curve.recall[:-1]
    denominator = b * b * precision + recall
    scores = np.where(np.isnan(recall), math.nan, 0.0)
    np.divide((1 + b * b) * precision * recall, denominator, out=scores, where=denominator > 0)
    return scores


@dataclass(frozen=True, eq=False)
class ScoreHistogram:
    """How many voxels, and how many lesion voxels, have each of the probabilities 0, 1/65535, ..., 1."""

    n_voxels: NDArray[np.int64]
    """(65536,) all judged voxels."""
    n_positive: NDArray[np.int64]
    """(65536,) those of the reference."""

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        """The histogram of both sets of voxels together."""
        return ScoreHistogram(self.n_voxels + other.n_voxels, self.n_positive + other.n_positive)

    def average_precision(self) -> float:
        """As the function `average_precision`, of the probabilities rounded to 1/65535; NaN without lesion voxels."""
        levels = np.flatnonzero(self.n_positive)
        if not levels.size:
            return math.nan
        precision = _from_above(self.n_positive)[levels] / _from_above(self.n_voxels)[levels]
        return float((self.n_positive[levels] * precision).sum() / self.n_positive.sum())

    def roc_auc(self) -> float:
        """As the function `roc_auc`, of the probabilities rounded to 1/65535; NaN without lesion or other voxels."""
        levels = np.flatnonzero(self.n_positive)
        return _roc_area(
            self.n_positive[levels],
            n_level=self.n_voxels[levels],
            n_above=_from_above(self.n_voxels)[levels],
            found=_from_above(self.n_positive)[levels],
            n_voxels=int(self.n_voxels.sum()),
        )

    def curve(self, *, every_level: bool = False) -> PrecisionRecallCurve:
        """The curve at the probabilities that some lesion voxel has: all that its step-wise area needs.

        Args:
            every_level: at those that any voxel has, as `precision_recall_curve` gives it.
        """
        levels = np.flatnonzero(self.n_voxels if every_level else self.n_positive)
        n_voxels = -np.diff(np.append(_from_above(self.n_voxels)[levels], 0))
        return _curve(
            levels / (N_LEVELS - 1), n_voxels=n_voxels, n_positive=self.n_positive[levels]
        )

    def at_or_above(self, thresholds: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Lesion voxels, and all voxels, of `probability >= threshold`, for each threshold in [0, 1]."""
        levels = level_of(thresholds)
        return _from_above(self.n_positive)[levels], _from_above(self.n_voxels)[levels]

    def f(self, b: float) -> NDArray[np.float64]:
        """(65536,) F_b of the mask `probability >= k/65535` for each k; NaN where nothing is lesion or predicted.

        (1+b^2) TP / (TP + FP + b^2 (TP + FN)): Dice for b=1 (arXiv 1803.11078).
        """
        tp, predicted = _from_above(self.n_positive), _from_above(self.n_voxels)
        denominator = predicted + b**2 * self.n_positive.sum()
        found = np.full(N_LEVELS, math.nan)
        np.divide((1 + b**2) * tp, denominator, out=found, where=denominator > 0)
        return found


def score_histogram(
    probability: ArrayLike, reference: ArrayLike, mask: ArrayLike | None = None
) -> ScoreHistogram:
    """Count voxels and lesion voxels by probability, rounded to 1/65535: exact for saved uint16 maps.

    Args:
        probability: any shape, in [0, 1].
        reference: 0/1 mask of the same shape.
        mask: voxels to judge (0/1), all by default.

    Raises:
        ValueError: for probabilities outside [0, 1] and as for `precision_recall_curve`.
    """
    scores, positive = _flat(probability, reference, mask)
    return levels_histogram(to_levels(scores), positive)


def to_levels(probability: ArrayLike) -> NDArray[np.uint16]:
    """Probabilities in [0, 1] as the nearest of the 65,536 levels 0 ... 65535, in the same shape.

    Raises:
        ValueError: for values outside [0, 1] or NaN; rounding errors up to 1e-6 are let through.
    """
    values = as_array(probability)
    values = values.astype(np.result_type(values, np.float32), copy=False)
    if values.size and not (values.min() >= -1e-6 and values.max() <= 1 + 1e-6):
        raise ValueError(
            f"probability must lie in [0, 1], got {values.min():g} to {values.max():g}"
        )
    levels: NDArray[np.uint16] = (
        np.rint(values * (N_LEVELS - 1)).clip(0, N_LEVELS - 1).astype(np.uint16)
    )
    return levels


def level_of(thresholds: ArrayLike) -> NDArray[np.int64]:
    """The lowest level whose probability reaches each threshold in [0, 1]."""
    return np.ceil(np.asarray(thresholds, np.float64) * (N_LEVELS - 1) - 1e-6).astype(np.int64)


def levels_histogram(levels: NDArray[np.uint16], positive: Mask) -> ScoreHistogram:
    """The histogram of voxels whose levels are known already (see `to_levels`), of any one shape."""
    counts = [
        np.bincount(found, minlength=N_LEVELS)
        for found in (levels.ravel(order="K"), levels[positive])
    ]
    return ScoreHistogram(*counts)


def choose_threshold(histograms: Iterable[ScoreHistogram], goal: str = "dice") -> float:
    """The threshold that gives the highest mean Dice (or F2) over cases.

    It lies halfway between two levels of a saved probability map, so that thresholding before or after saving gives one
    mask. Of equally good thresholds the nearest to 0.5 is taken.

    Args:
        histograms: one per validation case. Cases without lesion voxels have no say: there F is 0 or undefined.
        goal: "dice" or "f2".

    Returns:
        Threshold in (0, 1) for `probability >= threshold`; 0.5 when no case has lesion voxels.

    Raises:
        ValueError: for another goal.
    """
    if goal not in GOALS:
        raise ValueError(f"goal must be one of {', '.join(GOALS)}, got {goal}")
    scores = [
        histogram.f(GOALS[goal])[1:] for histogram in histograms if histogram.n_positive.any()
    ]
    if not scores:
        return 0.5
    total = np.sum(scores, axis=0)
    best = 1 + np.flatnonzero(total >= total.max() * (1 - 1e-12))
    level = best[np.abs(best - N_LEVELS / 2).argmin()]
    return float((level - 0.5) / (N_LEVELS - 1))


def _flat(
    probability: ArrayLike, reference: ArrayLike, mask: ArrayLike | None
) -> tuple[NDArray[Any], Mask]:
    scores, positive = as_array(probability), as_mask(reference, name="reference")
    if scores.shape != positive.shape:
        raise ValueError(
            f"probability and reference must have one shape, got {scores.shape} and {positive.shape}"
        )
    if mask is not None:
        judged = as_mask(mask)
        if judged.shape != scores.shape:
            raise ValueError(
                f"mask must have the shape of probability {scores.shape}, got {judged.shape}"
            )
        scores, positive = scores[judged], positive[judged]
    if scores.size and np.isnan(scores.min()):
        raise ValueError("probability must be numbers, got NaN")
    if (
        scores.flags.f_contiguous and positive.flags.f_contiguous
    ):  # as NIfTI files hold them: no copy
        scores, positive = scores.T, positive.T
    return scores.ravel(), positive.ravel()


def _from_above(counts: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    total: NDArray[np.int64] = counts[::-1].cumsum(dtype=np.int64)[::-1]
    return total


def _roc_area(
    n_positive: NDArray[np.int64],
    *,
    n_level: NDArray[np.int64],
    n_above: NDArray[np.int64],
    found: NDArray[np.int64],
    n_voxels: int,
) -> float:
    """Share of (lesion, other) voxel pairs in their right order, from counts at the levels that lesion voxels have.

    Args:
        n_positive: lesion voxels at each level, by rising level.
        n_level: all voxels at each.
        n_above: all voxels at each or above.
        found: lesion voxels at each or above.
        n_voxels: all voxels.
    """
    total = int(n_positive.sum())
    others = n_voxels - total
    if not total or not others:
        return math.nan
    above = (n_above - n_level) - (found - n_positive)  # others that score higher
    tied = n_level - n_positive
    return 1 - float((n_positive * (above + tied / 2)).sum()) / (total * others)


def _curve(
    thresholds: NDArray[Any],
    *,
    n_voxels: NDArray[np.integer[Any]],
    n_positive: NDArray[np.integer[Any]],
) -> PrecisionRecallCurve:
    tp, predicted = _from_above(n_positive), _from_above(n_voxels)
    n = int(n_positive.sum())
    recall = tp / n if n else np.full(len(tp), math.nan)
    return PrecisionRecallCurve(np.append(tp / predicted, 1.0), np.append(recall, 0.0), thresholds)
