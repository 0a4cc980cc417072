"""Figures of an evaluation, drawn by matplotlib: as a PNG file, or as SVG inside a page."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tversky_seg.metrics.ranking import PrecisionRecallCurve
from tversky_seg.report.labels import format_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b0478a", "#8a6d00", "#3d7a99")
"""Colours that colour-blind readers tell apart (Okabe and Ito)."""
MARKERS = ("o", "s", "^", "D", "v", "P")
LINE_STYLES = ("-", "--", "-.", ":")
GREY = "#57606a"
MOST_FALSE = 10.0
"""False lesions per case up to which the FROC curve is drawn."""
LEGEND_HEIGHT = 0.3
"""Share of a figure's height that a legend below may cover."""
LONGEST_NAME = 24
N_NAMED = 3
"""Cases named in the Bland-Altman plot: those with the largest differences."""
FIGURE_WIDTH = 4.8
FIGURE_HEIGHT = 3.6
LEFT = 0.14
RIGHT = 0.95
BOTTOM = 0.17
TOP = 0.96
"""Place of the axes, as shares of the figure."""
Columns = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Curve:
    """The pooled precision-recall curve of one class."""

    name: str
    points: PrecisionRecallCurve | None
    """None where only masks were saved."""
    area: float
    """Pooled PR-AUC."""
    working_point: tuple[float, float]
    """Recall and precision of the masks; NaN where undefined."""


def curve_figure(curves: Sequence[Curve]) -> Figure:
    """Draw precision against recall, all cases pooled, and mark the masks on it."""
    figure, axes = new_axes(xlabel="Recall (sensitivity)", ylabel="Precision")
    # The top of the curve at precision 1 stays visible.
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    for k, curve in enumerate(curves):
        prefix = f"{_literal(curve.name)}: " if len(curves) > 1 else ""
        colour = COLOURS[k % len(COLOURS)]
        if curve.points is not None and curve.points.thresholds.size:
            area = format_value("pr_auc", curve.area)
            # Precision holds until the next recall.
            axes.plot(
                curve.points.recall,
                curve.points.precision,
                drawstyle="steps-post",
                color=colour,
                label=f"{prefix}pooled PR-AUC {area}",
            )
        recall, precision = curve.working_point
        if not math.isnan(recall) and not math.isnan(precision):
            marker = MARKERS[k % len(MARKERS)]
            label = f"{prefix}chosen threshold"
            axes.plot(recall, precision, marker, color=colour, label=label)
    # Above, a weak network's curve is not hidden.
    precisions = [curve.working_point[1] for curve in curves]
    is_low = any(precision < LEGEND_HEIGHT for precision in precisions)
    _add_legend(axes, loc="upper right" if is_low else "lower left")
    return figure


def threshold_figure(columns: Columns, *, threshold: float | None) -> Figure:
    """Draw Dice and F2 against the threshold.

    Args:
        columns: Columns of threshold_curve.csv, of one class.
        threshold: Threshold of the masks, drawn as a vertical line; None: not drawn.
    """
    figure, axes = new_axes(xlabel="Threshold", ylabel="Dice, F2")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    # The two means differ: one weighs cases alike, the other voxels.
    at = columns["threshold"]
    blue, orange = COLOURS[:2]
    axes.plot(at, columns["mean_dice"], color=blue, label="Dice, mean over cases")
    axes.plot(at, columns["mean_f2"], color=orange, label="F2, mean over cases")
    axes.plot(at, columns["dice"], "--", color=blue, label="Dice, pooled")
    axes.plot(at, columns["f2"], "--", color=orange, label="F2, pooled")
    if threshold is not None:
        axes.axvline(threshold, color=GREY, linewidth=1)
    _add_legend(axes, loc="lower center")
    return figure


def froc_figure(columns: Columns, froc: Mapping[str, Any]) -> Figure:
    """Draw lesion recall against false lesions per case (FROC).

    Args:
        columns: Columns of froc.csv, of one class.
        froc: Summary of the curve, as in metrics.json.
    """
    figure, axes = new_axes(xlabel="False lesions per case", ylabel="Lesion recall")
    # The curve starts at no prediction at all.
    false_lesions = np.append(columns["false_lesions_per_case"], 0.0)
    recall = np.append(columns["recall"], 0.0)
    average = format_value("recall", froc["average_recall"])
    label = f"average recall up to 5 false lesions per case: {average}"
    axes.plot(false_lesions, recall, color=COLOURS[0], label=label)
    most = max(1.0, min(MOST_FALSE, float(false_lesions.max())))
    # All lesions of the masks at once: the point where the curve ends.
    false_of_masks = froc["false_lesions_per_case"]
    recall_of_masks = froc["highest_recall"]
    if false_of_masks is not None and recall_of_masks is not None:
        # It stays in view, however many false lesions there are.
        most = max(most, 1.05 * false_of_masks)
        axes.plot(false_of_masks, recall_of_masks, "s", color=COLOURS[1], label="chosen threshold")
    axes.set(xlim=(0, most), ylim=(0, 1))
    # The legend must not hide the point of a weak network.
    is_low = recall_of_masks is not None and recall_of_masks < LEGEND_HEIGHT
    _add_legend(axes, loc="upper right" if is_low else "lower right")
    return figure


def size_figure(bins: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the recall of reference lesions by their volume.

    Args:
        bins: Volume bins with at least one lesion, as in metrics.json.
    """
    figure, axes = new_axes(xlabel="Lesion volume (mm³)", ylabel="Lesion recall")
    names: list[str] = []
    for k, part in enumerate(bins):
        names.append(_volume_range(part))
        # An empty bar still shows that there were lesions of this size.
        recall = part["recall"] or 0.0
        axes.bar(k, recall, width=0.72, color=COLOURS[0], alpha=0.8)
        detected = f"{part['n_detected']}/{part['n_lesions']}"
        axes.text(k, recall + 0.02, detected, ha="center", fontsize=8)
    axes.set_xticks(range(len(bins)), names, fontsize=8)
    axes.set(ylim=(0, 1.12))
    return figure


def _volume_range(part: Mapping[str, Any]) -> str:
    if part["to_mm3"] is None:
        return f"≥ {part['from_mm3']:g}"
    # In two lines, so that neighbours do not touch.
    return f"{part['from_mm3']:g} to\n{part['to_mm3']:g}"


def bland_altman_figure(
    volumes_mm3: Mapping[str, tuple[float, float]], limits: Mapping[str, float | None]
) -> Figure:
    """Draw the difference of predicted and reference volume against their mean.

    Args:
        volumes_mm3: Case id -> reference and predicted volume. The cases with the largest
            differences are named.
        limits: `bias_mm3`, `lowest_mm3` and `highest_mm3` of metrics.json; None where undefined.
    """
    figure, axes = new_axes(
        xlabel="Mean of both volumes (mm³)", ylabel="Predicted - reference (mm³)", left=0.21
    )
    # A line at 0 tells over- from under-segmentation.
    axes.axhline(0, color=GREY, linewidth=0.5)
    differences: dict[str, float] = {}
    for case_id, (reference, predicted) in volumes_mm3.items():
        mean = (reference + predicted) / 2
        difference = predicted - reference
        differences[case_id] = difference
        axes.plot(mean, difference, "o", color=COLOURS[0])
    # Naming every case would cover the dots.
    middle = (max(map(sum, volumes_mm3.values())) + min(map(sum, volumes_mm3.values()))) / 4
    by_size = sorted(differences, key=lambda case_id: -abs(differences[case_id]))
    for case_id in by_size[:N_NAMED]:
        mean = sum(volumes_mm3[case_id]) / 2
        place = (mean, differences[case_id])
        axes.annotate(
            _literal(case_id),
            place,
            # Above its dot, and towards the middle of the figure.
            xytext=(5 if mean <= middle else -5, 4),
            ha="left" if mean <= middle else "right",
            textcoords="offset points",
            fontsize=8,
        )
    styles = {"bias_mm3": "-", "lowest_mm3": "--", "highest_mm3": "--"}
    names = {"bias_mm3": "bias", "lowest_mm3": "95 % limit", "highest_mm3": "95 % limit"}
    for key, style in styles.items():
        value = limits.get(key)
        if value is not None:
            axes.axhline(value, color=GREY, linewidth=1, linestyle=style)
            _note_at_the_right(axes, value, f"{names[key]} {value:+,.0f}")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    # Volumes have five digits: more ticks would overlap.
    axes.locator_params(axis="x", nbins=5)
    axes.margins(x=0.1, y=0.15)
    return figure


def calibration_figure(lines: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draw the share of lesion voxels against their mean predicted probability.

    Args:
        lines: Name of a line -> its bins with at least one voxel, as in metrics.json.
    """
    figure, axes = new_axes(xlabel="Mean predicted probability", ylabel="Share of lesion voxels")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    # On the diagonal, 30 % of the voxels of probability 0.3 are lesion.
    diagonal = [0, 1]
    axes.plot(diagonal, diagonal, "--", color=GREY, linewidth=1, label="perfect calibration")
    for colour, (name, bins) in zip(COLOURS, lines.items(), strict=False):
        probability: list[float] = []
        share: list[float] = []
        for part in bins:
            probability.append(part["mean_probability"])
            share.append(part["lesion_share"])
        axes.plot(probability, share, "o-", color=colour, label=name)
    _add_legend(axes, loc="upper left")
    return figure


def as_png(figure: Figure) -> bytes:
    """Draw a figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def as_svg(figure: Figure) -> str:
    """Draw a figure as an SVG element for a page: text stays text, and equal figures equal."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    # Ids and the date would otherwise differ from run to run, and with them the page.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "tversky-seg"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    document = buffer.getvalue()
    # Without the XML declaration and document type, which HTML does not know.
    return document[document.index("<svg") :]


def new_axes(*, xlabel: str, ylabel: str, left: float = LEFT) -> tuple[Figure, Axes]:
    """Make a figure of one chart in the style of the pages.

    Args:
        xlabel: Label of the x axis.
        ylabel: Label of the y axis.
        left: Room for the texts of the y axis, as a share of the width.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(FIGURE_WIDTH, FIGURE_HEIGHT))
    # A fixed place: matplotlib's layout engines draw each figure twice, to measure its texts.
    axes = figure.add_axes((left, BOTTOM, RIGHT - left, TOP - BOTTOM), xlabel=xlabel, ylabel=ylabel)
    style_axes(axes)
    return figure, axes


def style_axes(axes: Axes) -> None:
    """Give axes the style of all figures: a faint grid behind the data, no frame."""
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _add_legend(axes: Axes, *, loc: str) -> None:
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.legend(loc=loc, fontsize=8)


def _note_at_the_right(axes: Axes, y: float, text: str) -> None:
    axes.text(
        # x as a share of the width, y in the units of the data.
        1.0,
        y,
        text,
        transform=axes.get_yaxis_transform(),
        ha="right",
        va="bottom",
        fontsize=8,
        color=GREY,
    )


def _literal(name: str) -> str:
    """Shorten a name for a figure, and escape the $ by which matplotlib marks a formula."""
    if len(name) > LONGEST_NAME:
        name = name[: LONGEST_NAME - 1] + "…"
    return name.replace("$", r"\$")
