"""A cache of folders that are whole or absent, however many processes write them at once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.errors import DataError
from tversky_seg.data.image_files import file_and_frame
from tversky_seg.runtime.files import new_folder, read_json, write_json

MAX_ATTEMPTS = 10


def fingerprint(settings: Mapping[str, Any], sources: Sequence[Path]) -> str:
    """Return 16 hex digits that change with any setting, and with any source file.

    Args:
        settings: Plain values.
        sources: Image files; path, size and time of each count, and the frame it names.

    Raises:
        DataError: A source is missing.
    """
    files = []
    for source in sources:
        file, frame = file_and_frame(source)
        try:
            status = file.stat()
        except OSError as error:
            raise DataError(source, error.strerror or str(error), "expected an image") from error
        name = str(file.resolve())
        if frame is not None:
            name += f"@{frame}"
        files.append([name, status.st_size, status.st_mtime_ns])
    return _digest(settings, files)


def read_entry(entry: Path) -> dict[str, Any] | None:
    """Return the facts stored with an entry; None if it is missing, incomplete or was changed."""
    try:
        meta = read_json(entry / "meta.json")
        if meta["digest"] != _digest(meta["facts"], meta["files"]):
            return None
        for name, seal in meta["files"].items():
            if _seal(entry / name) != seal:
                return None
        return dict(meta["facts"])
    # Whatever a damaged file holds in place of the expected dict is no entry.
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_entry(entry: Path, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
    """Store arrays (`<name>.npy`) and JSON facts as the folder `entry`.

    An intact entry of another process stays; a damaged one makes room.

    Raises:
        DataError: The folder cannot be written.
    """
    # The second attempt meets a damaged entry no more, unless another process makes one.
    try:
        for _ in range(MAX_ATTEMPTS):
            if _try_to_write(entry, arrays, facts):
                return
        raise OSError(f"{entry} changes all the time")
    except OSError as error:
        fault = f"cannot be written ({error.strerror or error})"
        raise DataError(entry.parent, fault, "name another cache_dir") from error


def _try_to_write(
    entry: Path, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]
) -> bool:
    """Write an entry and return True, or clear a damaged one out of its place and return False."""
    try:
        with new_folder(entry) as folder:
            _fill(folder, arrays, facts)
    except OSError:
        # A folder is not renamed to one that exists.
        if read_entry(entry) is not None:
            return True  # another process was first, with the same arrays
        if not entry.exists():
            raise
        _remove_damaged(entry)
        return False
    return True


def _fill(folder: Path, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
    files = {}
    for name, array in arrays.items():
        file = folder / f"{name}.npy"
        np.save(file, array)
        _set_even_second(file)
        files[file.name] = _seal(file)
    meta = {"files": files, "facts": facts, "digest": _digest(facts, files)}
    write_json(folder / "meta.json", meta)


def _digest(*values: Any) -> str:
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _seal(file: Path) -> list[int]:
    """Return size and time of a file, which differ once it is cut or written to."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _set_even_second(file: Path) -> None:
    """Set the time of a file to an even second.

    Every file system keeps it exactly, when copied too, and a later write hardly ever hits it.
    """
    second = int(time.time()) // 2 * 2
    os.utime(file, (second, second))


def _remove_damaged(entry: Path) -> None:
    # Renamed first, so that of several processes one removes it and none sees a part.
    aside = entry.with_name(f".{entry.name}.{uuid4().hex}.damaged")
    with suppress(FileNotFoundError):  # another process was first
        entry.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)
