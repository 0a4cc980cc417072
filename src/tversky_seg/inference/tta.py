"""Test-time augmentation: windows seen mirrored, their predictions mirrored back and averaged."""

from __future__ import annotations

from collections.abc import Sequence

AXES = "xyz"
VIEWS = {
    "none": ("none",),
    "rotations180": ("none", "xy", "xz", "yz"),
    "flips8": ("none", "x", "y", "z", "xy", "xz", "yz", "xyz"),
}
View = tuple[int, ...]
"""The axes (0, 1, 2) that a view mirrors; () is the window as it is."""


def views(tta: str | Sequence[str]) -> tuple[View, ...]:
    """List the axes that each view mirrors.

    Mirroring two axes is a turn by 180 degrees in their plane, so Hashemi's four rotations
    (arXiv:1803.11078, released code: none, xy, xz, yz) are the even half of the eight flips. Each
    view is its own inverse, exactly.

    Args:
        tta: "none", "rotations180", "flips8", or a list of views: "none" or axes, as in
            ["none", "x", "yz"].

    Raises:
        ValueError: Another name, an empty list, or a view named twice.
    """
    names = view_names(tta)
    axes = [_axes(name) for name in names]
    if not axes or len(set(axes)) < len(axes):
        raise ValueError(f"tta must name one view or more, each once, got {list(names)}")
    return tuple(axes)


def view_names(tta: str | Sequence[str]) -> tuple[str, ...]:
    """List the names of the views.

    Raises:
        ValueError: `tta` is a name of no set of views.
    """
    if not isinstance(tta, str):
        return tuple(tta)
    if tta not in VIEWS:
        raise ValueError(
            f"tta must be one of {', '.join(VIEWS)} or a list as [none, x, yz], got {tta}"
        )
    return VIEWS[tta]


def _axes(name: str) -> View:
    """Translate the name of a view: "none" is (), "zx" is (0, 2)."""
    if name == "none":
        return ()
    is_view = isinstance(name, str) and name != "" and set(name) <= set(AXES)
    if not is_view or len(set(name)) < len(name):
        raise ValueError(f"tta must name views as none, x, yz or xyz, got {name}")
    return tuple(sorted(AXES.index(letter) for letter in name))
