"""Groups of the evaluated cases: by site, scanner, modalities or any column of the manifest."""

from __future__ import annotations

from collections.abc import Sequence

from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError

AUTOMATIC = ("site", "scanner", "modalities")
"""Columns by which cases are grouped unless others are asked for."""

TAKEN = ("lesion", "lesion_settings", "size")
"""Columns whose key `by_<column>` in metrics.json has another meaning."""

Groups = dict[str | None, list[int]]
"""Value of a column -> places of its cases in the cohort; None: cases without a value."""


def check_columns(cases: Sequence[Case], by: Sequence[str] | None) -> None:
    """Check that some case has a value of each column.

    Args:
        cases: Cases to evaluate.
        by: Columns; None: `AUTOMATIC`, which may be missing.

    Raises:
        DataError: No case has a value of a column.
    """
    if isinstance(by, str):
        raise DataError("evaluation.by", repr(by), "expected a list as in [site,scanner]")
    for column in by or ():
        if column in TAKEN:
            found = f"{column!r} is the name of another section of metrics.json"
            raise DataError("evaluation.by", found, "rename the column")
        if not any(group_of(case, column) for case in cases):
            names = ["site", "session", "modalities"]
            for case in cases:
                names += [name for name in case.metadata if name not in names]
            expected = f"expected some of {', '.join(names)}"
            raise DataError("evaluation.by", f"no case has a value of {column!r}", expected)


def group_cases(cases: Sequence[Case], by: Sequence[str] | None) -> dict[str, Groups]:
    """Group cases by columns; a column with one value for all is left out unless asked for.

    Args:
        cases: Evaluated cases.
        by: Columns; None: those of `AUTOMATIC` in which cases differ.

    Returns:
        Column -> its groups, in the order of their values; cases without a value come last.
    """
    groups_by: dict[str, Groups] = {}
    for column in AUTOMATIC if by is None else by:
        groups: Groups = {}
        for place, case in enumerate(cases):
            groups.setdefault(group_of(case, column), []).append(place)
        if by is not None or len(groups) > 1:
            groups_by[column] = dict(sorted(groups.items(), key=_values_first))
    return groups_by


def group_of(case: Case, column: str) -> str | None:
    """Return the value of a case in a column of the manifest; None without one."""
    if column == "site":
        return case.site
    if column == "session":
        return case.session
    if column == "modalities":
        # As "FLAIR + T1".
        return " + ".join(case.images) or None
    return case.metadata.get(column) or None


def _values_first(group: tuple[str | None, list[int]]) -> tuple[bool, str]:
    value, _ = group
    return value is None, value or ""
