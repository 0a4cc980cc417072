"""One examination of one subject, and the rules that the cases of a cohort keep."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tversky_seg.data.errors import DataError
from tversky_seg.data.image_files import file_and_frame

SPLITS = ("train", "val", "test")
MAX_NAME_LENGTH = 128
MAX_NAME_BYTES = 200  # a file name may have 255, and _probability.nii.gz and a class come after
_PUNCTUATION = " .=+@-"


@dataclass(frozen=True)
class Case:
    """One examination of one subject: its image files, and its labels if somebody drew any.

    Attributes:
        case_id: Unique name, safe as part of a file name.
        subject_id: Subject examined; no split separates the cases of one subject.
        images: Modality name -> file, in the cohort's order of modalities.
        labels: Label to train on and to evaluate against, then those of other raters; empty for a
            case that is only predicted.
        brain_mask: Mask of the brain (or organ); None: the voxels that are not background.
        site: Hospital or scanner.
        session: Time point.
        split: "train", "val", "test" or None.
        fold: Number of the fold that holds this case out, or None.
        consensus: Whether the first of several labels is the raters' consensus, and not the first
            rater's own.
        labels_at: Masks of all lesions at the earlier and at the later time point, where the case
            is a pair of these; else empty.
        baseline: Id of the case of an earlier examination of the subject, or None.
        space: Space of its affine, such as "MNI", or None.
        repeat_of: Id of the case that this one repeats: the first of a scan-rescan pair, or None.
        ignore_mask: Mask of voxels, on the grid of the label, that neither training nor evaluation
            counts; None: no file names any.
        metadata: Column -> value of the manifest's other columns, such as scanner or age.
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
    labels_at: tuple[Path, ...] = ()
    baseline: str | None = None
    space: str | None = None
    repeat_of: str | None = None
    ignore_mask: Path | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> Path | None:
        """Label to train on and to evaluate against, or None."""
        return self.labels[0] if self.labels else None

    @property
    def raters(self) -> tuple[Path, ...]:
        """Labels that one rater each drew, the first rater's first."""
        return self.labels[1:] if self.consensus else self.labels

    @property
    def paths(self) -> list[Path]:
        """Images, labels and masks, each as the manifest names it: perhaps with a frame."""
        paths = [*self.images.values(), *self.labels, *self.labels_at]
        for mask in (self.brain_mask, self.ignore_mask):
            if mask is not None:
                paths.append(mask)
        return paths


def missing_modalities(
    case: Case, modalities: Sequence[str], require: Sequence[str] | None
) -> list[str]:
    """List the modalities that a case would need but has no image of.

    Args:
        case: The case.
        modalities: Channels of the network.
        require: Those that every case has; None: all. Without a single image, all of them are
            missing.
    """
    if modalities and not any(name in case.images for name in modalities):
        return list(modalities)
    needed = modalities if require is None else require
    return [name for name in needed if name not in case.images]


def modalities_of(case: Case, modalities: Sequence[str]) -> tuple[str, ...]:
    """List the modalities that a case has an image of, in the order of the channels."""
    return tuple(name for name in modalities if name in case.images)


def files_of(cases: Sequence[Case]) -> list[Path]:
    """List the files of some cases, each once: images, labels and masks."""
    files: dict[Path, None] = {}  # as an ordered set
    for case in cases:
        for path in case.paths:
            file, _ = file_and_frame(path)
            files[file] = None
    return list(files)


def normal_form(name: str) -> str:
    """Return the one form of a name: macOS writes é in two characters, most others in one."""
    return unicodedata.normalize("NFC", name)


def same_file_name(name: str) -> str:
    """Return what two names have in common if they are one file on macOS or Windows."""
    return normal_form(normal_form(name).casefold())


def broken_name_rule(name: str) -> str | None:
    """Tell what is expected of a name that cannot stand in a file name on any system.

    A name has no separator, neither begins nor ends with a dot or space, and is not empty.

    Returns:
        Half a sentence for the user; None for a safe name.
    """
    if not _has_safe_characters(name):
        return "expected letters, digits and _ . = + @ -"
    if len(name) > MAX_NAME_LENGTH or len(name.encode()) > MAX_NAME_BYTES:
        return f"expected at most {MAX_NAME_LENGTH} characters and {MAX_NAME_BYTES} bytes"
    return None


def _has_safe_characters(name: str) -> bool:
    if not name or not _is_letter(name[0]) or name[-1] in " .":
        return False
    return all(_is_letter(c) or _is_mark(c) or c in _PUNCTUATION for c in name)


def _is_letter(character: str) -> bool:
    return character.isalnum() or character == "_"


def _is_mark(character: str) -> bool:
    """Tell accents and vowel signs, which belong to the letter before them."""
    return unicodedata.category(character).startswith("M")


def check_case_id(case_id: str, *, source: str = "data") -> None:
    """Check that a case id can become part of file names.

    Args:
        case_id: Name of a case.
        source: File or folder that names it, for the error.

    Raises:
        DataError: It is empty, has a slash, or begins with a dot.
    """
    expected = broken_name_rule(case_id)
    if expected is not None:
        expected += ", since it becomes part of file names"
        raise DataError(source, f"case_id {case_id!r}", expected, case_id=case_id)


def check_cases(cases: Sequence[Case], *, source: str) -> None:
    """Check the names of cases, and that each subject is in one split and one fold.

    Raises:
        DataError: A name is unsafe or not unique, or a subject is in two splits or folds.
    """
    faults = case_faults(cases, source=source)
    if faults:
        raise DataError.gather(faults)


def case_faults(cases: Sequence[Case], *, source: str) -> list[DataError]:
    """List unsafe and duplicate case ids, and subjects in two splits or folds."""
    # Each case is checked by itself, so that the data check lists all faults at once.
    faults: list[DataError] = []
    case_id_of: dict[str, str] = {}  # file name on macOS and Windows -> case
    for case in cases:
        file_name = same_file_name(case.case_id)
        earlier = case_id_of.get(file_name)
        try:
            check_case_id(case.case_id, source=source)
            if earlier is not None:
                raise _duplicate(case.case_id, earlier, source=source)
        except DataError as fault:
            faults.append(fault)
        case_id_of.setdefault(file_name, case.case_id)
    for column in ("split", "fold"):
        try:
            value_by_subject(cases, column, source=source)
        except DataError as fault:
            faults.append(fault)
    return faults


def value_by_subject(cases: Sequence[Case], column: str, *, source: str = "data") -> dict[str, Any]:
    """Map each subject to its split or its fold; subjects without one are left out.

    Args:
        cases: Cases of any subjects.
        column: "split" or "fold".
        source: File or folder that lists the cases, for the error.

    Raises:
        DataError: Cases of one subject differ in it.
    """
    values_of: dict[str, set[Any]] = defaultdict(set)
    for case in cases:
        value = getattr(case, column)
        if value is not None:
            values_of[case.subject_id].add(value)
    faults = []
    for subject, values in values_of.items():
        if len(values) > 1:
            names = " and ".join(sorted(str(value) for value in values))
            fault = f"subject {subject!r} is in {column} {names}"
            faults.append(DataError(source, fault, "expected all cases of a subject in one"))
    if faults:
        raise DataError.gather(faults)
    value_of: dict[str, Any] = {}
    for subject, (value,) in values_of.items():
        value_of[subject] = value
    return value_of


def _duplicate(case_id: str, earlier: str, *, source: str) -> DataError:
    fault = f"duplicate case_id {case_id!r}"
    # They look different to the user: say why they clash.
    if earlier != case_id:
        fault += f" (the same file as {earlier!r} on some systems)"
    return DataError(source, fault, "give each case its own", case_id=case_id)
