"""The page of a robustness sheet: what each change does to the predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tversky_seg.analysis.stress import StressResult
from tversky_seg.analysis.stress_rows import ORIGINAL, StressRow, StressSummary
from tversky_seg.report.charts import Chart
from tversky_seg.report.figures import COLOURS, GREY, as_svg, new_axes
from tversky_seg.report.labels import UNDEFINED, count, format_value
from tversky_seg.report.page import environment
from tversky_seg.runtime.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNITS = {
    "rotation_deg": "rotation by {}°",
    "shift_voxels": "shift by {} voxel",
    "bias_field": "bias field {}",
    "noise": "noise {}",
    "blur_mm": "blur {} mm",
    "gamma": "gamma {}",
    "slice_mm": "slices of {} mm",
    "missing": "without {}",
}
SUMMARY_HEADERS = (
    "Change",
    "Cases",
    "Volume",
    "|Volume|",
    "Agreement (Dice)",
    "Δ Dice",
    "Δ Lesion TPR",
    "Δ False lesions",
)
CASE_HEADERS = (
    "Case",
    "Change",
    "Volume (mm³)",
    "Volume",
    "Agreement (Dice)",
    "Dice",
    "Lesion TPR",
    "False lesions",
)


@dataclass(frozen=True)
class _Section:
    """All that the page says of one class."""

    name: str
    """"" where there is a single class."""
    sentence: str
    summary_rows: list[tuple[str, ...]]
    case_rows: list[tuple[str, ...]]
    charts: list[Chart]


def write_stress_page(
    path: Path, result: StressResult, *, title: str, facts: Mapping[str, Any]
) -> None:
    """Write the page.

    Args:
        path: File to write.
        result: Result of `stress`.
        title: Name of the run.
        facts: Name -> value, what the header says of networks and settings.
    """
    sections: list[_Section] = []
    for name in result.volume_cv:
        sections.append(_section(name, result))
    text = (
        environment()
        .get_template("stress.html.j2")
        .render(
            title=title,
            facts=facts,
            sections=sections,
            faults=result.faults,
            summary_headers=SUMMARY_HEADERS,
            case_headers=CASE_HEADERS,
        )
    )
    write_text(path, text)


def describe_change(name: str) -> str:
    """Write "rotation by 5°" for "rotation_deg=5"."""
    kind, _, severity = name.partition("=")
    return UNITS[kind].format(severity) if kind in UNITS else name


def _section(name: str, result: StressResult) -> _Section:
    rows = [row for row in result.rows if row.class_name == name]
    summaries = [summary for summary in result.summaries if summary.class_name == name]
    return _Section(
        # A single class needs no heading.
        name=name if len(result.volume_cv) > 1 else "",
        sentence=_sentence(summaries, rows, result.volume_cv[name]),
        summary_rows=summary_rows(summaries),
        case_rows=[_case_row(row) for row in rows],
        charts=list(_charts(rows)),
    )


def _sentence(summaries: Sequence[StressSummary], rows: Sequence[StressRow], cv: float) -> str:
    n_cases = len({row.case_id for row in rows})
    text = f"{count(n_cases, 'case')} under {count(len(summaries), 'change')}."
    if not math.isnan(cv):
        text += f" The volume of a case varies by {cv:.1%} over its scans (CV)."
    defined = [each for each in summaries if not math.isnan(each.absolute_volume_change)]
    if defined:
        # By size: shrinking and growing cases would cancel in a mean.
        worst = max(defined, key=lambda summary: summary.absolute_volume_change)
        text += (
            f" Largest change of it: {describe_change(worst.change)}, by "
            f"{worst.absolute_volume_change:.0%} on average."
        )
    return text


def summary_rows(summaries: Sequence[StressSummary]) -> list[tuple[str, ...]]:
    """Write the cells of the table over the cases, under `SUMMARY_HEADERS`."""
    return [_summary_row(summary) for summary in summaries]


def _summary_row(summary: StressSummary) -> tuple[str, ...]:
    return (
        describe_change(summary.change),
        str(summary.n_cases),
        _percent(summary.volume_change, signed=True),
        _percent(summary.absolute_volume_change),
        format_value("dice", summary.agreement_dice),
        format_value("dice", summary.dice_change, signed=True),
        format_value("lesion_tpr", summary.lesion_tpr_change, signed=True),
        format_value("n_false_lesions", summary.n_false_lesions_change, signed=True),
    )


def _case_row(row: StressRow) -> tuple[str, ...]:
    return (
        row.case_id,
        describe_change(row.change),
        format_value("volume_mm3", row.volume_mm3),
        _percent(row.volume_change, signed=True),
        format_value("dice", row.agreement_dice),
        format_value("dice", row.dice),
        format_value("lesion_tpr", row.lesion_tpr),
        format_value("n_false_lesions", row.n_false_lesions),
    )


def _percent(share: float, *, signed: bool = False) -> str:
    if math.isnan(share):
        return UNDEFINED
    return f"{share:+.1%}" if signed else f"{share:.1%}"


def _charts(rows: Sequence[StressRow]) -> list[Chart]:
    volume = _by_change(rows, "volume_change", factor=100)
    dice = _by_change(rows, "dice_change")
    charts: list[Chart] = []
    if volume:
        figure = _dot_figure(volume, xlabel="Change of the predicted volume (%)")
        charts.append(Chart("Volume", as_svg(figure), "One dot per case; the line is their mean."))
    if dice:
        figure = _dot_figure(dice, xlabel="Change of Dice with the label")
        charts.append(Chart("Dice", as_svg(figure), "One dot per case; the line is their mean."))
    return charts


def _by_change(
    rows: Sequence[StressRow], name: str, *, factor: float = 1
) -> dict[str, list[float]]:
    """List the defined values of each change, changes without one left out."""
    values: dict[str, list[float]] = {}
    for row in rows:
        value = getattr(row, name)
        if row.change != ORIGINAL and not math.isnan(value):
            values.setdefault(describe_change(row.change), []).append(factor * value)
    return values


def _dot_figure(values: Mapping[str, Sequence[float]], *, xlabel: str) -> Figure:
    # Room for the words of the changes.
    figure, axes = new_axes(xlabel=xlabel, ylabel="", left=0.34)
    for k, changed in enumerate(values.values()):
        axes.plot(changed, [k] * len(changed), "o", markersize=4, alpha=0.7, color=COLOURS[0])
        mean = sum(changed) / len(changed)
        axes.plot([mean, mean], [k - 0.3, k + 0.3], color=COLOURS[1], linewidth=2)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_yticks(range(len(values)), list(values))
    # The first change on top, as in the table.
    axes.invert_yaxis()
    return figure
