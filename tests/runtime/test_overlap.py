"""Reading ahead and writing behind: order, errors, and how much is alive at once."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest
import torch

from tversky_seg.runtime.overlap import OneBehind, map_in_threads, read_ahead
from tversky_seg.runtime.preemption import Preempted, handle_signals


@pytest.mark.parametrize("in_thread", [False, True])
def test_items_come_in_order_and_an_error_stays_with_its_item(in_thread: bool) -> None:
    def read(item: int) -> int:
        if item == 2:
            raise ValueError("item 2")
        return 10 * item

    results: list[object] = []
    for get in read_ahead(range(5), read, in_thread=in_thread):
        try:
            results.append(get())
        except ValueError as error:
            results.append(str(error))
    assert results == [0, 10, "item 2", 30, 40]
    assert list(read_ahead([], read, in_thread=in_thread)) == []


def test_one_item_is_read_ahead_and_not_two() -> None:
    begun = []
    for number, get in enumerate(read_ahead(range(4), begun.append, in_thread=True)):
        get()
        time.sleep(0.05)
        assert begun == list(range(min(number + 2, 4)))


def test_the_next_is_read_and_the_last_is_written_while_one_is_computed() -> None:
    # Each waits for the two others: without overlap none of them would ever go on.
    meeting = threading.Barrier(3)

    def wait_in_the_middle(item: int, *, turn: int) -> int:
        if item == turn:
            meeting.wait(timeout=5)
        return item

    with OneBehind(in_thread=True) as writing:
        reads = read_ahead(range(3), partial(wait_in_the_middle, turn=2), in_thread=True)
        for item, get in enumerate(reads):
            wait_in_the_middle(get(), turn=1)
            writing.start(partial(wait_in_the_middle, item, turn=0))
    assert not meeting.broken


@pytest.mark.parametrize("in_thread", [False, True])
def test_functions_run_in_order_one_at_a_time_and_are_done_at_the_end(in_thread: bool) -> None:
    written: list[int] = []

    def write(item: int) -> None:
        time.sleep(0.01 * (3 - item))
        written.append(item)

    with OneBehind(in_thread=in_thread) as writing:
        for item in range(3):
            writing.start(partial(write, item))
            assert written[:item] == list(range(item))
    assert written == [0, 1, 2]


@pytest.mark.parametrize("n_threads", [1, 3])
def test_a_map_in_threads_keeps_the_order_and_the_first_error(
    monkeypatch: pytest.MonkeyPatch, n_threads: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    threads = set()

    def tenfold(item: int) -> int:
        threads.add(threading.current_thread())
        time.sleep(0.02 / (1 + item))
        return 10 * item

    assert map_in_threads(tenfold, range(6)) == [0, 10, 20, 30, 40, 50]
    assert (len(threads) > 1) == (n_threads > 1)
    assert map_in_threads(tenfold, []) == []
    with pytest.raises(ZeroDivisionError):
        map_in_threads(lambda item: 1 // (item - 2), range(6))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_signal_ends_the_wait_for_a_thread_at_once() -> None:
    start = time.monotonic()
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(Preempted), handle_signals():
        next(read_ahead([1], time.sleep, in_thread=True))()
    assert time.monotonic() - start < 0.9


def stop() -> None:
    raise KeyboardInterrupt


def run(*functions: Callable[[], None], in_thread: bool) -> None:
    with OneBehind(in_thread=in_thread) as writing:
        for function in functions:
            writing.start(function)


@pytest.mark.parametrize("in_thread", [False, True])
def test_an_error_of_any_kind_reaches_the_caller(in_thread: bool) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(stop, in_thread=in_thread)
    with pytest.raises(KeyboardInterrupt):
        run(stop, lambda: None, in_thread=in_thread)


def test_after_an_error_of_the_caller_the_last_function_is_still_finished() -> None:
    written = []

    def write() -> None:
        time.sleep(0.05)
        written.append(1)

    def write_and_fail() -> None:
        with OneBehind(in_thread=True) as writing:
            writing.start(write)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        write_and_fail()
    assert written == [1]
