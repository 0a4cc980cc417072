"""Output that no terminal can break: other encodings, closed pipes, full disks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO


class _SturdyStream:
    """A text stream that goes silent when it cannot be written to.

    A run must not end because nobody looks any more (`train.py | head`), or because the disk of its
    log is full: that is said on stderr, once.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._go_silent(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._go_silent(error)

    def _go_silent(self, error: OSError) -> None:
        """Send what is still in the buffer, and all that follows, to nowhere."""
        if not isinstance(error, BrokenPipeError) and self._stream is not sys.__stderr__:
            reason = (error.strerror or str(error)).lower()
            print(f"warning: {self._stream.name} shows no more: {reason}", file=sys.stderr)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextmanager
def sturdy_output() -> Iterator[None]:
    """Print what the encoding of the terminal has, and `?` for the rest; survive a closed pipe."""
    for stream in (sys.stdout, sys.stderr):
        # Tests replace the streams by others, which need no such care.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    with ExitStack() as stack:
        nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
        # A process that was started with a closed stream (`>&-`) has none.
        stdout: Any = _SturdyStream(sys.stdout or nowhere)
        stderr: Any = _SturdyStream(sys.stderr or nowhere)
        stack.enter_context(redirect_stdout(stdout))
        stack.enter_context(redirect_stderr(stderr))
        try:
            yield
        finally:
            # At exit Python flushes the streams below, and would complain of a closed pipe.
            stdout.flush()
            stderr.flush()
