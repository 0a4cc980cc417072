"""Loader of training batches: worker processes that compute ahead, and one line for each of their faults."""

import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from tversky_seg.data.patches.batches import Batch, PatchBatches, Sample, stack_samples

STUCK_AFTER_S = 50  # a patch takes milliseconds
LOOK_EVERY_S = 2


def load_batches(
    batches: PatchBatches,
    *,
    start: int,
    stop: int,
    n_workers: int = 0,
    device: torch.device | None = None,
) -> Iterator[Batch]:
    """Yield batches[start], ..., batches[stop - 1] in this order, byte for byte the same for any number of workers.

    Args:
        batches: All batches, by step.
        start: First step.
        stop: One past the last step.
        n_workers: Processes that work ahead, each on one thread; 0 computes in this process when a batch is asked for.
        device: Where the batches are wanted. A CUDA device augments them itself, out of page-locked memory; its batches
            differ from the CPU's by rounding.

    Raises:
        DataError, RuntimeError: As `PatchBatches` does, also out of a worker. A worker that was killed, or that gives
            nothing for `STUCK_AFTER_S`, is named with its step and cases.
    """
    device = device or torch.device("cpu")
    on_device = device.type == "cuda"
    loader = DataLoader(
        _Guarded(batches, is_deferred=on_device),
        batch_size=None,
        sampler=range(start, stop),
        num_workers=n_workers,
        pin_memory=on_device,
        generator=torch.Generator(),  # DataLoader draws a seed: not from the global stream
        timeout=LOOK_EVERY_S if n_workers else 0,
        worker_init_fn=_leave_signals_to_the_trainer,
    )
    with _no_handler_of_dead_children():
        iterator = iter(loader)
    workers = getattr(iterator, "_workers", [])
    for step in range(start, stop):
        try:
            batch = _next(iterator, workers)
        except RuntimeError as error:
            fault = _fault_of_worker(batches, step, start=start, workers=workers)
            for worker in workers:
                worker.kill()  # a stuck one heeds nothing else
            raise RuntimeError(f"{fault} ({error})") from error
        if isinstance(batch, Exception):
            del (
                iterator
            )  # ends the workers now: left to the garbage collector it takes 5 seconds for each
            raise batch
        if on_device:
            samples = [sample.augment(device) for sample in batch]
            batch = stack_samples(samples, with_components=batches.with_components)
        yield batch.to(device)


def _next(iterator: Iterator[Any], workers: Sequence[Any]) -> Any:
    """The next batch; looks after the workers while it waits."""
    for _ in range(STUCK_AFTER_S // LOOK_EVERY_S - 1):
        try:
            return next(iterator)
        except RuntimeError as error:
            if "timed out" not in str(error) or not all(worker.is_alive() for worker in workers):
                raise
    return next(iterator)


def _leave_signals_to_the_trainer(_: int) -> None:
    """A scheduler signals every process of a job: the trainer finishes its step, for which it needs its workers."""
    for name in ("SIGTERM", "SIGUSR1", "SIGINT"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


@contextmanager
def _no_handler_of_dead_children() -> Iterator[None]:
    """Keep torch from raising for a dead worker in the middle of a step, where its case is not known."""
    number = getattr(signal, "SIGCHLD", None)
    before = signal.getsignal(number) if number else None
    try:
        yield
    finally:
        if number and threading.current_thread() is threading.main_thread():
            signal.signal(number, before)


def _fault_of_worker(
    batches: PatchBatches, step: int, *, start: int, workers: Sequence[Any]
) -> str:
    """What happened to a worker, with the step that it was at; worker i computes every n-th batch."""
    dead = [i for i, worker in enumerate(workers) if not worker.is_alive()]
    at = next(
        k
        for k in range(step, step + len(workers))
        if not dead or (k - start) % len(workers) == dead[0]
    )
    code = workers[dead[0]].exitcode if dead else None
    cause = f"gave no batch for {STUCK_AFTER_S} s: is the disk there?"
    if code is not None:
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        cause = (
            f"died ({how}), out of memory or of shared memory (/dev/shm)? n_workers=0 needs neither"
        )
    return (
        f"{', '.join(dict.fromkeys(batches.case_ids(at)))}: the loader worker at step {at} {cause}"
    )


@dataclass(frozen=True)
class _Guarded(Dataset[Any]):
    """Hands a worker's exception over as a value: raised through torch it would lose its one-line message."""

    batches: PatchBatches
    is_deferred: bool

    def __getitem__(self, step: int) -> Batch | list[Sample] | Exception:
        try:
            return self.batches.samples(step) if self.is_deferred else self.batches[step]
        except Exception as error:
            error.add_note(traceback.format_exc())
            return error
