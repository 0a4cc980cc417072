"""Settings of saved predictions: given, from predictions.json, or default."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tversky_seg.data.errors import DataError
from tversky_seg.runtime.files import read_json

Value = TypeVar("Value")


@dataclass(frozen=True)
class SavedSettings:
    """What a predictions.json says; nothing where there is none."""

    file: Path
    values: Mapping[str, Any]

    def settle(
        self, key: str, given: Any, check: Callable[[str, Any], Value], default: Any = None
    ) -> Value:
        """Check one setting: as it is given, otherwise as saved, otherwise the default.

        Args:
            key: Its name.
            given: Argument of the user; None: not given.
            check: Function of name and value that returns the checked value.
            default: Value that is neither given nor saved.

        Raises:
            DataError: As `check`; the file is named where the setting comes from it.
        """
        value = _first_set(given, self.values.get(key), default)
        with _named_by(self.file if given is None else None):
            return check(key, value)


def read_saved_settings(path: Path) -> SavedSettings:
    """Read predictions.json; empty where there is none."""
    if not path.exists():
        return SavedSettings(path, {})
    try:
        saved = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(path, f"cannot be read ({error})", "predict again, or delete it") from error
    if not isinstance(saved, dict):
        raise DataError(path, "holds no settings", "predict again, or delete it")
    return SavedSettings(path, saved)


@contextmanager
def _named_by(file: Path | None) -> Iterator[None]:
    """Name the file that a setting comes from where it is at fault; None for an argument."""
    try:
        yield
    except DataError as fault:
        if file is None:
            raise
        raise DataError(f"{file}: {fault.where}", fault.found, fault.expected) from fault


def _first_set(*candidates: Any) -> Any:
    """Return the first value that is not None."""
    for candidate in candidates:
        # 0 and an empty list are settings, too.
        if candidate is not None:
            return candidate
    return None


def by_class(key: str, value: Any, *, names: Mapping[str, Any], highest: float) -> dict[str, Any]:
    """Spread one value over the classes, or check that each class has its own.

    0.5 -> {"liver": 0.5, "tumour": 0.5}
    """
    if value is None:
        return dict.fromkeys(names)
    if not isinstance(value, Mapping):
        value = dict.fromkeys(names, value)
    for name in names:
        number = value.get(name)
        if not isinstance(number, int | float) or not 0 <= number <= highest:
            raise DataError(
                key, f"{number} for class {name}", f"expected a number from 0 to {highest:g}"
            )
    return {name: value[name] for name in names}


def temperatures(value: Any, names: Sequence[str]) -> dict[str, float | None]:
    """Read the temperature of each class; None where there is none, or one for each network."""
    by_name: dict[str, float | None] = {}
    for name in names:
        number = value.get(name) if isinstance(value, Mapping) else value
        by_name[name] = None
        if isinstance(number, int | float) and 0 < number < math.inf:
            by_name[name] = float(number)
    return by_name


def label_values(key: str, values: Any) -> tuple[int, ...]:
    """Check label values; none by default."""
    if values is None:
        return ()
    # type(…) is int, because True would pass isinstance(…, int).
    if isinstance(values, Sequence) and all(type(value) is int for value in values):
        return tuple(values)
    raise DataError(key, f"{values!r}", "expected label values, as [1], or null")


def ignored_values(
    key: str, values: Any, *, classes: Mapping[str, tuple[int, ...]]
) -> tuple[int, ...]:
    """Check label values that do not count, none of which a class may name."""
    ignored = label_values(key, values)
    for name, values_of_class in classes.items():
        common = sorted(set(values_of_class) & set(ignored))
        if common:
            found = f"{common[0]} is a label value of class {name}"
            raise DataError(key, found, "expected values that belong to no class")
    return ignored


def refuse_for_masks(folder: Path, **settings: float | Mapping[str, float] | None) -> None:
    """Refuse settings of probabilities, which cannot be applied to what is already a mask."""
    for key, value in settings.items():
        if value is not None:
            raise DataError(
                key,
                f"{value}, but {folder} holds masks only",
                "leave it out to evaluate them as they are",
            )
