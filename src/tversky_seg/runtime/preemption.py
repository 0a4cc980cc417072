"""Preemption: a signal or a limit of hours ends a run so that it can be resumed.

SIGTERM, SIGUSR1 and the limit end it with status 75, Ctrl-C (SIGINT) with status 130. A second
Ctrl-C stops at once, without a checkpoint.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

EXIT_PREEMPTED = 75
"""EX_TEMPFAIL of sysexits.h: try again."""

EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""

SIGNALS = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGUSR1"):  # Windows has none
    SIGNALS.append(signal.SIGUSR1)

CTRL_C = "Ctrl-C"
STDERR = 2
ECHO_SECONDS = 1.0
"""Time within which a second SIGINT under torchrun is the first one's echo."""


class Preempted(BaseException):
    """Ends a command that can be resumed.

    Like KeyboardInterrupt it is no Exception, so that no handler of errors catches it.
    """

    @property
    def exit_status(self) -> int:
        """Exit status that tells a scheduler from a user: 75, or 130 after Ctrl-C."""
        return EXIT_INTERRUPTED if str(self).startswith(CTRL_C) else EXIT_PREEMPTED


@dataclass
class _StopRequest:
    """The request to stop this process. Signals belong to the whole process, and so does this."""

    reason: str | None = None
    time_of_ctrl_c: float | None = None
    is_deferred: bool = False
    command_start: float = field(default_factory=time.monotonic)


_request = _StopRequest()


@contextmanager
def handle_signals() -> Iterator[None]:
    """Raise Preempted when a signal comes: at once, or after the step within `defer_signals`."""
    _request.reason = None
    _request.time_of_ctrl_c = None
    _request.is_deferred = False
    _request.command_start = time.monotonic()
    previous_handlers = {}
    # Python lets only the main thread set handlers.
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            previous_handlers[number] = signal.signal(number, _receive)
    try:
        yield
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Note signals without raising, for a loop that asks `reason_to_stop` between its steps."""
    with _deferring(True):
        yield


@contextmanager
def allow_signals() -> Iterator[None]:
    """Raise at once again within `defer_signals`, for work that is repeated as a whole.

    Raises:
        Preempted: Now, if a signal has come already, or when one comes.
    """
    with _deferring(False):
        if _request.reason is not None:
            raise Preempted(_request.reason)
        yield


def reason_to_stop(max_hours: float | None = None) -> str | None:
    """Return the signal that came, or the limit of hours that is over; None to continue.

    Args:
        max_hours: Limit in hours since the command began. None: no limit.
    """
    if _request.reason is not None:
        return _request.reason
    if max_hours is None:
        return None
    # Preparing the data counts as well: a scheduler's limit holds for the whole command.
    hours = (time.monotonic() - _request.command_start) / 3600
    return f"trainer.max_hours={max_hours:g}" if hours > max_hours else None


@contextmanager
def _deferring(is_deferred: bool) -> Iterator[None]:
    previous = _request.is_deferred
    _request.is_deferred = is_deferred
    try:
        yield
    finally:
        _request.is_deferred = previous


def _receive(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT:
        _note_ctrl_c()
    is_repeated = _request.reason is not None
    if not is_repeated:
        _request.reason = CTRL_C if number == signal.SIGINT else signal.Signals(number).name
    # A scheduler may signal twice: the second must not interrupt the writing of the checkpoint.
    if not is_repeated and not _request.is_deferred:
        raise Preempted(_request.reason)


def _note_ctrl_c() -> None:
    """Tell the user at the first Ctrl-C what happens now; raise KeyboardInterrupt at the second."""
    now = time.monotonic()
    if _request.time_of_ctrl_c is None:
        _request.time_of_ctrl_c = now
        if _request.is_deferred and os.environ.get("RANK", "0") == "0":
            message = (
                "\nCtrl-C: finishing the step and writing a checkpoint "
                "(press again to stop at once)\n"
            )
            # A handler may run in the middle of a print, so it must not use the same buffer.
            os.write(STDERR, message.encode())
        return
    # Under torchrun one Ctrl-C comes twice: from the terminal, and from the launcher.
    is_echo = now - _request.time_of_ctrl_c < ECHO_SECONDS
    if not (is_echo and "TORCHELASTIC_RUN_ID" in os.environ):
        raise KeyboardInterrupt
