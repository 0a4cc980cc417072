"""Loader of training batches: worker processes that compute ahead, and one line for each fault."""

from __future__ import annotations

import os
import signal
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from tversky_seg.data.errors import DataError
from tversky_seg.data.patches.batch import Batch, Sample, stack_samples
from tversky_seg.data.patches.batches import PatchBatches
from tversky_seg.data.patches.packing import Packed, Room, pack
from tversky_seg.data.patches.ring import Ring, make_ring
from tversky_seg.data.patches.worker_faults import (
    fault_of_worker,
    is_timeout,
    no_handler_of_dead_children,
    worker_processes,
)
from tversky_seg.runtime.devices import keep_freed_memory
from tversky_seg.runtime.one_line import message_lines
from tversky_seg.runtime.workers import n_cores

Value = TypeVar("Value")

CPU_WORKERS = 2
MOST_GPU_WORKERS = 8
"""Workers that n_workers=auto starts."""

AHEAD_OF_EACH_WORKER = 2
"""Batches that a worker computes ahead."""

STUCK_AFTER_S = 50  # a patch takes milliseconds
LOOK_EVERY_S = 2


def resolve_n_workers(n_workers: int | str, device: torch.device) -> int:
    """Return how many processes a setting means.

    Args:
        n_workers: A number, or "auto": 2 on a CPU, where a step takes many times as long as a
            batch. On a GPU as many as this process has cores left, from 1 to 8; the processes of
            torchrun share the cores of a machine.
        device: Device of the training.

    Raises:
        ValueError: For another word, or a number below 0.
    """
    if n_workers == "auto":
        if device.type == "cpu":
            return CPU_WORKERS
        n_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return min(max(n_cores() // n_processes - 1, 1), MOST_GPU_WORKERS)
    if isinstance(n_workers, str) or n_workers < 0:
        raise ValueError(f"n_workers must be auto or >= 0, got {n_workers}")
    return n_workers


def load_batches(
    batches: PatchBatches,
    *,
    start: int,
    stop: int,
    n_workers: int = 0,
    device: torch.device | None = None,
) -> Iterator[Batch]:
    """Yield batches[start], ..., batches[stop - 1] in this order.

    They are the same, byte for byte, for any number of workers.

    A CUDA device augments each batch while it trains on the one before, and the batch after the one
    that is asked for is computed already. It reads the samples where the workers have put them, in
    memory that is shared and page-locked once (`ring`).

    Args:
        batches: All batches, by step.
        start: First step.
        stop: One past the last step.
        n_workers: Processes that work ahead, each on one thread; 0 computes in this process when a
            batch is asked for.
        device: Device to which the batches are moved. A CUDA device also applies the augmentation;
            its batches differ from those of the CPU by rounding.

    Raises:
        DataError: As `PatchBatches`; or the shared memory, through which workers hand over their
            batches, is full.
        RuntimeError: As `PatchBatches`; or a worker was killed, or gave nothing for
            `STUCK_AFTER_S`: names its step and cases.
    """
    device = device or torch.device("cpu")
    if device.type == "cuda":
        ring = _ring_for(batches, n_workers, first_step=start)
        outcomes = _load_outcomes(
            batches, start=start, stop=stop, n_workers=n_workers, is_on_gpu=True, ring=ring
        )
        yield from _augment_ahead(outcomes, device, batches, first_step=start, ring=ring)
        return
    outcomes = _load_outcomes(batches, start=start, stop=stop, n_workers=n_workers, is_on_gpu=False)
    for outcome in outcomes:
        assert outcome.batch is not None, "on a CPU the batches come finished"
        yield outcome.batch.to(device)


def _ring_for(batches: PatchBatches, n_workers: int, *, first_step: int) -> Ring | None:
    """Make a ring with room for what workers compute ahead, and for what a GPU still reads.

    The number of its slots is a multiple of that of the workers: each worker always fills the same.
    """
    n_slots = max(n_workers * (AHEAD_OF_EACH_WORKER + 1), AHEAD_OF_EACH_WORKER + 2)
    return make_ring(
        n_slots=n_slots,
        slot_bytes=batches.n_bytes_of_samples,
        first_step=first_step,
        has_workers=n_workers > 0,
    )


def _load_outcomes(
    batches: PatchBatches,
    *,
    start: int,
    stop: int,
    n_workers: int,
    is_on_gpu: bool,
    ring: Ring | None = None,
) -> Iterator[_Outcome]:
    """Yield a batch for each step, or its samples where a GPU augments them."""
    if is_on_gpu and n_workers == 0:
        keep_freed_memory()  # as workers do
    loader = DataLoader(
        _Outcomes(batches, is_deferred=is_on_gpu, ring=ring),
        batch_size=None,
        sampler=range(start, stop),
        num_workers=n_workers,
        prefetch_factor=AHEAD_OF_EACH_WORKER if n_workers else None,
        pin_memory=is_on_gpu,
        generator=torch.Generator(),  # DataLoader draws a seed: not from the global stream
        timeout=LOOK_EVERY_S if n_workers else 0,
        worker_init_fn=_set_up_worker,
    )
    with no_handler_of_dead_children():
        iterator = iter(loader)
    workers = worker_processes(iterator)
    for step in range(start, stop):
        try:
            outcome = _next_outcome(iterator, workers)
        except RuntimeError as error:
            fault = fault_of_worker(
                batches, step, error, start=start, workers=workers, waited_s=STUCK_AFTER_S
            )
            for worker in workers:
                worker.kill()  # a stuck worker ignores every other signal
            if fault is None:
                raise
            raise RuntimeError(fault) from error
        if outcome.error is not None:
            # End the workers now: left to the garbage collector, it takes 5 seconds for each.
            del iterator
            raise outcome.error
        if outcome.in_ring is not None:
            assert ring is not None, "a worker fills a slot of the ring that it was given"
            outcome = _Outcome(samples=outcome.in_ring.packed(ring.slot(step)))
        yield outcome


def _augment_ahead(
    outcomes: Iterator[_Outcome],
    device: torch.device,
    batches: PatchBatches,
    *,
    first_step: int,
    ring: Ring | None,
) -> Iterator[Batch]:
    """Copy to a GPU and augment there, while the GPU trains on the batch before.

    This happens on a stream of its own, one batch ahead. No process waits for it but the stream of
    the training, for the batch that it is about to use.
    """
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    started = _start_augmentations(outcomes, device, batches, side, first_step, ring)
    for batch, is_ready in _one_ahead(started):
        training = torch.cuda.current_stream(device)
        training.wait_event(is_ready)
        tensors = (batch.image, batch.target, batch.components, batch.cells, batch.ignored)
        for tensor in tensors:
            if tensor is not None:
                # Its memory came from the side stream, which must not reuse it too early.
                tensor.record_stream(training)
        yield batch


def _start_augmentations(
    outcomes: Iterator[_Outcome],
    device: torch.device,
    batches: PatchBatches,
    side: torch.cuda.Stream,
    first_step: int,
    ring: Ring | None,
) -> Iterator[tuple[Batch, torch.cuda.Event]]:
    """Yield each batch as soon as a GPU was told to compute it, and the mark of its end."""
    unread: deque[tuple[int, torch.cuda.Event]] = deque()
    is_locked = False
    try:
        for step, outcome in enumerate(outcomes, first_step):
            assert outcome.samples is not None, "for a GPU the samples come packed"
            if ring is not None and step == first_step:
                # Not earlier: the workers are forked with the first outcome.
                is_locked = ring.lock_pages()
            with torch.cuda.stream(side):
                samples = outcome.samples.unpack(device)
                if ring is not None:
                    unread.append((step, side.record_event()))
                batch = stack_samples(
                    [sample.augment() for sample in samples],
                    with_components=batches.with_components,
                    with_cells=batches.with_cells,
                )
                is_ready = side.record_event()
            yield batch, is_ready
            del outcome, samples, batch
            if ring is not None:
                _free_copied_slots(ring, unread)
    finally:
        if is_locked and ring is not None:
            with suppress(RuntimeError):  # of the training, which is already on its way
                side.synchronize()
            ring.unlock_pages()


def _free_copied_slots(ring: Ring, unread: deque[tuple[int, torch.cuda.Event]]) -> None:
    """Free the slots of the steps whose samples are on the GPU; look, and do not wait.

    Args:
        ring: Ring of the samples.
        unread: Steps in order, and the end of their copy. Those that are freed are removed.
    """
    while unread:
        step, is_copied = unread[0]
        if not is_copied.query():  # type: ignore[no-untyped-call]
            return
        ring.free_until(step)
        unread.popleft()


def _one_ahead(values: Iterator[Value]) -> Iterator[Value]:
    """Yield each value after the next one was computed; an error is raised in its turn."""
    upcoming = next(values, None)
    while upcoming is not None:
        current, upcoming = upcoming, None
        error = None
        try:
            upcoming = next(values, None)
        except Exception as caught:
            error = caught
        yield current
        if error is not None:
            raise error


@dataclass(frozen=True)
class _Outcome:
    """A batch, its samples where the GPU augments them, or the error in their place.

    An error is handed over as a value: raised through torch, from a worker or from the thread that
    pins memory, it would become a traceback of many lines.
    """

    batch: Batch | None = None
    samples: Packed[tuple[Sample, ...]] | None = None
    in_ring: _InRing | None = None
    error: Exception | None = None

    def pin_memory(self) -> _Outcome:
        """Copy the samples to page-locked memory; DataLoader calls this."""
        if self.samples is None:
            return self
        try:
            return _Outcome(samples=self.samples.pin_memory())
        except Exception as error:
            fault = RuntimeError(f"page-locked memory for a batch: {error}")
            fault.__cause__ = error
            return _Outcome(error=fault)


@dataclass(frozen=True)
class _InRing:
    """Packed samples whose buffer is the first bytes of their step's slot in a ring."""

    outline: bytes
    n_bytes: int

    def packed(self, slot: Tensor) -> Packed[tuple[Sample, ...]]:
        """Find the samples in their slot."""
        return Packed(self.outline, slot[: self.n_bytes])


@dataclass(frozen=True)
class _Outcomes(Dataset[_Outcome]):
    """The outcome of each step."""

    batches: PatchBatches
    is_deferred: bool
    ring: Ring | None = None

    def __getitem__(self, step: int) -> _Outcome:
        try:
            return self._load(step, is_in_worker=get_worker_info() is not None)
        except Exception as error:
            error.add_note(traceback.format_exc())
            return _Outcome(error=error)

    def _load(self, step: int, *, is_in_worker: bool) -> _Outcome:
        """Load a step; a worker moves it to shared memory, for the process that trains.

        Torch would do this later, in a thread of the worker: where it fails there, for want of
        room, the batch is lost and the training waits for it in vain.
        """
        if self.is_deferred:
            return self._load_samples(step, is_in_worker=is_in_worker)
        batch = self.batches[step]
        if is_in_worker:
            with _full_shared_memory_named():
                batch = batch.map(Tensor.share_memory_)
        return _Outcome(batch=batch)

    def _load_samples(self, step: int, *, is_in_worker: bool) -> _Outcome:
        """Load the samples of a step, into the ring if their slot is free and large enough."""
        room = self._free_room(step)
        samples = tuple(self.batches.samples(step, room=room))
        # Meanwhile the slot may have become free.
        room = room or self._free_room(step)
        with _full_shared_memory_named():
            packed = pack(samples, is_shared=is_in_worker, room=room)
        if room is not None and packed.buffer.data_ptr() == room.memory.data_ptr():
            return _Outcome(in_ring=_InRing(packed.outline, packed.buffer.nbytes))
        return _Outcome(samples=packed)

    def _free_room(self, step: int) -> Room | None:
        """Find the slot of a step in the ring; None while it may still be read."""
        slot = None if self.ring is None else self.ring.free_slot(step)
        return None if slot is None else Room(slot)


@contextmanager
def _full_shared_memory_named() -> Iterator[None]:
    """Say in one line what is full, and what to do."""
    try:
        yield
    except RuntimeError as error:
        reason = message_lines(error)[0]
        raise DataError(
            "/dev/shm",
            f"no shared memory for a batch ({reason})",
            "set trainer.n_workers=0, or enlarge it (Docker: --shm-size=2g)",
        ) from error


def _next_outcome(iterator: Iterator[_Outcome], workers: Sequence[BaseProcess]) -> _Outcome:
    """Wait for the next outcome for `STUCK_AFTER_S`; look for dead workers every `LOOK_EVERY_S`."""
    for _ in range(STUCK_AFTER_S // LOOK_EVERY_S - 1):
        try:
            return next(iterator)
        except RuntimeError as error:
            are_alive = all(worker.is_alive() for worker in workers)
            if not (is_timeout(error) and are_alive):
                raise
    return next(iterator)


def _set_up_worker(_: int) -> None:
    """Ignore signals in a worker, and keep the memory that each batch needs again.

    A scheduler signals every process of a job; the trainer finishes its step, for which it needs
    its workers.
    """
    for name in ("SIGTERM", "SIGUSR1", "SIGINT"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    keep_freed_memory()
