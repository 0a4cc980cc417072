"""The table of cases: for the page, the terminal and cases.csv."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tversky_seg.data_check.case_report import CaseReport
from tversky_seg.data_check.finding import findings_by_level
from tversky_seg.data_check.plan import times
from tversky_seg.report.labels import UNDEFINED, count

HEADERS = (
    "case",
    "subject",
    "set",
    "shape",
    "spacing (mm)",
    "axes",
    "affine off (voxels)",
    "intensities",
    "NaN",
    "lesions",
    "smallest to largest (mm³)",
    "volume (mm³)",
    "prevalence",
    "findings",
)
FINDING_COLUMNS = ("level", "case_id", "where", "found", "remedy")


def case_row(report: CaseReport, sets: Mapping[str, str]) -> tuple[str, ...]:
    """Format the cells of a case, under HEADERS.

    Args:
        report: Report on the case.
        sets: Case id -> "train", "val" or "test".
    """
    # A dash marks what could not be read, as in the tables of metrics.
    case = report.case
    shape = times(report.shape) if report.shape else UNDEFINED
    spacing = times(report.spacing_mm) if report.spacing_mm else UNDEFINED
    return (
        case.case_id,
        case.subject_id,
        sets.get(case.case_id, UNDEFINED),
        shape,
        spacing,
        report.orientation or UNDEFINED,
        _affine_shift(report),
        _intensities(report),
        str(report.n_non_finite),
        _lesions(report),
        *_volumes(report),
        _prevalence(report),
        _findings(report),
    )


def _affine_shift(report: CaseReport) -> str:
    if report.affine_shift is None:
        return UNDEFINED
    # 1e-06 is rounding in the file, 0.5 half a voxel: two digits tell them apart.
    shift = f"{report.affine_shift:.2g}"
    return f"{shift}, flipped" if report.is_stored_flipped else shift


def _intensities(report: CaseReport) -> str:
    ranges: list[str] = []
    for name, (lowest, highest) in (report.intensities or {}).items():
        ranges.append(f"{name} {lowest:.4g} to {highest:.4g}")
    return ", ".join(ranges) or UNDEFINED


def _lesions(report: CaseReport) -> str:
    """Write the number of lesions, by class where there are several."""
    if report.lesion_sizes is None:
        return UNDEFINED
    if len(report.lesion_sizes) == 1:
        return str(report.n_lesions)
    return ", ".join(f"{name} {len(sizes)}" for name, sizes in report.lesion_sizes.items())


def _volumes(report: CaseReport) -> tuple[str, str]:
    """Write the range of lesion volumes, and their sum."""
    if report.lesion_sizes is None:
        return UNDEFINED, UNDEFINED
    # The empty array first: a case may have no lesion.
    volumes = np.concatenate([np.zeros(0), *report.volumes_mm3.values()])
    total = format_number(volumes.sum())
    if not volumes.size:
        return UNDEFINED, total
    return f"{format_number(volumes.min())} to {format_number(volumes.max())}", total


def _prevalence(report: CaseReport) -> str:
    if report.prevalence is None:
        return UNDEFINED
    # Three decimals, since a prevalence of 0.2 % is common and of 0.005 % possible.
    return f"{report.prevalence:.3%}"


def _findings(report: CaseReport) -> str:
    counts: list[str] = []
    for level, findings in findings_by_level(report.findings).items():
        counts.append(count(len(findings), level))
    return ", ".join(counts) or "fine"


def format_number(value: float) -> str:
    """Write a volume in three digits, or whole from 100 on."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
