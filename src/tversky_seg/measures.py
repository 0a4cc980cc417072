"""The published measures of one case, of several pooled, and of a validation set. docs/metrics.md defines each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from tversky_seg.lesions import LesionCounts, Lesions, count_lesions, match_lesions, remove_small_lesions
from tversky_seg.masks import Mask, as_array, as_mask, check_spacing
from tversky_seg.overlap import OverlapCounts, overlap_counts
from tversky_seg.ranking import N_LEVELS, average_precision, choose_threshold, levels_histogram, to_levels
from tversky_seg.surface import SurfaceDistances, surface_distances

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
NO_DISTANCES = SurfaceDistances(math.nan, math.nan)


@dataclass(frozen=True)
class LesionRule:
    """When voxels are one lesion, and when a lesion counts as found.

    Attributes:
        connectivity: 6, 18 or 26 neighbours make one lesion.
        min_overlap: A reference lesion is detected when more than this share of it is covered, in [0, 1).
        min_volume_mm3: Smaller lesions, of the reference and of the prediction, are not counted.
    """

    connectivity: int = 26
    min_overlap: float = 0.0
    min_volume_mm3: float = 0.0

    def __post_init__(self) -> None:
        if self.connectivity not in (6, 18, 26):
            raise ValueError(f"connectivity must be one of 6, 18, 26, got {self.connectivity}")
        if not 0 <= self.min_overlap < 1:
            raise ValueError(f"min_overlap must lie in [0, 1), got {self.min_overlap}")
        if not 0 <= self.min_volume_mm3 < math.inf:
            raise ValueError(f"min_volume_mm3 must be >= 0 and finite, got {self.min_volume_mm3}")


ANY_OVERLAP = LesionRule()


@dataclass(frozen=True)
class Judgement:
    """What was counted in one class of one case, or of several cases pooled."""

    overlap: OverlapCounts
    lesions: LesionCounts
    reference_volume_mm3: float
    predicted_volume_mm3: float
    pr_auc: float = math.nan
    distances: SurfaceDistances = NO_DISTANCES

    def __add__(self, other: Judgement) -> Judgement:
        """Both cases pooled; area and distances do not add up and are NaN."""
        return Judgement(
            self.overlap + other.overlap,
            self.lesions + other.lesions,
            self.reference_volume_mm3 + other.reference_volume_mm3,
            self.predicted_volume_mm3 + other.predicted_volume_mm3,
        )

    def measures(self) -> dict[str, float]:
        """The published measures by name, in the order of `METRICS`."""
        difference = abs(self.predicted_volume_mm3 - self.reference_volume_mm3)
        values = (
            self.overlap.dice,
            self.overlap.sensitivity,
            self.overlap.specificity,
            self.overlap.precision,
            self.overlap.f(2),
            self.pr_auc,
            self.lesions.tpr,
            self.lesions.fpr,
            self.lesions.f1,
            self.distances.assd_mm,
            self.distances.hd95_mm,
            difference / self.reference_volume_mm3 if self.reference_volume_mm3 else math.nan,
            self.reference_volume_mm3,
            self.predicted_volume_mm3,
            self.lesions.n_reference,
            self.lesions.n_predicted,
        )
        return dict(zip(METRICS, values, strict=True))


def case_measures(
    prediction: ArrayLike,
    reference: ArrayLike,
    *,
    spacing_mm: ArrayLike,
    threshold: float = 0.5,
    min_volume_mm3: float = 0.0,
    rule: LesionRule = ANY_OVERLAP,
) -> dict[str, float]:
    """All measures of one class of one case; docs/metrics.md defines each.

    Args:
        prediction: (X, Y, Z) probability in [0, 1] (any float type), or a 0/1 mask (bool or integer).
        reference: 0/1 mask of the same shape.
        spacing_mm: size of a voxel per axis, in mm.
        threshold: a voxel is lesion where probability >= threshold; not used for a mask.
        min_volume_mm3: smaller predicted lesions are taken out before anything is measured.
        rule: what a lesion is and when it counts as found.

    Returns:
        Measure by name, NaN where undefined; `pr_auc` is NaN for a mask.

    Raises:
        ValueError: for shapes that differ, probabilities outside [0, 1], or masks of other values than 0 and 1.
    """
    scores, reference = as_array(prediction), as_mask(reference, name="reference")
    ranks = np.issubdtype(scores.dtype, np.inexact)
    if ranks:
        to_levels(scores)  # refuses what is no probability
    mask = scores >= threshold if ranks else as_mask(scores, name="prediction")
    mask = remove_small_lesions(mask, spacing_mm=spacing_mm, min_volume_mm3=min_volume_mm3)
    judgement, _ = judge(mask, reference, spacing_mm=spacing_mm, rule=rule)
    return replace(judgement, pr_auc=average_precision(scores, reference) if ranks else math.nan).measures()


def judge(
    mask: Mask, reference: Mask, *, spacing_mm: ArrayLike, rule: LesionRule, with_distances: bool = True
) -> tuple[Judgement, tuple[Lesions, Lesions]]:
    """Count one class of one case; also the predicted and the reference lesions behind the counts."""
    overlap = overlap_counts(mask, reference)
    voxel_mm3 = float(check_spacing(spacing_mm, ndim=mask.ndim).prod())
    lesions = match_lesions(
        mask, reference, spacing_mm=spacing_mm, connectivity=rule.connectivity, min_volume_mm3=rule.min_volume_mm3
    )
    judgement = Judgement(
        overlap,
        count_lesions(*lesions, min_overlap=rule.min_overlap),
        reference_volume_mm3=(overlap.tp + overlap.fn) * voxel_mm3,
        predicted_volume_mm3=(overlap.tp + overlap.fp) * voxel_mm3,
        distances=surface_distances(mask, reference, spacing_mm=spacing_mm) if with_distances else NO_DISTANCES,
    )
    return judgement, lesions


def validation_measures(
    pairs: Iterable[tuple[ArrayLike, ArrayLike, ArrayLike]],
    *,
    classes: Sequence[str] = ("lesion",),
    goal: str = "dice",
    rule: LesionRule = ANY_OVERLAP,
) -> tuple[dict[str, float], float | dict[str, float]]:
    """Choose the threshold on validation cases, and say what the network is worth there.

    Args:
        pairs: one (probability, reference, spacing_mm) per case, the first two of shape (K, X, Y, Z); read once, of
            which 3 bytes per voxel are kept.
        classes: the K classes.
        goal: what the threshold maximises in the mean over cases, "dice" or "f2".
        rule: what a lesion is and when it counts as found.

    Returns:
        The mean over cases of each measure but the distances (NaN where no case defines it), and the threshold.
        With several classes: measures also as `<class>/<measure>`, the plain names being means over classes, and a
        threshold per class.
    """
    kept = [
        (to_levels(probability), as_mask(reference, name="reference"), spacing_mm)
        for probability, reference, spacing_mm in pairs
    ]
    thresholds: dict[str, float] = {}
    means: dict[str, dict[str, float]] = {}
    for k, name in enumerate(classes):
        histograms = [levels_histogram(levels[k], reference[k]) for levels, reference, _ in kept]
        thresholds[name] = choose_threshold(histograms, goal)
        rows = []
        for (levels, reference, spacing_mm), histogram in zip(kept, histograms, strict=True):
            mask = levels[k] >= thresholds[name] * (N_LEVELS - 1)
            found, _ = judge(mask, reference[k], spacing_mm=spacing_mm, rule=rule, with_distances=False)
            rows.append(replace(found, pr_auc=histogram.average_precision()).measures())
        means[name] = mean_measures(rows)
    if len(classes) == 1:
        return means[classes[0]], thresholds[classes[0]]
    by_class = {f"{name}/{measure}": value for name in classes for measure, value in means[name].items()}
    return mean_measures(list(means.values())) | by_class, thresholds


def mean_measures(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each measure over the cases that define it; NaN where none does."""
    values = np.array([list(row.values()) for row in rows], dtype=np.float64)
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        means = np.where(defined, values, 0).sum(axis=0) / defined.sum(axis=0)
    return dict(zip(rows[0], means.tolist(), strict=True))
