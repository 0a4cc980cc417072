"""One examination of one subject, and what must hold between the cases of a cohort."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tversky_seg.data.errors import DataError

SPLITS = ("train", "val", "test")
_SAFE_NAME = re.compile(r"\w([\w .=+@-]{0,126}[\w=+@-])?")


@dataclass(frozen=True)
class Case:
    """One examination of one subject: its image files, and its label where someone drew one.

    Attributes:
        case_id: Unique, and safe as part of a file name.
        subject_id: Who was examined; splits never part the cases of one subject.
        images: Modality name -> file, in the order of modalities of the cohort.
        labels: The label to train on and judge by, then those of other raters; empty for a case that is predicted only.
        consensus: Whether the first of several labels is what the raters agreed on, and not that of the first rater.
        brain_mask: Where the brain (or organ) is; None: the voxels that are not background.
        site: Hospital or scanner.
        session: Time point.
        split: "train", "val", "test" or None.
        fold: Which fold holds this case out, or None.
    """

    case_id: str
    subject_id: str
    images: Mapping[str, Path]
    labels: tuple[Path, ...] = ()
    brain_mask: Path | None = None
    site: str | None = None
    session: str | None = None
    split: str | None = None
    fold: int | None = None
    consensus: bool = False

    @property
    def label(self) -> Path | None:
        """The label to train on and judge by, or None."""
        return self.labels[0] if self.labels else None

    @property
    def raters(self) -> tuple[Path, ...]:
        """The labels that one rater each drew, the first rater's first."""
        return self.labels[1:] if self.consensus else self.labels


def check_case_id(case_id: str, *, source: str = "data") -> None:
    """Refuse a name that cannot be part of a file name: empty, with a slash, with a leading dot."""
    _require(
        is_safe_name(case_id),
        f"{source}: case_id {case_id!r}; expected letters, digits and _ . = + @ -, since it becomes part of file names",
    )


def is_safe_name(name: str) -> bool:
    """Whether a name can stand in a file name on any system: no separator, no leading dot, not empty."""
    return _SAFE_NAME.fullmatch(name) is not None


def case_files(case: Case) -> list[Path]:
    """List the files of a case: images, labels and brain mask."""
    return [*case.images.values(), *case.labels, *([case.brain_mask] if case.brain_mask else [])]


def check_cases(cases: Sequence[Case], *, source: str) -> None:
    """Refuse names that are unsafe or taken, and subjects in two splits or folds."""
    faults = faults_between_cases(cases, source=source)
    if faults:
        raise DataError.gather(faults)


def faults_between_cases(cases: Sequence[Case], *, source: str) -> list[DataError]:
    """One for each name that is unsafe or taken, and each subject in two splits or folds."""
    faults: list[DataError] = []
    seen: dict[str, str] = {}
    for case in cases:
        try:
            check_case_id(case.case_id, source=source)
            other = seen.get(case.case_id.casefold())
            _require(other is None, f"{source}: case_id {case.case_id!r} stands twice"
                     + (f" (as {other!r}, one file on some systems)" if other != case.case_id else "")
                     + "; expected each case once")  # fmt: skip
        except DataError as fault:
            faults.append(fault)
        seen.setdefault(case.case_id.casefold(), case.case_id)
    for column in ("split", "fold"):
        try:
            value_of_subject(cases, column, source=source)
        except DataError as fault:
            faults.append(fault)
    return faults


def value_of_subject(
    cases: Sequence[Case], column: str, *, source: str = "data"
) -> dict[str, Any] | None:
    """Subject -> its split or fold; None where no case has one."""
    found: dict[str, set[Any]] = defaultdict(set)
    for case in cases:
        if (value := getattr(case, column)) is not None:
            found[case.subject_id].add(value)
    faults = [
        DataError(source, f"subject {subject!r} is in {column} {' and '.join(sorted(map(str, values)))}", 'expected all cases of a subject in one')
        for subject, values in found.items() if len(values) > 1
    ]  # fmt: skip
    if faults:
        raise DataError.gather(faults)
    return {subject: values.pop() for subject, values in found.items()} or None


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise DataError(message)
