"""Preemption: SIGTERM, SIGUSR1 or a limit of hours end a run with status 75, to be resumed."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

EXIT_PREEMPTED = 75
"""EX_TEMPFAIL of sysexits.h: try again."""

# Windows has no SIGUSR1.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Preempted(BaseException):
    """Ends a command that can be resumed.

    Like KeyboardInterrupt it is no Exception, so that no handler of errors catches it.
    """


@dataclass
class _StopRequest:
    """The request to stop this process. Signals belong to the whole process, and so does this."""

    reason: str | None = None
    is_deferred: bool = False
    command_start: float = field(default_factory=time.monotonic)


_request = _StopRequest()


@contextmanager
def handle_signals() -> Iterator[None]:
    """Raise Preempted when a signal comes: at once, or after the step within `defer_signals`."""
    _request.reason = None
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
    is_repeated = _request.reason is not None
    _request.reason = signal.Signals(number).name
    # A scheduler may signal twice: the second must not interrupt the writing of the checkpoint.
    if not is_repeated and not _request.is_deferred:
        raise Preempted(_request.reason)
