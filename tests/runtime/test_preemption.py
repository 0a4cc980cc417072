import os
import signal
import time

import pytest

from tversky_seg.runtime import preemption as stopping
from tversky_seg.runtime.preemption import (
    SIGNALS,
    Preempted,
    allow_signals,
    defer_signals,
    handle_signals,
    reason_to_stop,
)


def signalled(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(1)  # a handler that raises ends this


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_stops_at_once_where_nothing_has_to_be_finished(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Preempted, match=number.name), handle_signals():
        signalled(number)
    assert signal.getsignal(number) == before


def test_within_a_step_a_signal_waits_to_be_asked_for() -> None:
    with handle_signals(), defer_signals():
        assert reason_to_stop() is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert reason_to_stop() == "SIGTERM"
        with pytest.raises(Preempted, match="SIGTERM"), allow_signals():
            raise AssertionError("not reached")


def test_work_that_can_be_repeated_is_interrupted() -> None:
    with handle_signals(), defer_signals():
        with pytest.raises(Preempted, match="SIGTERM"), allow_signals():
            signalled(signal.SIGTERM)
        assert reason_to_stop() == "SIGTERM"


def test_a_second_signal_does_not_disturb_the_clearing_up() -> None:
    with handle_signals():
        try:
            signalled(signal.SIGTERM)
        except Preempted:
            os.kill(os.getpid(), signal.SIGTERM)


def test_hours_count_from_when_the_command_began(monkeypatch: pytest.MonkeyPatch) -> None:
    with handle_signals():
        assert reason_to_stop(1.0) is None
        now = time.monotonic()
        monkeypatch.setattr(stopping.time, "monotonic", lambda: now + 3601)
        assert reason_to_stop() is None
        assert reason_to_stop(1.0) == "trainer.max_hours=1"


def test_it_is_no_error_that_handlers_of_errors_catch() -> None:
    assert not issubclass(Preempted, Exception)
