"""All metrics of one case, and of several pooled. docs/metrics.md defines each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tversky_seg.metrics.by_lesion import (
    NOTHING_BY_LESION,
    ByLesion,
    LesionSettings,
    measure_by_lesion,
)
from tversky_seg.metrics.calibration import calibrate
from tversky_seg.metrics.detection_limit import recall80_volume
from tversky_seg.metrics.lesion_rule import (
    ANY_OVERLAP,
    LesionRule,
    count_lesions,
    detected_lesions,
    match_by_rule,
)
from tversky_seg.metrics.lesions import (
    LesionCounts,
    LesionMatch,
    remove_small_lesions,
    remove_weak_lesions,
)
from tversky_seg.metrics.masks import Mask, as_array, as_mask, check_spacing
from tversky_seg.metrics.overlap import OverlapCounts, overlap_counts
from tversky_seg.metrics.ranking import ranking_areas
from tversky_seg.metrics.score_histogram import ScoreHistogram, levels_histogram, to_levels
from tversky_seg.metrics.surface import SurfaceDistances, surface_distances

# Names and order are those of metrics.json and cases.csv.
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
# Under "further" in metrics.json.
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
    """Metrics of the probabilities of one case or of a cohort; NaN where undefined."""

    pr_auc: float = math.nan
    roc_auc: float = math.nan
    calibration_error: float = math.nan


NO_RANKING = Ranking()


@dataclass(frozen=True)
class CaseMetrics:
    """Counts of one class of one case, or of several cases pooled; the metrics follow from them."""

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
    by_lesion: ByLesion = NOTHING_BY_LESION

    def __add__(self, other: CaseMetrics) -> CaseMetrics:
        """Pool two cases; ranking and distances do not add up and are NaN."""
        return CaseMetrics(
            self.overlap + other.overlap,
            self.lesions + other.lesions,
            self.reference_volume_mm3 + other.reference_volume_mm3,
            self.predicted_volume_mm3 + other.predicted_volume_mm3,
            n_split=self.n_split + other.n_split,
            n_merged=self.n_merged + other.n_merged,
            n_overlapped=self.n_overlapped + other.n_overlapped,
            object_dice_sum=self.object_dice_sum + other.object_dice_sum,
            by_lesion=self.by_lesion + other.by_lesion,
        )

    def metrics(self) -> dict[str, float]:
        """Compute the metrics of `METRICS`, by name and in its order."""
        return {
            "dice": self.overlap.dice,
            "sensitivity": self.overlap.sensitivity,
            "specificity": self.overlap.specificity,
            "precision": self.overlap.precision,
            "f2": self.overlap.f(2),
            "pr_auc": self.ranking.pr_auc,
            "lesion_tpr": self.lesions.tpr,
            "lesion_fpr": self.lesions.fpr,
            "lesion_f1": self.lesions.f1,
            "assd_mm": self.distances.assd_mm,
            "hd95_mm": self.distances.hd95_mm,
            "volume_difference": abs(self._relative_difference),
            "reference_volume_mm3": self.reference_volume_mm3,
            "predicted_volume_mm3": self.predicted_volume_mm3,
            "n_reference_lesions": self.lesions.n_reference,
            "n_predicted_lesions": self.lesions.n_predicted,
        }

    def further_metrics(self) -> dict[str, float]:
        """Compute the metrics of `FURTHER_METRICS`, by name and in its order."""
        return {
            "jaccard": self.overlap.jaccard,
            "mcc": self.overlap.mcc,
            "signed_volume_difference_mm3": self._difference_mm3,
            "absolute_volume_difference_mm3": abs(self._difference_mm3),
            "signed_volume_difference": self._relative_difference,
            "roc_auc": self.ranking.roc_auc,
            "calibration_error": self.ranking.calibration_error,
            "hd_mm": self.distances.hd_mm,
            "surface_dice": self.distances.surface_dice,
            "object_dice": self._object_dice,
            "n_detected_lesions": self.lesions.n_detected,
            "n_false_lesions": self.lesions.n_unmatched,
            "n_split_lesions": self.n_split,
            "n_merged_lesions": self.n_merged,
        }

    def lesion_metrics(self) -> dict[str, float]:
        """Compute the metrics of `LESION_METRICS`, by name and in its order."""
        return self.by_lesion.metrics()

    @property
    def _difference_mm3(self) -> float:
        return self.predicted_volume_mm3 - self.reference_volume_mm3

    @property
    def _relative_difference(self) -> float:
        if not self.reference_volume_mm3:
            return math.nan
        return self._difference_mm3 / self.reference_volume_mm3

    @property
    def _object_dice(self) -> float:
        if not self.n_overlapped:
            return math.nan
        return self.object_dice_sum / self.n_overlapped


def compute_metrics(
    prediction: ArrayLike,
    reference: ArrayLike,
    *,
    spacing_mm: ArrayLike,
    threshold: float = 0.5,
    min_volume_mm3: float = 0.0,
    min_peak: float = 0.0,
    rule: LesionRule = ANY_OVERLAP,
    tolerance_mm: float = TOLERANCE_MM,
    further: bool = False,
    by_lesion: LesionSettings | None = None,
    ignored: ArrayLike | None = None,
) -> dict[str, float]:
    """Compute the metrics of one class of one case; docs/metrics.md defines each.

    Args:
        prediction: (X, Y, Z) probability in [0, 1] (any float type), or a 0/1 mask (bool or
            integer).
        reference: 0/1 mask of the same shape.
        spacing_mm: Size of a voxel per axis, in mm.
        threshold: A voxel is lesion where probability >= threshold; not used for a mask.
        min_volume_mm3: Smaller predicted lesions are removed before anything is measured.
        min_peak: Predicted lesions whose highest probability does not reach it are removed, too;
            not used for a mask.
        rule: Rule of what a lesion is and when it counts as detected.
        tolerance_mm: Distance up to which surfaces agree, for the surface Dice.
        further: Whether to compute the metrics of `FURTHER_METRICS` too.
        by_lesion: Settings of the metrics of `LESION_METRICS`, such as `LesionSettings()`; None: do
            not compute them.
        ignored: As in `measure_case`; None: all voxels count.

    Returns:
        Metric by name, NaN where undefined; `pr_auc` is NaN for a mask.

    Raises:
        ValueError: Shapes that differ, probabilities outside [0, 1], or masks of other values than
            0 and 1.
    """
    scores = as_array(prediction)
    true = as_mask(reference, name="reference")
    # Numbers of type float are probabilities, even if all are 0 or 1; others are a mask.
    is_probability = np.issubdtype(scores.dtype, np.inexact)
    if is_probability:
        levels = to_levels(scores)  # refuses values outside [0, 1]
        mask = remove_weak_lesions(scores >= threshold, scores, min_score=min_peak)
    else:
        mask = as_mask(scores, name="prediction")
    # Before the ignored voxels are taken out, of which a prediction knows nothing.
    mask = remove_small_lesions(mask, spacing_mm=spacing_mm, min_volume_mm3=min_volume_mm3)
    if ignored is not None:
        ignored = as_mask(ignored, name="ignored")
    case, _ = measure_case(
        mask,
        true,
        spacing_mm=spacing_mm,
        rule=rule,
        tolerance_mm=tolerance_mm,
        by_lesion=by_lesion,
        ignored=ignored,
    )
    if is_probability and ignored is not None:
        scores, levels, true = scores[~ignored], levels[~ignored], true[~ignored]
    if is_probability:
        case = replace(case, ranking=_rank(scores, levels, true, further=further))
    metrics = case.metrics()
    if further:
        metrics |= case.further_metrics()
    if by_lesion is not None:
        metrics |= case.lesion_metrics()
    return metrics


def _rank(
    scores: NDArray[Any], levels: NDArray[np.uint16], reference: Mask, *, further: bool
) -> Ranking:
    """Rank all voxels that count, whatever the threshold and the smallest lesion."""
    pr_auc, roc_auc = ranking_areas(scores, reference)
    calibration_error = math.nan
    if further:
        calibration_error = calibrate(levels_histogram(levels, reference)).error
    return Ranking(pr_auc, roc_auc, calibration_error)


def measure_case(
    mask: Mask,
    reference: Mask,
    *,
    spacing_mm: ArrayLike,
    rule: LesionRule,
    with_distances: bool = True,
    tolerance_mm: float = TOLERANCE_MM,
    scores: ArrayLike | None = None,
    by_lesion: LesionSettings | None = None,
    ignored: Mask | None = None,
) -> tuple[CaseMetrics, LesionMatch]:
    """Count voxels and lesions of one class of one case, and measure its surface distances.

    Args:
        mask: Predicted mask (X, Y, Z).
        reference: Mask of the same shape.
        spacing_mm: Size of a voxel per axis, in mm.
        rule: Rule of what a lesion is and when it counts as detected.
        with_distances: Whether to measure the surface distances; they are NaN otherwise.
        tolerance_mm: Distance up to which surfaces agree, for the surface Dice.
        scores: Scores of the same shape, of which each lesion gets its highest.
        by_lesion: Settings of the metrics of `LESION_METRICS`; None: they are NaN.
        ignored: Voxels that do not count, of the same shape; None: all count. They are taken out of
            both masks before anything is counted, as the evaluation of the WMH challenge does: what
            is predicted there is neither right nor wrong, and a predicted lesion that lies there
            in part is measured by the rest of it.

    Returns:
        The counts, without a ranking; and the lesions with their overlaps.

    Raises:
        ValueError: Shapes that differ, or other values than 0 and 1.
    """
    mask, reference, overlap = _count_voxels(mask, reference, ignored)
    voxel_mm3 = float(check_spacing(spacing_mm, ndim=mask.ndim).prod())
    match = match_by_rule(mask, reference, spacing_mm=spacing_mm, rule=rule, scores=scores)
    _, object_dice = match.best_dice()
    distances = NO_DISTANCES
    if with_distances:
        distances = surface_distances(
            mask, reference, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm
        )
    lesions = NOTHING_BY_LESION
    if by_lesion is not None:
        lesions = measure_by_lesion(
            mask,
            reference,
            spacing_mm=spacing_mm,
            tolerance_mm=tolerance_mm,
            rule=rule,
            settings=by_lesion,
        )
        lesions = replace(lesions, recall80_mm3=_recall80_mm3(match, rule))
    case = CaseMetrics(
        overlap=overlap,
        lesions=count_lesions(match, rule),
        reference_volume_mm3=(overlap.tp + overlap.fn) * voxel_mm3,
        predicted_volume_mm3=(overlap.tp + overlap.fp) * voxel_mm3,
        distances=distances,
        n_split=match.n_split,
        n_merged=match.n_merged,
        n_overlapped=int(np.count_nonzero(~np.isnan(object_dice))),
        object_dice_sum=float(np.nansum(object_dice)),
        by_lesion=lesions,
    )
    return case, match


def _count_voxels(
    mask: Mask, reference: Mask, ignored: Mask | None
) -> tuple[Mask, Mask, OverlapCounts]:
    """Take the ignored voxels out of both masks, and count the others."""
    if ignored is None:
        return mask, reference, overlap_counts(mask, reference)
    mask, reference = mask & ~ignored, reference & ~ignored
    overlap = overlap_counts(mask, reference)
    # Empty in both masks, the ignored voxels were counted as true negatives.
    overlap = replace(overlap, tn=overlap.tn - int(np.count_nonzero(ignored)))
    return mask, reference, overlap


def _recall80_mm3(match: LesionMatch, rule: LesionRule) -> float:
    return recall80_volume(match.reference.volume_mm3, detected_lesions(match, rule))


def ranking_from_histogram(histogram: ScoreHistogram) -> Ranking:
    """Compute the ranking of the voxels of a histogram, of one case or of several."""
    return Ranking(
        pr_auc=histogram.average_precision(),
        roc_auc=histogram.roc_auc(),
        calibration_error=calibrate(histogram).error,
    )


def mean_metrics(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average each metric over the cases that define it.

    Args:
        rows: Metrics by name, one mapping per case and all with the same names; at least one.

    Returns:
        Mean by name; NaN where no case defines the metric.
    """
    cases = [list(row.values()) for row in rows]
    values = np.array(cases, dtype=np.float64)  # (cases, metrics)
    # np.nanmean would warn of metrics that no case defines.
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        total = np.where(defined, values, 0).sum(axis=0)
        means = total / defined.sum(axis=0)
    return dict(zip(rows[0], means.tolist(), strict=True))
