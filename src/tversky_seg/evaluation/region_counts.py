"""Lesions by region of the brain: counts of one case, and their summary over the cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from tversky_seg.evaluation.brain_regions import (
    JUXTACORTICAL_MM,
    MCDONALD_REGIONS,
    PERIVENTRICULAR_MM,
    REGIONS,
)
from tversky_seg.evaluation.case_result import ClassResult
from tversky_seg.metrics.lesion_rule import LesionRule, detected_lesions, matched_lesions


@dataclass(frozen=True)
class RegionCounts:
    """Lesions of one region, in one case or in several: counts of cases add up."""

    n_reference: int = 0
    n_detected: int = 0
    n_predicted: int = 0
    n_false: int = 0
    """Predicted lesions that match no reference lesion."""
    reference_volume_mm3: float = 0.0
    predicted_volume_mm3: float = 0.0
    false_volume_mm3: float = 0.0
    """Volume of the false lesions."""

    def __add__(self, other: RegionCounts) -> RegionCounts:
        """Add the counts of another case."""
        sums = [getattr(self, each.name) + getattr(other, each.name) for each in fields(self)]
        return RegionCounts(*sums)

    @property
    def recall(self) -> float:
        """Share of the reference lesions that were detected; NaN without such."""
        return self.n_detected / self.n_reference if self.n_reference else math.nan


def count_by_region(result: ClassResult, *, rule: LesionRule) -> dict[str, RegionCounts] | None:
    """Count the lesions of one case in each region; None where it is not in MNI space."""
    if result.regions is None:
        return None
    match = result.match
    is_detected = detected_lesions(match, rule)
    is_matched = matched_lesions(match, rule)
    # As objects, since an empty list would become numbers, which equal no name.
    predicted_at = np.array(result.regions.predicted, dtype=object)
    reference_at = np.array(result.regions.reference, dtype=object)
    counts: dict[str, RegionCounts] = {}
    for region in REGIONS:
        predicted = predicted_at == region
        reference = reference_at == region
        is_false = predicted & ~is_matched
        counts[region] = RegionCounts(
            n_reference=int(reference.sum()),
            n_detected=int((reference & is_detected).sum()),
            n_predicted=int(predicted.sum()),
            n_false=int(is_false.sum()),
            reference_volume_mm3=float(match.reference.volume_mm3[reference].sum()),
            predicted_volume_mm3=float(match.predicted.volume_mm3[predicted].sum()),
            false_volume_mm3=float(match.predicted.volume_mm3[is_false].sum()),
        )
    return counts


def summarize_regions(
    case_ids: Sequence[str],
    subject_ids: Sequence[str],
    counts: Sequence[Mapping[str, RegionCounts] | None],
) -> dict[str, Any] | None:
    """Summarize the regions of one class over the cases in MNI space; None without such.

    Args:
        case_ids: Name of each case.
        subject_ids: Its subject.
        counts: Its counts by region; None where it is not in MNI space.
    """
    totals = dict.fromkeys(REGIONS, RegionCounts())
    cases: list[dict[str, Any]] = []
    left_out: list[str] = []
    for case_id, subject_id, by_region in zip(case_ids, subject_ids, counts, strict=True):
        if by_region is None:
            # Named in metrics.json, because rates over some of the cases mislead silently.
            left_out.append(case_id)
            continue
        row: dict[str, Any] = {"case_id": case_id, "subject_id": subject_id}
        row["n_mcdonald_reference"] = _n_affected(by_region, "n_reference")
        row["n_mcdonald_predicted"] = _n_affected(by_region, "n_predicted")
        for region, of_region in by_region.items():
            # Counts are pooled, and rates made of them: the recall of a case with one lesion is 0
            # or 1.
            totals[region] += of_region
            row[region] = _as_row(of_region)
        cases.append(row)
    if not cases:
        return None
    return {
        "n_cases": len(cases),
        "left_out": left_out,
        "periventricular_mm": PERIVENTRICULAR_MM,
        "juxtacortical_mm": JUXTACORTICAL_MM,
        "by_region": {region: _as_row(total) for region, total in totals.items()},
        "cases": cases,
    }


def _n_affected(by_region: Mapping[str, RegionCounts], count: str) -> int:
    """Count the McDonald regions that hold a lesion, 0 to 3."""
    return sum(getattr(by_region[region], count) > 0 for region in MCDONALD_REGIONS)


def _as_row(counts: RegionCounts) -> dict[str, float]:
    return {**vars(counts), "recall": counts.recall}
