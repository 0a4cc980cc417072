"""Figures across runs, drawn by matplotlib: precision-recall curves, and metrics over beta."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tversky_seg.analysis.curves import PooledCurve
from tversky_seg.analysis.summaries import Summary
from tversky_seg.analysis.weight_lines import WeightLine
from tversky_seg.report.figures import COLOURS, LINE_STYLES, MARKERS, style_axes
from tversky_seg.report.labels import FEWEST_FOR_INTERVAL, LABELS, format_value
from tversky_seg.runtime.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKER_SPACING = 0.12
"""Distance between the markers of a curve, as a share of the diagonal of the axes."""
SHIFT = 0.006
"""Distance over beta between the metrics of a setting, so that their intervals do not overlap."""
OVER_BETA = ("f2", "dice", "sensitivity", "lesion_tpr")


def curves_figure(curves: Mapping[str, Mapping[str, PooledCurve]]) -> Figure:
    """Draw the pooled precision-recall curves of all runs, with a panel for each class.

    Args:
        curves: Run -> class -> curve; without the classes of which only masks were saved.
    """
    from matplotlib.figure import Figure

    classes: dict[str, None] = {}
    for by_class in curves.values():
        classes |= dict.fromkeys(by_class)
    n_panels = max(1, len(classes))
    figure = Figure(figsize=(4.6 * n_panels, 4.2), layout="constrained")
    panels = figure.subplots(1, n_panels, squeeze=False)[0]
    for axes in panels:
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="Recall (sensitivity)", ylabel="Precision")
        style_axes(axes)
    for axes, class_name in zip(panels, classes, strict=False):
        if len(classes) > 1:
            axes.set_title(_literal(class_name))
        # A run has one look in all panels.
        for k, (run, by_class) in enumerate(curves.items()):
            if class_name in by_class:
                _draw_curve(axes, by_class[class_name], name=run, k=k)
        axes.legend(loc="lower left", fontsize=8)
    return figure


def _draw_curve(axes: Axes, curve: PooledCurve, *, name: str, k: int) -> None:
    # Precision holds until the next recall, and that of the highest threshold down to recall 0.
    recall = [*curve.recall, 0.0]
    precision = [*curve.precision, curve.precision[-1]]
    axes.plot(
        recall,
        precision,
        drawstyle="steps-post",
        color=COLOURS[k % len(COLOURS)],
        linestyle=LINE_STYLES[k % len(LINE_STYLES)],
        marker=MARKERS[k % len(MARKERS)],
        markersize=4,
        markevery=MARKER_SPACING,
        label=f"{_literal(name)}, pooled PR-AUC {format_value('pr_auc', curve.area)}",
    )


def frontier_figure(lines: Sequence[WeightLine]) -> Figure:
    """Draw precision against recall, with alpha and beta along each line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    axes = figure.add_subplot(xlabel="Recall (sensitivity)", ylabel="Precision")
    style_axes(axes)
    for k, line in enumerate(lines):
        recall = line.means("sensitivity")
        precision = line.means("precision")
        axes.plot(
            recall,
            precision,
            color=COLOURS[k % len(COLOURS)],
            linestyle=LINE_STYLES[k % len(LINE_STYLES)],
            marker=MARKERS[k % len(MARKERS)],
            label=_literal(line.name),
        )
        for i, point in enumerate(line.points):
            alpha, beta = point.weights
            axes.annotate(
                f"α {alpha:.2g}, β {beta:.2g}",
                (recall[i], precision[i]),
                xytext=(5, 5),
                textcoords="offset points",
                fontsize=8,
            )
    axes.margins(x=0.3, y=0.15)  # room for the texts at the right of the points
    if len(lines) > 1:
        axes.legend(fontsize=8)
    return figure


def beta_figure(lines: Sequence[WeightLine]) -> Figure:
    """Draw metrics over beta with their intervals, with a panel for each line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 4.2 * len(lines)), layout="constrained")
    panels = figure.subplots(len(lines), 1, squeeze=False)[:, 0]
    for axes, line in zip(panels, lines, strict=True):
        for k, metric in enumerate(OVER_BETA):
            shift = SHIFT * (k - (len(OVER_BETA) - 1) / 2)
            axes.errorbar(
                [point.weights.beta + shift for point in line.points],
                line.means(metric),
                yerr=_error_bars(line.summaries(metric)),
                color=COLOURS[k],
                linestyle=LINE_STYLES[k],
                marker=MARKERS[k],
                capsize=2,
                label=LABELS[metric],
            )
        axes.set(
            xlabel="β, weight of false negatives",
            ylabel="Mean over subjects",
            ylim=(0, 1),
            title=_literal(line.name),
        )
        style_axes(axes)
        axes.legend(fontsize=8)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG and as PDF.

    Args:
        figure: Figure to draw.
        path: Path without an ending.
    """
    with replacing(path.with_name(f"{path.name}.png")) as scratch:
        figure.savefig(scratch, dpi=150)
    # Without its date, equal figures are equal files.
    with replacing(path.with_name(f"{path.name}.pdf")) as scratch:
        figure.savefig(scratch, metadata={"CreationDate": None})


def _error_bars(summaries: Sequence[Summary]) -> tuple[list[float], list[float]] | None:
    """Compute the lengths of intervals below and above the means; None for too few subjects."""
    if min(summary.n_subjects for summary in summaries) < FEWEST_FOR_INTERVAL:
        return None
    # A mean over seeds may lie outside an interval over subjects that define the metric.
    below: list[float] = []
    above: list[float] = []
    for summary in summaries:
        below.append(max(0.0, summary.mean - summary.low))
        above.append(max(0.0, summary.high - summary.mean))
    return below, above


def _literal(name: str) -> str:
    """Escape the $ by which matplotlib marks a formula."""
    return name.replace("$", r"\$")
