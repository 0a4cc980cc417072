"""Exact measures of how well scores rank lesion voxels above the others, for any scores.

`score_histogram` has the same for probabilities that add up over the cases of a cohort.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tversky_seg.metrics.masks import FloatArray, IntArray, Mask, as_array, as_mask


class PrecisionRecallCurve(NamedTuple):
    """Precision and recall of the mask `probability >= threshold`, by rising threshold.

    In the order of scikit-learn.
    """

    precision: FloatArray
    """(n + 1,) in [0, 1]; the last is 1 by convention and belongs to no threshold."""
    recall: FloatArray
    """(n + 1,) in [0, 1], falling; the last is 0. NaN before it without lesion voxels."""
    thresholds: NDArray[Any]
    """(n,) the distinct scores, rising."""


def precision_recall_curve(
    probability: ArrayLike, reference: ArrayLike, mask: ArrayLike | None = None
) -> PrecisionRecallCurve:
    """Compute precision and recall at every distinct score (Davis & Goadrich 2006).

    Args:
        probability: Scores of any shape; higher means lesion.
        reference: 0/1 mask of the same shape.
        mask: Voxels to evaluate (0/1), all by default.

    Returns:
        The curve; its recall is NaN without lesion voxels.

    Raises:
        ValueError: Shapes that differ, NaN scores, or a reference of other values than 0 and 1.
    """
    scores, positive = flat_scores(probability, reference, mask)
    # Tied scores are one level, and so one threshold.
    levels, n_voxels = np.unique(scores, return_counts=True)
    level_of_positive = np.searchsorted(levels, scores[positive])
    n_positive = np.bincount(level_of_positive, minlength=len(levels))
    return curve_of_counts(levels, n_voxels=n_voxels, n_positive=n_positive)


def average_precision(
    probability: ArrayLike, reference: ArrayLike, mask: ArrayLike | None = None
) -> float:
    """Compute the area under the precision-recall curve.

    It is the mean, over lesion voxels, of the precision at the score of each, which equals the
    step-wise area, the sum of (recall_n - recall_(n-1)) * precision_n, and scikit-learn's
    `average_precision_score`. Points are not joined by straight lines, against which Davis &
    Goadrich (2006) warn. Only the scores of the lesion voxels and the number of voxels at or above
    each are needed. Tied scores count as one threshold.

    Args:
        probability: Scores of any shape; higher means lesion.
        reference: 0/1 mask of the same shape.
        mask: Voxels to evaluate (0/1), all by default.

    Returns:
        Area in [0, 1]; NaN without lesion voxels.

    Raises:
        ValueError: As for `precision_recall_curve`.
    """
    area, _ = ranking_areas(probability, reference, mask)
    return area


def roc_auc(probability: ArrayLike, reference: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Compute the area under the ROC curve.

    It is how often a lesion voxel scores above another voxel, with ties counting half, and equals
    scikit-learn's `roc_auc_score`. Where lesion is rare it is near 1 for almost any map: prefer
    `average_precision`.

    Args:
        probability: Scores of any shape; higher means lesion.
        reference: 0/1 mask of the same shape.
        mask: Voxels to evaluate (0/1), all by default.

    Returns:
        Area in [0, 1]; NaN where all voxels are lesion or none is.

    Raises:
        ValueError: As for `precision_recall_curve`.
    """
    _, area = ranking_areas(probability, reference, mask)
    return area


def ranking_areas(
    probability: ArrayLike, reference: ArrayLike, mask: ArrayLike | None = None
) -> tuple[float, float]:
    """Compute `average_precision` and `roc_auc`, for little more than the time of one."""
    scores, positive = flat_scores(probability, reference, mask)
    levels, n_positive = np.unique(scores[positive], return_counts=True)
    if not levels.size:
        return math.nan, math.nan
    # Example: scores 0.9 0.8 0.8 0.3, of which the first two are lesion.
    #
    #   levels            0.8  0.9    distinct scores of lesion voxels
    #   n_positive         1    1     lesion voxels at each
    #   n_positive_above   2    1     lesion voxels at each or above
    #   n_above            3    1     all voxels at each or above
    #   precision         2/3   1     so that the area is their mean, 5/6
    #
    # Voxels below the lowest lesion voxel change neither area; most are, and need no sorting.
    rivals = np.sort(scores[scores >= levels[0]])
    n_above = rivals.size - np.searchsorted(rivals, levels)
    n_strictly_above = rivals.size - np.searchsorted(rivals, levels, side="right")
    n_positive_above = counts_from_above(n_positive)
    n_lesion = int(n_positive.sum())
    precision = n_positive_above / n_above
    area = float((n_positive * precision).sum() / n_lesion)
    roc_area = roc_area_of_counts(
        n_positive,
        n_level=n_above - n_strictly_above,
        n_above=n_above,
        n_positive_above=n_positive_above,
        n_voxels=scores.size,
    )
    return area, roc_area


def flat_scores(
    probability: ArrayLike, reference: ArrayLike, mask: ArrayLike | None
) -> tuple[NDArray[Any], Mask]:
    """Check scores and reference, and list those of the voxels to evaluate.

    Returns:
        (n,) scores and (n,) whether each voxel is lesion, in one order.

    Raises:
        ValueError: As for `precision_recall_curve`.
    """
    scores = as_array(probability)
    positive = as_mask(reference, name="reference")
    if scores.shape != positive.shape:
        raise ValueError(
            "probability and reference must have one shape, "
            f"got {scores.shape} and {positive.shape}"
        )
    if mask is not None:
        evaluated = as_mask(mask)
        if evaluated.shape != scores.shape:
            raise ValueError(
                f"mask must have the shape of probability {scores.shape}, got {evaluated.shape}"
            )
        scores = scores[evaluated]
        positive = positive[evaluated]
    if scores.size and np.isnan(scores.min()):
        raise ValueError("probability must be numbers, got NaN")
    # NIfTI files hold their voxels in Fortran order: transposed, they are raveled without a copy.
    if scores.flags.f_contiguous and positive.flags.f_contiguous:
        scores = scores.T
        positive = positive.T
    return scores.ravel(), positive.ravel()


def counts_from_above(counts: NDArray[np.integer[Any]]) -> IntArray:
    """Sum the counts at each level and all higher ones: [1, 0, 2] becomes [3, 2, 2]."""
    highest_first = counts[::-1]
    totals: IntArray = highest_first.cumsum(dtype=np.int64)
    return totals[::-1]


def roc_area_of_counts(
    n_positive: IntArray,
    *,
    n_level: IntArray,
    n_above: IntArray,
    n_positive_above: IntArray,
    n_voxels: int,
) -> float:
    """Compute the share of (lesion, other) pairs of voxels that are in their right order.

    Args:
        n_positive: Lesion voxels at each level that any of them has, by rising level.
        n_level: All voxels at each of these levels.
        n_above: All voxels at each level or above.
        n_positive_above: Lesion voxels at each level or above.
        n_voxels: All voxels.

    Returns:
        Area in [0, 1]; NaN where all voxels are lesion or none is.
    """
    n_lesion = int(n_positive.sum())
    n_other = n_voxels - n_lesion
    if not n_lesion or not n_other:
        return math.nan
    # A lesion voxel at some level is in wrong order with the others above, in half of it with those
    # at the same level.
    n_other_higher = (n_above - n_level) - (n_positive_above - n_positive)
    n_other_tied = n_level - n_positive
    n_wrong_of_each = n_other_higher + n_other_tied / 2
    n_wrong = float((n_positive * n_wrong_of_each).sum())
    return 1 - n_wrong / (n_lesion * n_other)


def curve_of_counts(
    thresholds: NDArray[Any],
    *,
    n_voxels: NDArray[np.integer[Any]],
    n_positive: NDArray[np.integer[Any]],
) -> PrecisionRecallCurve:
    """Make a precision-recall curve from the voxels and lesion voxels at each threshold."""
    tp = counts_from_above(n_positive)
    n_predicted = counts_from_above(n_voxels)
    n_lesion = int(n_positive.sum())
    recall = np.full(len(tp), math.nan)
    if n_lesion:
        recall = tp / n_lesion
    return PrecisionRecallCurve(
        precision=np.append(tp / n_predicted, 1.0),
        recall=np.append(recall, 0.0),
        thresholds=thresholds,
    )
