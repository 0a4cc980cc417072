"""Checks of the settings that a data set and its preprocessing share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tversky_seg.data.case import broken_name_rule, normal_form
from tversky_seg.data.errors import DataError
from tversky_seg.data.manifest_columns import is_reserved

Spacing = tuple[float | None, float | None, float | None]

NORMALIZATIONS = ("zscore", "robust", "percentile", "window", "window_minmax", "none")
RATERS = ("consensus", "majority", "staple", "mean", "random")
STANDARD_LIMITS = {
    "percentile": (0.5, 99.5),
    "window": (-300.0, 300.0),
    "window_minmax": (-300.0, 300.0),
}


def set_checked(settings: Any) -> None:
    """Check the fields that `Dataset` and `Preprocessing` share, and set them to plain values.

    `spacing_mm` is not among them: only a data set may leave it to the cases.

    Args:
        settings: Frozen dataclass, just filled from a config or a checkpoint.

    Raises:
        DataError: A value is out of range.
    """
    checked = {
        "modalities": check_modalities(settings.modalities),
        "classes": check_classes(settings.classes),
        "limits": check_limits(settings.limits, settings.normalization),
        "crop_values": check_crop(settings.crop_values, settings.crop_margin),
        "rater": check_rater(settings.rater),
        "ignore": check_ignore(settings.ignore),
        "require": check_require(settings.require, settings.modalities),
    }
    for name, value in checked.items():
        object.__setattr__(settings, name, value)
    _refuse_ignored_class(settings.ignore, settings.classes)


def check_modalities(modalities: Sequence[str] | None) -> tuple[str, ...]:
    """Return modality names as a tuple, if they are distinct and can stand in file names."""
    key = "data.modalities"
    # A text would be taken letter by letter.
    if isinstance(modalities, str):
        raise DataError(key, repr(modalities), "expected a list as in [FLAIR,T1]")
    # Names from YAML may be numbers, and accents have two forms in Unicode.
    names = tuple(normal_form(str(name)) for name in modalities or ())
    for name in names:
        _check_name(name, key=key)
        if is_reserved(name):
            raise DataError(key, f"{name!r} is a column with another meaning", "rename it")
    # The second channel of a name would be the first once more.
    if len(set(names)) < len(names):
        raise DataError(key, str(list(names)), "expected each name once")
    return names


def check_classes(classes: Mapping[str, Any] | None) -> dict[str, tuple[int, ...]]:
    """Return class name -> label values as tuples of int.

    Args:
        classes: A bare number stands for one label value. None: `{"lesion": (1,)}`.
    """
    if classes is None:
        return {"lesion": (1,)}
    if not isinstance(classes, Mapping) or not classes:
        raise DataError("data.classes", str(classes), "expected e.g. {lesion: [1]}")
    checked = {}
    for name, values in classes.items():
        _check_name(str(name), key="data.classes")
        checked[str(name)] = _label_values(values, key=f"data.classes.{name}")
    return checked


def check_spacing(spacing_mm: Any) -> Spacing | None:
    """Return three voxel sizes in mm along R, A, S; None for the files' own.

    Args:
        spacing_mm: Positive numbers: one for all axes, or three with None for an axis that keeps
            the file's own.
    """
    if spacing_mm is None:
        return None
    try:
        sizes = np.broadcast_to(np.asarray(spacing_mm, dtype=float), 3)  # None becomes NaN
    except (TypeError, ValueError):
        raise _spacing_fault(spacing_mm) from None
    x, y, z = (_voxel_size(float(size), spacing_mm) for size in sizes)
    # [null, null, null] is null.
    if x is None and y is None and z is None:
        return None
    return (x, y, z)


def check_limits(limits: Sequence[float] | None, normalization: str) -> tuple[float, float] | None:
    """Return the two limits of a normalisation, the lower first; None if it has none.

    Args:
        limits: None: percentiles 0.5 and 99.5, or the window of -300 to 300 HU.
        normalization: One of `NORMALIZATIONS`; percentiles and windows have limits.
    """
    if normalization not in NORMALIZATIONS:
        names = ", ".join(NORMALIZATIONS)
        raise DataError("data.normalization", repr(normalization), f"expected one of {names}")
    standard = STANDARD_LIMITS.get(normalization)
    if limits is None:
        return standard
    if standard is None:
        expected = f"expected null, normalization {normalization} has none"
        raise DataError("data.limits", str(limits), expected)
    if not _are_limits(limits, are_percentiles=normalization == "percentile"):
        expected = f"expected two numbers as in {list(standard)}, the smaller first"
        if normalization == "percentile":
            expected += ", in per cent"
        raise DataError("data.limits", str(list(limits)), expected)
    return (float(limits[0]), float(limits[1]))


def check_crop(values: Sequence[int] | None, margin: int) -> tuple[int, ...]:
    """Return the label values to crop to as a tuple, empty for the brain.

    Args:
        values: Label values other than 0.
        margin: Voxels around the box, 0 or more.
    """
    values = tuple(values or ())
    if not all(map(_is_label_value, values)):
        expected = "expected label values, whole numbers other than 0"
        raise DataError("data.crop_values", str(list(values)), expected)
    if margin < 0:
        raise DataError("data.crop_margin", str(margin), "expected 0 or more voxels")
    return values


def check_require(
    require: Sequence[str] | None, modalities: Sequence[str]
) -> tuple[str, ...] | None:
    """Return the modalities that every case has as a tuple; None for all.

    Args:
        require: Names, each of them a modality. An empty list: any one image is enough.
        modalities: The modalities; empty where the cases still have to name them.
    """
    if require is None:
        return None
    if isinstance(require, str):
        raise DataError("data.require", repr(require), "expected a list as in [FLAIR], or null")
    names = tuple(normal_form(str(name)) for name in require)
    known = [normal_form(str(name)) for name in modalities]
    # Before the cases have named their modalities, any name may be right.
    unknown = [name for name in names if known and name not in known]
    if unknown:
        expected = f"expected some of data.modalities={known}"
        raise DataError("data.require", unknown[0], expected)
    return names


def check_ignore(values: Sequence[int] | int | None) -> tuple[int, ...]:
    """Return the label values whose voxels are ignored as a tuple, empty for none.

    Args:
        values: Label values other than 0; a bare number stands for one.
    """
    if values is None or (isinstance(values, Sequence) and not values):
        return ()
    return _label_values(values, key="data.ignore")


def check_rater(rater: int | str | None) -> int | str | None:
    """Return the rater whose label to train on, as it was given."""
    # Not isinstance: True is an int.
    is_number = type(rater) is int and rater >= 1
    if rater is not None and rater not in RATERS and not is_number:
        expected = f"expected null, a number from 1 or one of {', '.join(RATERS)}"
        raise DataError("data.rater", repr(rater), expected)
    return rater


def _check_name(name: str, *, key: str) -> None:
    expected = broken_name_rule(name)
    if expected is not None:
        raise DataError(key, repr(name), expected)


def _label_values(values: Any, *, key: str) -> tuple[int, ...]:
    members = (values,)
    if isinstance(values, Sequence) and not isinstance(values, str):
        members = tuple(values)
    if not members or not all(map(_is_label_value, members)):
        expected = "expected label values, whole numbers other than 0 (the background)"
        raise DataError(key, str(values), expected)
    return members


def _refuse_ignored_class(ignored: Sequence[int], classes: Mapping[str, tuple[int, ...]]) -> None:
    for name, values in classes.items():
        common = sorted(set(values) & set(ignored))
        if common:
            raise DataError(
                "data.ignore",
                f"{common[0]} is a label value of class {name}",
                "expected values that belong to no class",
            )


def _is_label_value(value: Any) -> bool:
    # True would pass isinstance(value, int).
    return type(value) is int and value != 0


def _voxel_size(size: float, spacing_mm: Any) -> float | None:
    if np.isnan(size):
        return None
    if not np.isfinite(size) or size <= 0:
        raise _spacing_fault(spacing_mm)
    return size


def _spacing_fault(spacing_mm: Any) -> DataError:
    return DataError(
        "data.spacing_mm",
        str(spacing_mm),
        "expected three positive numbers in mm, as in [1,1,1], null for an axis that keeps the "
        "files' own, or native, median or null",
    )


def _are_limits(limits: Sequence[float], *, are_percentiles: bool) -> bool:
    if len(limits) != 2 or not all(type(limit) in (int, float) for limit in limits):
        return False
    low, high = limits
    if are_percentiles and (low < 0 or high > 100):
        return False
    return low < high
