"""The dataset check as one HTML page that needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data_check.case_report import CaseReport
from tversky_seg.data_check.check import DatasetCheck
from tversky_seg.data_check.finding import (
    ERROR,
    NOTE,
    WARNING,
    Finding,
    findings_by_level,
    group_by_remedy,
)
from tversky_seg.data_check.plan import times
from tversky_seg.data_check.tables import HEADERS, case_row, format_number
from tversky_seg.report.charts import Chart
from tversky_seg.report.figures import COLOURS, GREY, as_svg, new_axes
from tversky_seg.report.page import environment
from tversky_seg.runtime.files import write_text

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

HEADINGS = {
    ERROR: "Errors: training refuses these",
    WARNING: "Warnings: training will run, please review",
    NOTE: "Notes: handled, nothing to do",
}

LONGEST_PATH = 60
N_PATH_PARTS = 2
"""Folders and file that remain of a longer path; findings.csv has the whole."""


@dataclass(frozen=True)
class FindingSection:
    """The findings of one level, grouped by their remedy."""

    level: str
    heading: str
    groups: list[list[Finding]]


@dataclass(frozen=True)
class CasePicture:
    """A picture of one case."""

    case_id: str
    url: str
    """PNG as a data URL."""
    aspect_ratio: str
    """Width over height in mm, for CSS."""


def write_page(path: Path, check: DatasetCheck, *, title: str, command: str | None) -> None:
    """Write the page: findings, figures of the cohort, costs, plan, cases and pictures.

    Args:
        path: File to write.
        check: Result of the check.
        title: Name of the dataset.
        command: Command line of the plan; None without a plan.
    """
    sections: list[FindingSection] = []
    for level, findings in findings_by_level(check.findings).items():
        groups = group_by_remedy(findings)
        sections.append(FindingSection(level, HEADINGS[level], groups))
    templates = environment()
    templates.filters["sentence"] = _sentence
    templates.filters["short_path"] = _short_path
    page = templates.get_template("data_check.html.j2")
    text = page.render(
        title=title,
        check=check,
        n_errors=check.count(ERROR),
        sections=sections,
        charts=list(_charts(check.reports)),
        command=command,
        headers=HEADERS,
        case_rows=[case_row(report, check.sets) for report in check.reports],
        pictures=list(_pictures(check.reports)),
    )
    write_text(path, text)


def _sentence(text: str) -> str:
    """Begin a sentence with a capital, unless it begins with a key, as data.spacing_mm=…."""
    first_word = text.partition(" ")[0]
    if first_word.strip(",;:").isalpha():
        return text[:1].upper() + text[1:]
    return text


def _short_path(text: str) -> str:
    """Shorten a long path to its folder and file; other texts stay."""
    parts = text.split("/")
    if len(text) <= LONGEST_PATH or len(parts) <= N_PATH_PARTS:
        return text
    return "/".join(["…", *parts[-N_PATH_PARTS:]])


def _pictures(reports: Sequence[CaseReport]) -> Iterator[CasePicture]:
    for report in reports:
        if report.picture is None or report.prepared is None:
            continue
        # Inside the page, so that it can be sent as one file.
        encoded = base64.b64encode(report.picture).decode("ascii")
        x_mm, y_mm, _ = report.prepared.spacing_mm
        # A pixel is a voxel, so the browser has to stretch voxels that are not square.
        width, height, _ = report.prepared.geometry.shape
        yield CasePicture(
            case_id=report.case.case_id,
            url=f"data:image/png;base64,{encoded}",
            aspect_ratio=f"{width * x_mm:.4g} / {height * y_mm:.4g}",
        )


def _charts(reports: Sequence[CaseReport]) -> Iterator[Chart]:
    volumes = _volumes_by_class(reports)
    if volumes:
        yield Chart("Lesion volumes", as_svg(_volume_figure(volumes)), "All labelled cases.")
    percent: list[float] = []
    spacings: list[tuple[float, float, float]] = []
    for report in reports:
        # Cases without lesion have no place on the log axis.
        if report.prevalence:
            percent.append(100 * report.prevalence)
        if report.spacing_mm is not None:
            spacings.append(report.spacing_mm)
    if percent:
        figure = _prevalence_figure(percent)
        yield Chart("Lesion share of the brain", as_svg(figure), "One dot per case.")
    if spacings:
        figure = _spacing_figure(spacings)
        yield Chart("Voxel sizes", as_svg(figure), "Cases of each voxel size of the files.")


def _volumes_by_class(reports: Sequence[CaseReport]) -> dict[str, NDArray[np.float64]]:
    """Join the lesion volumes of all cases by class; classes without a lesion are left out."""
    parts: dict[str, list[NDArray[np.float64]]] = {}
    for report in reports:
        for name, volumes in report.volumes_mm3.items():
            parts.setdefault(name, []).append(volumes)
    joined: dict[str, NDArray[np.float64]] = {}
    for name, arrays in parts.items():
        volumes_of_class = np.concatenate(arrays)
        if volumes_of_class.size:
            joined[name] = volumes_of_class
    return joined


def _volume_figure(volumes: dict[str, NDArray[np.float64]]) -> Figure:
    figure, axes = new_axes(xlabel="Lesion volume (mm³)", ylabel="Lesions")
    pooled = np.concatenate(list(volumes.values()))
    # The same 30 bins for all classes, a little wider than the data.
    lowest = pooled.min() * 0.9
    highest = pooled.max() * 1.1
    bins = np.geomspace(lowest, highest, 31).tolist()
    for k, (name, sizes) in enumerate(volumes.items()):
        median = format_number(float(np.median(sizes)))
        label = f"{name}: {len(sizes):,}, median {median} mm³"
        axes.hist(sizes, bins=bins, alpha=0.7, color=COLOURS[k % len(COLOURS)], label=label)
    # Lesion volumes spread over four orders of magnitude.
    axes.set_xscale("log")
    _write_plain_numbers(axes.xaxis)
    axes.legend(fontsize=8)
    return figure


def _prevalence_figure(percent: Sequence[float]) -> Figure:
    figure, axes = new_axes(xlabel="Cases, by lesion share", ylabel="Lesion (% of the brain)")
    ranks = np.arange(1, len(percent) + 1)
    axes.plot(ranks, sorted(percent), "o", markersize=4, color=COLOURS[0])
    median = float(np.median(percent))
    axes.axhline(median, linewidth=1, color=GREY, label=f"median {median:.3g} %")
    axes.locator_params(axis="x", integer=True)
    axes.set_yscale("log")
    _write_plain_numbers(axes.yaxis)
    axes.legend(fontsize=8)
    return figure


def _spacing_figure(spacings: Sequence[tuple[float, ...]]) -> Figure:
    figure, axes = new_axes(xlabel="Cases", ylabel="Voxel size (mm)", left=0.42)
    # Rounded, since affines are stored in float32.
    sizes, n_cases = np.unique(np.round(spacings, 3), axis=0, return_counts=True)
    axes.barh([times(size) for size in sizes], n_cases, color=COLOURS[0], alpha=0.8)
    axes.locator_params(axis="x", integer=True)
    return figure


def _write_plain_numbers(axis: Axis) -> None:
    """Write 0.1, 1, 10, 1,000 along a logarithmic axis, in place of powers of ten."""
    axis.set_major_formatter("{x:,g}")
