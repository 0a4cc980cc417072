"""Checkpoints: dicts of tensors and plain values, written beside and renamed, loaded without running code."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import torch


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; the message is one line that names the file."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that a crash leaves either the old file or the new one, never a part.

    Args:
        path: Where to write.
        state: Tensors and plain values (int, float, str, bool, None, list, dict) only.

    Raises:
        OSError: When the disk is full or read-only; the checkpoint that was there stays valid.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def load_checkpoint(path: Path, *, map_location: str = "cpu") -> dict[str, Any]:
    """Read a checkpoint; only tensors and plain values are unpickled, so a stranger's file runs no code.

    Raises:
        CheckpointError: When the file is missing, damaged, or holds anything else than tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give a checkpoint such as <run>/checkpoints/best.pt")
    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as fault:
        raise CheckpointError(f"{path}: holds more than tensors and plain values; not loaded") from fault
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as fault:
        raise CheckpointError(f"{path}: damaged or no checkpoint; restore it or train again") from fault
    if not isinstance(state, dict) or "model" not in state:
        raise CheckpointError(f"{path}: has no entry 'model'; not a checkpoint of this framework")
    return state


def checksum(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
