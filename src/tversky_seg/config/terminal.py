"""Lines of other libraries, kept off the terminal."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from tversky_seg.config.log import logger


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the lines of libraries off stderr, which is for one line of ours.

    A warning becomes one line of the log. Nibabel's remarks on headers are dropped: what matters
    of them is checked, and named by its file.
    """
    nibabel_logger = logging.getLogger("nibabel.global")
    level_before = nibabel_logger.level
    nibabel_logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _log_warning
            yield
    finally:
        nibabel_logger.setLevel(level_before)


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Log a warning as one line; the arguments are those of warnings.showwarning."""
    logger.warning("%s: %s", category.__name__, " ".join(str(message).split()))
