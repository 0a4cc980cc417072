"""What the check of the data found: one table for the terminal, and one HTML page that needs no other file."""

import base64
import html
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tversky_seg.data_check.examine import LEVELS, CaseReport, Finding
from tversky_seg.data_check.memory import times

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"error": "red", "warning": "yellow", "note": "dim"}
HEADERS = ("case", "subject", "set", "shape", "spacing (mm)", "axes", "affine off (voxels)", "intensities", "NaN",
           "lesions", "smallest to largest (mm³)", "volume (mm³)", "prevalence", "found")  # fmt: skip


@dataclass(frozen=True, eq=False)
class Checkup:
    """All that the check of a cohort found.

    Attributes:
        title: The settings that named the cohort.
        reports: One for each case.
        sets: Case id -> "train", "val" or "test".
        findings: All of them, of the cohort and of its cases.
        costs: What a training will take, as (what, how much, how it was found).
        command: The command line of the plan, or None where none can be made.
        reasons: Why this plan.
    """

    title: str
    reports: Sequence[CaseReport]
    sets: Mapping[str, str]
    findings: Sequence[Finding]
    costs: Sequence[tuple[str, str, str]]
    command: str | None
    reasons: Sequence[str] = ()

    def count(self, level: str) -> int:
        """Number of findings of a level."""
        return sum(finding.level == level for finding in self.findings)

    @property
    def summary(self) -> str:
        """One line: cases and findings."""
        found = ", ".join(_counted(self.count(level), level) for level in LEVELS)
        return f"{_counted(len(self.reports), 'case')} looked at: {found}"


def print_checkup(checkup: Checkup, console: Console) -> None:
    """The table of cases, then what was found (errors first), what a training costs, and the plan.

    Where the console is no terminal all is plain text, a line for each row, as wide as it needs to be.
    """
    if not console.is_terminal:
        console = Console(
            file=console.file, width=1000, no_color=True, highlight=False, soft_wrap=True
        )
    console.print(_case_table(checkup, plain=not console.is_terminal))
    for level in LEVELS:
        groups = grouped([finding for finding in checkup.findings if finding.level == level])
        if groups:
            console.print(Text(f"\n{level}s", style=f"bold {COLOURS[level]}"))
        for first, others in groups:
            more = (
                f" (likewise {_counted(len(others), 'more case')}: {_some(others)})"
                if others
                else ""
            )
            console.print(Text(f"  {first}{more}"))
    console.print(Text("\ncosts", style="bold"))
    for what, amount, how in checkup.costs:
        console.print(Text(f"  {what}: {amount} ({how})" if how else f"  {what}: {amount}"))
    if checkup.command:
        console.print(Text("\nplan", style="bold"))
        for reason in checkup.reasons:
            console.print(Text(f"  {reason}"))
        console.print(Text(f"\n{checkup.command}"), soft_wrap=True)
    console.print(Text(f"\n{checkup.summary}", style="bold"))


def grouped(findings: Iterable[Finding]) -> list[tuple[Finding, list[Finding]]]:
    """Findings with one remedy together: the first, and the others."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.level, finding.remedy), []).append(finding)
    return [(group[0], group[1:]) for group in groups.values()]


def write_page(path: Path, checkup: Checkup) -> None:
    """Write the page: what was found, figures of the cohort, costs and plan, the table, a picture of each case."""
    sections = [
        f"<p>{_safe(checkup.title)}</p><p><strong>{_safe(checkup.summary)}.</strong></p>",
        *(_finding_section(level, checkup.findings) for level in LEVELS),
        "<h2>Cohort</h2>" + "".join(_figures(checkup.reports)),
        f'<h2>Costs</h2><div class="costs">{_table(("", "", "how it was found"), checkup.costs)}</div>',
        _plan_section(checkup),
        "<h2>Cases</h2><p>Shape, spacing and axes are those of the first modality's file; lesions (26-connected) and "
        "prevalence (share of the brain) are as the network sees them, after resampling.</p>"
        + _table(HEADERS, [case_row(report, checkup) for report in checkup.reports]),
        _picture_section(checkup.reports),
    ]
    path.write_text(
        PAGE.replace("{{content}}", "\n".join(filter(None, sections))), encoding="utf-8"
    )


def _case_table(checkup: Checkup, *, plain: bool) -> Table:
    style = None if plain else box.SIMPLE_HEAD
    table = Table(box=style, title=checkup.title, title_justify="left", pad_edge=False)
    for header in HEADERS:
        table.add_column(
            header,
            justify="left" if header in ("case", "subject", "found") else "right",
            no_wrap=plain,
        )
    for report in checkup.reports:
        worst = min((LEVELS.index(f.level) for f in report.findings), default=len(LEVELS))
        table.add_row(
            *map(Text, case_row(report, checkup)), style=COLOURS[LEVELS[worst]] if worst < 2 else ""
        )
    return table


def case_row(report: CaseReport, checkup: Checkup) -> tuple[str, ...]:
    """The cells of a case, under HEADERS."""
    volumes = np.concatenate([np.zeros(0), *report.volumes_mm3.values()])
    ranges = [
        f"{name} {low:.4g} to {high:.4g}"
        for name, (low, high) in (report.intensities or {}).items()
    ]
    counts = {level: sum(finding.level == level for finding in report.findings) for level in LEVELS}
    return (
        report.case.case_id,
        report.case.subject_id,
        checkup.sets.get(report.case.case_id, "–"),
        times(report.shape) if report.shape else "–",
        times(report.spacing_mm) if report.spacing_mm else "–",
        report.orientation or "–",
        "–" if report.affine_shift is None else f"{report.affine_shift:.2g}",
        ", ".join(ranges) or "–",
        str(report.n_non_finite),
        _by_class(report),
        f"{_number(volumes.min())} to {_number(volumes.max())}" if volumes.size else "–",
        "–" if report.lesion_sizes is None else _number(volumes.sum()),
        "–" if report.prevalence is None else f"{report.prevalence:.3%}",
        ", ".join(_counted(n, level) for level, n in counts.items() if n) or "fine",
    )


def _by_class(report: CaseReport) -> str:
    if report.lesion_sizes is None:
        return "–"
    if len(report.lesion_sizes) == 1:
        return str(report.n_lesions)
    return ", ".join(f"{name} {len(sizes)}" for name, sizes in report.lesion_sizes.items())


def _figures(reports: Sequence[CaseReport]) -> Iterator[str]:
    """Lesion sizes, prevalence and spacing of the cohort, inlined."""
    names = dict.fromkeys(name for report in reports for name in report.lesion_sizes or {})
    volumes = {
        name: np.concatenate([r.volumes_mm3[name] for r in reports if r.lesion_sizes])
        for name in names
    }
    volumes = {name: sizes for name, sizes in volumes.items() if sizes.size}
    if volumes:
        yield _inlined(_size_figure(volumes), "Volumes of the lesions on a log axis")
    prevalence = [100 * share for report in reports if (share := report.prevalence)]
    if prevalence:
        yield _inlined(
            _prevalence_figure(prevalence), "Share of the brain that is lesion, case by case"
        )
    spacings = [report.spacing_mm for report in reports if report.spacing_mm]
    if spacings:
        yield _inlined(_spacing_figure(spacings), "Voxel sizes, case by case")


def _size_figure(volumes: Mapping[str, np.ndarray]) -> "Figure":
    figure, axes = _empty("Lesion volume (mm³)", "Lesions")
    everything = np.concatenate([*volumes.values()])
    bins = np.geomspace(everything.min() * 0.9, everything.max() * 1.1, 31).tolist()
    for name, sizes in volumes.items():
        axes.hist(
            sizes,
            bins=bins,
            alpha=0.7,
            label=f"{name}: {len(sizes):,}, median {_number(np.median(sizes))} mm³",
        )
    axes.set_xscale("log")
    axes.legend()
    return figure


def _prevalence_figure(percent: Sequence[float]) -> "Figure":
    figure, axes = _empty("Cases, by prevalence", "Lesion (% of the brain)")
    axes.plot(np.arange(1, len(percent) + 1), sorted(percent), "o", markersize=4)
    axes.axhline(
        float(np.median(percent)),
        linewidth=1,
        alpha=0.6,
        label=f"median {np.median(percent):.3g} %",
    )
    axes.set_yscale("log")
    axes.legend()
    return figure


def _spacing_figure(spacings: Sequence[tuple[float, ...]]) -> "Figure":
    figure, axes = _empty("Axis of the file", "Voxel size (mm)")
    sizes, counts = np.unique(np.round(spacings, 3), axis=0, return_counts=True)
    for row, count in zip(sizes, counts, strict=True):
        axes.plot(
            range(3),
            row,
            "o-",
            markersize=5,
            alpha=0.8,
            label=f"{times(row)} mm: {_counted(count, 'case')}",
        )
    axes.set_xticks(range(3), ["1st", "2nd", "3rd"])
    axes.set_ylim(0, float(sizes.max()) * 1.15)
    if len(sizes) <= 6:
        axes.legend(loc="lower right")
    return figure


def _empty(xlabel: str, ylabel: str) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    return figure, axes


def _inlined(figure: "Figure", caption: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = base64.b64encode(buffer.getvalue().encode()).decode()
    return (
        f'<figure class="cohort"><img src="data:image/svg+xml;base64,{svg}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _finding_section(level: str, findings: Sequence[Finding]) -> str:
    groups = grouped([finding for finding in findings if finding.level == level])
    if not groups:
        return f"<h2>No {level}s</h2>" if level == "error" else ""
    meaning = {"error": "training refuses these", "warning": "training goes on, but look at them",
               "note": "handled, nothing to do"}[level]  # fmt: skip
    items = "".join(_finding_group(first, others) for first, others in groups)
    return f'<div class="{level}"><h2>{level.capitalize()}s: {meaning}</h2><ul>{items}</ul></div>'


def _finding_group(first: Finding, others: Sequence[Finding]) -> str:
    rest = "".join(f"<li>{_safe(_told(finding))}</li>" for finding in others)
    hidden = f"<details><summary>{_counted(len(others), 'more like this')}</summary><ul>{rest}</ul></details>"
    return f"<li>{_safe(_told(first))} <em>{_safe(first.remedy)}.</em>{hidden * bool(others)}</li>"


def _told(finding: Finding) -> str:
    is_named = not finding.case_id or finding.found.startswith(finding.case_id)
    return f"{'' if is_named else f'{finding.case_id}, '}{finding.where}: {finding.found}."


def _plan_section(checkup: Checkup) -> str:
    if not checkup.command:
        return ""
    reasons = "".join(f"<li>{_safe(reason)}</li>" for reason in checkup.reasons)
    return f"<h2>Plan</h2><ul>{reasons}</ul><pre>{_safe(checkup.command)}</pre>"


def _picture_section(reports: Sequence[CaseReport]) -> str:
    shown = [report for report in reports if report.picture]
    if not shown:
        return ""
    return (
        "<h2>Pictures</h2><p>The axial slice with most lesion, first modality, lesions outlined; the patient's left is "
        f'on the left. {len(shown)} of {_counted(len(reports), "case")}.</p><div class="pictures">'
        + "".join(map(_picture, shown))
        + "</div>"
    )


def _picture(report: CaseReport) -> str:
    assert report.prepared is not None
    x, y, _ = report.prepared.spacing_mm
    width, height, _ = report.prepared.geometry.shape
    png = base64.b64encode(report.picture or b"").decode()
    return (
        f'<figure><img src="data:image/png;base64,{png}" style="aspect-ratio:{width * x:.4g}/{height * y:.4g}" '
        f'alt="{_safe(report.case.case_id)}"><figcaption>{_safe(report.case.case_id)}</figcaption></figure>'
    )


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{_safe(header)}</th>" for header in headers)
    body = "".join(
        f"<tr><th>{_safe(row[0])}</th>{''.join(f'<td>{_safe(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 or what.endswith("this") else f"{n:,} {what}s"


def _some(findings: Sequence[Finding]) -> str:
    names = [finding.case_id or finding.where for finding in findings]
    return ", ".join(names[:5]) + ", …" * (len(names) > 5)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _safe(text: str) -> str:
    return html.escape(text)


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Check of the data</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; max-width: 80rem; margin: 2rem auto;
       padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.wide { overflow-x: auto; max-height: 40rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; overflow-wrap: normal; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e3e6ea; }
thead th { border-bottom: 2px solid #8b949e; white-space: normal; vertical-align: bottom; background: #fff;
           position: sticky; top: 0; }
tbody th { text-align: left; font-weight: 600; }
.costs td, .costs th { text-align: left; white-space: normal; }
.error, .warning, .note { border-left: 4px solid #8b949e; padding-left: 1rem; margin-top: 1.5rem; }
.error { border-color: #d1242f; } .warning { border-color: #bf8700; }
.error h2, .warning h2, .note h2 { margin: 0; } em { color: #57606a; }
pre { background: #f6f8fa; padding: .8rem; white-space: pre-wrap; }
figure { margin: 0; } figcaption { color: #57606a; font-size: .85rem; }
.cohort { display: inline-block; width: min(26rem, 100%); } .cohort img { width: 100%; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .7rem; }
.pictures img { width: 100%; height: auto; background: #000; }
</style>
</head>
<body>
<h1>Check of the data</h1>
{{content}}
</body>
</html>
"""
