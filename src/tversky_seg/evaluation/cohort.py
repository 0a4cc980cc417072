"""Running totals of an evaluation: small numbers per case, one histogram per class."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.case import Case
from tversky_seg.data.grids import FINE_SHIFT_VOXELS
from tversky_seg.evaluation.case_result import CaseResult, ClassResult
from tversky_seg.evaluation.region_counts import RegionCounts, count_by_region
from tversky_seg.evaluation.scan_rescan import RepeatPair
from tversky_seg.metrics.case_metrics import (
    NO_DISTANCES,
    NO_RANKING,
    CaseMetrics,
    ranking_from_histogram,
)
from tversky_seg.metrics.detection_limit import recall80_volume
from tversky_seg.metrics.froc import LesionScores
from tversky_seg.metrics.lesion_rule import LesionRule, detected_lesions
from tversky_seg.metrics.lesions import LesionCounts
from tversky_seg.metrics.overlap import OverlapCounts
from tversky_seg.metrics.retention import LesionDoubts
from tversky_seg.metrics.score_histogram import ScoreHistogram, level_of

THRESHOLDS = np.arange(1, 200) / 200
"""Thresholds of threshold_curve.csv: 0.005, 0.01, …, 0.995."""


@dataclass
class ClassTotals:
    """Running totals of one class.

    Memory is constant in the number of cases, except for a few numbers per lesion in the lists.
    """

    histogram: ScoreHistogram | None = None
    """Voxels of all cases by saved probability; None once a case has no probabilities."""
    near_histogram: ScoreHistogram | None = None
    """Those of reference lesions and around them."""
    dice_sum: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(THRESHOLDS)))
    """Sum over cases of the Dice at each of `THRESHOLDS`."""
    f2_sum: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(THRESHOLDS)))
    """Sum over cases of the F2 at each of `THRESHOLDS`."""
    n_curves: int = 0
    """Cases in these two sums: those with a reference lesion."""
    scores: list[LesionScores] = field(default_factory=list)
    """Scores of the lesions of each case."""
    scores_by_centre: list[LesionScores] = field(default_factory=list)
    """Scores of the lesions of each case, detected by their centres."""
    volume_mm3: list[NDArray[np.float64]] = field(default_factory=list)
    """Volumes of the reference lesions of each case."""
    is_detected: list[NDArray[np.bool_]] = field(default_factory=list)
    """Whether each of them was detected."""
    highest_probability: list[NDArray[np.float64]] = field(default_factory=list)
    """Highest probability inside each of them; NaN for a case without probabilities."""

    doubts: list[LesionDoubts | None] = field(default_factory=list)
    """Predicted lesions of each case and how doubtful they are; None without probabilities."""
    voxel_retention_areas: list[float] = field(default_factory=list)
    """Area under the error-retention curve of the voxels of each case."""

    def add(self, result: ClassResult, *, rule: LesionRule, is_first: bool) -> None:
        """Add this class of a case."""
        self.doubts.append(result.doubts)
        self.voxel_retention_areas.append(result.voxel_retention_area)
        self._add_histogram(result.histogram, is_first=is_first)
        self.near_histogram = _sum(self.near_histogram, result.near_histogram, is_first=is_first)
        if result.scores is not None:
            self.scores.append(result.scores)
        if result.scores_by_centre is not None:
            self.scores_by_centre.append(result.scores_by_centre)
        reference = result.match.reference
        highest_probability = result.match.highest_reference_score
        if highest_probability is None:
            # The lists stay of one length, lesion by lesion.
            highest_probability = np.full(len(reference), np.nan)
        self.volume_mm3.append(reference.volume_mm3)
        self.is_detected.append(detected_lesions(result.match, rule))
        self.highest_probability.append(highest_probability)

    def _add_histogram(self, histogram: ScoreHistogram | None, *, is_first: bool) -> None:
        self.histogram = _sum(self.histogram, histogram, is_first=is_first)
        if histogram is not None and histogram.n_positive.any():
            # Cases without a reference lesion have no recall, hence no F score to average.
            # Only the sums are kept: their size does not depend on the number of cases.
            levels = level_of(THRESHOLDS)
            self.dice_sum += histogram.f(1)[levels]
            self.f2_sum += histogram.f(2)[levels]
            self.n_curves += 1


def _sum(
    total: ScoreHistogram | None, histogram: ScoreHistogram | None, *, is_first: bool
) -> ScoreHistogram | None:
    """Add a case's histogram; one case without probabilities leaves the cohort without."""
    if is_first:
        return histogram
    if total is None or histogram is None:
        return None
    return total + histogram


@dataclass(frozen=True)
class SessionPair:
    """New lesions between two successive sessions of one subject."""

    before: Case
    after: Case
    counts: dict[str, LesionCounts]
    """Class name -> counts of new lesions."""
    predicted_change_mm3: dict[str, float] = field(default_factory=dict)
    """Class name -> later minus earlier volume, of the prediction."""
    reference_change_mm3: dict[str, float] = field(default_factory=dict)
    """Class name -> later minus earlier volume, of the reference."""
    changed_voxels: dict[str, OverlapCounts] = field(default_factory=dict)
    """Class name -> counts of the voxels that are lesion at one of the two times alone."""
    is_resampled: bool = False
    """Whether the earlier session lay on another grid."""


@dataclass
class EvaluatedCohort:
    """All cases evaluated so far."""

    rule: LesionRule
    cases: list[Case] = field(default_factory=list)
    metrics: list[dict[str, CaseMetrics]] = field(default_factory=list)
    """For each of `cases`, class name -> metrics."""
    totals: dict[str, ClassTotals] = field(default_factory=dict)
    """Class name -> totals, in the order of the classes."""
    regions: dict[str, list[dict[str, RegionCounts] | None]] = field(default_factory=dict)
    """Class name -> lesions by region for each of `cases`; None where not in MNI space."""
    raters: dict[int, list[dict[str, CaseMetrics]]] = field(default_factory=dict)
    """Number of a label column (1 for label, 2 for label_2, …) -> metrics against that rater."""
    affines: list[NDArray[np.float64]] = field(default_factory=list)
    """(4, 4) of the reference of each case."""
    temperature: dict[str, float | None] = field(default_factory=dict)
    """Class name -> temperature of the saved probabilities, where one number says it."""
    between_raters: dict[int, list[dict[str, list[CaseMetrics]]]] = field(default_factory=dict)
    """Number of a label column -> for each case, metrics of that rater against each other one."""
    consensus: list[dict[str, CaseMetrics]] = field(default_factory=list)
    """Metrics against the raters' consensus, of the cases that have several raters."""
    session_pairs: list[SessionPair] = field(default_factory=list)
    repeats: dict[str, list[RepeatPair]] = field(default_factory=dict)
    """Class name -> scans compared with their repeats."""
    faults: list[str] = field(default_factory=list)
    """One line for each fault of a case that could not be evaluated."""
    shifted: list[str] = field(default_factory=list)
    """Ids of the cases whose prediction lies a fraction of a voxel off the reference."""

    def add(self, result: CaseResult) -> None:
        """Add an evaluated case."""
        # A histogram of None means "no probabilities" only after the first case.
        is_first = not self.cases
        for name, of_class in result.classes.items():
            totals = self.totals.setdefault(name, ClassTotals())
            totals.add(of_class, rule=self.rule, is_first=is_first)
            by_region = count_by_region(of_class, rule=self.rule)
            self.regions.setdefault(name, []).append(by_region)
        self.cases.append(result.case)
        self.affines.append(result.affine)
        self.metrics.append(result.metrics)
        for number, against_rater in result.raters.items():
            self.raters.setdefault(number, []).append(against_rater)
        for number, against_others in result.between_raters.items():
            self.between_raters.setdefault(number, []).append(against_others)
        if result.consensus:
            self.consensus.append(result.consensus)
        if result.shift_voxels > FINE_SHIFT_VOXELS:
            self.shifted.append(result.case.case_id)

    def metrics_of_class(self, name: str) -> list[CaseMetrics]:
        """List the metrics of one class, one for each case."""
        return [by_class[name] for by_class in self.metrics]

    def pooled(self, name: str) -> CaseMetrics:
        """Pool the voxels and lesions of one class over all cases; distances do not pool."""
        ranking = NO_RANKING
        histogram = self.totals[name].histogram
        if histogram is not None:
            ranking = ranking_from_histogram(histogram)
        # Counts add up: 3 of 4 lesions detected and 1 of 2 make 4 of 6.
        counts = reduce(add, self.metrics_of_class(name))
        totals = self.totals[name]
        limit_mm3 = recall80_volume(
            np.concatenate(totals.volume_mm3), np.concatenate(totals.is_detected)
        )
        by_lesion = replace(counts.by_lesion, recall80_mm3=limit_mm3)
        return replace(counts, ranking=ranking, distances=NO_DISTANCES, by_lesion=by_lesion)
