"""Columns of a manifest: which hold names, which labels, and which images."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tversky_seg.data.errors import DataError
from tversky_seg.data.image_files import (
    file_and_frame,
    is_nifti,
    is_other_image,
    why_absent,
)

_COLUMNS = (
    "case_id",
    "subject_id",
    "consensus",
    "brain_mask",
    "ignore_mask",
    "site",
    "session",
    "split",
    "fold",
    "baseline",
    "space",
    "repeat_of",
)
LABELS_AT = ("label@1", "label@2")
"""Columns of all lesions at the earlier and at the later time point of a pair."""
_LABEL_COLUMN = re.compile(r"label(_[2-9]|_[1-9]\d+)?")  # label, label_2, label_3, …
USUAL_NAMES_OF_LABELS = (
    "annotation",
    "ground_truth",
    "gt",
    "labels",
    "lesion",
    "lesion_mask",
    "lesions",
    "mask",
    "seg",
    "segmentation",
    "target",
)


def is_reserved(column: str) -> bool:
    """Tell whether a column of a manifest holds something other than images."""
    is_other = column in _COLUMNS or column in LABELS_AT
    return is_other or _LABEL_COLUMN.fullmatch(column) is not None


def is_file_column(column: str) -> bool:
    """Tell whether a column that is no image names files."""
    is_mask = column in ("brain_mask", "ignore_mask") or column in LABELS_AT
    return is_mask or is_label(column)


def is_label(column: str) -> bool:
    """Tell whether a column holds labels: label, label_2, label_3, …."""
    return _LABEL_COLUMN.fullmatch(column) is not None


def number_of_label(column: str) -> int:
    """Read 12 off "label_12"; "label" itself is 1."""
    _, _, number = column.partition("_")
    return int(number or 1)


def image_columns(cells: Mapping[str, Sequence[str]], *, path: Path) -> tuple[str, ...]:
    """List the columns of images: those without another meaning whose cells name files.

    Columns of other cells, such as age, are metadata. Images of the later of two time points come
    first (`FLAIR@2, FLAIR@1`), since predictions lie on the grid of the first.

    Args:
        cells: The cells of each column that are not empty.
        path: The manifest.

    Raises:
        DataError: There is none, or a column seems to hold labels.
    """
    others = [column for column in cells if not is_reserved(column)]
    if not others:
        fault = f"no column of images among {', '.join(cells)}"
        raise DataError(path, fault, "expected one per modality")
    images: list[str] = []
    for name in others:
        # An empty column is one of images that are missing.
        if cells[name] and not any(names_an_image(cell, path.parent) for cell in cells[name]):
            continue
        # A label among the inputs would make a perfect network, and nobody would see why.
        if name.lower() in USUAL_NAMES_OF_LABELS:
            fault = f"column {name!r} would be an image to train on; did you mean label?"
            remedy = "rename it to label or brain_mask, or set data.modalities=[…]"
            raise DataError(path, fault, remedy)
        images.append(name)
    if not images:
        fault = f"column {others[0]!r} holds no images, but {cells[others[0]][0]!r}"
        raise DataError(path, fault, "expected file names, one column per modality")
    # A stable sort: all others stay in the order of the columns.
    return tuple(sorted(images, key=lambda name: not name.endswith("@2")))


def check_header(header: Sequence[str], modalities: Sequence[str], *, path: Path) -> None:
    """Check that each column is there once, under the name that has its meaning.

    Args:
        header: Names of the columns.
        modalities: Columns of images that are needed.
        path: The manifest.

    Raises:
        DataError: A column is missing, there twice, or named almost as another.
    """
    duplicates: list[str] = []
    for name, count in Counter(header).items():
        if count > 1:
            duplicates.append(name)
    if duplicates:
        raise DataError(path, f"duplicate column {', '.join(duplicates)}", "expected each once")
    # "Label" or "case id" would be taken for a modality.
    for name in header:
        plain = name.lower().replace(" ", "_")
        if name != plain and is_reserved(plain):
            raise DataError(path, f"column {name!r}", f"write it as {plain!r}")
    missing = [name for name in ("case_id", "subject_id", *modalities) if name not in header]
    if missing:
        remedy = "add it"
        if set(missing) & set(modalities):
            remedy += " or name other data.modalities"
        raise DataError(path, f"no column {', '.join(missing)} among {', '.join(header)}", remedy)


def names_an_image(cell: str, folder: Path) -> bool:
    """Tell whether a cell ends as an image does, or names a file that is here."""
    file, _ = file_and_frame(folder / cell)
    return is_nifti(file) or is_other_image(file) or why_absent(file) is None
