"""Files that are whole or absent: written beside their place, synced to disk, then renamed."""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

logger = logging.getLogger("tversky_seg")

SCRATCH_PREFIX = ".scratch-"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a scratch file to write, and rename it to `path` once it is complete.

    A reader of `path` sees the old content or the new, never a part, after a power cut too.

        with replacing(folder / "metrics.json") as scratch:
            scratch.write_text("{}", encoding="utf-8")

    Args:
        path: File to write. Its folder must exist.

    Yields:
        A path in the same folder with the same suffix, whose name nobody can guess. It is removed
        if the block fails.

    Raises:
        OSError: The disk is full or read-only; the old file stays.
    """
    scratch = _scratch_beside(path)
    try:
        yield scratch
        # Without the sync a file system may keep the rename and lose the content.
        sync(scratch)
        scratch.replace(path)
        _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):  # also where a parent of the folder is a file
            scratch.unlink()


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a scratch folder to fill, and rename it to `path` once it is complete.

    Args:
        path: Folder to make. Its parents are made; the folder itself must be absent or empty.

    Yields:
        A folder beside it, which is removed if the block fails.

    Raises:
        OSError: The disk is full or read-only, or another process has made `path` meanwhile.
    """
    scratch = _scratch_beside(path)
    try:
        scratch.mkdir(parents=True)
        yield scratch
        for file in scratch.rglob("*"):
            if file.is_file():
                sync(file)
        scratch.rename(path)
        _sync_folder(path.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def remove_scratch_files(folder: Path) -> None:
    """Remove what killed processes left of unfinished files; only the owner of a folder may."""
    for scratch in folder.glob(f"{SCRATCH_PREFIX}*"):
        with contextlib.suppress(OSError):
            scratch.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file that is whole or absent."""
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that is whole or absent."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not JSON in UTF-8, or nested too deeply.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json_if_whole(path: Path) -> dict[str, Any] | None:
    """Read a JSON file that holds names and values, and can be made again.

    Returns:
        Its content; None if the file is absent, or damaged, with a warning.
    """
    if not path.exists():
        return None
    content: Any = None
    with contextlib.suppress(ValueError):  # no JSON, or no UTF-8
        content = read_json(path)
    if isinstance(content, dict):
        return content
    logger.warning("%s: is not JSON, maybe after a power cut; it is written again", path)
    return None


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file that is whole or absent: UTF-8, commas, lines that end with a line feed.

    Args:
        path: File to write.
        header: Names of the columns.
        rows: One value for each column; None becomes an empty cell.
    """
    with replacing(path) as scratch, scratch.open("w", encoding="utf-8", newline="") as file:
        write_rows(file, [header])
        write_rows(file, rows)


def append_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Append rows to a CSV file, with the header if it is new, and sync them to disk."""
    is_new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        if is_new:
            write_rows(file, [header])
        write_rows(file, rows)
        file.flush()
        os.fsync(file.fileno())


def write_rows(file: TextIO, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows of a CSV file, with commas and lines that end with a line feed."""
    writer = csv.writer(file, lineterminator="\n")
    # Python leaves a carriage return unquoted, at which readers end the line.
    quoting_all = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        has_return = any(isinstance(cell, str) and "\r" in cell for cell in row)
        chosen = quoting_all if has_return else writer
        chosen.writerow(row)


def sync(file: Path) -> None:
    """Return when the content of a file is on disk, so that a power cut cannot empty it."""
    # Windows syncs only what is open for writing.
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())


def _scratch_beside(path: Path) -> Path:
    """Name a scratch path in the folder of `path`: short, and hidden from globs."""
    # The suffix stays, because nibabel chooses the format by it.
    suffix = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    return path.with_name(f"{SCRATCH_PREFIX}{secrets.token_hex(8)}{suffix}")


def _sync_folder(folder: Path) -> None:
    """Sync the entries of a folder, where the system can: a rename is lost with them."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
