"""Checkpoints: dicts of tensors and plain values, written beside and renamed, loaded without running code."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger("tversky_seg")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message is one line that names the file."""


def save_checkpoint(path: Path, state: dict[str, Any], *, previous: Path | None = None) -> None:
    """Write a checkpoint so that a crash leaves either the old file or the new one, never a part.

    Args:
        path: Where to write.
        state: Tensors and plain values (int, float, str, bool, None, list, dict) only.
        previous: Where the checkpoint that was there goes; None: it is replaced.

    Raises:
        CheckpointError: When the disk is full or read-only; the checkpoint that was there stays valid.
    """
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        scratch.replace(path)
    except (OSError, RuntimeError) as fault:
        cause = fault if isinstance(fault, OSError) else fault.__context__  # torch hides it behind a RuntimeError
        if not isinstance(cause, OSError):
            raise
        message = f"{path}: cannot be written ({cause.strerror}); make room and run the same command again"
        raise CheckpointError(message) from fault
    finally:
        with suppress(OSError):
            scratch.unlink()


def load_checkpoint(path: Path, *, map_location: str = "cpu") -> dict[str, Any]:
    """Read a checkpoint; only tensors and plain values are unpickled, so a stranger's file runs no code.

    Raises:
        CheckpointError: When the file is missing, damaged, or holds anything else than tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give a checkpoint such as <run>/checkpoints/best.pt")
    if not _is_whole(path):
        raise CheckpointError(f"{path}: damaged or no checkpoint; restore it or train again")
    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as fault:
        raise CheckpointError(f"{path}: holds more than tensors and plain values; not loaded") from fault
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as fault:
        raise CheckpointError(f"{path}: damaged or no checkpoint; restore it or train again") from fault
    if not isinstance(state, dict) or "model" not in state:
        raise CheckpointError(f"{path}: has no entry 'model'; not a checkpoint of this framework")
    return state


def load_newest(*paths: Path) -> dict[str, Any] | None:
    """The first of these checkpoints that can be read, with a warning for each that is damaged; None without any file.

    Raises:
        CheckpointError: There are files, and none can be read.
    """
    fault = None
    for path in filter(Path.exists, paths):
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            logger.warning("%s", error)
            fault = fault or error
    if fault:
        raise fault
    return None


def _is_whole(path: Path) -> bool:
    """Whether each part of the file has the checksum (CRC-32) that was written with it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError):
        return False


def checksum(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
