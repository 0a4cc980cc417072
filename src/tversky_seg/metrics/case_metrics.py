"""The published measures of one case, and of several pooled. docs/metrics.md defines each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from tversky_seg.metrics.calibration import calibrate
from tversky_seg.metrics.lesion_rule import ANY_OVERLAP, LesionRule, count_by_rule
from tversky_seg.metrics.lesions import (
    LesionCounts,
    LesionMatch,
    overlap_lesions,
    remove_small_lesions,
)
from tversky_seg.metrics.masks import Mask, as_array, as_mask, check_spacing
from tversky_seg.metrics.overlap import OverlapCounts, overlap_counts
from tversky_seg.metrics.ranking import (
    ScoreHistogram,
    levels_histogram,
    ranking_areas,
    to_levels,
)
from tversky_seg.metrics.surface import SurfaceDistances, surface_distances

METRICS = (
    "dice",
    "sensitivity",
    "specificity",
    "precision",
    "f2",
    "pr_auc",
    "lesion_tpr",
    "lesion_fpr",
    "lesion_f1",
    "assd_mm",
    "hd95_mm",
    "volume_difference",
    "reference_volume_mm3",
    "predicted_volume_mm3",
    "n_reference_lesions",
    "n_predicted_lesions",
)
FURTHER_METRICS = (
    "jaccard",
    "mcc",
    "signed_volume_difference_mm3",
    "absolute_volume_difference_mm3",
    "signed_volume_difference",
    "roc_auc",
    "calibration_error",
    "hd_mm",
    "surface_dice",
    "object_dice",
    "n_detected_lesions",
    "n_false_lesions",
    "n_split_lesions",
    "n_merged_lesions",
)
NO_DISTANCES = SurfaceDistances(math.nan, math.nan)
TOLERANCE_MM = 1.0


@dataclass(frozen=True)
class Ranking:
    """How well the probabilities of one case, or of a whole cohort, rank voxels and mean what they say."""

    pr_auc: float = math.nan
    roc_auc: float = math.nan
    calibration_error: float = math.nan


NO_RANKING = Ranking()


@dataclass(frozen=True)
class Judgement:
    """What was counted in one class of one case, or of several cases pooled."""

    overlap: OverlapCounts
    lesions: LesionCounts
    reference_volume_mm3: float
    predicted_volume_mm3: float
    ranking: Ranking = NO_RANKING
    distances: SurfaceDistances = NO_DISTANCES
    n_split: int = 0
    n_merged: int = 0
    n_overlapped: int = 0
    """Reference lesions that any predicted lesion overlaps."""
    object_dice_sum: float = 0.0
    """Sum of the highest Dice of each of them with a predicted lesion."""

    def __add__(self, other: Judgement) -> Judgement:
        """Both cases pooled; ranking and distances do not add up and are NaN."""
        return Judgement(
            self.overlap + other.overlap,
            self.lesions + other.lesions,
            self.reference_volume_mm3 + other.reference_volume_mm3,
            self.predicted_volume_mm3 + other.predicted_volume_mm3,
            n_split=self.n_split + other.n_split,
            n_merged=self.n_merged + other.n_merged,
            n_overlapped=self.n_overlapped + other.n_overlapped,
            object_dice_sum=self.object_dice_sum + other.object_dice_sum,
        )

    def measures(self) -> dict[str, float]:
        """The published measures by name, in the order of `METRICS`."""
        values = (
            self.overlap.dice,
            self.overlap.sensitivity,
            self.overlap.specificity,
            self.overlap.precision,
            self.overlap.f(2),
            self.ranking.pr_auc,
            self.lesions.tpr,
            self.lesions.fpr,
            self.lesions.f1,
            self.distances.assd_mm,
            self.distances.hd95_mm,
            abs(self._relative_difference),
            self.reference_volume_mm3,
            self.predicted_volume_mm3,
            self.lesions.n_reference,
            self.lesions.n_predicted,
        )
        return dict(zip(METRICS, values, strict=True))

    def further_measures(self) -> dict[str, float]:
        """More measures by name, in the order of `FURTHER_METRICS`."""
        difference_mm3 = self.predicted_volume_mm3 - self.reference_volume_mm3
        values = (
            self.overlap.jaccard,
            self.overlap.mcc,
            difference_mm3,
            abs(difference_mm3),
            self._relative_difference,
            self.ranking.roc_auc,
            self.ranking.calibration_error,
            self.distances.hd_mm,
            self.distances.surface_dice,
            self.object_dice_sum / self.n_overlapped if self.n_overlapped else math.nan,
            self.lesions.n_detected,
            self.lesions.n_unmatched,
            self.n_split,
            self.n_merged,
        )
        return dict(zip(FURTHER_METRICS, values, strict=True))

    @property
    def _relative_difference(self) -> float:
        difference_mm3 = self.predicted_volume_mm3 - self.reference_volume_mm3
        return difference_mm3 / self.reference_volume_mm3 if self.reference_volume_mm3 else math.nan


def case_measures(
    prediction: ArrayLike,
    reference: ArrayLike,
    *,
    spacing_mm: ArrayLike,
    threshold: float = 0.5,
    min_volume_mm3: float = 0.0,
    rule: LesionRule = ANY_OVERLAP,
    tolerance_mm: float = TOLERANCE_MM,
    further: bool = False,
) -> dict[str, float]:
    """The published measures of one class of one case, or all of them; docs/metrics.md defines each.

    Args:
        prediction: (X, Y, Z) probability in [0, 1] (any float type), or a 0/1 mask (bool or integer).
        reference: 0/1 mask of the same shape.
        spacing_mm: size of a voxel per axis, in mm.
        threshold: a voxel is lesion where probability >= threshold; not used for a mask.
        min_volume_mm3: smaller predicted lesions are taken out before anything is measured.
        rule: what a lesion is and when it counts as found.
        tolerance_mm: for the surface Dice.
        further: whether the measures of `FURTHER_METRICS` are wanted too.

    Returns:
        Measure by name, NaN where undefined; `pr_auc` is NaN for a mask.

    Raises:
        ValueError: for shapes that differ, probabilities outside [0, 1], or masks of other values than 0 and 1.
    """
    scores, reference = as_array(prediction), as_mask(reference, name="reference")
    ranks = np.issubdtype(scores.dtype, np.inexact)
    levels = to_levels(scores) if ranks else None  # refuses what is no probability
    mask = scores >= threshold if ranks else as_mask(scores, name="prediction")
    mask = remove_small_lesions(mask, spacing_mm=spacing_mm, min_volume_mm3=min_volume_mm3)
    judgement, _ = judge(
        mask, reference, spacing_mm=spacing_mm, rule=rule, tolerance_mm=tolerance_mm
    )
    if levels is not None:
        areas = ranking_areas(scores, reference)
        error = calibrate(levels_histogram(levels, reference)).error if further else math.nan
        judgement = replace(judgement, ranking=Ranking(*areas, error))
    return judgement.measures() | (judgement.further_measures() if further else {})


def judge(
    mask: Mask,
    reference: Mask,
    *,
    spacing_mm: ArrayLike,
    rule: LesionRule,
    with_distances: bool = True,
    tolerance_mm: float = TOLERANCE_MM,
    scores: ArrayLike | None = None,
) -> tuple[Judgement, LesionMatch]:
    """Count one class of one case; also its lesions and which of them overlap, with their highest scores if given."""
    overlap = overlap_counts(mask, reference)
    voxel_mm3 = float(check_spacing(spacing_mm, ndim=mask.ndim).prod())
    match = overlap_lesions(
        mask,
        reference,
        spacing_mm=spacing_mm,
        connectivity=rule.connectivity,
        min_volume_mm3=rule.min_volume_mm3,
        strictly_larger=rule.strictly_larger,
        scores=scores,
    )
    _, dice = match.best_dice()
    distances = NO_DISTANCES
    if with_distances:
        distances = surface_distances(
            mask, reference, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm
        )
    judgement = Judgement(
        overlap,
        count_by_rule(match, rule),
        reference_volume_mm3=(overlap.tp + overlap.fn) * voxel_mm3,
        predicted_volume_mm3=(overlap.tp + overlap.fp) * voxel_mm3,
        distances=distances,
        n_split=match.n_split,
        n_merged=match.n_merged,
        n_overlapped=int(np.count_nonzero(~np.isnan(dice))),
        object_dice_sum=float(np.nansum(dice)),
    )
    return judgement, match


def ranking_of(histogram: ScoreHistogram) -> Ranking:
    """Ranking measures of the voxels of a histogram."""
    return Ranking(histogram.average_precision(), histogram.roc_auc(), calibrate(histogram).error)


def mean_measures(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each measure over the cases that define it; NaN where none does."""
    values = np.array([list(row.values()) for row in rows], dtype=np.float64)
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        means = np.where(defined, values, 0).sum(axis=0) / defined.sum(axis=0)
    return dict(zip(rows[0], means.tolist(), strict=True))
