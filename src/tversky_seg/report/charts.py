"""Charts of an evaluation for its page, drawn from metrics.json and the CSV files beside it."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from tversky_seg.report.labels import format_value, split_by_class


@dataclass(frozen=True)
class Chart:
    """A figure with its heading and a sentence below."""

    title: str
    svg: str
    note: str


DrawChart = Callable[[Path, Mapping[str, Any], str], Chart | None]
"""Draws a chart of one class from the folder of an evaluation, its metrics.json and the class."""


def draw_charts(folder: Path, metrics: Mapping[str, Any], name: str) -> Iterator[Chart]:
    """Draw the charts of one class, from the folder of an evaluation and its metrics.json."""
    # In the order of the page. Each finds its part of metrics.json, or the CSV of its curve.
    drawings: Sequence[DrawChart] = (
        _precision_recall_chart,
        _threshold_chart,
        _froc_chart,
        _size_chart,
        _bland_altman_chart,
        _near_calibration_chart,
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
    threshold = of_class(metrics, "threshold", name)
    note = "Mean over the cases with a lesion, and all voxels pooled."
    if threshold is not None:
        note += f" Vertical line: threshold used, {threshold:.3f}."
    svg = as_svg(threshold_figure(columns, threshold=threshold))
    return Chart("Dice and F2 against the threshold", svg, note)


def _froc_chart(folder: Path, metrics: Mapping[str, Any], name: str) -> Chart | None:
    froc = of_class(metrics, "froc", name)
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
    recall_by_volume = of_class(metrics, "recall_by_volume", name) or {"fixed": []}
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
    agreement = of_class(metrics, "cohort", name) or {}
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
    calibration = of_class(metrics, "calibration", name)
    if calibration is None:
        return None
    bins = [part for part in calibration["bins"] if part["n_voxels"]]
    if not bins:
        return None
    error = format_value("calibration_error", calibration["expected_calibration_error"])
    note = f"Expected calibration error {error}, dominated by the background voxels."
    figure = calibration_figure({"all voxels": bins})
    return Chart("Calibration of all voxels", as_svg(figure), note)


def _near_calibration_chart(folder: Path, metrics: Mapping[str, Any], name: str) -> Chart | None:
    """Draw reliability at the lesions and around them, before and after the temperature."""
    calibration = of_class(metrics, "calibration", name)
    # An evaluation of an earlier version lacks these keys.
    near = (calibration or {}).get("near_lesions")
    if not near or not near["bins"]:
        return None
    error = format_value("calibration_error", near["adaptive_calibration_error"])
    before = calibration["before"]
    if before is None:
        lines = {"probability": near["bins"]}
        note = f"Calibration error {error}."
    else:
        error_before = format_value(
            "calibration_error", before["near_lesions"]["adaptive_calibration_error"]
        )
        temperature = f"{calibration['temperature']:.3g}"
        lines = {"as the network gives it": before["near_lesions"]["bins"]}
        lines[f"at temperature {temperature}"] = near["bins"]
        note = (
            f"Calibration error {error_before} as the network gives it, {error} at the temperature "
            f"of {temperature}."
        )
    note += " Voxels of reference lesions and within 3 mm; each dot has as many, if it can."
    return Chart("Calibration near lesions", as_svg(calibration_figure(lines)), note)


def of_class(metrics: Mapping[str, Any], key: str, class_name: str) -> Any:
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
