"""What the numbers look like: a table for the terminal, the precision-recall figure, and one HTML page."""

from __future__ import annotations

import base64
import csv
import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from tversky_seg.metrics.ranking import PrecisionRecallCurve
from tversky_seg.report.charts import Axis, Line, Point, axis_over, bar_chart, line_chart
from tversky_seg.report.slices import (
    PREDICTION_COLOUR,
    REFERENCE_COLOUR,
    ShownCase,
    png,
    slice_pictures,
    spacing_of_case,
)
from tversky_seg.report.viewer import viewer_section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {
    "dice": "Dice",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "precision": "Precision",
    "f2": "F2",
    "pr_auc": "PR-AUC",
    "lesion_tpr": "Lesion TPR",
    "lesion_fpr": "Lesion FPR",
    "lesion_f1": "Lesion F1",
    "assd_mm": "ASSD (mm)",
    "hd95_mm": "HD95 (mm)",
    "volume_difference": "Volume difference",
    "reference_volume_mm3": "Reference volume (mm³)",
    "predicted_volume_mm3": "Predicted volume (mm³)",
    "n_reference_lesions": "Reference lesions",
    "n_predicted_lesions": "Predicted lesions",
    "jaccard": "Jaccard",
    "mcc": "MCC",
    "signed_volume_difference_mm3": "Signed volume difference (mm³)",
    "absolute_volume_difference_mm3": "Absolute volume difference (mm³)",
    "signed_volume_difference": "Signed volume difference",
    "roc_auc": "ROC-AUC",
    "calibration_error": "Calibration error",
    "hd_mm": "HD (mm)",
    "surface_dice": "Surface Dice",
    "object_dice": "Object Dice",
    "n_detected_lesions": "Detected lesions",
    "n_false_lesions": "False lesions",
    "n_split_lesions": "Split lesions",
    "n_merged_lesions": "Merged lesions",
}
HEADLINE = ("dice", "pr_auc", "lesion_tpr", "lesion_fpr", "lesion_f1")
FOUR_DIGITS = {"specificity", "roc_auc", "calibration_error"}
MOST_FALSE = 10.0  # false lesions per case that the FROC curve is drawn up to
Columns = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Curve:
    """The pooled precision-recall curve of one class; `points` is None where there are only masks."""

    name: str
    points: PrecisionRecallCurve | None
    area: float
    working_point: tuple[float, float]
    """Recall and precision of the masks."""


def metrics_table(metrics: Mapping[str, Any]) -> Table:
    """The mean, its interval and the pooled value of each measure, for the terminal.

    Args:
        metrics: What metrics.json holds.
    """
    table = Table(title=count(metrics["n_cases"], "case"), caption=describe_rule(metrics))
    table.title_justify = table.caption_justify = "left"
    for header in ("Measure", "Mean", "95 % interval", "Pooled", "Undefined"):
        table.add_column(header, justify="left" if header == "Measure" else "right")
    by_class = split_by_class(metrics)
    for name, parts in by_class.items():
        for row in _summary_rows(parts):
            table.add_row(*(row if len(by_class) == 1 else (f"{name}: {row[0]}", *row[1:])))
        table.add_section()
    return table


def split_by_class(metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Class name -> its mean, ci95, pooled and undefined; the name is "" where metrics hold one class."""
    parts = {part: metrics[part] for part in ("mean", "ci95", "pooled", "undefined")}
    if not all(isinstance(value, Mapping) for value in metrics["mean"].values()):
        return {"": parts}
    return {name: {part: value[name] for part, value in parts.items()} for name in metrics["mean"]}


def describe_rule(metrics: Mapping[str, Any]) -> str:
    """In one sentence: how voxels became lesions, and when these count as found."""
    rule, threshold = metrics["lesion_rule"], metrics["threshold"]
    removed, least = rule["prediction_min_volume_mm3"], rule["min_volume_mm3"]
    limit = (
        f" of {'more than ' if rule.get('strictly_larger') else ''}{least:g} mm³" if least else ""
    )
    outside = rule.get("max_outside", 1)
    sentences = [
        "Masks as found"
        if threshold is None
        else f"Lesion where probability >= {_spread(threshold)}",
        f"predicted lesions below {_spread(removed)} mm³ removed" if removed else "",
        f"a lesion is a {rule['connectivity']}-connected component{limit}"
        + (" or more" if limit and not rule.get("strictly_larger") else ""),
        f"detected when {_share(rule['min_overlap'])} is covered"
        + (f" by lesions that lie outside with at most {outside:.0%}" if outside < 1 else ""),
        "false when the same test fails"
        if rule.get("both_ways")
        else "false when it overlaps none",
        f"rule: {rule['source']}" if rule.get("source") else "",
        "undefined values are left out of the mean",
    ]
    return "; ".join(filter(None, sentences)) + "."


def curve_figure(curves: Sequence[Curve]) -> Figure:
    """Precision against recall, all cases pooled, with the point at which the masks work."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.2))
    axes = figure.add_axes((0.12, 0.12, 0.85, 0.85), xlim=(0, 1), ylim=(0, 1.02))
    axes.set(xlabel="Recall (sensitivity)", ylabel="Precision")
    for curve in curves:
        name = f"{curve.name}, " if len(curves) > 1 else ""
        colour = axes.plot([], [])[0].get_color()
        if curve.points is not None and curve.points.thresholds.size:
            points = curve.points
            axes.plot(
                points.recall,
                points.precision,
                drawstyle="steps-post",
                color=colour,
                label=f"{name}area {curve.area:.3f}",
            )
        if not any(math.isnan(value) for value in curve.working_point):
            axes.plot(*curve.working_point, "o", color=colour, label=f"{name}masks")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left")
    return figure


def write_report(
    folder: Path,
    metrics: Mapping[str, Any],
    *,
    shown: Iterable[tuple[str, ShownCase]],
    viewed: str | None = None,
) -> None:
    """Write report.html, one page that needs no other file and no network.

    Args:
        folder: Gets it, and holds pr_curve.csv, froc.csv and threshold_curve.csv; a chart whose file is missing or
            empty is left out.
        metrics: What metrics.json holds.
        shown: Titles and cases whose slices are drawn, in this order; taken one by one.
        viewed: case_id of the one among them to walk through in three planes; None: none.
    """
    by_class = split_by_class(metrics)
    tables = {
        name: _read_columns(folder / f"{name}.csv")
        for name in ("pr_curve", "froc", "threshold_curve")
    }
    sections = [_header(metrics), _fault_list(metrics.get("faults", ()))]
    for name, parts in by_class.items():
        columns = {
            title: table.get(name) if name else _only(table) for title, table in tables.items()
        }
        sections += _class_sections(name, parts, metrics, columns)
    viewer = ""
    for title, case in shown:
        sections.append(_slice_section(title, case))
        viewer = viewer or (viewer_section(case) if case.case_id == viewed else "")
    sections += [viewer, _case_section(metrics)]
    template = (files("tversky_seg.report") / "assets" / "report.html").read_text(encoding="utf-8")
    before, between, after = template.replace("{{title}}", "{{content}}").split("{{content}}")
    page = (
        f"{before}{count(metrics['n_cases'], 'case')}{between}"
        + "\n".join(filter(None, sections))
        + after
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def format_value(name: str, value: float | None, *, signed: bool = False) -> str:
    """A measure as a table shows it: as many digits as mean something, a dash where it is undefined."""
    if value is None or math.isnan(value):
        return "–"
    sign = "+" if signed or name.startswith("signed_") else ""
    if name.startswith("n_"):
        return f"{value:{sign}.1f}".removesuffix(".0")
    return (
        f"{value:{sign},.0f}"
        if name.endswith("mm3")
        else f"{value:{sign}.{4 if name in FOUR_DIGITS else 3}f}"
    )


def _class_sections(
    name: str,
    parts: Mapping[str, Any],
    metrics: Mapping[str, Any],
    columns: Mapping[str, Columns | None],
) -> Iterator[str]:
    """Everything that is said of one class."""
    further = metrics.get("further")
    yield f"<h2>{f'Class {html.escape(name)}' if name else 'Measures'}</h2>"
    yield _tiles(parts)
    headers = (
        "",
        "Mean over cases",
        "95 % interval (subjects resampled)",
        "All cases pooled",
        "Undefined in",
    )
    yield _table(headers, _summary_rows(parts))
    if further:
        more = split_by_class(further)[name]
        yield f"<details><summary>Further measures</summary>{_table(headers, _summary_rows(more))}</details>"
    charts = [
        _precision_recall(parts, columns["pr_curve"]),
        _threshold_chart(_of_class(metrics, "threshold", name), columns["threshold_curve"]),
        _froc_chart(_of_class(metrics, "froc", name), columns["froc"]),
        _size_chart(_of_class(metrics, "recall_by_volume", name)),
        _bland_altman(_case_rows(metrics, name), _of_class(metrics, "cohort", name)),
        _calibration_chart(_of_class(metrics, "calibration", name)),
    ]
    yield f'<div class="charts">{"".join(filter(None, charts))}</div>'
    yield _lesion_free_section(_of_class(metrics, "lesion_free", name))
    yield _rater_section(_of_class(metrics, "raters", name))
    yield _new_lesion_section(_of_class(metrics, "new_lesions", name))


def _header(metrics: Mapping[str, Any]) -> str:
    subjects = len({case["subject_id"] for case in metrics["cases"]})
    return (
        f"<h1>Evaluation of {count(metrics['n_cases'], 'case')}, {count(subjects, 'subject')}</h1>"
        f'<p class="soft">{html.escape(describe_rule(metrics))}</p>'
    )


def _tiles(parts: Mapping[str, Any]) -> str:
    tiles = []
    for name in HEADLINE:
        if parts["mean"].get(name) is not None:
            low, high = (format_value(name, limit) for limit in parts["ci95"][name])
            value = format_value(name, parts["mean"][name])
            tiles.append(
                f'<div class="tile">{LABELS[name]}<b>{value}</b><span>{low} to {high}</span></div>'
            )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _precision_recall(parts: Mapping[str, Any], columns: Columns | None) -> str:
    pooled = parts["pooled"]
    x, y = pooled["sensitivity"], pooled["precision"]
    points = (
        []
        if None in (x, y)
        else [Point(x, y, hint="the judged masks", name="judged masks", colour=1)]
    )
    lines = []
    if columns is not None:
        recall, precision = (
            np.append(columns[name], last) for name, last in (("recall", 0), ("precision", np.nan))
        )
        precision[-1] = precision[-2]
        lines = [
            Line(
                recall,
                precision,
                name=f"area {format_value('pr_auc', pooled['pr_auc'])}",
                steps=True,
            )
        ]
    if not lines and not points:
        return ""
    chart = line_chart(
        "Precision against recall",
        lines,
        x=Axis("Recall (sensitivity)"),
        y=Axis("Precision"),
        points=points,
    )
    return _chart("Precision and recall", chart, "All voxels of all cases pooled.")


def _threshold_chart(threshold: float | None, columns: Columns | None) -> str:
    if columns is None:
        return ""
    at = columns["threshold"]
    lines = [
        Line(at, columns["mean_dice"], name="Dice"),
        Line(at, columns["mean_f2"], name="F2", colour=1),
        Line(at, columns["dice"], name="Dice, pooled", dashed=True),
        Line(at, columns["f2"], name="F2, pooled", colour=1, dashed=True),
    ]
    marks = [] if threshold is None else [Line([threshold, threshold], [0, 1])]
    chart = line_chart(
        "Dice and F2 against threshold", lines, x=Axis("Threshold"), y=Axis("Dice, F2"), marks=marks
    )
    used = (
        "" if threshold is None else f" The upright line is the threshold in use, {threshold:.3f}."
    )
    return _chart(
        "Dice and F2 against threshold",
        chart,
        f"Mean over cases with lesion, and all voxels pooled.{used}",
    )


def _froc_chart(froc: Mapping[str, Any] | None, columns: Columns | None) -> str:
    if not froc or columns is None or not np.isfinite(columns["recall"]).any():
        return ""
    false, recall = columns["false_lesions_per_case"], columns["recall"]
    most = min(MOST_FALSE, float(false.max()))
    x = axis_over("False lesions per case", [0, most], at_least=[1])
    lines = [
        Line(
            np.append(false, 0.0),
            np.append(recall, 0.0),
            name=f"average recall {format_value('', froc['average_recall'])} (up to 5 false per case)",
        )
    ]
    masks = (froc["false_lesions_per_case"], froc["highest_recall"])
    points = (
        []
        if None in masks or masks[0] > x.high
        else [Point(*masks, name="all predicted lesions", colour=1)]
    )
    chart = line_chart(
        "Lesions found against false lesions",
        lines,
        x=x,
        y=Axis("Lesions found (share)"),
        points=points,
    )
    note = "Lesions of the judged masks, taken in the order of their scores."
    return _chart("Free-response ROC (FROC)", chart, note)


def _size_chart(found: Mapping[str, Any] | None) -> str:
    bins = [part for part in (found or {}).get("fixed", ()) if part["n_lesions"]]
    if not bins:
        return ""
    bars = [
        (
            f"{part['from_mm3']:g}–{part['to_mm3']:g}"
            if part["to_mm3"] is not None
            else f"≥ {part['from_mm3']:g}",
            math.nan if part["recall"] is None else part["recall"],
            f"{part['n_detected']}/{part['n_lesions']}",
        )
        for part in bins
    ]
    y = Axis("Lesions found (share)", high=1.1)
    chart = bar_chart("Recall by lesion volume", bars, x_label="Lesion volume (mm³)", y=y)
    return _chart("Recall by lesion size", chart, "Above each bar: lesions found of those there.")


def _bland_altman(rows: Mapping[str, Mapping[str, Any]], cohort: Mapping[str, Any] | None) -> str:
    volumes = {
        case: (row["reference_volume_mm3"], row["predicted_volume_mm3"])
        for case, row in rows.items()
    }
    means, differences = ([f(*pair) for pair in volumes.values()] for f in (_mean, _difference))
    limits = dict((cohort or {}).get("bland_altman") or {})
    known = {
        key: limits[key]
        for key in ("bias_mm3", "lowest_mm3", "highest_mm3")
        if limits.get(key) is not None
    }
    x = axis_over("Mean of both volumes (mm³)", means, at_least=[0])
    y = axis_over("Predicted - reference (mm³)", [*differences, *known.values()], at_least=[0])
    marks = [
        Line([x.low, x.high], [value] * 2, dashed=key != "bias_mm3") for key, value in known.items()
    ]
    points = [
        Point(mean, difference, hint=f"{case}: {difference:+,.0f} mm³")
        for case, mean, difference in zip(volumes, means, differences, strict=True)
    ]
    chart = line_chart(
        "Bland-Altman plot of lesion volume", [], x=x, y=y, points=points, marks=marks
    )
    said = f"Bias {known['bias_mm3']:+,.0f} mm³" if "bias_mm3" in known else "One dot per case"
    if "lowest_mm3" in known:
        said += f", 95 % limits of agreement {known['lowest_mm3']:+,.0f} to {known['highest_mm3']:+,.0f} mm³"
    return _chart("Lesion volume (Bland-Altman)", chart, f"{said}.")


def _calibration_chart(calibration: Mapping[str, Any] | None) -> str:
    bins = [part for part in (calibration or {}).get("bins", ()) if part["n_voxels"]]
    if not bins or calibration is None:
        return ""
    at, share = ([part[key] for part in bins] for key in ("mean_probability", "lesion_share"))
    error = calibration["expected_calibration_error"]
    points = [
        Point(x, y, hint=f"{part['n_voxels']:,} voxels")
        for x, y, part in zip(at, share, bins, strict=True)
    ]
    chart = line_chart(
        "Calibration",
        [Line(at, share)],
        x=Axis("Mean predicted probability"),
        y=Axis("Share of lesion voxels"),
        points=points,
        marks=[Line([0, 1], [0, 1], dashed=True)],
    )
    return _chart(
        "Calibration",
        chart,
        f"Expected calibration error {format_value('calibration_error', error)}.",
    )


def _lesion_free_section(found: Mapping[str, Any] | None) -> str:
    if not found or not found["n_cases"]:
        return ""
    rows = [
        (
            case["case_id"],
            f"{case['n_false_lesions']}",
            format_value("mm3", case["false_volume_mm3"]),
        )
        for case in found["cases"]
    ]
    return (
        "<h3>Cases without lesion</h3>"
        f"<p>{found['n_clean']} of {count(found['n_cases'], 'such case')} without any prediction; in the others "
        f"{count(found['n_false_lesions'], 'false lesion')}, {found['false_volume_mm3']:,.0f} mm³ in all.</p>"
        + _table(("", "False lesions", "False volume (mm³)"), rows)
    )


def _rater_section(raters: Sequence[Mapping[str, Any]] | None) -> str:
    if not raters or len(raters) < 2:
        return ""
    names = ("dice", "precision", "sensitivity", "lesion_tpr", "lesion_fpr", "assd_mm")
    rows = [
        (
            f"label_{rater['label']}" if rater["label"] > 1 else "label",
            str(rater["n_cases"]),
            *(format_value(name, rater["mean"][name]) for name in names),
            format_value("", rater["volume_correlation"]),
            format_value("", rater["isbi_score"]),
        )
        for rater in raters
    ]
    headers = ("", "Cases", *(LABELS[name] for name in names), "Volume correlation", "ISBI score")
    return "<h3>By rater</h3>" + _table(headers, rows)


def _new_lesion_section(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    rates = ", ".join(
        f"{name} {format_value('', found[key])}"
        for key, name in (("tpr", "TPR"), ("fpr", "FPR"), ("f1", "F1"))
    )
    keys = ("n_reference", "n_detected", "n_predicted", "n_unmatched")
    rows = [
        (
            f"{pair['subject_id']}: {pair['from_case']} to {pair['to_case']}",
            *(str(pair[key]) for key in keys),
        )
        for pair in found["pairs"]
    ]
    headers = ("", "New lesions", "Found", "Predicted", "False")
    return f"<h3>New lesions between sessions</h3><p>{rates}.</p>" + _table(headers, rows)


def _slice_section(title: str, case: ShownCase) -> str:
    pictures = slice_pictures(
        case.image, case.prediction, case.reference, spacing_mm=spacing_of_case(case)
    )
    figures = "".join(
        f'<figure><img src="{_inlined(png(picture))}" alt="{html.escape(caption)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, picture in pictures.items()
    )
    heading = html.escape(f"{title}: {case.case_id}")
    return f'<h2>{heading}</h2><p>{LEGEND}</p><div class="slices">{figures}</div>'


def _case_section(metrics: Mapping[str, Any]) -> str:
    names = list(next(iter(split_by_class(metrics).values()))["mean"])
    rows = [
        (f"{case} {key}".strip(), *(format_value(name, row[name]) for name in names))
        for key in split_by_class(metrics)
        for case, row in _case_rows(metrics, key).items()
    ]
    note = '<p class="soft">Click a heading to sort.</p>'
    return f"<h2>Cases</h2>{note}" + _table(
        ("", *(LABELS[name] for name in names)), rows, kind="sorted"
    )


def _summary_rows(parts: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            LABELS.get(name, name),
            format_value(name, parts["mean"][name]),
            " to ".join(format_value(name, limit) for limit in parts["ci95"][name]),
            format_value(name, parts["pooled"][name]),
            str(parts["undefined"][name] or ""),
        )
        for name in parts["mean"]
    ]


def _case_rows(metrics: Mapping[str, Any], name: str) -> dict[str, Mapping[str, Any]]:
    """Case -> its measures of one class."""
    return {case["case_id"]: case[name] if name else case for case in metrics["cases"]}


def _of_class(metrics: Mapping[str, Any], key: str, name: str) -> Any:
    """What a key says of one class; None where it says nothing."""
    value = metrics.get(key)
    return value.get(name) if name and isinstance(value, Mapping) else value


def _read_columns(path: Path) -> dict[str, Columns]:
    """Class -> column -> values of a CSV file with a column of classes; {} without rows."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    by_class: dict[str, list[list[str]]] = {}
    for name, *cells in rows:
        by_class.setdefault(name, []).append([cell or "nan" for cell in cells])
    return {
        name: dict(zip(header[1:], np.array(cells, dtype=np.float64).T, strict=True))
        for name, cells in by_class.items()
    }


def _only(table: Mapping[str, Columns]) -> Columns | None:
    return next(iter(table.values()), None)


def _mean(reference: float, predicted: float) -> float:
    return (reference + predicted) / 2


def _difference(reference: float, predicted: float) -> float:
    return predicted - reference


def count(n: int, noun: str) -> str:
    """The number with its noun, in the plural where it is not 1."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _spread(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{_spread(item)} ({name})" for name, item in value.items())
    return "?" if value is None else f"{value:.6g}"


def _share(min_overlap: float) -> str:
    return f"more than {min_overlap:.0%} of it" if min_overlap else "any voxel of it"


def _chart(title: str, chart: str, note: str) -> str:
    return f'<div><h3>{title}</h3>{chart}<p class="soft">{html.escape(note)}</p></div>'


def _fault_list(faults: Iterable[str]) -> str:
    items = "".join(f"<li>{html.escape(fault)}</li>" for fault in faults)
    return f'<div class="faults"><p>Not judged:</p><ul>{items}</ul></div>' if items else ""


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "") -> str:
    head = "".join(f"<th>{html.escape(header)}</th>" for header in headers)
    body = "".join(
        f"<tr><th>{html.escape(row[0])}</th>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    return f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _inlined(file: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


def _swatch(colour: tuple[int, int, int], name: str) -> str:
    return f'<span class="swatch" style="border-color: rgb{colour}">{name}</span>'


LEGEND = (
    f"Outlined: {_swatch(REFERENCE_COLOUR, 'reference')} and {_swatch(PREDICTION_COLOUR, 'prediction')}; missed voxels "
    "are tinted blue, invented ones orange. Axial slices; the patient's left is on the left."
)
