"""Training batches: batch k is a pure function of (seed, k), whoever computes it and wherever a run starts."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tversky_seg.data.augmentation import Patch
from tversky_seg.data.cases import DataError
from tversky_seg.data.preprocessing import PreparedCase
from tversky_seg.data.sampling import LesionSampler


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

    Raises:
        ValueError: No cases, a negative seed, or a batch smaller than the number of processes.
    """

    cases: Sequence[PreparedCase]
    sampler: LesionSampler
    augmentation: Callable[..., Patch] | None = None
    batch_size: int = 2
    seed: int = 0
    with_components: bool = False
    rank: int = 0
    world_size: int = 1

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
            asked for, `case_ids` list of B names, `starts` list of B first voxels [x, y, z].

        Raises:
            DataError: A file of a case could not be read; names case and step.
            RuntimeError: Anything else that went wrong in a sample, likewise.
        """
        first, end = (share * self.batch_size // self.world_size for share in (self.rank, self.rank + 1))
        samples = [self._sample(step, i) for i in range(first, end)]
        images, targets, components, case_ids, starts = zip(*samples, strict=True)
        batch = {"image": _stack(images), "target": _stack(targets).float()}
        if self.with_components:
            batch["components"] = _stack(components)
        return batch | {"case_ids": list(case_ids), "starts": [list(start) for start in starts]}

    def _sample(self, step: int, i: int) -> tuple[Any, ...]:
        rng = np.random.default_rng([self.seed, step, i])
        case_id = "the sampler"
        try:
            index, start = self.sampler.draw(self.cases, rng)
            case = self.cases[index]
            case_id = case.case_id
            image, target, components = case.patch(start, self.sampler.sides)
            kept = components if self.with_components else None
            if self.augmentation is not None:
                image, target, kept = self.augmentation(image, target, kept, rng, spacing_mm=case.spacing_mm)
        except Exception as error:
            kind = DataError if isinstance(error, DataError | OSError) else RuntimeError
            raise kind(f"{case_id}: {type(error).__name__} at step {step}, sample {i}: {error}") from error
        return image, target, kept, case_id, start


def load_batches(
    batches: PatchBatches, *, start: int, stop: int, n_workers: int = 0, pin_memory: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield batches[start], ..., batches[stop - 1] in this order, byte for byte the same for any number of workers.

    Args:
        batches: All batches, by step.
        start: First step.
        stop: One past the last step.
        n_workers: Processes that work ahead, each on one thread; 0 computes in this process when a batch is asked for.
        pin_memory: Put batches into page-locked memory, for fast copies to a CUDA device.

    Raises:
        DataError, RuntimeError: As `PatchBatches` does, also out of a worker; a worker that was killed is named with
            its step.
    """
    loader = DataLoader(
        _Guarded(batches),
        batch_size=None,
        sampler=range(start, stop),
        num_workers=n_workers,
        pin_memory=pin_memory and torch.cuda.is_available(),
        generator=torch.Generator(),  # DataLoader draws a seed: not from the global stream
    )
    iterator = iter(loader)
    for step in range(start, stop):
        try:
            batch = next(iterator)
        except RuntimeError as error:
            raise RuntimeError(
                f"a loader worker died at step {step}, out of memory or of shared memory (/dev/shm)? "
                f"Try fewer workers; n_workers=0 needs none. ({error})"
            ) from error
        if isinstance(batch, Exception):
            del iterator  # ends the workers now: left to the garbage collector it takes 5 seconds for each
            raise batch
        yield batch


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


def _stack(arrays: Sequence[np.ndarray[Any, Any]]) -> torch.Tensor:
    return torch.from_numpy(np.stack(arrays))
