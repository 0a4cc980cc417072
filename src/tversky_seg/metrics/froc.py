"""Free-response ROC: lesion recall against false lesions per case, as the threshold falls."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial import distance

from tversky_seg.metrics.lesions import LesionMatch
from tversky_seg.metrics.masks import BoolArray, FloatArray, IntArray, check_spacing

MOST_FALSE = 5.0
"""False lesions per case up to which recall is averaged (arXiv 2007.10033)."""
LUNA_POINTS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False lesions per case at which LUNA16 reports recall."""


class FrocCurve(NamedTuple):
    """Lesion recall and false lesions per case at each score, by rising score."""

    thresholds: FloatArray
    """(n,) distinct scores of detected and false lesions; a lesion counts from its score down."""
    recall: FloatArray
    """(n,) detected reference lesions over all of them; NaN without any."""
    false_lesions_per_case: FloatArray
    """(n,) predicted lesions without any overlap, over the number of cases."""


@dataclass(frozen=True, eq=False)
class LesionScores:
    """Scores of the detected and the false lesions, of one case or of several."""

    detected: FloatArray
    """(n_detected,) score of each reference lesion that a predicted one overlaps."""
    false: FloatArray
    """(n_false,) score of each predicted lesion that overlaps no reference lesion."""
    dice: FloatArray
    """(n_detected,) object Dice: highest Dice of each detected lesion with a predicted one; NaN
    where lesions are matched by their centres."""
    is_detected: BoolArray
    """(n_reference,) whether each reference lesion is among the detected ones."""
    n_cases: int
    n_cases_with_lesions: int
    """Cases with any lesion, in the reference or in the prediction."""

    @property
    def n_reference(self) -> int:
        """Number of reference lesions."""
        return len(self.is_detected)

    def select(self, is_selected: BoolArray) -> LesionScores:
        """Leave out reference lesions, such as those of another size; false lesions remain.

        Args:
            is_selected: (n_reference,) whether each reference lesion remains.
        """
        remains = is_selected[self.is_detected]
        return replace(
            self,
            detected=self.detected[remains],
            dice=self.dice[remains],
            is_detected=self.is_detected[is_selected],
        )

    def curve(self, *, only_cases_with_lesions: bool = False) -> FrocCurve:
        """Compute the FROC curve.

        Args:
            only_cases_with_lesions: Whether false lesions are divided by the cases with any lesion
                alone, as the code of arXiv 2007.10033 does.

        Returns:
            The curve, see `FrocCurve`; without points if no lesion is predicted.
        """
        thresholds = np.unique(np.concatenate([self.detected, self.false]))
        n_cases = self.n_cases
        if only_cases_with_lesions:
            n_cases = self.n_cases_with_lesions
        n_detected = _count_reaching(self.detected, thresholds)
        n_false = _count_reaching(self.false, thresholds)
        # Division by NaN leaves a rate without a denominator undefined.
        return FrocCurve(
            thresholds=thresholds,
            recall=n_detected / (self.n_reference or math.nan),
            false_lesions_per_case=n_false / (n_cases or math.nan),
        )


def lesion_scores(match: LesionMatch) -> LesionScores:
    """Score the lesions of one case.

    A reference lesion is detected when any predicted lesion overlaps it, and has the score of the
    one of highest Dice; the score of a predicted lesion is the highest inside it (arXiv
    2007.10033).

    Args:
        match: Lesions that were matched with `scores` given.
    """
    assert match.highest_score is not None
    best, dice = match.best_dice()
    is_detected = best >= 0
    n_lesions = len(match.reference) + len(match.predicted)
    return LesionScores(
        detected=match.highest_score[best[is_detected]],
        false=match.highest_score[match.is_false_positive],
        dice=dice[is_detected],
        is_detected=is_detected,
        n_cases=1,
        n_cases_with_lesions=int(n_lesions > 0),
    )


def centre_scores(match: LesionMatch, *, spacing_mm: ArrayLike) -> LesionScores:
    """Score the lesions of one case as LUNA16 does: by the distance of their centres.

    A reference lesion is detected by the predicted lesions whose centre is nearer to its centre
    than its radius, and has the highest score of them; a predicted lesion that detects none is
    false (Setio et al. 2017, arXiv 1612.08012). The radius is that of a ball of the same volume,
    where the challenge takes half the diameter that the radiologists gave.

    Args:
        match: Lesions that were matched with `scores` given.
        spacing_mm: Size of a voxel per axis, in mm.
    """
    assert match.highest_score is not None
    spacing = check_spacing(spacing_mm, ndim=match.reference.centre.shape[1])
    radius_mm = np.cbrt(match.reference.volume_mm3 * 3 / (4 * math.pi))
    # (n_reference, n_predicted)
    distance_mm = distance.cdist(match.reference.centre * spacing, match.predicted.centre * spacing)
    is_hit = distance_mm < radius_mm[:, None]
    score = np.where(is_hit, match.highest_score, -np.inf).max(axis=1, initial=-np.inf)
    is_detected = is_hit.any(axis=1)
    return LesionScores(
        detected=score[is_detected],
        false=match.highest_score[~is_hit.any(axis=0)],
        dice=np.full(np.count_nonzero(is_detected), math.nan),
        is_detected=is_detected,
        n_cases=1,
        n_cases_with_lesions=int(sum(is_hit.shape) > 0),
    )


def pool_lesion_scores(cases: Sequence[LesionScores]) -> LesionScores:
    """Pool the scores of several cases."""
    return LesionScores(
        detected=_join(case.detected for case in cases),
        false=_join(case.false for case in cases),
        dice=_join(case.dice for case in cases),
        is_detected=np.concatenate([np.zeros(0, bool), *(case.is_detected for case in cases)]),
        n_cases=sum(case.n_cases for case in cases),
        n_cases_with_lesions=sum(case.n_cases_with_lesions for case in cases),
    )


def average_recall(
    curve: FrocCurve, *, most_false: float = MOST_FALSE, n_points: int = 501
) -> float:
    """Average the recall from 0 to `most_false` false lesions per case (arXiv 2007.10033).

    Recall is interpolated between points, starts at (0, 0) and stays as it is past the last.

    Args:
        curve: FROC curve.
        most_false: False lesions per case of the last point.
        n_points: Number of points, evenly spaced.

    Returns:
        Mean recall in [0, 1]; NaN without reference lesions, 0 if nothing is predicted.
    """
    points = np.linspace(0, most_false, n_points)
    return float(recall_at(curve, points).mean())


def recall_at(curve: FrocCurve, false_lesions_per_case: ArrayLike) -> FloatArray:
    """Interpolate the recall at given numbers of false lesions per case.

    Args:
        curve: FROC curve.
        false_lesions_per_case: (n,) numbers of false lesions per case, >= 0.

    Returns:
        (n,) recall in [0, 1]; 0 for a curve without points, NaN without reference lesions.
    """
    # The curve runs by rising score, so from many false lesions to few.
    false = np.append(0.0, curve.false_lesions_per_case[::-1])
    recall = np.append(0.0, curve.recall[::-1])
    points = np.asarray(false_lesions_per_case, np.float64)
    return np.asarray(np.interp(points, false, recall))


def _join(scores: Iterable[FloatArray]) -> FloatArray:
    # The empty array makes no cases at all an array, too.
    return np.concatenate([np.zeros(0), *scores])


def _count_reaching(scores: FloatArray, thresholds: FloatArray) -> IntArray:
    """Count the scores that reach each threshold."""
    n_lower = np.searchsorted(np.sort(scores), thresholds)
    return len(scores) - n_lower
