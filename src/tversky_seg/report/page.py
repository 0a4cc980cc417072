"""The page of an evaluation: one HTML file that needs no other file and no network."""

from __future__ import annotations

import base64
import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from tversky_seg.metrics.ranking import PrecisionRecallCurve
from tversky_seg.report.figures import (
    Columns,
    Curve,
    as_svg,
    bland_altman_figure,
    calibration_figure,
    curve_figure,
    froc_figure,
    size_figure,
    threshold_figure,
)
from tversky_seg.report.labels import (
    LABELS,
    count,
    describe_rule,
    format_interval,
    format_value,
    split_by_class,
    summary_rows,
)
from tversky_seg.report.slices import ShownCase, as_png, slice_pictures
from tversky_seg.report.viewer import Viewer, make_viewer
from tversky_seg.runtime.files import write_text

HEADLINE = ("dice", "pr_auc", "lesion_tpr", "lesion_fpr", "lesion_f1")
RATER_METRICS = ("dice", "precision", "sensitivity", "lesion_tpr", "lesion_fpr", "assd_mm")
RATE_NAMES = {"tpr": "TPR", "fpr": "FPR", "f1": "F1"}


@dataclass(frozen=True)
class Tile:
    """A headline metric."""

    label: str
    value: str
    interval: str


@dataclass(frozen=True)
class Chart:
    """A figure with its heading and a sentence below."""

    title: str
    svg: str
    note: str


DrawChart = Callable[[Path, Mapping[str, Any], str], Chart | None]
"""Draws a chart of one class from the folder of an evaluation, its metrics.json and the class."""


@dataclass(frozen=True)
class Section:
    """All that the page says of one class."""

    name: str
    """"" where there is a single class."""
    tiles: list[Tile]
    rows: list[tuple[str, ...]]
    further_rows: list[tuple[str, ...]]
    charts: list[Chart]
    lesion_free: Mapping[str, Any] | None
    raters: list[tuple[str, ...]]
    new_lesions: Mapping[str, Any] | None


@dataclass(frozen=True)
class SlicesOfCase:
    """Pictures of one case: caption -> PNG as a data URL."""

    title: str
    pictures: dict[str, str]


def write_report(
    folder: Path,
    metrics: Mapping[str, Any],
    *,
    shown: Iterable[tuple[str, ShownCase]],
    viewed: str | None = None,
) -> None:
    """Write report.html.

    Args:
        folder: Folder for the page. It holds pr_curve.csv, froc.csv and threshold_curve.csv; a
            chart whose file is missing or empty is left out.
        metrics: Content of metrics.json.
        shown: Titles and cases whose slices are drawn, in this order; taken one by one.
        viewed: Id of the case among them to show in three planes; None: no viewer.
    """
    sections: list[Section] = []
    for name in split_by_class(metrics):
        sections.append(_section(folder, metrics, name))
    # Sessions of one subject are one subject: intervals resample these.
    subjects = {case["subject_id"] for case in metrics["cases"]}
    slices: list[SlicesOfCase] = []
    viewer: Viewer | None = None
    # Cases come one by one: their volumes are not all in memory at once.
    for title, case in shown:
        slices.append(_slices(title, case))
        if viewer is None and case.case_id == viewed:
            viewer = make_viewer(case)
    page = environment().get_template("report.html.j2")
    text = page.render(
        metrics=metrics,
        n_subjects=len(subjects),
        rule=describe_rule(metrics),
        faults=metrics.get("faults", []),
        sections=sections,
        slices=slices,
        viewer=viewer,
        case_headers=_case_headers(metrics),
        case_rows=list(_case_rows(metrics)),
    )
    write_text(folder / "report.html", text)


def environment() -> jinja2.Environment:
    """Make the environment of the page templates: every value is escaped unless marked safe."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("tversky_seg.report"),
        # A case id is text of the user's, and must not become part of the page's code.
        autoescape=True,
        # A misspelt name in a template is an error, not a blank.
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["count"] = count
    templates.filters["metric"] = _format_metric
    return templates


def _format_metric(value: float | None, name: str) -> str:
    return format_value(name, value)


def _section(folder: Path, metrics: Mapping[str, Any], name: str) -> Section:
    parts = split_by_class(metrics)[name]
    further_rows: list[tuple[str, ...]] = []
    # A metrics.json of an earlier version may lack sections; the page then leaves them out.
    if metrics.get("further"):
        further_rows.extend(summary_rows(split_by_class(metrics["further"])[name]))
    return Section(
        name=name,
        tiles=list(_tiles(parts)),
        rows=list(summary_rows(parts)),
        further_rows=further_rows,
        charts=list(_charts(folder, metrics, name)),
        lesion_free=_of_class(metrics, "lesion_free", name),
        raters=list(_rater_rows(_of_class(metrics, "raters", name))),
        new_lesions=_new_lesions(_of_class(metrics, "new_lesions", name)),
    )


def _tiles(parts: Mapping[str, Any]) -> Iterator[Tile]:
    for name in HEADLINE:
        mean = parts["mean"].get(name)
        if mean is not None:
            low, high = parts["ci95"][name]
            yield Tile(LABELS[name], format_value(name, mean), format_interval(name, low, high))


def _charts(folder: Path, metrics: Mapping[str, Any], name: str) -> Iterator[Chart]:
    # In the order of the page. Each finds its part of metrics.json, or the CSV of its curve.
    drawings: Sequence[DrawChart] = (
        _precision_recall_chart,
        _threshold_chart,
        _froc_chart,
        _size_chart,
        _bland_altman_chart,
        _calibration_chart,
    )
    for draw in drawings:
        chart = draw(folder, metrics, name)
        if chart is not None:
            yield chart


def _precision_recall_chart(folder: Path, metrics: Mapping[str, Any], name: str) -> Chart | None:
    pooled = split_by_class(metrics)[name]["pooled"]
    recall = pooled["sensitivity"]
    precision = pooled["precision"]
    columns = _read_columns(folder / "pr_curve.csv", name)
    if columns is None and (recall is None or precision is None):
        return None
    points = None
    if columns is not None:
        # The file leaves out the last point, of recall 0, which has no threshold. Here the
        # precision of the highest threshold holds from recall 0 on.
        last_precision = columns["precision"][-1:]
        points = PrecisionRecallCurve(
            precision=np.append(columns["precision"], last_precision),
            recall=np.append(columns["recall"], 0.0),
            thresholds=columns["threshold"],
        )
    curve = Curve(
        name=name,
        points=points,
        area=_nan_if_none(pooled["pr_auc"]),
        working_point=(_nan_if_none(recall), _nan_if_none(precision)),
    )
    return Chart(
        "Precision and recall", as_svg(curve_figure([curve])), "All voxels of all cases pooled."
    )


def _threshold_chart(folder: Path, metrics: Mapping[str, Any], name: str) -> Chart | None:
    columns = _read_columns(folder / "threshold_curve.csv", name)
    if columns is None:
        return None
    threshold = _of_class(metrics, "threshold", name)
    note = "Mean over the cases with a lesion, and all voxels pooled."
    if threshold is not None:
        note += f" Vertical line: threshold used, {threshold:.3f}."
    svg = as_svg(threshold_figure(columns, threshold=threshold))
    return Chart("Dice and F2 against the threshold", svg, note)


def _froc_chart(folder: Path, metrics: Mapping[str, Any], name: str) -> Chart | None:
    froc = _of_class(metrics, "froc", name)
    columns = _read_columns(folder / "froc.csv", name)
    # Masks without probabilities cannot be ranked.
    if froc is None or columns is None:
        return None
    # Without reference lesions every recall is undefined.
    if not np.isfinite(columns["recall"]).any():
        return None
    note = "Predicted lesions ranked by their highest probability."
    return Chart("Free-response ROC (FROC)", as_svg(froc_figure(columns, froc)), note)


def _size_chart(folder: Path, metrics: Mapping[str, Any], name: str) -> Chart | None:
    recall_by_volume = _of_class(metrics, "recall_by_volume", name) or {"fixed": []}
    # Fixed edges, so that the charts of two cohorts can be compared.
    bins = [part for part in recall_by_volume["fixed"] if part["n_lesions"]]
    if not bins:
        return None
    return Chart(
        "Recall by lesion size", as_svg(size_figure(bins)), "Above each bar: detected / total."
    )


def _bland_altman_chart(folder: Path, metrics: Mapping[str, Any], name: str) -> Chart | None:
    volumes_mm3: dict[str, tuple[float, float]] = {}
    for case in metrics["cases"]:
        # With a single class, its metrics stand in the case itself.
        row = case[name] if name else case
        volumes_mm3[case["case_id"]] = (row["reference_volume_mm3"], row["predicted_volume_mm3"])
    agreement = _of_class(metrics, "cohort", name) or {}
    limits = agreement.get("bland_altman") or {}
    note = "One dot per case; the largest differences are named."
    if limits.get("bias_mm3") is not None:
        note += f" Bias {limits['bias_mm3']:+,.0f} mm³."
    if limits.get("lowest_mm3") is not None:
        lowest = f"{limits['lowest_mm3']:+,.0f}"
        highest = f"{limits['highest_mm3']:+,.0f}"
        note += f" 95 % limits of agreement {lowest} to {highest} mm³."
    svg = as_svg(bland_altman_figure(volumes_mm3, limits))
    return Chart("Lesion volume (Bland-Altman plot)", svg, note)


def _calibration_chart(folder: Path, metrics: Mapping[str, Any], name: str) -> Chart | None:
    calibration = _of_class(metrics, "calibration", name)
    if calibration is None:
        return None
    bins = [part for part in calibration["bins"] if part["n_voxels"]]
    if not bins:
        return None
    error = format_value("calibration_error", calibration["expected_calibration_error"])
    note = f"Expected calibration error {error}, dominated by the background voxels."
    return Chart("Calibration", as_svg(calibration_figure(bins)), note)


def _rater_rows(raters: Sequence[Mapping[str, Any]] | None) -> Iterator[tuple[str, ...]]:
    """List agreement with each rater; nothing for a single label."""
    # A single rater is the reference itself.
    if raters is None or len(raters) < 2:
        return
    for rater in raters:
        number = rater["label"]
        yield (
            "label" if number == 1 else f"label_{number}",
            str(rater["n_cases"]),
            *(format_value(name, rater["mean"][name]) for name in RATER_METRICS),
            format_value("volume_correlation", rater["volume_correlation"]),
            format_value("isbi_score", rater["isbi_score"]),
        )


def _new_lesions(summary: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if summary is None:
        return None
    rates: list[str] = []
    for key, label in RATE_NAMES.items():
        rates.append(f"{label} {format_value(key, summary[key])}")
    rows: list[tuple[str, ...]] = []
    for pair in summary["pairs"]:
        row = (
            f"{pair['subject_id']}: {pair['from_case']} to {pair['to_case']}",
            str(pair["n_reference"]),
            str(pair["n_detected"]),
            str(pair["n_predicted"]),
            str(pair["n_unmatched"]),
        )
        rows.append(row)
    return {"rates": ", ".join(rates), "rows": rows}


def _slices(title: str, case: ShownCase) -> SlicesOfCase:
    pictures = slice_pictures(
        case.image, case.prediction, case.reference, spacing_mm=case.spacing_mm
    )
    urls: dict[str, str] = {}
    for caption, picture in pictures.items():
        encoded = base64.b64encode(as_png(picture)).decode("ascii")
        urls[caption] = f"data:image/png;base64,{encoded}"
    return SlicesOfCase(f"{title}: {case.case_id}", urls)


def _case_headers(metrics: Mapping[str, Any]) -> list[str]:
    # The first column holds the case ids.
    headers = [""]
    for name in _metric_names(metrics):
        headers.append(LABELS[name])
    return headers


def _case_rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for class_name in split_by_class(metrics):
        for case in metrics["cases"]:
            row = case[class_name] if class_name else case
            values = [format_value(name, row[name]) for name in _metric_names(metrics)]
            yield f"{case['case_id']} {class_name}".strip(), *values


def _metric_names(metrics: Mapping[str, Any]) -> list[str]:
    first_class = next(iter(split_by_class(metrics).values()))
    return list(first_class["mean"])


def _of_class(metrics: Mapping[str, Any], key: str, class_name: str) -> Any:
    """Read a section of metrics.json for one class; None where it is missing."""
    section = metrics.get(key)
    if class_name and isinstance(section, Mapping):
        return section.get(class_name)
    return section


def _read_columns(path: Path, class_name: str) -> Columns | None:
    """Read the columns of one class from a CSV file; "" is the only class, None has no rows."""
    if not path.exists():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    cells: list[list[str]] = []
    for name, *values in rows:
        # Empty cells are undefined values.
        if class_name in ("", name):
            cells.append([value or "nan" for value in values])
    if not cells:
        return None
    # The transpose of the rows: one array for each name of the header but the class.
    rows_of_numbers: NDArray[np.float64] = np.array(cells, dtype=np.float64)
    return dict(zip(header[1:], rows_of_numbers.T, strict=True))


def _nan_if_none(value: float | None) -> float:
    return float("nan") if value is None else value
