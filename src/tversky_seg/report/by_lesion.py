"""The part of the page that counts each lesion alike: its metrics, and how each size fares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tversky_seg.report.charts import of_class
from tversky_seg.report.labels import (
    FEWEST_FOR_INTERVAL,
    UNDEFINED,
    count_subjects,
    format_value,
    split_by_class,
    summary_rows,
)


@dataclass(frozen=True)
class ByLesionSection:
    """What the page says by lesion, of one class."""

    rows: list[tuple[str, ...]]
    """Label, mean, interval, pooled value and undefined cases of each metric."""
    limit: str
    """A sentence on the volume from which recall reaches 0.8."""
    size_headers: list[str]
    size_rows: list[tuple[str, ...]]
    """One row for each size; none where no case has probabilities."""


def by_lesion_section(metrics: Mapping[str, Any], name: str) -> ByLesionSection | None:
    """Lay out the metrics by lesion of one class; None for a metrics.json of an older version."""
    by_size = of_class(metrics, "by_size", name)
    if not metrics.get("by_lesion") or by_size is None:
        return None
    return ByLesionSection(
        rows=by_lesion_rows(metrics, name),
        limit=_describe_limit(by_size, n_subjects=count_subjects(metrics)),
        size_headers=_size_headers(by_size),
        size_rows=_size_rows(by_size),
    )


def by_lesion_rows(metrics: Mapping[str, Any], name: str) -> list[tuple[str, ...]]:
    """List label, mean, interval, pooled value and undefined cases of each metric of one class.

    CPM, which is one of all cases pooled, comes last; it needs probabilities.
    """
    parts = split_by_class(metrics["by_lesion"])[name]
    rows: list[tuple[str, ...]] = list(summary_rows(parts, n_subjects=count_subjects(metrics)))
    froc = of_class(metrics, "froc", name)
    if froc and "luna16" in froc:
        cpm = format_value("cpm", froc["luna16"]["cpm"])
        rows.append(("CPM (LUNA16)", UNDEFINED, UNDEFINED, cpm, ""))
    return rows


def _describe_limit(by_size: Mapping[str, Any], *, n_subjects: int) -> str:
    limit = by_size["recall80_mm3"]
    if not any(size["n_lesions"] for size in by_size["bins"]):
        return ""
    # Not "undefined": that it is reached nowhere is a result.
    if limit is None:
        return "Recall reaches 0.8 at no lesion volume, all lesions pooled."
    sentence = f"All lesions pooled, recall reaches 0.8 from {format_value('mm3', limit)} mm³ on"
    low, high = by_size["recall80_ci95_mm3"]
    if n_subjects >= FEWEST_FOR_INTERVAL and low is not None:
        # No upper end: recall does not reach 0.8 in all resamplings.
        upper = f"to {format_value('mm3', high)}" if high is not None else "upwards"
        sentence += f" (95 % interval {format_value('mm3', low)} {upper})"
    return sentence + "."


def _size_headers(by_size: Mapping[str, Any]) -> list[str]:
    headers = ["Volume (mm³)", "Lesions", "Median highest probability", "Below 0.1"]
    for rate in _rates(by_size):
        headers.append(f"Recall at {rate} false per case")
    return headers


def _size_rows(by_size: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for size in by_size["bins"]:
        # Masks without probabilities have neither column.
        if not size["n_lesions"] or size["recall_at"] is None:
            continue
        probability = size["highest_probability"]
        upper = "and more" if size["to_mm3"] is None else f"to {size['to_mm3']:g}"
        recalls = [format_value("recall", value) for value in size["recall_at"].values()]
        row = (
            f"{size['from_mm3']:g} {upper}",
            str(size["n_lesions"]),
            format_value("probability", probability["quantiles"]["0.5"]),
            _percent(probability["share_below_0.1"]),
            *recalls,
        )
        rows.append(row)
    return rows


def _rates(by_size: Mapping[str, Any]) -> list[str]:
    """List the numbers of false lesions per case at which recall is given."""
    for size in by_size["bins"]:
        if size["recall_at"] is not None:
            return list(size["recall_at"])
    return []


def _percent(share: float | None) -> str:
    return UNDEFINED if share is None else f"{share:.0%}"
