"""Training batches: batch k is a pure function of (seed, k), whoever computes it and wherever a run starts."""

import signal
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tversky_seg.data.errors import DataError
from tversky_seg.data.grids import Shape
from tversky_seg.data.patches.augmentation import Change
from tversky_seg.data.patches.samplers import Sampler
from tversky_seg.data.preprocessing.pipeline import PreparedCase


class Augments(Protocol):
    """Says how a patch is changed: see `augmentation.Augmentation`."""

    def draw(
        self,
        rng: np.random.Generator,
        *,
        n_channels: int,
        size: Sequence[int],
        spacing_mm: Sequence[float],
    ) -> Change:
        """Draw the change of one patch."""
        ...


STUCK_AFTER_S = 50  # a patch takes milliseconds
LOOK_EVERY_S = 2


@dataclass(frozen=True)
class PatchBatches(Dataset[dict[str, Any]]):
    """All batches of a training, by step: `batches[k]` draws sample i from the generator keyed (seed, k, i).

    No state is kept, so a resumed run sees what an uninterrupted one would have seen, and any number of loader workers
    or processes gives the same global batch. Process `rank` of `world_size` computes a contiguous share of it.

    Args:
        cases: The prepared training cases.
        sampler: Says where the patches lie.
        augmentation: Changes a patch as `Augmentation` does, or None.
        batch_size: Patches in the global batch, at least world_size.
        seed: Of the training, >= 0.
        with_components: Add the labels of the connected components, for inverse weighting.
        rank: Of this process.
        world_size: Number of processes.
        augment_later: Batches hold what was read and drawn, for `augmented` to compute on the training device.

    Raises:
        ValueError: No cases, a negative seed, or a batch smaller than the number of processes.
    """

    cases: Sequence[PreparedCase]
    sampler: Sampler
    augmentation: Augments | None = None
    batch_size: int = 2
    seed: int = 0
    with_components: bool = False
    rank: int = 0
    world_size: int = 1
    augment_later: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot give a batch."""
        if not self.cases:
            raise ValueError("batches are drawn from at least one case, got none")
        if self.batch_size < self.world_size or not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"batch_size must be at least the number of processes, and rank one of them; "
                f"got batch_size={self.batch_size}, rank={self.rank}, world_size={self.world_size}"
            )
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0, got {self.seed}")

    def __getitem__(self, step: int) -> dict[str, Any]:
        """This process's share of batch `step`.

        Returns:
            `image` float32 (B, C, X, Y, Z), `target` float32 (B, K, X, Y, Z), `components` int32 (B, K, X, Y, Z) where
            asked for, `case_ids` list of B names, `starts` list of B first voxels [x, y, z]. With `augment_later` what
            `augmented` makes this of.

        Raises:
            DataError: A file of a case could not be read; names case and step.
            RuntimeError: Anything else that went wrong in a sample, likewise.
        """
        samples = [self._sample(step, i) for i in self._own]
        batch: dict[str, Any] = {name: [sample[name] for sample in samples] for name in samples[0]}
        batch["with_components"] = self.with_components
        return batch if self.augment_later else augmented(batch, torch.device("cpu"))

    def case_ids(self, step: int) -> list[str]:
        """Names of the cases that this process draws at a step; no file of an image is read."""
        drawn = (
            self._draw(step, i, np.random.default_rng([self.seed, step, i])) for i in self._own
        )
        return [self.cases[index].case_id for index, _ in drawn]

    def _draw(self, step: int, i: int, rng: np.random.Generator) -> tuple[int, Shape]:
        return self.sampler.draw(self.cases, rng, patch_number=step * self.batch_size + i)

    @property
    def _own(self) -> range:
        """This process's samples of the global batch."""
        first, end = (
            share * self.batch_size // self.world_size for share in (self.rank, self.rank + 1)
        )
        return range(first, end)

    def _sample(self, step: int, i: int) -> dict[str, Any]:
        """What one sample of a batch is made of; the change is carried out unless that is left for later."""
        rng = np.random.default_rng([self.seed, step, i])
        case_id = "the sampler"
        try:
            index, start = self._draw(step, i, rng)
            case = self.cases[index]
            case_id = case.case_id
            image, labels, change, offset = self._source(case, start, rng)
            if change is not None and not self.augment_later:
                with _one_thread():
                    image, labels = change(image, labels, offset=offset)
                change = None
        except Exception as error:
            kind = DataError if isinstance(error, DataError | OSError) else RuntimeError
            raise kind(
                f"{case_id}: {type(error).__name__} at step {step}, sample {i}: {error}"
            ) from error
        return {
            "images": image, "labels": labels, "changes": change, "offsets": offset, "case_ids": case_id,
            "starts": list(start),
        }  # fmt: skip

    def _source(
        self, case: PreparedCase, start: Shape, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Change | None, Shape]:
        """Image, labels, the change that is due, and where they begin, counted from the patch's first voxel."""
        size, first, change = self.sampler.sides, start, None
        if self.augmentation is not None:
            change = self.augmentation.draw(
                rng, n_channels=len(case.image_scale), size=size, spacing_mm=case.spacing_mm
            )
            first, size = change.box(start, case.geometry.shape)
        image = case.intensities(first, size)
        read = case.labels(first, size, components=self.with_components)
        labels = torch.from_numpy(
            read.astype(np.float32) if change is None and not self.with_components else read.copy()
        )
        x, y, z = (int(a - b) for a, b in zip(first, start, strict=True))
        return torch.from_numpy(image), labels, change, (x, y, z)


def augmented(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch on a device, with the changes carried out there that its samples still wait for.

    Labels are the components where they are asked for; the target is where these are not 0.
    """
    if "images" not in batch:
        return {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }
    pairs = []
    for image, labels, change, offset in zip(*(batch[name] for name in _WAITING), strict=True):
        pair = image.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        pairs.append(pair if change is None else change(*pair, offset=offset))
    images, labels = (_stack(tensors) for tensors in zip(*pairs, strict=True))
    finished = {"image": images}
    if batch["with_components"]:
        finished |= {"target": (labels > 0).float(), "components": labels}
    else:
        finished["target"] = labels.float()
    return finished | {"case_ids": batch["case_ids"], "starts": batch["starts"]}


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """One batch; of a single tensor without a copy."""
    return torch.stack(list(tensors)) if len(tensors) > 1 else tensors[0][None]


_WAITING = ("images", "labels", "changes", "offsets")


@contextmanager
def _one_thread() -> Iterator[None]:
    """The same bits as in a loader worker, which has one thread."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def load_batches(
    batches: PatchBatches,
    *,
    start: int,
    stop: int,
    n_workers: int = 0,
    device: torch.device | None = None,
) -> Iterator[dict[str, Any]]:
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
        _Guarded(replace(batches, augment_later=True) if on_device else batches),
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
        yield augmented(batch, device)


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

    def __getitem__(self, step: int) -> dict[str, Any] | Exception:
        try:
            return self.batches[step]
        except Exception as error:
            error.add_note(traceback.format_exc())
            return error
