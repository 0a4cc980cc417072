"""Rows of a stress test, one for each case and change, and what they come to over the cases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tversky_seg.metrics.averages import mean_of_defined

ORIGINAL = "original"
"""Name, in the place of a change, of the scan itself."""


@dataclass(frozen=True)
class StressRow:
    """One class of one case under one change. NaN where undefined, and without a label."""

    case_id: str
    subject_id: str
    class_name: str
    change: str
    """Name of the change, or "original"."""
    volume_mm3: float
    """Predicted volume."""
    volume_change: float
    """Relative to the original scan; NaN where nothing is predicted there."""
    agreement_dice: float
    """Dice with the prediction of the original scan; NaN where both are empty."""
    dice: float
    """Dice with the label."""
    dice_change: float
    lesion_tpr: float
    """Share of the reference lesions that are detected (any overlap)."""
    lesion_tpr_change: float
    n_false_lesions: float
    """Predicted lesions without overlap."""
    n_false_lesions_change: float


COLUMNS = tuple(StressRow.__dataclass_fields__)
"""Columns of stress.csv."""
NUMBERS = COLUMNS[4:]


@dataclass(frozen=True)
class StressSummary:
    """One class under one change, over the cases."""

    class_name: str
    change: str
    n_cases: int
    """Cases to which the change applies."""
    volume_change: float
    """Mean over the cases that define it."""
    absolute_volume_change: float
    """Mean of its size."""
    agreement_dice: float
    dice_change: float
    lesion_tpr_change: float
    n_false_lesions_change: float


def summarize_stress(rows: Sequence[StressRow]) -> list[StressSummary]:
    """Average over cases, for each class and change in the order of the rows."""
    groups: dict[tuple[str, str], list[StressRow]] = {}
    for row in rows:
        # The scan itself changes nothing, and would draw every mean to 0.
        if row.change != ORIGINAL:
            groups.setdefault((row.class_name, row.change), []).append(row)
    summaries: list[StressSummary] = []
    for (class_name, change), members in groups.items():
        summary = StressSummary(
            class_name=class_name,
            change=change,
            n_cases=len(members),
            volume_change=mean_of_defined(row.volume_change for row in members),
            absolute_volume_change=mean_of_defined(abs(row.volume_change) for row in members),
            agreement_dice=mean_of_defined(row.agreement_dice for row in members),
            dice_change=mean_of_defined(row.dice_change for row in members),
            lesion_tpr_change=mean_of_defined(row.lesion_tpr_change for row in members),
            n_false_lesions_change=mean_of_defined(row.n_false_lesions_change for row in members),
        )
        summaries.append(summary)
    return summaries


def volume_cv(rows: Sequence[StressRow]) -> dict[str, float]:
    """Compute the coefficient of variation of a case's volume over all its scans, mean over cases.

    Returns:
        Class -> standard deviation (n - 1) over mean; NaN where no case has a volume.
    """
    volumes: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        of_class = volumes.setdefault(row.class_name, {})
        of_class.setdefault(row.case_id, []).append(row.volume_mm3)
    return {
        class_name: mean_of_defined(map(coefficient_of_variation, by_case.values()))
        for class_name, by_case in volumes.items()
    }


def coefficient_of_variation(values: Sequence[float]) -> float:
    """Divide the standard deviation (n - 1) by the mean; NaN below two values or of mean 0."""
    mean = float(np.mean(values)) if len(values) else 0.0
    if len(values) < 2 or mean == 0:
        return math.nan
    return float(np.std(values, ddof=1) / mean)
