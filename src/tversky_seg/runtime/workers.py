"""Work over many items in a pool of processes, which starts only if it saves time."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

SECONDS_WORTH_WORKERS = 10.0
MOST_WORKERS = 8
M_MMAP_THRESHOLD = -3  # of glibc's mallopt


class WorkerDied(RuntimeError):
    """A worker process ended without a result, mostly for lack of memory."""


def map_in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], *, n_workers: int | None = None
) -> Iterator[tuple[int, Result]]:
    """Apply `work` to each item and yield (number of the item, result) as results get ready.

    Args:
        work: Function that worker processes can import, or a `functools.partial` of one. Its
            exceptions are raised here.
        items: Values that can be pickled.
        n_workers: Processes. 1 works in this process. None starts there, and moves to as many
            processes as there are cores, at most 8, if the first items show that it pays.

    Raises:
        WorkerDied: A process was killed, or the calling script lacks `if __name__ == "__main__":`.
    """
    # Starting a pool takes seconds, so the first items are done here, and timed.
    start = time.monotonic()
    for number, item in enumerate(items):
        n_left = len(items) - number
        seconds_left = (time.monotonic() - start) / max(number, 1) * n_left
        if n_left > 1 and _is_worth_workers(n_workers, seconds_left):
            n_processes = min(n_workers or min(n_cores(), MOST_WORKERS), n_left)
            yield from _map_in_pool(work, items, first=number, n_processes=n_processes)
            return
        yield number, work(item)


def n_cores() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def return_freed_memory() -> None:
    """Make glibc give freed arrays back to the system at once; it keeps blocks of up to 32 MB.

    Each worker process calls this first. Without glibc nothing happens.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)


def _is_worth_workers(n_workers: int | None, seconds_left: float) -> bool:
    if n_workers is None:
        return seconds_left > SECONDS_WORTH_WORKERS
    return n_workers > 1


def _map_in_pool(
    work: Callable[[Item], Result], items: Sequence[Item], *, first: int, n_processes: int
) -> Iterator[tuple[int, Result]]:
    pool = ProcessPoolExecutor(
        n_processes, mp_context=_start_method(), initializer=_initialize_worker
    )
    try:
        pending = {}
        for number in range(first, len(items)):
            pending[pool.submit(work, items[number])] = number
        for future in as_completed(pending):
            yield pending.pop(future), future.result()
    except BrokenProcessPool as error:
        raise WorkerDied(
            "a worker process died, out of memory or because the script starts work outside "
            "`if __name__ == '__main__':`; try n_workers=1"
        ) from error
    finally:
        _shut_down(pool)


def _initialize_worker() -> None:
    # A terminal sends Ctrl-C to every process: the first one ends the others when it wants to.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return_freed_memory()


def _shut_down(pool: ProcessPoolExecutor) -> None:
    """Wait for the items in work, unless Ctrl-C comes meanwhile."""
    try:
        pool.shutdown(cancel_futures=True)
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            process.terminate()
        raise


def _start_method() -> multiprocessing.context.BaseContext:
    """Choose forkserver where it exists: a fork of a process with threads can hang."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # The server imports once what every worker needs.
    slow_imports = ["torch", "tversky_seg.data.preprocessing"]
    context.set_forkserver_preload([name for name in slow_imports if name in sys.modules])
    return context
