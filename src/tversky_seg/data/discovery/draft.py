"""The cases of a manifest before it is written: their ids, and what is ambiguous or missing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tversky_seg.data.case import (
    Case,
    broken_name_rule,
    check_cases,
    normal_form,
    same_file_name,
)
from tversky_seg.data.discovery.patterns import FoundCase, Search
from tversky_seg.data.errors import DataError
from tversky_seg.data.manifest_columns import is_label, is_reserved, number_of_label

_SPLITS = {
    "train": "train",
    "training": "train",
    "tr": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
    "ts": "test",
}
_OWN_NAMES = ("case", "subject", "session", "site", "split", "fold")
"""Named parts with a column of their own; others become metadata columns."""


@dataclass(frozen=True)
class Ambiguity:
    """Two or more files for one cell, of which none is taken, or one file for two columns."""

    case_id: str
    column: str
    """One column, or "FLAIR and label"."""
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Draft:
    """A manifest that is not written yet, and what it leaves out."""

    cases: tuple[Case, ...]
    metadata: dict[str, dict[str, str]]
    """Case id -> column -> value, of columns that hold no files."""
    columns: tuple[str, ...]
    """Columns of files, images first."""
    search: Search
    ambiguous: tuple[Ambiguity, ...]
    """The cases of these are left out."""
    without_image: tuple[str, ...]
    """Ids of cases with a label or mask alone, which are left out."""
    notes: tuple[str, ...]
    """Sentences about ids."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Columns of images."""
        return tuple(name for name in self.columns if not is_reserved(name))

    @property
    def without_label(self) -> list[str]:
        """Ids of the cases without a label."""
        return [case.case_id for case in self.cases if not case.labels]

    @property
    def common_modalities(self) -> tuple[str, ...]:
        """Modalities that every case has; without any, the one that most cases have."""
        n_cases_with: Counter[str] = Counter()
        for case in self.cases:
            n_cases_with.update(case.images.keys())
        common = [name for name in self.modalities if n_cases_with[name] == len(self.cases)]
        if not common and self.modalities:
            common = [max(self.modalities, key=lambda name: n_cases_with[name])]
        return tuple(common)

    def advice(self, column: str) -> str:
        """Tell what to do about two files for one cell of a column."""
        if self.search.is_guess and column in self.search.sources:
            return f"choose by a pattern, as '{column}={self.search.sources[column][0]}'"
        return "write patterns that match one file each"

    def require_cases(self) -> None:
        """Check that there is something to write.

        Raises:
            DataError: No case is left.
        """
        if self.cases:
            return
        if self.ambiguous:
            first = self.ambiguous[0]
            # Three names show the pattern; a folder of a thousand would fill the screen.
            names = " and ".join(path.name for path in first.files[:3])
            n_files = "one file for both" if len(first.files) == 1 else f"{len(first.files)} files"
            fault = f"{n_files} in every case, as {names}"
            raise DataError(first.column, fault, self.advice(first.column))
        fault = f"{len(self.without_image)} cases with a label or mask, none with an image"
        remedy = "name the images, as FLAIR=raw/{subject}/*flair*.nii*"
        raise DataError("manifest", fault, remedy)

    def cases_without(self, modality: str) -> list[str]:
        """List the ids of the cases that lack a modality."""
        return [case.case_id for case in self.cases if modality not in case.images]


def make_draft(search: Search) -> Draft:
    """Make the cases of what was found; nothing ambiguous is chosen, so there may be no case.

    Raises:
        DataError: The value of a split or fold is none.
    """
    found = [case for case in search.cases if case.files]
    ids, notes = _name_cases(found)
    cases: list[Case] = []
    metadata: dict[str, dict[str, str]] = {}
    ambiguous: list[Ambiguity] = []
    without_image: list[str] = []
    for one, (case_id, subject_id) in zip(found, ids, strict=True):
        doubtful = _ambiguities(one, case_id)
        ambiguous += doubtful
        if not any(not is_reserved(column) for column in one.files):
            # A mask alone is nothing to train on or to predict.
            without_image.append(case_id)
        elif not doubtful:
            cases.append(_case_of(one, case_id, subject_id))
            # Such as {scanner}: what the user took care to name is not lost.
            extra = {name: one.names[name] for name in one.names if name not in _OWN_NAMES}
            metadata[case_id] = extra
    columns = sorted(search.sources, key=_order_of_column)
    check_cases(cases, source="manifest")
    return Draft(
        cases=tuple(cases),
        metadata=metadata,
        columns=tuple(columns),
        search=search,
        ambiguous=tuple(ambiguous),
        without_image=tuple(without_image),
        notes=(*search.notes, *notes),
    )


def _order_of_column(column: str) -> tuple[int, int]:
    """Sort images before labels, and these before the brain mask; images keep their order."""
    if is_label(column):
        return 1, number_of_label(column)
    return (2 if is_reserved(column) else 0), 0


def _ambiguities(found: FoundCase, case_id: str) -> list[Ambiguity]:
    ambiguous = []
    columns_of: dict[Path, list[str]] = defaultdict(list)
    for column, files in found.files.items():
        if len(_distinct(files)) > 1:
            ambiguous.append(Ambiguity(case_id, column, tuple(files)))
        for path in files:
            columns_of[path].append(column)
    for path, columns in columns_of.items():
        # A label that is an image as well would make a perfect network.
        if len(columns) > 1:
            ambiguous.append(Ambiguity(case_id, " and ".join(columns), (path,)))
    return ambiguous


def _distinct(files: Sequence[Path]) -> list[Path]:
    """Return the files without other names (links) of the same file."""
    by_target: dict[Path, Path] = {}
    for path in files:
        by_target.setdefault(path.resolve(), path)
    return list(by_target.values())


def _case_of(found: FoundCase, case_id: str, subject_id: str) -> Case:
    images: dict[str, Path] = {}
    labels: dict[int, Path] = {}
    for column, files in found.files.items():
        if is_label(column):
            labels[number_of_label(column)] = files[0]
        elif not is_reserved(column):
            images[column] = files[0]
    brain_masks = found.files.get("brain_mask")
    return Case(
        case_id=case_id,
        subject_id=subject_id,
        images=images,
        labels=tuple(labels[number] for number in sorted(labels)),
        brain_mask=brain_masks[0] if brain_masks else None,
        site=found.names.get("site"),
        session=found.names.get("session"),
        split=_split_of(found.names.get("split")),
        fold=_fold_of(found.names.get("fold")),
    )


def _split_of(word: str | None) -> str | None:
    if word is None:
        return None
    split = _SPLITS.get(word.lower())
    if split is None:
        raise DataError("{split}", repr(word), "expected train, val or test")
    return split


def _fold_of(word: str | None) -> int | None:
    if word is None:
        return None
    if not word.isdecimal():
        raise DataError("{fold}", repr(word), "expected a whole number from 0")
    return int(word)


def _name_cases(found: Sequence[FoundCase]) -> tuple[list[tuple[str, str]], list[str]]:
    """Choose the case id and the subject id of each case, and note what is not as in the names.

    A case is named by {case}, otherwise by subject and session; all by their other parts, too, if
    that is not unique.
    """
    notes: list[str] = []
    subjects = _subject_ids(found, notes)
    usual: list[str] = []
    full: list[str] = []
    for one, subject in zip(found, subjects, strict=True):
        session = one.names.get("session")
        parts = [one.names["case"]] if "case" in one.names else [subject]
        if "case" not in one.names and session is not None:
            parts.append(session)
        others = [value for name, value in one.names.items() if name not in _OWN_NAMES]
        usual.append(_safe_name("_".join(parts)))
        full.append(_safe_name("_".join([*parts, *others])))
    # All cases are named alike, rather than only those that clash.
    is_unique = len({same_file_name(name) for name in usual}) == len(usual)
    case_ids: list[str] = []
    taken: set[str] = set()
    for wanted in usual if is_unique else full:
        case_id = _unique(wanted, taken)
        if case_id != wanted:
            notes.append(f"case id {wanted} is taken: the second is {case_id}")
        taken.add(same_file_name(case_id))
        case_ids.append(case_id)
    return list(zip(case_ids, subjects, strict=True)), notes


def _subject_ids(found: Sequence[FoundCase], notes: list[str]) -> list[str]:
    """Name the subjects; the same name at two sites is two people."""
    sites_of: dict[str, set[str]] = defaultdict(set)
    subjects: list[str] = []
    for one in found:
        # Without a subject, each case counts as a person of its own.
        subject = normal_form(one.names.get("subject") or one.names["case"])
        subjects.append(subject)
        sites_of[subject].add(one.names.get("site", ""))
    shared = [subject for subject, sites in sites_of.items() if len(sites) > 1]
    if not shared:
        return subjects
    named: list[str] = []
    for one, subject in zip(found, subjects, strict=True):
        named.append(f"{normal_form(one.names['site'])}_{subject}")
    notes.append(
        f"subject {shared[0]} occurs at {len(sites_of[shared[0]])} sites: taken as different "
        f"people, whose ids begin with the site ({named[subjects.index(shared[0])]})"
    )
    return named


def _safe_name(name: str) -> str:
    """Return a name that can stand in file names: other characters become _."""
    name = normal_form(name)
    if broken_name_rule(name) is None:
        return name
    safe = ""
    for character in name:
        # Tried behind a letter, since accents need one.
        safe += character if broken_name_rule(f"a{character}a") is None else "_"
    safe = safe.strip(" .").lstrip("=+@-") or "case"
    return safe[:100]


def _unique(name: str, taken: set[str]) -> str:
    """Return the name, or with the first free number behind it."""
    candidate = name
    number = 2
    # As files: on some disks names that differ in capitals are one.
    while same_file_name(candidate) in taken:
        candidate = f"{name}_{number}"
        number += 1
    return candidate
