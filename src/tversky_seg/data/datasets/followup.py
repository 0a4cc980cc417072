"""Follow-up examinations in folders: `<subject>/<session>/FLAIR.nii.gz`, no data set of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tversky_seg.data.case import Case
from tversky_seg.data.datasets._common import log_left_out, unlike, with_baselines
from tversky_seg.data.discovery.vocabulary import read_stem, says_nothing
from tversky_seg.data.discovery.walk import RESULT_FOLDERS
from tversky_seg.data.errors import DataError
from tversky_seg.data.image_files import image_stem, is_nifti
from tversky_seg.data.manifest_columns import is_reserved

ROWS = ("sessions", "pairs")
LEFT_OUT = {
    "*new*": "masks of new lesions, or a name with that word; data.importer.rows=pairs reads them",
    "*": "no folder of a session, a name that tells nothing, or no earlier session",
}
_NEW = re.compile(r"(?<![A-Za-z])new(?![A-Za-z])", re.IGNORECASE)
_FIRST = re.compile(r"(ses[-_])?(baseline|bl|screening)\d*", re.IGNORECASE)


def find_followup(root: Path, *, rows: str = "sessions") -> list[Case]:
    """List the examinations of patients who were scanned several times, or pairs of them.

    Files lie in a folder for each subject and, below, one for each session, perhaps in `anat`
    there. Their names tell modality, label or brain mask: `flair.nii.gz`, `p1_T1w.nii.gz`,
    `lesions.nii.gz`, `brain_mask.nii.gz`; `new_lesions.nii.gz` is a label of new lesions. Sessions
    follow each other by the numbers or dates in their names; `baseline` comes first.

    Left out: images outside such folders, and those whose names tell nothing.

    Args:
        root: Folder of the subjects.
        rows: "sessions": a case is a session, and names the one before it as its baseline.
            "pairs": a case is a session with the one before it: `FLAIR@2` and `FLAIR@1` of all
            modalities that both have. The label is that of new lesions; where a session has
            none, that of all its lesions.

    Raises:
        DataError: There is no session, or no pair of them, two files of a session are of one
            kind, or `rows` is another.
    """
    if rows not in ROWS:
        raise DataError("data.importer.rows", repr(rows), f"expected one of {', '.join(ROWS)}")
    root = Path(root)
    sessions: list[Case] = []
    new_lesions: dict[str, Path] = {}
    for folder in _session_folders(root):
        case_id = f"{folder.parent.name}_{folder.name}"
        files = _files_of(folder)
        if "new" in files:
            new_lesions[case_id] = files.pop("new")
        case = _case(case_id, folder, files)
        if case.images:
            sessions.append(case)
    if not sessions:
        raise unlike(root, "follow-up examinations", "<subject>/<session>/flair.nii.gz")
    cases = with_baselines(sessions)
    if rows == "pairs":
        cases = _pairs(cases, new_lesions)
    if not cases:
        raise DataError(root, "no subject has two sessions", "expected data.importer.rows=sessions")
    log_left_out(root, cases, LEFT_OUT)
    return cases


def _session_folders(root: Path) -> Iterator[Path]:
    """Yield the folders of all sessions: those of a subject after each other, in time."""
    for subject in sorted(root.glob("*/"), key=_in_time):
        # Predictions written here before would be read as examinations.
        if subject.name.startswith(".") or subject.name.lower() in RESULT_FOLDERS:
            continue
        for folder in sorted(subject.glob("*/"), key=_in_time):
            # <subject>/anat is no session.
            if not says_nothing(folder.name):
                yield folder


def _in_time(folder: Path) -> tuple[bool, list[str | int]]:
    """Sort m6 before m12, and the baseline before both."""
    # Words and numbers take turns, so that like is compared with like.
    parts: list[str | int] = []
    for part in re.split(r"(\d+)", folder.name.lower()):
        parts.append(int(part) if part.isdigit() else part)
    return _FIRST.fullmatch(folder.name) is None, parts


def _files_of(folder: Path) -> dict[str, Path]:
    """Return column, or "new" for new lesions -> file of a session.

    Raises:
        DataError: Two files are of one kind.
    """
    files: dict[str, Path] = {}
    for file in sorted([*folder.glob("*"), *folder.glob("anat/*")]):
        if not is_nifti(file) or file.name.startswith("."):
            continue
        column, _ = read_stem(image_stem(file))
        if column == "label" and _NEW.search(image_stem(file)):
            column = "new"
        if column in files:
            expected = "move one away, or write patterns: tversky-seg manifest --help"
            raise DataError(folder, f"holds {files[column].name} and {file.name}", expected)
        if column is not None:
            files[column] = file
    return files


def _case(case_id: str, folder: Path, files: Mapping[str, Path]) -> Case:
    label = files.get("label")
    return Case(
        case_id=case_id,
        subject_id=folder.parent.name,
        images={name: file for name, file in files.items() if not is_reserved(name)},
        labels=(label,) if label else (),
        brain_mask=files.get("brain_mask"),
        session=folder.name,
    )


def _pairs(sessions: Sequence[Case], new_lesions: Mapping[str, Path]) -> list[Case]:
    """Make a case of each session and the one before it."""
    by_id = {case.case_id: case for case in sessions}
    pairs = []
    for later in sessions:
        if later.baseline is None:
            continue
        earlier = by_id[later.baseline]
        common = [name for name in later.images if name in earlier.images]
        images = {f"{name}@2": later.images[name] for name in common}
        images |= {f"{name}@1": earlier.images[name] for name in common}
        new = new_lesions.get(later.case_id)
        both = (*earlier.labels, *later.labels)
        pair = replace(
            later,
            images=images,
            labels=(new,) if new else later.labels,
            # The mask of one time alone says nothing of what is new.
            labels_at=both if len(both) == 2 else (),
            baseline=None,
        )
        pairs.append(pair)
    return pairs
