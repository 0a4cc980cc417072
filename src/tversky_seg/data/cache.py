"""A cache of directories that are there whole or not at all, whoever writes them at the same time."""

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
from tversky_seg.data.nifti import file_and_frame


def fingerprint(settings: Mapping[str, Any], sources: Sequence[Path]) -> str:
    """16 hex digits that change with any setting and with path, size or time of any source file.

    Raises:
        DataError: A source is not there.
    """
    files = []
    for source in sources:
        file, frame = file_and_frame(source)
        try:
            status = file.stat()
        except OSError as error:
            raise DataError(source, f"{error.strerror or error}", "expected an image") from error
        name = str(file.resolve()) if frame is None else f"{file.resolve()}@{frame}"
        files.append([name, status.st_size, status.st_mtime_ns])
    return _digest(settings, files)


def read_entry(entry: Path) -> dict[str, Any] | None:
    """The facts stored with an entry; None where it is missing, incomplete or changed since it was written."""
    try:
        meta = json.loads((entry / "meta.json").read_bytes())
        intact = meta["digest"] == _digest(meta["facts"], meta["files"])
        intact = intact and all(_seal(entry / name) == seal for name, seal in meta["files"].items())
        return dict(meta["facts"]) if intact else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_entry(entry: Path, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
    """Store arrays (`<name>.npy`) and JSON facts as the directory `entry`; an intact one that is there stays.

    Raises:
        DataError: The folder cannot be written.
    """
    partial = entry.parent / f".{entry.name}.{uuid4().hex}"
    try:
        partial.mkdir(parents=True)
        for name, array in arrays.items():
            np.save(partial / f"{name}.npy", array)
        files = {f"{name}.npy": _seal(partial / f"{name}.npy", new=True) for name in arrays}
        meta = {"files": files, "facts": facts, "digest": _digest(facts, files)}
        (partial / "meta.json").write_text(json.dumps(meta))
        _put_in_place(partial, entry)
    except OSError as error:
        raise DataError(
            entry.parent, f"cannot be written ({error.strerror or error})", "name another cache_dir"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _seal(path: Path, *, new: bool = False) -> list[int]:
    """Size and time of a file: a file that was cut, or written to after the seal, shows another.

    The time is set to an even second, which every file system keeps exactly and a later write hardly ever hits.
    """
    if new:
        second = int(time.time()) // 2 * 2
        os.utime(path, (second, second))
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _put_in_place(partial: Path, entry: Path) -> None:
    """Rename; whoever comes second keeps what the first put there, and a damaged entry makes room."""
    for _ in range(10):
        try:
            partial.rename(entry)
        except OSError:
            if read_entry(entry) is not None:
                return
            if not entry.exists():
                raise
            damaged = partial.with_name(f"{partial.name}.damaged")
            with suppress(FileNotFoundError):  # another process was first
                entry.rename(damaged)
            shutil.rmtree(damaged, ignore_errors=True)
        else:
            return
    raise OSError(f"{entry} changes all the time")
