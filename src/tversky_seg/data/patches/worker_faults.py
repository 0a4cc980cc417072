"""Which worker of a loader failed, at which step and cases."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

from tversky_seg.data.patches.batches import PatchBatches


def fault_of_worker(
    batches: PatchBatches,
    step: int,
    error: RuntimeError,
    *,
    start: int,
    workers: Sequence[BaseProcess],
    waited_s: int,
) -> str | None:
    """Say which worker failed, at which step and cases.

    Args:
        batches: All batches.
        step: Step whose batch is missing.
        error: Error with which the wait for it ended.
        start: First step of the loader; worker i of n computes the steps start + i, + n, + 2n ...
        workers: Processes of the loader.
        waited_s: How long a batch was waited for.

    Returns:
        One line; None where the error is not that of a worker.
    """
    dead = [number for number, worker in enumerate(workers) if not worker.is_alive()]
    if dead:
        number = dead[0]
        # The next step of this worker, from `step` on.
        step += (number - (step - start)) % len(workers)
        cause = (
            f"died ({_exit_reason(workers[number])}), out of memory or of shared memory "
            "(/dev/shm)? trainer.n_workers=0 needs neither"
        )
    elif workers and is_timeout(error):
        cause = f"gave no batch for {waited_s} s: is the disk there?"
    else:
        return None
    case_ids = ", ".join(dict.fromkeys(batches.case_ids(step)))
    return f"{case_ids}: the loader worker at step {step} {cause}"


def _exit_reason(worker: BaseProcess) -> str:
    """Say how a dead process ended."""
    code = worker.exitcode
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit status {code}"


# Two things of torch that its interface does not promise, for want of others: DataLoader tells its
# processes to nobody, and that it waited in vain only by the words of a RuntimeError. Where a
# release of torch changes them, faults of workers lose their names (tests/data/test_loader.py).


def worker_processes(iterator: object) -> Sequence[BaseProcess]:
    """Look up the processes of a DataLoader's iterator; none without workers."""
    workers: Sequence[BaseProcess] = getattr(iterator, "_workers", ())
    return workers


def is_timeout(error: RuntimeError) -> bool:
    """Tell whether a DataLoader waited for its `timeout` in vain."""
    return "timed out" in str(error)


@contextmanager
def no_handler_of_dead_children() -> Iterator[None]:
    """Keep torch from raising for a dead worker inside a step, where its case is not known."""
    number = getattr(signal, "SIGCHLD", None)  # Windows has none
    before = signal.getsignal(number) if number else None
    try:
        yield
    finally:
        if number and threading.current_thread() is threading.main_thread():
            signal.signal(number, before)
