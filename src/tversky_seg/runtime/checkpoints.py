"""Checkpoints: dicts of tensors and plain values, whole or absent, loaded without running code."""

from __future__ import annotations

import hashlib
import logging
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

from tversky_seg.runtime.files import replacing, sync
from tversky_seg.runtime.one_line import printable_line

logger = logging.getLogger("tversky_seg")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message is one line that names the file."""

    def __init__(self, message: str) -> None:
        super().__init__(printable_line(message))


def save_checkpoint(path: Path, content: dict[str, Any], *, previous: Path | None = None) -> None:
    """Write a checkpoint so that a crash leaves either the old file or the new one, never a part.

    Equal contents give equal bytes, so that a repeated step repeats the checksum of its checkpoint.

    Args:
        path: File to write. Its folder is made.
        content: Tensors and plain values (int, float, str, bool, None, list, dict) only.
        previous: File that the old checkpoint is renamed to. None: it is replaced.

    Raises:
        CheckpointError: The disk is full or read-only. The old checkpoint stays valid.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as scratch:
            # torch writes the file's name into it where it is given a path; the bytes of a
            # checkpoint must not depend on that.
            with scratch.open("wb") as file:
                torch.save(_without_shared_objects(content), file)
            # The new file must be safe on disk before the old one loses its name.
            sync(scratch)
            if previous is not None and path.exists():
                path.replace(previous)
    except (OSError, RuntimeError) as error:
        cause = _os_error_behind(error)
        if cause is None:
            raise
        raise CheckpointError(
            f"{path}: cannot be written ({cause.strerror}); "
            "make room and run the same command again"
        ) from error


def load_checkpoint(path: Path | str, *, map_location: str = "cpu") -> dict[str, Any]:
    """Read a checkpoint.

    Only tensors and plain values are unpickled, so a stranger's file runs no code.

    Raises:
        CheckpointError: The file is missing or damaged, or holds anything but tensors and plain
            values.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file; give a checkpoint such as <run>/checkpoints/best.pt"
        )
    damaged = f"{path}: damaged, or not a checkpoint; restore it or train again"
    # torch reads a file with flipped bits without a word.
    if not _is_whole(path):
        raise CheckpointError(damaged)
    try:
        # weights_only refuses pickles that call functions.
        content = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors and plain values; not loaded"
        ) from error
    # Of a damaged pickle torch raises whatever its code comes upon: IndexError, TypeError and more.
    except Exception as error:
        raise CheckpointError(damaged) from error
    if not isinstance(content, dict) or "model" not in content:
        raise CheckpointError(f"{path}: has no entry 'model'; not a checkpoint of this framework")
    return content


def load_newest(*paths: Path) -> dict[str, Any] | None:
    """Load the first readable checkpoint, with a warning for each damaged one before it.

    Args:
        paths: Files from the newest to the oldest; absent ones are passed over.

    Returns:
        The checkpoint, or None if no file exists.

    Raises:
        CheckpointError: There are files, and none can be read.
    """
    first_error = None
    for path in paths:
        if not path.exists():
            continue
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            logger.warning("%s", error)
            first_error = first_error or error
    if first_error is not None:
        raise first_error
    return None


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _without_shared_objects(value: Any) -> Any:
    """Copy dicts, lists and tuples, and make equal strings one object.

    pickle writes an object that it meets again as a reference. A training that was resumed has
    loaded two equal strings, such as "lr", where an uninterrupted one has the same string twice.
    """
    if type(value) is str:
        return sys.intern(value)
    if type(value) is dict:
        copied = {}
        for key, entry in value.items():
            copied[_without_shared_objects(key)] = _without_shared_objects(entry)
        return copied
    if type(value) in (list, tuple):
        return type(value)([_without_shared_objects(entry) for entry in value])
    # Other types, such as the state dict of a network, are built again for each checkpoint.
    return value


def _os_error_behind(error: OSError | RuntimeError) -> OSError | None:
    """Return the fault of the disk, which torch hides behind a RuntimeError of its own."""
    if isinstance(error, OSError):
        return error
    return error.__context__ if isinstance(error.__context__, OSError) else None


def _is_whole(path: Path) -> bool:
    """Compare each part of the file with the checksum (CRC-32) that was written with it."""
    try:
        with zipfile.ZipFile(path) as archive:
            # torch compresses nothing. Compressed, a stranger's file of a megabyte could take one
            # thousand times the memory.
            n_bytes = sum(part.file_size for part in archive.infolist())
            return n_bytes <= path.stat().st_size and archive.testzip() is None
    # Of a damaged directory zipfile raises more than it documents, as RuntimeError.
    except Exception:
        return False
