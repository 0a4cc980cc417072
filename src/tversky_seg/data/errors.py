"""The error for a fault in the user's data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tversky_seg.runtime.one_line import printable_line
from tversky_seg.runtime.program import as_called


class DataError(ValueError):
    """A fault in the user's data; its text is one line, `<where>: <found>; <expected>`.

        raise DataError(path, "ends in the middle of the file", "copy it again")

    Attributes:
        where: File, folder, key or column at fault.
        found: What was found there.
        expected: What was expected, or what to do; may be empty.
        case_id: Case at fault, where it is known.
        faults: One error for each fault where several were found; else this error alone.
    """

    def __init__(
        self,
        where: object,
        found: str = "",
        expected: str = "",
        *,
        case_id: str | None = None,
        faults: Sequence[DataError] = (),
    ) -> None:
        self.where = str(where)
        self.found = found
        self.expected = expected
        self.case_id = case_id
        text = self.where
        if found:
            text += f": {found}"
        if expected:
            text += f"; {expected}"
        super().__init__(printable_line(text))
        self.faults = tuple(faults) or (self,)

    @classmethod
    def gather(
        cls, errors: Iterable[DataError], *, others: str = "run scripts/check_data.py"
    ) -> DataError:
        """Make one error of several: the first, and how many more there are.

        Args:
            errors: One error or more.
            others: Where the user finds the others; empty if nowhere.
        """
        faults: list[DataError] = []
        for error in errors:
            faults.extend(error.faults)
        first = faults[0]
        if len(faults) == 1:
            return first
        # The number goes to the end of the text, whichever part stands there.
        parts = [part for part in (first.where, first.found, first.expected) if part]
        count = f"{len(faults) - 1} more"
        if others:
            count += f": {as_called(others)}"
        parts[-1] += f" (and {count})"
        return cls(*parts, case_id=first.case_id, faults=faults)


class NonFiniteError(DataError):
    """A volume with voxels that are NaN or infinite."""

    n_voxels: int = 0
    """Number of these voxels."""
