"""Free-response ROC: lesions found against false lesions per case, as the score that a lesion needs is lowered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tversky_seg.metrics.lesions import LesionMatch, overlap_lesions
from tversky_seg.metrics.masks import as_array

MOST_FALSE = 5.0  # false lesions per case up to which recall is averaged (arXiv 2007.10033)
LUNA_POINTS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


class FrocCurve(NamedTuple):
    """Recall of lesions and false lesions per case at each score, by rising score."""

    thresholds: NDArray[np.float64]
    """(n,) the distinct scores of found and of false lesions; a lesion counts from its score down."""
    recall: NDArray[np.float64]
    """(n,) reference lesions found, over all of them; NaN without any."""
    false_per_case: NDArray[np.float64]
    """(n,) predicted lesions without overlap, over the number of cases."""


@dataclass(frozen=True, eq=False)
class LesionScores:
    """The scores of found and of false lesions, of one case or of several."""

    found: NDArray[np.float64]
    """(n_detected,) score of each reference lesion that is overlapped."""
    false: NDArray[np.float64]
    """(n_false,) score of each predicted lesion that overlaps nothing."""
    dice: NDArray[np.float64]
    """(n_detected,) highest Dice of each reference lesion with a predicted one: the object Dice."""
    n_reference: int
    n_cases: int
    n_recorded: int
    """Cases with any lesion, in the reference or in the prediction."""

    def curve(self, *, recorded: bool = False) -> FrocCurve:
        """Recall against false lesions per case; `recorded` leaves out the cases without any lesion, as P3's code did.

        See `FrocCurve`; no points without a predicted lesion.
        """
        thresholds = np.unique(np.concatenate([self.found, self.false]))
        n_found, n_false = (
            len(scores) - np.searchsorted(np.sort(scores), thresholds)
            for scores in (self.found, self.false)
        )
        recall = n_found / (self.n_reference or math.nan)
        n_cases = self.n_recorded if recorded else self.n_cases
        return FrocCurve(thresholds, recall, n_false / (n_cases or math.nan))


def case_scores(match: LesionMatch) -> LesionScores:
    """The scores of one case whose lesions were matched with `scores` given.

    A reference lesion is found when any predicted lesion overlaps it, and has the score of the one of highest Dice; the
    score of a predicted lesion is the highest inside it (arXiv 2007.10033).
    """
    assert match.highest is not None
    best, dice = match.best_dice()
    return LesionScores(
        found=match.highest[best[best >= 0]],
        false=match.highest[match.false],
        dice=dice[best >= 0],
        n_reference=len(match.referred),
        n_cases=1,
        n_recorded=int(len(match.referred) + len(match.predicted) > 0),
    )


def pool_scores(cases: Sequence[LesionScores]) -> LesionScores:
    """The scores of all cases together."""
    found, false, dice = (
        np.concatenate([np.zeros(0), *(getattr(case, name) for case in cases)])
        for name in ("found", "false", "dice")
    )
    sums = {
        name: sum(getattr(case, name) for case in cases)
        for name in ("n_reference", "n_cases", "n_recorded")
    }
    return LesionScores(found, false, dice, **sums)


def froc_curve(
    probability: ArrayLike,
    reference: ArrayLike,
    *,
    spacing_mm: ArrayLike,
    threshold: float = 0.5,
    connectivity: int = 26,
) -> FrocCurve:
    """FROC curve of one case; `pool_scores` makes that of several.

    Args:
        probability: (X, Y, Z) scores.
        reference: 0/1 mask of the same shape.
        spacing_mm: size of a voxel per axis, in mm.
        threshold: predicted lesions are the components of `probability >= threshold`.
        connectivity: 6, 18 or 26.

    Raises:
        ValueError: as for `lesion_counts`.
    """
    scores = as_array(probability)
    match = overlap_lesions(
        scores >= threshold,
        reference,
        spacing_mm=spacing_mm,
        connectivity=connectivity,
        scores=scores,
    )
    return case_scores(match).curve()


def average_recall(
    curve: FrocCurve, *, most_false: float = MOST_FALSE, n_points: int = 501
) -> float:
    """Mean recall at 501 points from 0 to 5 false lesions per case, in [0, 1]; NaN without reference lesions.

    Recall is interpolated between points, starts at (0, 0) and stays as it is past the last (arXiv 2007.10033).
    """
    return float(recall_at(curve, np.linspace(0, most_false, n_points)).mean())


def recall_at(curve: FrocCurve, false_per_case: ArrayLike) -> NDArray[np.float64]:
    """Recall at so many false lesions per case, interpolated; 0 for a curve without points."""
    false, recall = (
        np.append(0.0, values[::-1]) for values in (curve.false_per_case, curve.recall)
    )
    return np.asarray(np.interp(np.asarray(false_per_case, np.float64), false, recall))
