"""The threshold and the smallest lesion that suit a stated goal best, chosen on validation cases by counting."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tversky_seg.metrics.lesions import LesionCounts, label_lesions
from tversky_seg.metrics.masks import Mask
from tversky_seg.metrics.ranking import N_LEVELS, ScoreHistogram, choose_threshold, levels_histogram

logger = logging.getLogger("tversky_seg")

GOALS = ("dice", "f2", "lesion_f1")
TARGETS = ("recall", "lesion_recall")
SIZES_MM3 = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0, 50.0)
N_THRESHOLDS = 19  # 0.05, 0.10, … 0.95, where lesions are counted
TOLERANCE = 0.001  # a goal met as well as this is met: the smallest size is then taken


@dataclass(frozen=True)
class OperatingPoint:
    """How a probability becomes a mask: `probability >= threshold`, without lesions below `min_volume_mm3`."""

    threshold: float
    min_volume_mm3: float


class ScoredCase(NamedTuple):
    """One class of one validation case."""

    levels: NDArray[np.uint16]
    """(X, Y, Z) probability as `ranking.to_levels` makes it."""
    reference: Mask
    """(X, Y, Z)."""
    spacing_mm: Any
    """Three voxel sizes."""


class _Components(NamedTuple):
    """The predicted components (26-connected) of one case at one threshold, and what they hit."""

    volume_mm3: NDArray[np.float64]  # (n,)
    n_voxels: NDArray[np.int64]  # (n,)
    n_true: NDArray[np.int64]  # (n,) voxels of the reference in each
    largest_mm3: NDArray[
        np.float64
    ]  # (m,) of the components that touch each reference lesion; -1 without any
    n_reference: int  # voxels


def check_goal(goal: str) -> None:
    """Refuse a goal that there is none of.

    Raises:
        ValueError: naming the goals.
    """
    name, _, target = goal.partition("=")
    try:
        is_right = goal in GOALS or (name in TARGETS and 0 < float(target) <= 1)
    except ValueError:
        is_right = False
    if not is_right:
        raise ValueError(
            f"goal must be one of {', '.join(GOALS)}, recall=0.9 or lesion_recall=0.9, got {goal}"
        )


def choose_operating_point(
    cases: Sequence[ScoredCase],
    *,
    goal: str = "dice",
    threshold: float | None = None,
    min_volume_mm3: float | None = None,
) -> OperatingPoint:
    """The threshold and the smallest lesion that serve a goal best, in the mean over cases.

    "dice", "f2": the exact best threshold (`ranking.choose_threshold`), then the best of ten sizes from 0 to 50 mm3.
    "lesion_f1": the best pair of 19 thresholds and ten sizes. "recall=r": the highest threshold at which the share of
    lesion voxels that is found reaches r, then, of the sizes that keep it so, the one with the best Dice.
    "lesion_recall=r": of the pairs at which the share of lesions found (touched by a predicted voxel) reaches r, the
    one with the best lesion F1. Where r cannot be reached, the point of the highest recall, with a warning. Of points
    within 0.001 of the best, the smallest size is taken, then the threshold nearest to 0.5.

    Args:
        cases: One class of each validation case. A case without lesion has a say in the lesions' F1 alone: 1 where
            nothing is predicted, else 0.
        goal: See above.
        threshold: In [0, 1]; None: chosen.
        min_volume_mm3: At least 0; None: chosen.

    Returns:
        The point; 0.5 and 0 for what no case decides.

    Raises:
        ValueError: For another goal.
    """
    check_goal(goal)
    sizes = SIZES_MM3 if min_volume_mm3 is None else (min_volume_mm3,)
    thresholds = _thresholds(cases, goal) if threshold is None else [threshold]
    if not any(case.reference.any() for case in cases):
        return OperatingPoint(thresholds[0] if len(thresholds) == 1 else 0.5, sizes[0])
    found = {
        candidate: [_components(case, candidate) for case in cases] for candidate in thresholds
    }
    points = [OperatingPoint(candidate, size) for candidate in thresholds for size in sizes]
    return _best(
        [(*_worth(found[point.threshold], point.min_volume_mm3, goal), point) for point in points],
        goal,
    )


def _best(points: Sequence[tuple[float, float, OperatingPoint]], goal: str) -> OperatingPoint:
    """The point of the highest value among those of enough recall."""
    target = float(goal.partition("=")[2] or 0)
    enough = [point for point in points if point[1] >= target * (1 - 1e-9)]
    if not enough:
        highest = max(recall for _, recall, _ in points)
        logger.warning(
            "goal %s is not reached on validation: the highest recall is %.3f", goal, highest
        )
        enough = [point for point in points if point[1] == highest]
    best = max(value for value, _, _ in enough)
    near = [point for value, _, point in enough if value >= best - TOLERANCE]
    return min(near, key=lambda point: (point.min_volume_mm3, abs(point.threshold - 0.5)))


def _thresholds(cases: Sequence[ScoredCase], goal: str) -> list[float]:
    """The thresholds to look at, each halfway between two levels of a saved probability."""
    if goal.startswith("lesion"):
        steps = np.arange(1, N_THRESHOLDS + 1) / (N_THRESHOLDS + 1)
        return [float((round(step * (N_LEVELS - 1)) - 0.5) / (N_LEVELS - 1)) for step in steps]
    histograms = [levels_histogram(case.levels, case.reference) for case in cases]
    if goal in GOALS:
        return [choose_threshold(histograms, goal)]
    return [_threshold_of_recall(histograms, float(goal.partition("=")[2]))]


def _threshold_of_recall(histograms: Sequence[ScoreHistogram], target: float) -> float:
    """The highest threshold above 0 at which the mean recall reaches the target; the lowest where none does."""
    positive = [h.n_positive for h in histograms if h.n_positive.any()]
    if not positive:
        return 0.5
    recall = np.mean([counts[::-1].cumsum()[::-1] / counts.sum() for counts in positive], axis=0)
    level = max(int(np.flatnonzero(recall >= target * (1 - 1e-9)).max(initial=0)), 1)
    return float((level - 0.5) / (N_LEVELS - 1))


def _components(case: ScoredCase, threshold: float) -> _Components:
    predicted, n = label_lesions(case.levels >= threshold * (N_LEVELS - 1))
    lesions, m = label_lesions(case.reference)
    n_voxels = np.bincount(predicted.ravel(order="K"), minlength=n + 1)[1:]
    volume_mm3 = np.asarray(n_voxels * float(np.prod(case.spacing_mm)), dtype=np.float64)
    touched = (predicted > 0) & case.reference
    largest = np.full(m, -1.0)
    np.maximum.at(largest, lesions[touched] - 1, volume_mm3[predicted[touched] - 1])
    n_true = np.bincount(predicted[touched], minlength=n + 1)[1:]
    return _Components(volume_mm3, n_voxels, n_true, largest, int(case.reference.sum()))


def _worth(cases: Sequence[_Components], size: float, goal: str) -> tuple[float, float]:
    """What the goal makes most of, and the recall that may be asked for, in the mean over cases."""
    of_lesions = goal.startswith("lesion")
    rows = [
        _of_lesions(case, size) if of_lesions else _of_voxels(case, size, goal) for case in cases
    ]
    value, recall = np.nanmean(np.array(rows), axis=0).tolist()
    return value, recall


def _of_voxels(case: _Components, size: float, goal: str) -> tuple[float, float]:
    """F_b and recall of the voxels; NaN without lesion."""
    kept = _kept(case.volume_mm3, size)
    tp, predicted, b = (
        case.n_true[kept].sum(),
        case.n_voxels[kept].sum(),
        2.0 if goal == "f2" else 1.0,
    )
    if not case.n_reference:
        return math.nan, math.nan
    return float((1 + b**2) * tp / (predicted + b**2 * case.n_reference)), float(
        tp / case.n_reference
    )


def _of_lesions(case: _Components, size: float) -> tuple[float, float]:
    """F1 and recall of the lesions; without lesion F1 is 1 where nothing is predicted."""
    kept = _kept(case.volume_mm3, size)
    counts = LesionCounts(
        n_reference=len(case.largest_mm3),
        n_detected=int(_kept(case.largest_mm3, max(size, 0.0)).sum()),
        n_predicted=int(kept.sum()),
        n_unmatched=int((kept & (case.n_true == 0)).sum()),
    )
    return 1.0 if math.isnan(counts.f1) else counts.f1, counts.tpr


def _kept(volume_mm3: NDArray[np.float64], size: float) -> Mask:
    """Which lesions stay; one of just this size does (spacing comes from float32 affines)."""
    kept: Mask = volume_mm3 >= size * (1 - 1e-6)
    return kept
