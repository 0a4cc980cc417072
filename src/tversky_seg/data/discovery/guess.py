"""Columns and cases guessed from the names of the files in a folder."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from tversky_seg.data.bids_inputs import is_bids
from tversky_seg.data.case import normal_form
from tversky_seg.data.datasets.recognition import data_sets_of
from tversky_seg.data.discovery.patterns import FoundCase, Search
from tversky_seg.data.discovery.vocabulary import (
    column_of_folder,
    is_session,
    is_subject,
    part_session,
    read_stem,
    says_nothing,
    without_modality,
)
from tversky_seg.data.discovery.walk import Listing, list_images
from tversky_seg.data.errors import DataError
from tversky_seg.data.image_files import image_stem
from tversky_seg.data.manifest_columns import is_reserved

UNKNOWN = "image"
"""Column of images whose names tell no modality."""
SPLIT_WORDS = ("train", "training", "val", "valid", "validation", "test", "testing")
Key = tuple[tuple[str, ...], str]
"""Folders and the beginning of the name, which files of one case have in common."""


@dataclass(eq=False)
class _File:
    """An image, and what its name tells."""

    path: Path
    folders: tuple[str, ...]
    """Folders below the one that is searched, without those that name no case."""
    stem: str
    column: str | None
    prefix: str
    """Beginning of the name, before the word that tells the column."""


def search_folder(folder: Path, names: Mapping[str, Sequence[str]]) -> Search:
    """Guess columns and cases of the images below a folder.

    Args:
        folder: Folder of a dataset.
        names: Column -> patterns of file names, in place of the guess.

    Raises:
        DataError: There is no such folder, or no image in it, or a pattern matches none.
    """
    if not folder.is_dir():
        fault = "is a file" if folder.is_file() else "no such folder"
        raise DataError(folder, fault, "expected a folder, or COLUMN=PATTERN")
    listing = list_images(folder)
    if not listing.images:
        raise DataError(folder, "no NIfTI image (.nii, .nii.gz) in it", _first_skipped(listing))
    files = [_read(path, folder) for path in listing.images]
    _apply_names(files, names, folder)
    _name_unknown(files)
    columns = {file.column for file in files if file.column is not None}
    # Masks alone are nothing to train on.
    if all(is_reserved(column) for column in columns):
        fault = f"{len(files)} images, whose names tell no modality"
        raise DataError(folder, fault, "name them, as 'FLAIR=*flair*.nii*'")
    cases: dict[Key, FoundCase] = {}
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    unmatched: list[Path] = []
    keys = _keys(files)
    for file, key in zip(files, keys, strict=True):
        if file.column is None or key is None:
            unmatched.append(file.path)
            continue
        case = cases.setdefault(key, FoundCase({}))
        case.files.setdefault(file.column, []).append(file.path)
        kinds[file.column][_kind(file, key[1])] += 1
    named = _named_parts(list(cases), folder)
    for key, parts in named.items():
        cases[key].names = parts
    return Search(
        cases=[cases[key] for key in sorted(cases)],
        sources={column: _usual_first(kinds[column]) for column in sorted(kinds)},
        unmatched=unmatched,
        skipped=listing.skipped,
        is_guess=True,
        notes=tuple(_notes(folder, listing.images, [part["subject"] for part in named.values()])),
    )


def _first_skipped(listing: Listing) -> str:
    """Say which images were passed over, if that is why there is none."""
    for reason, paths in listing.skipped.items():
        if paths:
            return f"{len(paths)} {reason}, as {paths[0]}"
    return "expected the folder of a dataset"


def _read(path: Path, folder: Path) -> _File:
    folders = path.relative_to(folder).parts[:-1]
    stem = normal_form(image_stem(path))
    column, prefix = read_stem(stem)
    of_folder: str | None = None
    for name in folders:
        # The innermost folder that says something decides.
        of_folder = column_of_folder(name) or of_folder
    remaining = [name for name in folders if not says_nothing(name)]
    if of_folder == "label" and column != "brain_mask":
        # Masks are often named like the image they belong to.
        column = "label"
    elif column is None and of_folder is not None:
        column = of_folder
        remaining = [name for name in remaining if column_of_folder(name) != of_folder]
    elif column is None:
        # As nnU-Net names them: case_0000.nii.gz in imagesTr.
        channel = re.fullmatch(r"(.+)_(\d{4})", stem)
        if channel is not None and any(name.lower().startswith("images") for name in folders):
            column, prefix = f"channel_{int(channel[2])}", channel[1]
    return _File(path, tuple(map(normal_form, remaining)), stem, column, prefix)


def _apply_names(files: Sequence[_File], names: Mapping[str, Sequence[str]], folder: Path) -> None:
    """Replace the guess where the user names files.

    A pattern chooses among the files that were guessed for its column; where it matches none of
    those, among all.
    """
    for column, texts in names.items():
        patterns = [text.lower() for text in texts if text]
        matched: list[_File] = []
        for file in files:
            below = normal_form(file.path.relative_to(folder).as_posix()).lower()
            if _matches_any(below, patterns):
                matched.append(file)
        if patterns and not matched:
            example = files[0].path.relative_to(folder)
            fault = f"matches none of {len(files)} images in {folder}"
            raise DataError(f"{column}={texts[0]}", fault, f"there is {example}")
        guessed = [file for file in files if file.column == column]
        # *mask* given for label is not to take the brain masks along.
        chosen = [file for file in guessed if file in matched] or matched
        for file in guessed:
            file.column = None
        for file in chosen:
            file.column = column


def _matches_any(below: str, patterns: Iterable[str]) -> bool:
    """Match the end of a path: the name, or the name with folders before it."""
    for pattern in patterns:
        wanted = normal_form(pattern)
        if fnmatchcase(below, wanted) or fnmatchcase(below, f"*/{wanted}"):
            return True
    return False


def _name_unknown(files: Sequence[_File]) -> None:
    """Take images of unknown modality where no other is known, or a label belongs to them."""
    knows_one = any(file.column is not None and not is_reserved(file.column) for file in files)
    labelled = {(file.folders, file.prefix) for file in files if file.column == "label"}
    for file in files:
        is_labelled = (file.folders, file.stem) in labelled
        if file.column is None and (is_labelled or not knows_one):
            file.column = UNKNOWN
            file.prefix = file.stem


def _keys(files: Sequence[_File]) -> list[Key | None]:
    """Find the case of each file; None for labels that belong to several."""
    prefixes: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for file in files:
        if file.column is not None and not is_reserved(file.column):
            prefixes[file.folders].add(file.prefix)
    # sub01_T2_FLAIR beside sub01_T1 is the FLAIR of sub01.
    for known in prefixes.values():
        longer = {prefix for prefix in known if without_modality(prefix) != prefix}
        known -= {prefix for prefix in longer if without_modality(prefix) in known}
    keys: list[Key | None] = []
    for file in files:
        prefix = _prefix_among(file, prefixes.get(file.folders, set()))
        keys.append(None if prefix is None else (file.folders, prefix))
    return keys


def _prefix_among(file: _File, known: set[str]) -> str | None:
    """Return the beginning of the name that a file has in common with the images of its case."""
    for candidate in (file.prefix, without_modality(file.prefix), file.stem):
        if candidate in known:
            return candidate
    beginnings = [prefix for prefix in known if prefix and file.stem.startswith(prefix)]
    if beginnings:
        # Of sub1 and sub10, sub10_mask belongs to the second.
        return max(beginnings, key=len)
    if len(known) == 1:
        return next(iter(known))
    # A label without an image is a case of its own, which is then left out and named.
    return file.prefix if not known else None


def _kind(file: _File, prefix: str) -> str:
    """Write a pattern for the files that are named like this one, but for the case."""
    rest = file.stem.removeprefix(prefix)
    if rest:
        return f"*{rest}.nii*" if prefix else f"{rest}.nii*"
    return f"{file.path.parent.name}/*.nii*"


def _usual_first(n_files_of: Counter[str]) -> list[str]:
    """Sort patterns: those of most files first, of these the shortest."""
    return sorted(n_files_of, key=lambda kind: (-n_files_of[kind], len(kind), kind))


def _notes(folder: Path, images: Sequence[Path], subjects: Sequence[str]) -> Iterator[str]:
    """Say what a guess cannot know."""
    for name in data_sets_of(images):
        yield (
            f"this looks like a public data set: tversky-seg import {name} {folder} OUT.csv knows "
            "its splits, sites and raters, and which files are to be left out"
        )
    if is_bids(folder):
        yield "this is a BIDS folder: the command import bids finds masks in its derivatives too"
    # LIDC-0003_1 and LIDC-0003_2 may be one patient, who must not be in two splits.
    members: dict[str, list[str]] = defaultdict(list)
    for subject in sorted(set(subjects)):
        beginning = re.match(r"(.*\d.*?)[_-][A-Za-z]*[_-]?\d+$", subject)
        if beginning is not None:
            members[beginning[1]].append(subject)
    several = [names for names in members.values() if len(names) > 1]
    if several and len(members) > 1:
        first, second, *_ = several[0]
        yield (
            f"subject_id: are {first} and {second} one person? then name the parts by a pattern, "
            "as {subject}_{session}, for splits are drawn by subject"
        )


def _named_parts(keys: Sequence[Key], folder: Path) -> dict[Key, dict[str, str]]:
    """Tell subject, session, site and split of each case by its folders and its name."""
    common = _n_common([folders for folders, _ in keys])
    # A single case keeps the folder that names it.
    if len({folders for folders, _ in keys}) == 1 and len(keys) == 1:
        common = max(common - 1, 0)
    rest = {key: key[0][common:] for key in keys}
    firsts = {folders[0].lower() if folders else "" for folders in rest.values()}
    # One folder `train` alone tells no split: there is nothing to hold out.
    has_split = len(firsts) > 1 and firsts <= set(SPLIT_WORDS)
    names: dict[Key, dict[str, str]] = {}
    prefixes: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for key in keys:
        names[key] = {"split": rest[key][0]} if has_split else {}
        rest[key] = rest[key][1:] if has_split else rest[key]
        prefixes[rest[key]].add(key[1])
    is_case_a_folder = all(rest.values()) and all(len(known) == 1 for known in prefixes.values())
    levels = list(rest.values())
    for key in keys:
        if is_case_a_folder:
            names[key] |= _parts_of_folders(rest[key], levels)
        else:
            names[key] |= _parts_of_name(rest[key], key[1], folder)
    return names


def _n_common(all_folders: Sequence[tuple[str, ...]]) -> int:
    """Count the folders that all paths begin with, before one that names a subject."""
    n = 0
    for level in zip(*all_folders, strict=False):
        if len(set(level)) > 1 or is_subject(level[0]):
            break
        n += 1
    return n


def _parts_of_folders(
    folders: tuple[str, ...], all_folders: Sequence[tuple[str, ...]]
) -> dict[str, str]:
    """Tell the parts where each case has a folder of its own."""
    if len(folders) == 1:
        return {"subject": folders[0]}
    lasts = [other[-1] for other in all_folders]
    n_firsts = len({other[0] for other in all_folders})
    are_sessions = all(map(is_session, lasts)) or len(set(lasts)) < len(lasts)
    if len(folders) == 2 and (are_sessions or n_firsts == len(lasts)):
        return {"subject": folders[0], "session": folders[1]}
    if len(folders) == 2:
        return {"site": folders[0], "subject": folders[1]}
    return {"site": folders[0], "subject": folders[1], "session": "_".join(folders[2:])}


def _parts_of_name(folders: tuple[str, ...], prefix: str, root: Path) -> dict[str, str]:
    """Tell the parts where several cases lie in one folder."""
    if not prefix:
        return {"subject": folders[-1] if folders else root.resolve().name}
    if not folders:
        subject, session = part_session(prefix)
        return {"subject": subject} | ({"session": session} if session else {})
    subject = folders[-1]
    # sub01/sub01_ses1_FLAIR: the folder is the subject.
    if is_subject(subject) or (prefix.startswith(subject) and prefix != subject):
        session = prefix.removeprefix(subject).strip("_-. ")
        return {"subject": subject, "session": session or prefix}
    subject, session = part_session(prefix)
    parts = {"site": "_".join(folders), "subject": subject}
    return parts | ({"session": session} if session else {})
