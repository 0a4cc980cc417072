"""Helpers of the importers."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tversky_seg.data.case import Case, files_of
from tversky_seg.data.datasets.recognition import data_sets_of
from tversky_seg.data.errors import DataError
from tversky_seg.data.image_files import NIFTI_ENDINGS, is_nifti
from tversky_seg.runtime.files import read_json

logger = logging.getLogger("tversky_seg")

MAX_FOLDERS = 2000  # searched for files of another data set
ARCHIVE_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".7z")


def find_nifti(folder: Path, *stems: str) -> Path | None:
    """Return the first of these files that exists, with either ending of a NIfTI file."""
    for stem in stems:
        for ending in NIFTI_ENDINGS:
            file = folder / f"{stem}{ending}"
            if file.is_file():
                return file
    return None


def find_nifti_each(folder: Path, stems: Iterable[str]) -> tuple[Path, ...]:
    """List the files of these stems that exist, in their order."""
    files = [find_nifti(folder, stem) for stem in stems]
    return tuple(file for file in files if file is not None)


def find_images(folder: Path, stems: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """Return modality -> file of the images that exist.

    Args:
        folder: Folder of a case.
        stems: Modality -> names without ending; of several the first that exists is taken.
    """
    images = {}
    for modality, names in stems.items():
        file = find_nifti(folder, *names)
        if file:
            images[modality] = file
    return images


def folders_below(root: Path, pattern: str, *, max_depth: int) -> list[Path]:
    """List the folders of a name, those nearest to the root first.

    Args:
        root: Folder to search.
        pattern: Shell pattern of the path, as in `P[0-9]*` or `training/*`.
        max_depth: Folders between the root and the pattern, at most.
    """
    folders: list[Path] = []
    for depth in range(max_depth + 1):
        folders += sorted(root.glob("*/" * depth + pattern + "/"))
    return folders


def unlike(root: Path, data_set: str, expected: str) -> DataError:
    """Make the error for a folder without a case of the data set.

    Args:
        root: Folder that was searched.
        data_set: Its name.
        expected: Files by which it is known, relative to the root.
    """
    fault = f"does not look like {data_set}"
    others = data_sets_of(_files_below(root))
    if others:
        # Perhaps another word was meant, or the folder above or below.
        fault += f" (files named as in data={others[0]})"
    for file in sorted(root.glob("*")):
        if file.name.lower().endswith(ARCHIVE_ENDINGS):
            return DataError(root, f"{fault}, but holds {file.name}", f"unpack it, to {expected}")
    return DataError(root, fault, f"expected {expected}")


def _files_below(root: Path) -> Iterator[Path]:
    # A wrong root may be a whole disk.
    for number, (folder, _, names) in enumerate(os.walk(root)):
        if number == MAX_FOLDERS:
            return
        for name in names:
            yield Path(folder, name)


def with_baselines(cases: Sequence[Case]) -> list[Case]:
    """Name the examination before each as its baseline.

    Args:
        cases: Cases of any subjects, those of a subject in the order of their examinations.
    """
    latest: dict[str, str] = {}  # subject -> case
    linked = []
    for case in cases:
        linked.append(replace(case, baseline=latest.get(case.subject_id)))
        latest[case.subject_id] = case.case_id
    return linked


def log_left_out(root: Path, cases: Sequence[Case], reasons: Mapping[str, str]) -> None:
    """Log which images of a download no case uses, and why: a line for each reason.

    As "/data/MSLesSeg: left out (118), as MSLesSeg_RAW/P1/T1/P1_T1_FLAIR.nii.gz: raw scans".

    Args:
        root: Folder of the download.
        cases: All its cases.
        reasons: Shell pattern of a path below the root -> why such images are left out; the first
            that fits counts, and what none fits is a warning.
    """
    used = {file.absolute() for file in files_of(cases)}
    left_out: dict[str, list[str]] = {}
    for file in sorted(root.rglob("*")):
        name = file.relative_to(root).as_posix()
        # Archives from macOS hold a twin `._name` of each file.
        if is_nifti(file) and not file.name.startswith(".") and file.absolute() not in used:
            left_out.setdefault(_reason_for(name, reasons), []).append(name)
    for reason, names in left_out.items():
        level = logging.INFO if reason in reasons.values() else logging.WARNING
        logger.log(level, "%s: left out (%d), as %s: %s", root, len(names), names[0], reason)


def _reason_for(name: str, reasons: Mapping[str, str]) -> str:
    for pattern, reason in reasons.items():
        if fnmatch(name, pattern):
            return reason
    return "neither name nor folder is known of this data set"


def check_split(split: str | None, splits: Iterable[str]) -> None:
    """Refuse a split of the literature that the data set does not have.

    Raises:
        DataError: Naming the key and the splits.
    """
    if split is not None and split not in splits:
        expected = f"expected null or {', '.join(splits)}"
        raise DataError("data.importer.split", repr(split), expected)


@contextmanager
def understanding(path: Path, *, folder_name: str) -> Iterator[None]:
    """Name the file where its content has another form than expected.

    Args:
        path: The `dataset.json` that the block goes through.
        folder_name: Kind of folder that it belongs to, for the message.

    Raises:
        DataError: Anything in it is of another type than expected.
    """
    try:
        yield
    except DataError:
        raise
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        found = f"has entries of another form ({type(error).__name__}: {error})"
        raise DataError(path, found, f"expected that of {folder_name}") from error


def read_listing(path: Path, *, folder_name: str) -> dict[str, Any]:
    """Read a `dataset.json`.

    Args:
        path: The file.
        folder_name: Kind of folder that it belongs to, for the message.

    Raises:
        DataError: The file is missing or is not a JSON object.
    """
    try:
        listing = read_json(path)
    except OSError as error:
        raise DataError(path, str(error.strerror), f"expected {folder_name}") from error
    except ValueError as error:
        raise DataError(path, "is not JSON", f"expected that of {folder_name}") from error
    if not isinstance(listing, dict):
        raise DataError(path, "is not a JSON object", f"expected that of {folder_name}")
    return listing
