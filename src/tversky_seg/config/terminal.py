"""Output that no terminal can break: other encodings, closed pipes, libraries that chat."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

from tversky_seg.config.log import logger


class _SturdyStream:
    """A text stream that goes silent when its reader has gone (`train.py | head`).

    A run must not end because nobody looks any more.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._go_silent()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._go_silent()

    def _go_silent(self) -> None:
        """Send what is still in the buffer, and all that follows, to nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextmanager
def sturdy_output() -> Iterator[None]:
    """Print what the encoding of the terminal has, and `?` for the rest; survive a closed pipe."""
    # Tests replace the streams by others, which need no such care.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    stdout: Any = _SturdyStream(sys.stdout)
    stderr: Any = _SturdyStream(sys.stderr)
    with redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            yield
        finally:
            # At exit Python flushes the streams below, and would complain of a closed pipe.
            stdout.flush()
            stderr.flush()


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
