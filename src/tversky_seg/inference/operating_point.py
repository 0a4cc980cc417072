"""Operating point: threshold, smallest lesion and lowest peak that serve a goal on validation."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tversky_seg.metrics.averages import unwrap_single
from tversky_seg.metrics.components import label_lesions
from tversky_seg.metrics.lesions import LesionCounts, lowest_score, lowest_volume
from tversky_seg.metrics.masks import Mask
from tversky_seg.metrics.score_histogram import (
    N_LEVELS,
    ScoreHistogram,
    choose_threshold,
    levels_histogram,
)
from tversky_seg.metrics.temperature import LogitHistogram
from tversky_seg.runtime.overlap import map_in_threads

logger = logging.getLogger("tversky_seg")

GOALS = ("dice", "f2", "lesion_f1")
TARGETS = ("recall", "lesion_recall")
SIZES_MM3 = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0, 50.0)
PEAKS = (0.0, 0.7, 0.8, 0.9, 0.95, 0.98)
DEFAULT_PEAK = 0.9  # without validation cases to choose by
N_THRESHOLDS = 19  # 0.05, 0.10, … 0.95, for goals that count lesions
TOLERANCE = 0.001  # of the best objective; within it the point that removes least is taken


@dataclass(frozen=True)
class OperatingPoint:
    """How a probability becomes a mask.

    Attributes:
        threshold: Lowest probability of the mask, in [0, 1].
        min_volume_mm3: Size below which a lesion (26-connected) is removed from it.
        min_peak: Probability that a voxel of a lesion must reach for it to stay, in [0, 1]; up to
            the threshold nothing is removed.
    """

    threshold: float = 0.5
    min_volume_mm3: float = 0.0
    min_peak: float = 0.0


def as_settings(points: Mapping[str, OperatingPoint]) -> dict[str, Any]:
    """Write the points of classes as settings of an inference: a number, or one by class."""
    settings = {}
    for entry in ("threshold", "min_volume_mm3", "min_peak"):
        by_class = {name: getattr(point, entry) for name, point in points.items()}
        settings[entry] = unwrap_single(by_class)
    return settings


@dataclass(frozen=True, eq=False)
class ScoredCase:
    """One class of one validation case.

    Attributes:
        levels: (X, Y, Z) probability as a level 0 ... 65535; see `score_histogram.to_levels`.
        reference: (X, Y, Z).
        spacing_mm: Three voxel sizes.
        logits: Brain voxels by their logit, of which the temperature is fitted; None: not counted.
        ignored: (X, Y, Z) voxels that do not count, none of them in the reference; None: all count.
    """

    levels: NDArray[np.uint16]
    reference: Mask
    spacing_mm: Sequence[float]
    logits: LogitHistogram | None = None
    ignored: Mask | None = None

    @cached_property
    def histogram(self) -> ScoreHistogram:
        """Voxels and lesion voxels at each level, counted once; without the ignored ones."""
        if self.ignored is not None:
            counted = ~self.ignored
            return levels_histogram(self.levels[counted], self.reference[counted])
        return levels_histogram(self.levels, self.reference)


class _PredictedLesions(NamedTuple):
    """Predicted lesions (26-connected) of a case at a threshold, and the reference they touch."""

    volume_mm3: NDArray[np.float64]
    """(n,) of the whole lesion, as a prediction knows of no ignored voxels."""
    peak: NDArray[np.float64]
    """(n,) highest probability in each."""
    n_voxels: NDArray[np.int64]
    """(n,) voxels that count."""
    n_true: NDArray[np.int64]
    """(n,) voxels of the reference in each."""
    pairs: NDArray[np.int64]
    """(k, 2) indices of a predicted and of a reference lesion that share a voxel."""
    n_reference_lesions: int
    n_reference_voxels: int

    def remaining(self, point: OperatingPoint) -> Mask:
        """Tell which lesions stay, (n,)."""
        is_large = self.volume_mm3 >= lowest_volume(point.min_volume_mm3)
        is_strong: Mask = self.peak >= lowest_score(point.min_peak)
        return is_large & is_strong


class _Score(NamedTuple):
    """Objective to maximise and recall to constrain."""

    objective: float
    recall: float


@dataclass(frozen=True)
class _Candidate:
    point: OperatingPoint
    score: _Score


def check_goal(goal: str) -> None:
    """Raise ValueError if `goal` is unknown."""
    if goal in GOALS:
        return
    name, _, target = goal.partition("=")
    try:
        is_right = name in TARGETS and 0 < float(target) <= 1
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
    min_peak: float | None = None,
) -> OperatingPoint:
    """Choose threshold, smallest lesion and lowest peak for a goal, averaged over cases.

    "dice", "f2": the exact best threshold (`choose_threshold`), then the best of ten sizes
    from 0 to 50 mm3 with each of six peaks from 0 to 0.98.
    "lesion_f1": the best of 19 thresholds, ten sizes and six peaks.
    "recall=r": the highest threshold at which the share of detected lesion voxels reaches r; then,
    of the sizes and peaks that keep it so, those with the best Dice.
    "lesion_recall=r": of the points at which the share of detected lesions (touched by a predicted
    voxel) reaches r, the one with the best lesion F1.

    If r cannot be reached, the point of the highest recall is taken, with a warning. Of points
    within 0.001 of the best, the smallest size is taken, then the lowest peak, then the threshold
    nearest to 0.5.

    Args:
        cases: One class of each validation case. A case without lesion counts for the lesion F1
            alone: 1 if nothing is predicted, otherwise 0.
        goal: Name of the goal.
        threshold: Threshold in [0, 1]; None: chosen.
        min_volume_mm3: Size of the smallest lesion, at least 0; None: chosen.
        min_peak: Probability that a lesion must reach, in [0, 1]; None: chosen, 0 where it would
            not lie above the threshold.

    Returns:
        The point; threshold 0.5, size 0 and peak 0.9 if no case decides.

    Raises:
        ValueError: `goal` is unknown.
    """
    check_goal(goal)
    # What the user has set is the only candidate.
    sizes = SIZES_MM3 if min_volume_mm3 is None else (min_volume_mm3,)
    thresholds = _candidate_thresholds(cases, goal) if threshold is None else [threshold]
    peaks = PEAKS if min_peak is None else (min_peak,)
    # Without lesions there is nothing to choose by.
    if not any(case.reference.any() for case in cases):
        undecided = 0.5 if len(thresholds) > 1 else thresholds[0]
        peak = DEFAULT_PEAK if min_peak is None else min_peak
        return OperatingPoint(undecided, sizes[0], peak)
    candidates = []
    for each_threshold in thresholds:
        predicted = map_in_threads(partial(_predicted_lesions, threshold=each_threshold), cases)
        # Sizes and peaks only remove components, so these are found once for each threshold.
        for point in _points_at(each_threshold, sizes, peaks):
            candidates.append(_Candidate(point, _mean_score(predicted, point, goal)))
    return _best(candidates, goal)


def _points_at(
    threshold: float, sizes: Sequence[float], peaks: Sequence[float]
) -> Iterator[OperatingPoint]:
    """Yield the points at a threshold; peaks up to it remove nothing, and 0 stands for them."""
    for size in sizes:
        for peak in peaks:
            # One that is set is the only one, and stays.
            if peak > threshold or peak in (0, peaks[0]):
                yield OperatingPoint(threshold, size, peak)


def _best(candidates: Sequence[_Candidate], goal: str) -> OperatingPoint:
    """Choose the point of the highest objective among those whose recall reaches the goal's."""
    target = _target_recall(goal)
    # A hair below the target, since 9 of 10 lesions are not exactly 0.9 in floating point.
    accepted = [each for each in candidates if each.score.recall >= target * (1 - 1e-9)]
    if not accepted:
        highest = max(each.score.recall for each in candidates)
        logger.warning(
            "goal %s is not reached on validation: the highest recall is %.3f", goal, highest
        )
        accepted = [each for each in candidates if each.score.recall == highest]
    best = max(each.score.objective for each in accepted)
    # Of points about as good, the one that removes least, since removal costs true lesions too.
    points = [each.point for each in accepted if each.score.objective >= best - TOLERANCE]
    return min(
        points,
        key=lambda point: (point.min_volume_mm3, point.min_peak, abs(point.threshold - 0.5)),
    )


def _target_recall(goal: str) -> float:
    """Read 0.9 off "recall=0.9"; 0 for goals without a target."""
    _, _, target = goal.partition("=")
    return float(target or 0)


def _candidate_thresholds(cases: Sequence[ScoredCase], goal: str) -> list[float]:
    """List thresholds to compare, each halfway between two levels of a saved probability."""
    if goal.startswith("lesion"):
        # 0.05, 0.10, … as levels of the saved 16-bit probability.
        levels = np.arange(1, N_THRESHOLDS + 1) / (N_THRESHOLDS + 1) * (N_LEVELS - 1)
        return [_threshold_below(round(level)) for level in levels]
    histograms = [case.histogram for case in cases]
    if goal in GOALS:
        return [choose_threshold(histograms, goal)]
    return [_threshold_of_recall(histograms, _target_recall(goal))]


def _threshold_below(level: int) -> float:
    """Return the threshold that this level reaches and the next lower one does not."""
    return float((level - 0.5) / (N_LEVELS - 1))


def _threshold_of_recall(histograms: Sequence[ScoreHistogram], target: float) -> float:
    """Find the highest threshold above 0 at which the mean recall reaches the target.

    The lowest threshold if none does; 0.5 without any lesion.
    """
    recalls = []
    for histogram in histograms:
        counts = histogram.n_positive
        if counts.any():
            # From the highest level down: how many lesion voxels lie at this level or above.
            n_at_least = counts[::-1].cumsum()[::-1]
            recalls.append(n_at_least / counts.sum())
    if not recalls:
        return 0.5
    reaches_target = np.mean(recalls, axis=0) >= target * (1 - 1e-9)
    # Recall falls from level to level, so the last level that reaches the target is the highest.
    level = int(np.flatnonzero(reaches_target).max(initial=0))
    return _threshold_below(max(level, 1))


def _predicted_lesions(case: ScoredCase, threshold: float) -> _PredictedLesions:
    mask = case.levels >= threshold * (N_LEVELS - 1)
    predicted, n_predicted = label_lesions(mask)
    lesions, n_lesions = label_lesions(case.reference)
    # From here on only the predicted voxels count, which are few: of each, its lesion ...
    lesion_of = predicted[mask]
    n_voxels = np.bincount(lesion_of, minlength=n_predicted + 1)[1:]
    voxel_mm3 = float(np.prod(case.spacing_mm))
    volume_mm3 = np.asarray(n_voxels * voxel_mm3, dtype=np.float64)
    highest_level = np.zeros(n_predicted + 1)
    np.maximum.at(highest_level, lesion_of, case.levels[mask])
    # ... and the lesion of the reference that it meets, if any: the pairs that touch.
    is_hit = case.reference[mask]
    hitting = lesion_of[is_hit]
    n_true = np.bincount(hitting, minlength=n_predicted + 1)[1:]
    # One number for each pair of lesions, which sort faster than rows of two.
    n_columns = n_lesions + 1
    touching = np.unique(hitting.astype(np.int64) * n_columns + lesions[mask][is_hit])
    if case.ignored is not None:
        is_counted = ~case.ignored[mask]
        n_voxels = np.bincount(lesion_of[is_counted], minlength=n_predicted + 1)[1:]
    return _PredictedLesions(
        volume_mm3=volume_mm3,
        peak=highest_level[1:] / (N_LEVELS - 1),
        n_voxels=n_voxels,
        n_true=n_true,
        pairs=np.column_stack(np.divmod(touching, n_columns)) - 1,
        n_reference_lesions=n_lesions,
        n_reference_voxels=int(case.reference.sum()),
    )


def _mean_score(cases: Sequence[_PredictedLesions], point: OperatingPoint, goal: str) -> _Score:
    """Average objective and recall over the cases for which they are defined."""
    scores = []
    for case in cases:
        if goal.startswith("lesion"):
            scores.append(_lesion_score(case, case.remaining(point)))
        else:
            scores.append(_voxel_score(case, case.remaining(point), b=2.0 if goal == "f2" else 1.0))
    objective, recall = np.nanmean(np.array(scores), axis=0).tolist()
    return _Score(objective, recall)


def _voxel_score(case: _PredictedLesions, remains: Mask, *, b: float) -> _Score:
    """Compute F_b and recall of the voxels; NaN without lesion."""
    if not case.n_reference_voxels:
        return _Score(math.nan, math.nan)
    tp = case.n_true[remains].sum()
    n_predicted = case.n_voxels[remains].sum()
    f_b = (1 + b**2) * tp / (n_predicted + b**2 * case.n_reference_voxels)
    return _Score(float(f_b), float(tp / case.n_reference_voxels))


def _lesion_score(case: _PredictedLesions, remains: Mask) -> _Score:
    """Compute F1 and recall of the lesions; without lesion F1 is 1 if nothing is predicted."""
    # Lesions that lie in ignored voxels alone are neither found nor false.
    counted = remains & (case.n_voxels > 0)
    # A reference lesion counts as detected if a lesion that touches it is not removed.
    predicted, detected = case.pairs.T
    counts = LesionCounts(
        n_reference=case.n_reference_lesions,
        n_detected=len(np.unique(detected[remains[predicted]])),
        n_predicted=int(counted.sum()),
        n_unmatched=int((counted & (case.n_true == 0)).sum()),
    )
    if math.isnan(counts.f1):
        return _Score(1.0, counts.tpr)
    return _Score(counts.f1, counts.tpr)
