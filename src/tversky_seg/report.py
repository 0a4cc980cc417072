"""What the numbers look like: a table for the terminal, the precision-recall figure, slices, and one HTML page."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from tversky_seg.masks import Mask, bounding_box
from tversky_seg.ranking import PrecisionRecallCurve
from tversky_seg.surface import surface

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
}
REFERENCE_COLOUR, PREDICTION_COLOUR = (0, 190, 255), (255, 130, 0)  # told apart by colour-blind readers too
PICTURE_WIDTH = 720  # pixels, about


@dataclass(frozen=True, eq=False)
class Curve:
    """The pooled precision-recall curve of one class; `points` is None where there are only masks."""

    name: str
    points: PrecisionRecallCurve | None
    area: float
    working_point: tuple[float, float]
    """Recall and precision of the masks."""


@dataclass(frozen=True, eq=False)
class Panel:
    """Slices of one case, each with what it shows."""

    title: str
    pictures: Mapping[str, NDArray[np.uint8]]
    """Caption -> (height, width, 3)."""


def metrics_table(metrics: Mapping[str, Any]) -> Table:
    """The mean, its interval and the pooled value of each measure, for the terminal.

    Args:
        metrics: What metrics.json holds.
    """
    table = Table(title=f"{metrics['n_cases']} cases", caption=describe_rule(metrics))
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
    sentences = [
        "Masks as found" if threshold is None else f"Lesion where probability >= {_spread(threshold)}",
        f"predicted lesions below {_spread(removed)} mm³ removed" if removed else "",
        f"a lesion is a {rule['connectivity']}-connected component" + (f" of {least:g} mm³ or more" if least else ""),
        f"detected when {_share(rule['min_overlap'])} is covered, false when it overlaps none",
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
                drawstyle="steps-pre",
                color=colour,
                label=f"{name}area {curve.area:.3f}",
            )
        if not any(math.isnan(value) for value in curve.working_point):
            axes.plot(*curve.working_point, "o", color=colour, label=f"{name}masks")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left")
    return figure


def png(picture: Figure | NDArray[np.uint8]) -> bytes:
    """A figure, or an array (height, width, 3), as a PNG file."""
    buffer = io.BytesIO()
    if isinstance(picture, np.ndarray):
        from matplotlib.image import imsave

        imsave(buffer, picture, format="png")
    else:
        picture.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def slice_pictures(
    image: NDArray[Any], prediction: Mask, reference: Mask, *, spacing_mm: Sequence[float]
) -> dict[str, NDArray[np.uint8]]:
    """Up to three axial slices of a case: where most is reference, most is missed, and most is invented.

    Args:
        image: (X, Y, Z) along R, A, S.
        prediction: (K, X, Y, Z) masks, one per class.
        reference: masks of the same shape.
        spacing_mm: voxel size.

    Returns:
        Caption -> picture (see `outline`); the middle slice where both masks are empty.
    """
    areas = {
        "most reference": reference,
        "most missed": reference & ~prediction,
        "most invented": prediction & ~reference,
    }
    shown: dict[int, list[str]] = {}
    for caption, masks in areas.items():
        if masks.any():
            shown.setdefault(int(masks.sum(axis=(0, 1, 2)).argmax()), []).append(caption)
    x, y, _ = bounding_box(image != image.flat[0]) if np.ptp(image) else (slice(None),) * 3
    return {
        f"slice {z}: {', '.join(captions)}": outline(
            image[x, y, z], prediction[:, x, y, z], reference[:, x, y, z], pixel_mm=spacing_mm[:2]
        )
        for z, captions in (shown or {image.shape[2] // 2: ["nothing there, nothing predicted"]}).items()
    }


def outline(
    image: NDArray[Any], prediction: Mask, reference: Mask, *, pixel_mm: Sequence[float] = (1.0, 1.0)
) -> NDArray[np.uint8]:
    """A slice as a picture with the outlines of the reference (blue, wide) and the prediction (orange, narrow).

    Args:
        image: (X, Y), x to the right and y up in the picture.
        prediction: (K, X, Y) masks, one per class.
        reference: masks of the same shape.
        pixel_mm: size of a pixel along x and y.

    Returns:
        (height, width, 3) uint8, several pixels for one of the slice.
    """
    unit = PICTURE_WIDTH / max(n * size for n, size in zip(image.shape, pixel_mm, strict=True))
    zoom_x, zoom_y = (max(1, round(unit * size)) for size in pixel_mm)

    def upright(part: NDArray[Any]) -> NDArray[Any]:
        return part.repeat(zoom_x, axis=0).repeat(zoom_y, axis=1).T[::-1]

    picture: NDArray[np.uint8] = np.repeat(upright(_grey(image))[..., None], 3, axis=2)
    for mask in map(upright, reference):
        rim = surface(mask)
        picture[rim | surface(mask & ~rim)] = REFERENCE_COLOUR
    for mask in map(upright, prediction):
        picture[surface(mask)] = PREDICTION_COLOUR
    return picture


def write_report(path: Path, metrics: Mapping[str, Any], *, curve: bytes, panels: Sequence[Panel]) -> None:
    """Write one HTML page that needs no other file and no network."""
    sections = [
        f"<p>{metrics['n_cases']} cases. {html.escape(describe_rule(metrics))}</p>",
        _fault_list(metrics.get("faults", ())),
        *(_summary_section(name, parts) for name, parts in split_by_class(metrics).items()),
        '<h2>Precision and recall, all voxels pooled</h2><figure class="curve">'
        f'<img src="{_inlined(curve)}" alt="Precision-recall curve"></figure>',
        *map(_panel_section, panels),
        "<h2>Cases</h2>" + _case_table(metrics),
    ]
    path.write_text(PAGE.replace("{{content}}", "\n".join(sections)), encoding="utf-8")


def _summary_rows(parts: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            LABELS[name],
            format_value(name, parts["mean"][name]),
            " to ".join(format_value(name, limit) for limit in parts["ci95"][name]),
            format_value(name, parts["pooled"][name]),
            str(parts["undefined"][name] or ""),
        )
        for name in parts["mean"]
    ]


def format_value(name: str, value: float | None, *, signed: bool = False) -> str:
    """A measure as a table shows it: as many digits as mean something, a dash where it is undefined."""
    if value is None or math.isnan(value):
        return "–"
    sign = "+" if signed else ""
    if name.startswith("n_"):
        return f"{value:{sign}.1f}".removesuffix(".0")
    return f"{value:{sign},.0f}" if name.endswith("mm3") else f"{value:{sign}.{4 if name == 'specificity' else 3}f}"


def _spread(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{_spread(item)} ({name})" for name, item in value.items())
    return "?" if value is None else f"{value:.4g}"


def _share(min_overlap: float) -> str:
    return f"more than {min_overlap:.0%} of it" if min_overlap else "any voxel of it"


def _summary_section(name: str, parts: Mapping[str, Any]) -> str:
    title = f"Class {html.escape(name)}" if name else "Measures"
    headers = ("", "Mean over cases", "95 % interval (subjects resampled)", "All cases pooled", "Undefined in")
    return f"<h2>{title}</h2>" + _table(headers, _summary_rows(parts))


def _case_table(metrics: Mapping[str, Any]) -> str:
    names = list(next(iter(split_by_class(metrics).values()))["mean"])
    rows = []
    for case in metrics["cases"]:
        by_class = {key: value for key, value in case.items() if isinstance(value, Mapping)} or {"": case}
        for key, values in by_class.items():
            title = f"{case['case_id']} {key}".strip()
            rows.append((title, *(format_value(name, values[name]) for name in names)))
    return _table(("", *(LABELS[name] for name in names)), rows)


def _panel_section(panel: Panel) -> str:
    figures = "".join(
        f'<figure><img src="{_inlined(png(picture))}" alt="{html.escape(caption)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, picture in panel.pictures.items()
    )
    return f'<h2>{html.escape(panel.title)}</h2><p>{LEGEND}</p><div class="slices">{figures}</div>'


def _fault_list(faults: Iterable[str]) -> str:
    items = "".join(f"<li>{html.escape(fault)}</li>" for fault in faults)
    return f'<div class="faults"><p>Not judged:</p><ul>{items}</ul></div>' if items else ""


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(header)}</th>" for header in headers)
    body = "".join(
        f"<tr><th>{html.escape(row[0])}</th>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _inlined(file: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


def _grey(image: NDArray[Any]) -> NDArray[np.uint8]:
    """The image from its 1st to its 99.5th percentile as 0 to 255; black where it is constant."""
    low, high = np.percentile(image, (1, 99.5))
    if high <= low:
        return np.zeros(image.shape, np.uint8)
    scaled: NDArray[np.uint8] = (255 * ((image - low) / (high - low)).clip(0, 1)).astype(np.uint8)
    return scaled


def _swatch(colour: tuple[int, int, int], name: str) -> str:
    return f'<span style="border-bottom:3px solid rgb{colour}">{name}</span>'


LEGEND = (
    f"Outlined: {_swatch(REFERENCE_COLOUR, 'reference')} and {_swatch(PREDICTION_COLOUR, 'prediction')}. "
    "Axial slices; the patient's left is on the left."
)
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Evaluation</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; max-width: 75rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e3e6ea; }
thead th { border-bottom: 2px solid #8b949e; white-space: normal; vertical-align: bottom; }
tbody th { text-align: left; font-weight: 600; }
.slices { display: flex; flex-wrap: wrap; gap: 1rem; } .slices figure { flex: 1 1 22rem; max-width: 36rem; }
figure { margin: 0; } figure img { max-width: 100%; }
.curve img { width: 34rem; } figcaption { color: #57606a; }
.faults { border-left: 4px solid #d1242f; padding-left: 1rem; }
</style>
</head>
<body>
<h1>Evaluation</h1>
{{content}}
</body>
</html>
"""
