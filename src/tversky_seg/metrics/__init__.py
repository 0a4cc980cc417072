"""Metrics of one case: `(prediction, reference)` arrays in, counts out, rates from the counts."""

from tversky_seg.metrics.by_lesion import LESION_METRICS, LesionSettings
from tversky_seg.metrics.case_metrics import METRICS, compute_metrics
from tversky_seg.metrics.lesion_rule import LesionRule, lesion_counts
from tversky_seg.metrics.lesions import LesionCounts
from tversky_seg.metrics.overlap import OverlapCounts, overlap_counts
from tversky_seg.metrics.ranking import (
    PrecisionRecallCurve,
    average_precision,
    precision_recall_curve,
)
from tversky_seg.metrics.surface import SurfaceDistances, surface_distances

__all__ = [
    "LESION_METRICS",
    "METRICS",
    "LesionCounts",
    "LesionRule",
    "LesionSettings",
    "OverlapCounts",
    "PrecisionRecallCurve",
    "SurfaceDistances",
    "average_precision",
    "compute_metrics",
    "lesion_counts",
    "overlap_counts",
    "precision_recall_curve",
    "surface_distances",
]
