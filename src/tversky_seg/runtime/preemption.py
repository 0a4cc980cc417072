"""Stopping for now: SIGTERM, SIGUSR1 or a limit of hours end a run with status 75; the same command goes on."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: try again
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Preempted(BaseException):
    """Ends a command that can go on; as with KeyboardInterrupt, no handler for errors catches it."""


@dataclass
class _Request:
    """What was asked of this process. Signals belong to the whole process, and so does this."""

    reason: str | None = None
    can_wait: bool = False
    started: float = field(default_factory=time.monotonic)


_request = _Request()


@contextmanager
def handle_signals() -> Iterator[None]:
    """Within, a signal raises Preempted: at once, or when a step is done where `defer_signals` says so."""
    _request.reason, _request.can_wait, _request.started = None, False, time.monotonic()
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, _receive) for number in SIGNALS if is_main}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Within, signals wait until `reason_to_stop` is called."""
    with _waiting(True):
        yield


@contextmanager
def allow_signals() -> Iterator[None]:
    """Within `defer_signals`, for work that is done again as a whole: a signal raises Preempted at once."""
    with _waiting(False):
        if _request.reason:
            raise Preempted(_request.reason)
        yield


def reason_to_stop(max_hours: float | None = None) -> str | None:
    """The signal that has come, or that the hours since the command began are over; None to go on."""
    if (
        _request.reason is None
        and max_hours is not None
        and time.monotonic() - _request.started > 3600 * max_hours
    ):
        return f"trainer.max_hours={max_hours:g}"
    return _request.reason


@contextmanager
def _waiting(can_wait: bool) -> Iterator[None]:
    before, _request.can_wait = _request.can_wait, can_wait
    try:
        yield
    finally:
        _request.can_wait = before


def _receive(number: int, frame: FrameType | None) -> None:
    is_first, _request.reason = _request.reason is None, signal.Signals(number).name
    if is_first and not _request.can_wait:
        raise Preempted(_request.reason)
