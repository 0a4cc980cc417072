"""Signals: when they stop a command, and with which status."""

import os
import signal
import time

import pytest

from tversky_seg.runtime import preemption
from tversky_seg.runtime.preemption import (
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    Preempted,
    allow_signals,
    defer_signals,
    handle_signals,
    reason_to_stop,
)

SCHEDULER_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(1)  # a handler that raises ends this


@pytest.mark.parametrize("number", SCHEDULER_SIGNALS, ids=lambda number: number.name)
def test_a_signal_stops_at_once_where_nothing_has_to_be_finished(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Preempted, match=number.name) as stop, handle_signals():
        send(number)
    assert stop.value.exit_status == EXIT_PREEMPTED
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
            send(signal.SIGTERM)
        assert reason_to_stop() == "SIGTERM"


def test_a_second_signal_does_not_disturb_the_clearing_up() -> None:
    with handle_signals():
        try:
            send(signal.SIGTERM)
        except Preempted:
            os.kill(os.getpid(), signal.SIGTERM)


def test_ctrl_c_waits_for_the_step_and_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    with handle_signals(), defer_signals():
        os.kill(os.getpid(), signal.SIGINT)
        assert reason_to_stop() == "Ctrl-C"
    assert "Ctrl-C" in capfd.readouterr().err


def test_ctrl_c_stops_at_once_where_nothing_has_to_be_finished() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Preempted, match="Ctrl-C") as stop, handle_signals():
        send(signal.SIGINT)
    assert stop.value.exit_status == EXIT_INTERRUPTED == 130
    assert signal.getsignal(signal.SIGINT) == before


def test_ctrl_c_twice_stops_at_once_wherever_it_is() -> None:
    with handle_signals(), defer_signals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_under_torchrun_terminal_and_launcher_both_send_the_same_ctrl_c(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with handle_signals(), defer_signals():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert reason_to_stop() == "Ctrl-C"
        now = time.monotonic()
        monkeypatch.setattr(preemption.time, "monotonic", lambda: now + 5)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_hours_count_from_when_the_command_began(monkeypatch: pytest.MonkeyPatch) -> None:
    with handle_signals():
        assert reason_to_stop(1.0) is None
        now = time.monotonic()
        monkeypatch.setattr(preemption.time, "monotonic", lambda: now + 3601)
        assert reason_to_stop() is None
        assert reason_to_stop(1.0) == "trainer.max_hours=1"


def test_handlers_of_errors_do_not_catch_it() -> None:
    assert not issubclass(Preempted, Exception)
