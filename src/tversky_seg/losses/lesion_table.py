"""Sums over the voxels of each lesion of a batch, and means over the lesions of the global batch.

A GPU is never waited for: where the numbers of the lesions have a known bound, tables have a fixed
size, and no list of voxels is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tversky_seg.losses.global_batch import sum_over_processes

N_SPARE_SLOTS = 4096
"""Counters among which a GPU spreads the voxels of no lesion: one for millions of them is slow."""


@dataclass(frozen=True, eq=False)
class LesionTable:
    """One row for each patch (a class of a sample), one column for each lesion, some of them empty.

    Attributes:
        shape: (B, C, L), with lesions 1 to L of each patch.
        voxels: Places of the N voxels that count, in the flattened batch; None: all, in order.
        slots: Place of each of these voxels in the flattened table, (N,).
        n_spare: Columns before those of the lesions, for voxels of no lesion; one more is the last,
            for numbers above L.
    """

    shape: tuple[int, int, int]
    voxels: Tensor | None
    slots: Tensor
    n_spare: int

    def pick(self, values: Tensor) -> Tensor:
        """List the values (B, C, X, Y, Z) of the voxels, (N,)."""
        if self.voxels is None:
            return values.flatten()
        return values.flatten().index_select(0, self.voxels)

    def sums(self, picked: Tensor) -> Tensor:
        """Add up values (N,) over each lesion, (B, C, L)."""
        # In float64, so that the order of the additions, which a GPU does not fix, hardly matters.
        table = picked.new_zeros(self._n_slots, dtype=torch.float64)
        table = table.index_add(0, self.slots, picked.double())
        return self._lesions_of(table).to(picked.dtype)

    def largest(self, picked: Tensor) -> Tensor:
        """Take the largest of values (N,) in each lesion, (B, C, L), -inf in a lesion without."""
        table = picked.new_full((self._n_slots,), -math.inf)
        table = table.scatter_reduce(0, self.slots, picked, "amax")
        return self._lesions_of(table)

    def spread(self, by_lesion: Tensor) -> Tensor:
        """Give each voxel the value of its lesion, (N,) from (B, C, L); 0 for voxels of none."""
        n_more = self._n_columns - self.shape[2] - self.n_spare
        table = torch.nn.functional.pad(by_lesion, (self.n_spare, n_more))
        return table.flatten().index_select(0, self.slots)

    @property
    def _n_columns(self) -> int:
        return self.n_spare + self.shape[2] + 1

    @property
    def _n_slots(self) -> int:
        return self.shape[0] * self.shape[1] * self._n_columns

    def _lesions_of(self, table: Tensor) -> Tensor:
        """Cut the columns of the lesions out of a flattened table, (B, C, L)."""
        by_patch = table.view(self.shape[0], self.shape[1], self._n_columns)
        return by_patch[..., self.n_spare : self.n_spare + self.shape[2]]


def lesion_table(lesions: Tensor, *, n_labels: int | None = None) -> LesionTable:
    """Find the place of each voxel in a table of lesions.

    Args:
        lesions: Number of the lesion that each voxel belongs to, 0 for none, integers
            (B, C, X, Y, Z).
        n_labels: Bound of the numbers, so that a GPU need not be waited for; None: look for the
            largest. On a GPU voxels of numbers above it count nowhere.

    Raises:
        ValueError: The lesions are not integers >= 0 on five axes, or exceed `n_labels` (the values
            are only looked at on the CPU).
    """
    is_integer = not lesions.is_floating_point() and lesions.dtype != torch.bool
    if not is_integer or lesions.ndim != 5:
        raise ValueError(
            f"lesions must be integers (B, C, X, Y, Z), got {lesions.dtype} {tuple(lesions.shape)}"
        )
    is_on_host = lesions.device.type == "cpu"
    if n_labels is None or is_on_host:
        smallest, largest = (int(value) for value in torch.aminmax(lesions))
        if smallest < 0 or (n_labels is not None and largest > n_labels):
            limit = "" if n_labels is None else f" and <= n_labels={n_labels}"
            raise ValueError(f"lesions must be >= 0{limit}, got {smallest} to {largest}")
        n_labels = largest
    shape = (lesions.shape[0], lesions.shape[1], n_labels)
    patches = lesions.flatten(0, 1).flatten(1).long()  # (B * C, X * Y * Z)
    if is_on_host:
        return _table_of_few(patches, shape)
    return _table_of_all(patches, shape)


def _table_of_few(patches: Tensor, shape: tuple[int, int, int]) -> LesionTable:
    """List the voxels of lesions alone, which are few."""
    voxels = patches.flatten().nonzero()[:, 0]
    patch = voxels // patches.shape[1]
    n_columns = shape[2] + 1
    slots = patch * n_columns + patches.flatten().index_select(0, voxels) - 1
    return LesionTable(shape, voxels, slots, n_spare=0)


def _table_of_all(patches: Tensor, shape: tuple[int, int, int]) -> LesionTable:
    """Take all voxels: their number is known without a look at them.

    With three spare columns and two lesions, a patch (0, 0, 2, 0) has the slots (0, 1, 4, 0), and
    the next one, (9, 0, 0, 1), the slots (11, 7, 8, 9).
    """
    n_columns = N_SPARE_SLOTS + shape[2] + 1
    voxel = torch.arange(patches.shape[1], device=patches.device)
    column = torch.where(patches > 0, patches + (N_SPARE_SLOTS - 1), voxel % N_SPARE_SLOTS)
    column.clamp_(max=n_columns - 1)
    first = n_columns * torch.arange(len(patches), device=patches.device)
    slots = (column + first[:, None]).flatten()
    return LesionTable(shape, None, slots, n_spare=N_SPARE_SLOTS)


def mean_over_lesions(values: Tensor, is_counted: Tensor) -> Tensor:
    """Average over the lesions of the global batch, class by class, then over classes with lesions.

    Args:
        values: (B, C, L), finite where they count.
        is_counted: (B, C, L) bool, which lesions there are.

    Returns:
        A scalar; 0, with a gradient of 0, without lesions.
    """
    total = torch.where(is_counted, values, 0).sum((0, 2))
    n = is_counted.sum((0, 2)).to(total.dtype)
    # Each process has its own number of lesions, so sums and numbers meet before the ratio.
    total, n = sum_over_processes(torch.stack([total, n]))
    by_class = total / n.clamp_min(1)
    mean: Tensor = by_class.sum() / (n > 0).sum().clamp_min(1)
    return mean
