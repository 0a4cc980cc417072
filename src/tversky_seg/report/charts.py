"""Charts as inline SVG: they take the page's font and colours, in the dark too, and need no drawing library."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

WIDTH, HEIGHT = 460, 340
LEFT, RIGHT, TOP, BOTTOM = 86, 28, 10, 48
N_COLOURS = 6
FINEST = 0.5  # picture units; a line's points nearer than this to the one before are left out


@dataclass(frozen=True)
class Axis:
    """One direction of a chart."""

    label: str
    low: float = 0.0
    high: float = 1.0
    ticks: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True, eq=False)
class Line:
    """A curve; NaN interrupts it.

    Attributes:
        x: (n,) positions.
        y: (n,) values.
        name: For the legend; none without one.
        colour: 0 ... 5.
        dashed: Whether it is drawn dashed.
        steps: Whether a value holds up to the next x, as precision does along falling recall.
    """

    x: ArrayLike
    y: ArrayLike
    name: str = ""
    colour: int = 0
    dashed: bool = False
    steps: bool = False


@dataclass(frozen=True)
class Point:
    """A dot, with a name for whoever points at it, and one for the legend."""

    x: float
    y: float
    hint: str = ""
    name: str = ""
    colour: int = 0


def axis_over(label: str, values: ArrayLike, *, at_least: Sequence[float] = ()) -> Axis:
    """An axis with round ticks over finite values.

    Args:
        label: what it shows, with its unit.
        values: what must fit; NaN and infinity are passed over.
        at_least: further values that must fit.
    """
    known = np.append(np.asarray(values, np.float64).ravel(), np.asarray(at_least, np.float64))
    known = known[np.isfinite(known)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    if high <= low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    step = _round_step((high - low) / 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(k * step for k in range(first, last + 1))
    return Axis(label, ticks[0], ticks[-1], ticks)


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x: Axis,
    y: Axis,
    points: Sequence[Point] = (),
    marks: Sequence[Line] = (),
) -> str:
    """Curves and dots over two axes, with a legend below where there is more than one name.

    Args:
        title: read out by screen readers.
        lines: curves, clipped to the axes.
        x: from left to right.
        y: from bottom to top.
        points: dots on top.
        marks: thin grey helping lines, below the curves.
    """
    content = [
        *(_polyline(line, x, y, style="mark") for line in marks),
        *(_polyline(line, x, y, style=f"line c{line.colour % N_COLOURS}") for line in lines),
    ]
    dots = [
        _dot(point, x, y) for point in points if math.isfinite(point.x) and math.isfinite(point.y)
    ]
    things: list[Line | Point] = [*lines, *points]
    legend = dict.fromkeys(
        (
            thing.name,
            thing.colour % N_COLOURS,
            "dot" if isinstance(thing, Point) else "dash" if thing.dashed else "",
        )
        for thing in things
        if thing.name
    )
    return _figure(title, _frame(x, y) + _clipped(content) + "".join(dots), list(legend))


def bar_chart(title: str, bars: Sequence[tuple[str, float, str]], *, x_label: str, y: Axis) -> str:
    """Bars side by side.

    Args:
        title: read out by screen readers.
        bars: what each stands for, its height (NaN: none), and what is written above it.
        x_label: what the bars are.
        y: from bottom to top.
    """
    width = (WIDTH - LEFT - RIGHT) / max(1, len(bars))
    parts = []
    for i, (name, height, note) in enumerate(bars):
        middle, base = LEFT + (i + 0.5) * width, _place_y(y.low, y)
        top = _place_y(height, y) if math.isfinite(height) else base
        parts.append(
            f'<rect class="bar c0" x="{middle - 0.36 * width:.1f}" y="{top:.1f}" width="{0.72 * width:.1f}" '
            f'height="{base - top:.1f}"><title>{html.escape(f"{name}: {note}")}</title></rect>'
            f'<text class="small" x="{middle:.1f}" y="{top - 4:.1f}" text-anchor="middle">{html.escape(note)}</text>'
            f'<text class="small" x="{middle:.1f}" y="{base + 16:.1f}" text-anchor="middle">{html.escape(name)}</text>'
        )
    return _figure(title, _frame(Axis(x_label, ticks=()), y) + "".join(parts), [])


def number(value: float) -> str:
    """A tick as short as can be, with thousands set apart."""
    return f"{value:,.10g}" if abs(value) >= 1000 else f"{value:.4g}"


def _round_step(step: float) -> float:
    unit = 10 ** math.floor(math.log10(step))
    return float(next(unit * k for k in (1, 2, 5, 10) if unit * k >= step * (1 - 1e-9)))


def _place_x(value: float, axis: Axis) -> float:
    return LEFT + (value - axis.low) / (axis.high - axis.low) * (WIDTH - LEFT - RIGHT)


def _place_y(value: float, axis: Axis) -> float:
    return HEIGHT - BOTTOM - (value - axis.low) / (axis.high - axis.low) * (HEIGHT - TOP - BOTTOM)


def _frame(x: Axis, y: Axis) -> str:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for tick in x.ticks:
        at = _place_x(tick, x)
        parts.append(
            f'<path class="grid" d="M{at:.1f} {TOP}V{bottom}"/>'
            f'<text x="{at:.1f}" y="{bottom + 17}" text-anchor="middle">{number(tick)}</text>'
        )
    for tick in y.ticks:
        at = _place_y(tick, y)
        parts.append(
            f'<path class="grid" d="M{LEFT} {at:.1f}H{right}"/>'
            f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{number(tick)}</text>'
        )
    middle_x, middle_y = (LEFT + right) / 2, (TOP + bottom) / 2
    return (
        f'{"".join(parts)}<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>'
        f'<text x="{middle_x}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(x.label)}</text>'
        f'<text transform="translate(14 {middle_y}) rotate(-90)" text-anchor="middle">{html.escape(y.label)}</text>'
    )


def _clipped(content: Sequence[str]) -> str:
    """A picture in the picture, which cuts off what lies beyond the axes."""
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    view = f"{LEFT} {TOP - 2} {width + 2} {height + 4}"
    place = f'x="{LEFT}" y="{TOP - 2}" width="{width + 2}" height="{height + 4}"'
    return f'<svg {place} viewBox="{view}">{"".join(content)}</svg>'


def _polyline(line: Line, x: Axis, y: Axis, *, style: str) -> str:
    places = np.stack(
        [
            LEFT
            + (np.asarray(line.x, np.float64) - x.low) / (x.high - x.low) * (WIDTH - LEFT - RIGHT),
            HEIGHT
            - BOTTOM
            - (np.asarray(line.y, np.float64) - y.low) / (y.high - y.low) * (HEIGHT - TOP - BOTTOM),
        ]
    )
    pieces: list[str] = []
    piece = ""
    for at_x, at_y in _thinned(places).T.tolist():
        if math.isnan(at_x) or math.isnan(at_y):
            pieces, piece = [*pieces, piece], ""
        elif not piece:
            piece = f"M{at_x:.1f} {at_y:.1f}"
        else:
            piece += f"H{at_x:.1f}V{at_y:.1f}" if line.steps else f"L{at_x:.1f} {at_y:.1f}"
    dashes = ' stroke-dasharray="5 4"' if line.dashed else ""
    return f'<path class="{style}"{dashes} d="{"".join([*pieces, piece])}"/>'


def _thinned(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fewer points of the same curve: those a visible step from the last one kept, and both ends.

    Args:
        places: (2, n) in picture units, NaN where the curve is interrupted; infinities are drawn far off.
    """
    places = np.clip(places, -1e4, 1e4)
    kept: list[int] = []
    for i, (at_x, at_y) in enumerate(places.T.tolist()):
        if kept:
            last_x, last_y = places[:, kept[-1]].tolist()
            if abs(at_x - last_x) < FINEST and abs(at_y - last_y) < FINEST:
                continue
        kept.append(i)
    if places.shape[1] and kept[-1] != places.shape[1] - 1:
        kept.append(places.shape[1] - 1)
    return places[:, kept]


def _dot(point: Point, x: Axis, y: Axis) -> str:
    hint = f"<title>{html.escape(point.hint)}</title>" if point.hint else ""
    place = f'cx="{_place_x(point.x, x):.1f}" cy="{_place_y(point.y, y):.1f}"'
    return f'<circle class="dot c{point.colour % N_COLOURS}" {place} r="4.5">{hint}</circle>'


def _figure(title: str, content: str, legend: Sequence[tuple[str, int, str]]) -> str:
    keys = "".join(
        f'<span><i class="key {kind} c{colour}"></i>{html.escape(name)}</span>'
        for name, colour, kind in legend
    )
    return (
        f'<figure class="chart"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">'
        f"{content}</svg>{f'<figcaption>{keys}</figcaption>' if keys else ''}</figure>"
    )
