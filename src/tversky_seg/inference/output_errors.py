"""Errors of files that cannot be written, as one line for the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tversky_seg.data.errors import DataError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make the folder of a file, and turn an error while it is written into a DataError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise DataError(
            path, f"cannot be written ({error.strerror or error})", "name a folder with room"
        ) from error
