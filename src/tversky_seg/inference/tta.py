"""Test-time views: a window seen mirrored, its prediction mirrored back, the mean taken over all of them."""

from __future__ import annotations

from collections.abc import Sequence

AXES = "xyz"
VIEWS = {
    "none": ("none",),
    "rotations180": ("none", "xy", "xz", "yz"),
    "flips8": ("none", "x", "y", "z", "xy", "xz", "yz", "xyz"),
}
View = tuple[int, ...]


def views(tta: str | Sequence[str]) -> tuple[View, ...]:
    """The axes (0, 1, 2) that each view mirrors; () is the window as it is.

    Mirroring two axes is a turn by 180 degrees in their plane, so Hashemi's four rotations (arXiv:1803.11078, released
    code: none, xy, xz, yz) are the even half of the eight flips. Each view is its own inverse, exactly.

    Args:
        tta: "none", "rotations180", "flips8", or a list of views: "none" or axes, as in ["none", "x", "yz"].

    Raises:
        ValueError: Another word, an empty list, or a view named twice.
    """
    if isinstance(tta, str) and tta not in VIEWS:
        raise ValueError(
            f"tta must be one of {', '.join(VIEWS)} or a list as [none, x, yz], got {tta}"
        )
    names = VIEWS[tta] if isinstance(tta, str) else tta
    chosen = [_axes(name) for name in names]
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"tta must name one view or more, each once, got {list(names)}")
    return tuple(chosen)


def _axes(name: str) -> View:
    letters = "" if name == "none" else name
    if not isinstance(name, str) or not name or len(set(letters) & set(AXES)) != len(letters):
        raise ValueError(f"tta must name views as none, x, yz or xyz, got {name}")
    return tuple(sorted(map(AXES.index, letters)))
