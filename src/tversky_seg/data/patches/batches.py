"""Training batches: batch k depends on (seed, k) alone, in any process and after any restart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from tversky_seg.data.errors import DataError
from tversky_seg.data.grids import Floats, Shape, crop_or_pad
from tversky_seg.data.patches.batch import Batch, Sample, stack_samples
from tversky_seg.data.patches.case_list import as_case_list
from tversky_seg.data.patches.change import Change
from tversky_seg.data.patches.packing import Room
from tversky_seg.data.patches.sampling import Aim, Sampler, draw_patch, patch_sides
from tversky_seg.data.patches.spatial import as_shape
from tversky_seg.data.patches.surrounds import with_surrounds
from tversky_seg.data.preprocessing.prepared_case import PreparedCase

BYTES_OF_SMALL_TENSORS = 2**16
"""Bytes of the matrices of a sample that is small itself; in a larger one they do not count."""


class Augments(Protocol):
    """Draws how a patch is changed, as `augmentation.Augmentation` does."""

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


def numbers_of_process(
    rank: int, world_size: int, *, batch_size: int, n_parts: int = 1
) -> list[int]:
    """Number the samples of the global batch that one process computes, in order.

    Every process takes a share of each part, so that a part holds the same samples for any number
    of processes. Of five samples, two processes take 0, 1 and 2, 3, 4. Of eight samples in two
    parts, they take 0, 1, 4, 5 and 2, 3, 6, 7.
    """
    numbers: list[int] = []
    for part in range(n_parts):
        part_start = part * batch_size // n_parts
        part_size = (part + 1) * batch_size // n_parts - part_start
        # Integer division spreads what does not divide evenly: 5 samples as 2 and 3.
        first = part_start + rank * part_size // world_size
        end = part_start + (rank + 1) * part_size // world_size
        numbers.extend(range(first, end))
    return numbers


@dataclass(frozen=True)
class PatchBatches(Dataset[Batch]):
    """All batches of a training, by step.

    Sample i of `batches[k]` is drawn from a generator of its own, keyed (seed, k, i).

    No state is kept, so a resumed run gets the batches of an uninterrupted one, and any number of
    loader workers or processes gives the same global batch. Process `rank` of `world_size` computes
    a share of it (see `numbers_of_process`).

    Args:
        cases: Prepared training cases.
        sampler: Draws where the patches lie.
        augmentation: Changes a patch as `Augmentation` does, or None.
        batch_size: Patches in the global batch, at least world_size.
        seed: Seed of the training, >= 0.
        with_components: Add the labels of the connected components, for weights and lesion terms.
        with_cells: Add their cells, too, which the cases then must have (`lesion_cells`).
        rank: Number of this process.
        world_size: Number of processes.
        accumulate: Equal parts in which the batch will go through the network.
        required_channels: Channels that every case has; they are never dropped.

    Raises:
        ValueError: No cases, a negative seed, or a batch smaller than the number of processes.
    """

    cases: Sequence[PreparedCase]
    sampler: Sampler
    augmentation: Augments | None = None
    batch_size: int = 2
    seed: int = 0
    with_components: bool = False
    with_cells: bool = False
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1
    required_channels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check that a batch can be drawn."""
        object.__setattr__(self, "cases", as_case_list(self.cases))
        if not self.cases:
            raise ValueError("batches are drawn from at least one case, got none")
        if self.batch_size < self.world_size or not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"batch_size must be at least the number of processes, and rank one of them; "
                f"got batch_size={self.batch_size}, rank={self.rank}, world_size={self.world_size}"
            )
        if self.with_cells and not self.with_components:
            raise ValueError("cells come with components; got with_components=False")
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0, got {self.seed}")

    def __getitem__(self, step: int) -> Batch:
        """Compute this process's share of batch `step`.

        Raises:
            DataError: A file of a case could not be read; names case and step.
            RuntimeError: Anything else that went wrong in a sample, likewise.
        """
        # Each sample is augmented before the next is read, so that memory holds one large box.
        samples = [self._sample(step, number, is_deferred=False) for number in self._numbers]
        return stack_samples(
            samples, with_components=self.with_components, with_cells=self.with_cells
        )

    def samples(self, step: int, *, room: Room | None = None) -> list[Sample]:
        """Draw and read the samples of `batches[step]`, and leave their augmentation to a GPU.

        Args:
            step: Number of the batch.
            room: Memory to pack them in, into which images and labels are read; None: new memory.

        Raises:
            DataError, RuntimeError: As `batches[step]`.
        """
        return [self._sample(step, number, is_deferred=True, room=room) for number in self._numbers]

    def case_ids(self, step: int) -> list[str]:
        """List the cases that this process draws at a step; no file of an image is read."""
        names = []
        for number in self._numbers:
            aim, _ = self._draw(step, number, self._rng(step, number))
            names.append(self.cases[aim.case_index].case_id)
        return names

    @property
    def n_bytes_of_samples(self) -> int:
        """Bytes that the samples of a step hardly ever exceed.

        Three times those of the patches: strong deformations need twice as much of a volume, and
        noise travels as it was drawn.
        """
        case = self.cases[0]
        n_voxels = math.prod(patch_sides(self.sampler.patch_size))
        # Image and labels; where raters vote, as many votes as labels.
        n_arrays = len(case.image_scale) + len(case.n_lesions) * (2 if case.n_raters else 1)
        n_bytes = 3 * n_voxels * n_arrays * np.dtype(np.int16).itemsize
        return len(self._numbers) * (n_bytes + BYTES_OF_SMALL_TENSORS)

    @property
    def _numbers(self) -> list[int]:
        return numbers_of_process(
            self.rank, self.world_size, batch_size=self.batch_size, n_parts=self.accumulate
        )

    def _rng(self, step: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, step, number])

    def _draw(self, step: int, number: int, rng: np.random.Generator) -> tuple[Aim, Shape]:
        patch_number = step * self.batch_size + number
        return draw_patch(self.sampler, self.cases, rng, patch_number=patch_number)

    def _sample(
        self, step: int, number: int, *, is_deferred: bool, room: Room | None = None
    ) -> Sample:
        """Draw and read one sample, and apply its augmentation unless that is deferred."""
        rng = self._rng(step, number)
        # At fault until a case is drawn.
        case_id = "the sampler"
        try:
            aim, start = self._draw(step, number, rng)
            case = self.cases[aim.case_index]
            case_id = case.case_id
            # A generator of its own: all other draws are those without implanted lesions.
            implant_rng = np.random.default_rng([self.seed, step, number, 1])
            with _one_thread():  # in the training process as in a worker
                sample = self._read(
                    case, start, rng, implant_rng=implant_rng, is_deferred=is_deferred, room=room
                )
                return sample if is_deferred else sample.augment()
        except Exception as error:
            fault = f"{type(error).__name__} at step {step}, sample {number}: {error}"
            if isinstance(error, DataError | OSError):
                raise DataError(case_id, fault, case_id=case_id) from error
            raise RuntimeError(f"{case_id}: {fault}") from error

    def _read(
        self,
        case: PreparedCase,
        start: Shape,
        rng: np.random.Generator,
        *,
        implant_rng: np.random.Generator,
        is_deferred: bool,
        room: Room | None,
    ) -> Sample:
        """Draw the augmentation of the patch at `start`, and read the box that it needs.

        Lesions are implanted here, on the CPU. Where the augmentation is deferred, the image comes
        as it is stored, with its scale.
        """
        change, first, size = self._draw_change(case, start, rng)
        n_labels = max(case.n_lesions, default=0)
        of_box = case.labels(first, size, components=self.with_components)
        implanted = self._implant(case, of_box, first, size, rng=implant_rng)
        if implanted is not None:
            of_box = implanted.labels
            n_labels += implanted.n_lesions
        if self.with_cells:
            of_box = with_surrounds(of_box, crop_or_pad(np.asarray(case.cells), first, size))
        has_ignored = case.has_ignored and bool((of_box == -1).any())
        # `n_raters` is 0 where the target is one mask.
        largest = max(n_labels if self.with_components else 1, case.n_raters)
        of_box = _with_votes(of_box, case, implanted, first, size)
        dtype = _narrowest(largest, is_signed=self.with_cells or has_ignored)
        # Where lesions grow, other labels take the place of these (below).
        is_growing = change is not None and change.growth_mm > 0
        labels = _copied(of_box, dtype, room=None if is_growing else room)
        # As bytes, in a tenth of the time: any of them that is not 0.
        has_lesion = bool(labels.numpy().view(bool).any())

        scale = None
        if is_deferred:
            image, scale = _stored_image(case, implanted, first, size, room=room)
            if change is not None and change.growth_mm and has_lesion:
                change, labels = change.move_labels(labels)
        else:
            image = _intensities(case, implanted, first, size)
        return Sample(
            image=image,
            scale=scale,
            labels=labels,
            change=change,
            has_lesion=has_lesion,
            has_ignored=has_ignored,
            n_labels=n_labels,
            n_raters=case.n_raters,
            case_id=case.case_id,
            start=start,
        )

    def _draw_change(
        self, case: PreparedCase, start: Shape, rng: np.random.Generator
    ) -> tuple[Change | None, Shape, Shape]:
        """Draw the augmentation of the patch at `start`.

        Returns:
            The change, and the box of the case that it reads: first voxel and size.
        """
        size = patch_sides(self.sampler.patch_size)
        if self.augmentation is None:
            return None, start, size
        change = self.augmentation.draw(
            rng, n_channels=len(case.image_scale), size=size, spacing_mm=case.spacing_mm
        )
        change = change.without(case.missing, kept=self.required_channels)
        first, size = change.box(start, case.geometry.shape)
        return change.at(as_shape(np.subtract(first, start))), first, size

    def _implant(
        self,
        case: PreparedCase,
        labels: NDArray[Any],
        first: Shape,
        size: Shape,
        *,
        rng: np.random.Generator,
    ) -> _Implanted | None:
        """Implant lesions into a box of a case; None where the augmentation implants none."""
        implant = getattr(self.augmentation, "implant", None)
        if implant is None:
            return None
        image = case.intensities(first, size)
        changed = labels.astype(np.int32)  # a copy
        n_lesions = implant.apply(
            image,
            changed,
            cases=self.cases,
            case=case,
            rng=rng,
            as_components=self.with_components,
        )
        return _Implanted(image, changed, is_changed=changed != labels, n_lesions=n_lesions)


@dataclass(frozen=True, eq=False)
class _Implanted:
    """A box of a case with implanted lesions."""

    image: Floats  # (C, x, y, z)
    labels: NDArray[np.int32]
    is_changed: NDArray[np.bool_]  # of `labels`
    n_lesions: int


def _with_votes(
    labels: NDArray[Any],
    case: PreparedCase,
    implanted: _Implanted | None,
    first: Shape,
    size: Shape,
) -> NDArray[Any]:
    """Add to labels (K, x, y, z) the numbers of raters that drew each voxel, if they are kept."""
    if case.votes is None:
        return labels
    votes = crop_or_pad(np.asarray(case.votes), first, size)
    if implanted is not None:
        # As if every rater had drawn it.
        votes = np.where(implanted.is_changed, case.n_raters, votes)
    return np.concatenate([labels, votes])


def _intensities(
    case: PreparedCase, implanted: _Implanted | None, first: Shape, size: Shape
) -> Tensor:
    """Read the normalised intensities (C, x, y, z) of a box."""
    if implanted is not None:
        return torch.from_numpy(implanted.image)
    return torch.from_numpy(case.intensities(first, size))


def _stored_image(
    case: PreparedCase,
    implanted: _Implanted | None,
    first: Shape,
    size: Shape,
    *,
    room: Room | None,
) -> tuple[Tensor, Tensor]:
    """Read the integers (C, x, y, z) of a box as the cache stores them, and their scale (C,)."""
    scale = torch.from_numpy(np.asarray(case.image_scale, dtype=np.float32))
    if implanted is not None:
        return torch.from_numpy(_as_stored(implanted.image, case.image_scale)), scale
    stored = crop_or_pad(np.asarray(case.image), first, size)
    return _copied(stored, torch.int16, room=room), scale


def _copied(values: NDArray[Any], dtype: torch.dtype, *, room: Room | None) -> Tensor:
    """Copy integers, which may be a view of a read-only file, into room for them or new memory."""
    empty = torch.empty if room is None else room.empty
    copied = empty(values.shape, dtype=dtype)
    np.copyto(copied.numpy(), values, casting="unsafe")
    return copied


def _as_stored(image: Floats, scale: Floats) -> NDArray[np.int16]:
    """Convert intensities (C, x, y, z) back to the integers of the cache, cut at their limits."""
    largest = np.iinfo(np.int16).max
    values = np.rint(image / np.asarray(scale, dtype=np.float32)[:, None, None, None])
    stored: NDArray[np.int16] = values.clip(-largest, largest).astype(np.int16)
    return stored


def _narrowest(largest: int, *, is_signed: bool) -> torch.dtype:
    """Choose the narrowest type for labels up to `largest`, -1 and surrounds if it is signed."""
    if is_signed and largest < torch.iinfo(torch.int8).max:
        return torch.int8
    if not is_signed and largest <= torch.iinfo(torch.uint8).max:
        return torch.uint8
    if largest < torch.iinfo(torch.int16).max:
        return torch.int16
    return torch.int32


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread, as loader workers do: another number gives other roundings."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
