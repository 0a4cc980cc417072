"""Checkpoints: dicts of tensors and plain values, written beside and renamed, loaded without running code."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import pickle
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

logger = logging.getLogger("tversky_seg")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message is one line that names the file."""


@dataclass
class State:
    """How far a training has come, in plain values; each checkpoint holds them beside the weights."""

    step: int = 0
    best: float = -math.inf
    threshold: float | dict[str, float] = 0.5
    min_volume_mm3: float | dict[str, float] = 0.0
    judged: int = 0  # the last step whose network was validated
    n_without_gain: int = 0  # validations since the best
    n_skipped: int = 0
    n_skipped_in_a_row: int = 0
    losses: list[float] = field(default_factory=list)  # since the last row of metrics.csv

    @classmethod
    def of_checkpoint(cls, kept: Mapping[str, Any]) -> State:
        """The state when a checkpoint was written."""
        return cls(**{name.name: kept[name.name] for name in fields(cls)})


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
        cause = (
            fault if isinstance(fault, OSError) else fault.__context__
        )  # torch hides it behind a RuntimeError
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
        raise CheckpointError(
            f"{path}: no such file; give a checkpoint such as <run>/checkpoints/best.pt"
        )
    if not _is_whole(path):
        raise CheckpointError(f"{path}: damaged or no checkpoint; restore it or train again")
    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as fault:
        raise CheckpointError(
            f"{path}: holds more than tensors and plain values; not loaded"
        ) from fault
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as fault:
        raise CheckpointError(
            f"{path}: damaged or no checkpoint; restore it or train again"
        ) from fault
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


def warm_start(network: nn.Module, path: str | Path | None, *, is_strict: bool = True) -> None:
    """Start from the weights of a checkpoint.

    Args:
        network: Gets the weights, in place.
        path: A checkpoint of this framework; None: the weights stay.
        is_strict: All weights must be there with the same shapes; else what does not fit is left out and listed.

    Raises:
        CheckpointError: When the file cannot be used, all weights must fit and some do not, or none fits.
    """
    if path is None:
        return
    there, here = load_checkpoint(Path(path).expanduser())["model"], network.state_dict()
    fitting = {name for name in here.keys() & there.keys() if here[name].shape == there[name].shape}
    left_out = [
        _misfit(name, here, there) for name in dict.fromkeys((*here, *there)) if name not in fitting
    ]
    if left_out and (is_strict or not fitting):
        way = (
            "expected the same network, or trainer.init_strict=false"
            if fitting
            else "expected weights of this network"
        )
        raise CheckpointError(
            f"{path}: {len(left_out)} of its weights do not fit, {left_out[0]}; {way}"
        )
    if left_out:
        logger.warning(
            "%s: %d weights taken, %d left out: %s",
            path,
            len(fitting),
            len(left_out),
            ", ".join(left_out),
        )
    network.load_state_dict({name: there[name] for name in fitting}, strict=False)


def _misfit(name: str, here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    shapes = [tuple(state[name].shape) if name in state else "none" for state in (there, here)]
    return f"{name} ({shapes[0]} there, {shapes[1]} here)"


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
