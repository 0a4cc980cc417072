"""Helpers of the importers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tversky_seg.data.errors import DataError
from tversky_seg.data.image_files import NIFTI_ENDINGS
from tversky_seg.runtime.files import read_json


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
