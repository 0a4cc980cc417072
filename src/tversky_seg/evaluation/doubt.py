"""Doubt of an evaluated cohort: areas of error retention, and its most doubtful lesions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tversky_seg.evaluation.cohort import EvaluatedCohort
from tversky_seg.metrics.retention import LesionDoubts, case_retention, lesion_retention

N_LISTED = 20
"""Lesions in the list of the most doubtful."""


def doubt_summary(cohort: EvaluatedCohort, name: str) -> dict[str, Any] | None:
    """Summarize one class: three areas, and the most doubtful lesions; None without probabilities.

    With several cases the area of the voxels is the mean of those of the cases, that of the lesions
    one of all lesions pooled.
    """
    totals = cohort.totals[name]
    by_case = [doubts for doubts in totals.doubts if doubts is not None]
    if len(by_case) < len(totals.doubts):
        return None
    dice = np.array([metrics.overlap.dice for metrics in cohort.metrics_of_class(name)])
    of_cases = np.array([_mean(doubts.doubt) for doubts in by_case])
    pooled = np.concatenate([doubts.doubt for doubts in by_case])
    is_false = np.concatenate([doubts.is_false for doubts in by_case])
    return {
        "voxel_dice_area": _mean(np.array(totals.voxel_retention_areas)),
        "lesion_precision_area": lesion_retention(pooled, is_false).area,
        "case_dice_area": case_retention(of_cases, dice).area,
        "n_lesions": len(pooled),
        "n_false_lesions": int(is_false.sum()),
        "doubtful_lesions": _most_doubtful(cohort, by_case),
    }


def _mean(values: NDArray[np.float64]) -> float:
    """Average what is defined; NaN if nothing is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else math.nan


def _most_doubtful(cohort: EvaluatedCohort, by_case: list[LesionDoubts]) -> list[dict[str, Any]]:
    """List the lesions of highest mean entropy of all cases, the most doubtful first."""
    rows: list[dict[str, Any]] = []
    for case, affine, lesions in zip(cohort.cases, cohort.affines, by_case, strict=True):
        voxel_mm3 = abs(float(np.linalg.det(affine[:3, :3])))
        # No case can have more than the list takes.
        for k in np.argsort(-lesions.doubt, kind="stable")[:N_LISTED].tolist():
            x_mm, y_mm, z_mm = (affine[:3, :3] @ lesions.centre[k] + affine[:3, 3]).tolist()
            row = {
                "case_id": case.case_id,
                "mean_entropy": float(lesions.doubt[k]),
                "volume_mm3": float(lesions.n_voxels[k]) * voxel_mm3,
                "x_mm": x_mm,
                "y_mm": y_mm,
                "z_mm": z_mm,
                "is_false": bool(lesions.is_false[k]),
            }
            rows.append(row)
    rows.sort(key=lambda row: -row["mean_entropy"])
    return rows[:N_LISTED]
