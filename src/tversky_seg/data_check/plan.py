"""The plan of a training: patch, batch and loaders that suit a dataset and a machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tversky_seg.data_check.duration import Duration
from tversky_seg.data_check.memory import free_memory, step_bytes

KEEP_FREE = 0.2
"""Share of the free memory that a plan leaves."""
LARGEST_BATCH = {"cuda": 8, "cpu": 2}
MOST_WORKERS = {"cuda": 8, "cpu": 2}
LONGEST_SIDE = {"cuda": 128, "cpu": 64}
"""Voxels along the finest axis; more costs a CPU minutes a step."""
MULTIPLE = 16
"""Divisor of patch sides: the total stride of the networks."""
THICK_MULTIPLE = 4
"""Divisor along an axis of thick slices."""
Sides = tuple[int, int, int]


@dataclass(frozen=True)
class Plan:
    """Settings that suit a dataset and a machine."""

    spacing_mm: tuple[float, float, float]
    """Voxel size along R, A, S."""
    patch_size: Sides
    batch_size: int
    n_workers: int
    step_bytes: int
    """Memory of a step with these settings."""
    memory_bytes: int
    """Free memory of the device."""
    device: str
    """"cuda" or "cpu"."""
    reasons: tuple[str, ...]
    """One sentence for each choice."""
    volume: Sides = (0, 0, 0)
    """Typical volume as the network sees it, in voxels."""
    precision: str | None = None
    """Precision of this machine's device; None where the training is planned for another."""
    duration: Duration | None = None
    """Time of the training; None where no step was timed."""

    @property
    def overrides(self) -> dict[str, str]:
        """Settings for the command line, by key."""
        overrides = {
            "data.spacing_mm": _bracketed(self.spacing_mm),
            "sampler.patch_size": _bracketed(self.patch_size),
            "trainer.batch_size": str(self.batch_size),
            "trainer.n_workers": str(self.n_workers),
        }
        if self.precision is not None:
            overrides["trainer.precision"] = self.precision
        if self.duration is not None:
            overrides["trainer.max_steps"] = str(self.duration.max_steps)
        return overrides


def make_plan(
    network: nn.Module,
    *,
    spacing_mm: tuple[float, float, float],
    shape: Sequence[int],
    n_channels: int,
    device: torch.device,
    precision: str = "fp32",
    memory_bytes: int | None = None,
    n_cores: int = 1,
) -> Plan:
    """Choose the largest patch, cubic in mm, of which memory holds two; then batch and loaders.

    Sides are multiples of 16 and no longer than the volumes need: up to 128 voxels along the finest
    axis on a GPU, and 64 on a CPU, where a step with larger patches takes minutes. The longest side
    shrinks while two patches do not fit into four fifths of the free memory; then the batch grows,
    to 8 at most (2 on a CPU).

    Args:
        network: Network to train.
        spacing_mm: Voxel size of the network's input.
        shape: Typical volume as the network sees it, in voxels.
        n_channels: Number of modalities.
        device: Device to train on.
        precision: Precision of the forward pass.
        memory_bytes: Memory to plan with; None: the free memory.
        n_cores: Processors for loaders.
    """
    free = free_memory(device) if memory_bytes is None else memory_bytes
    # Other programs, and the fragments that an allocator leaves, take the remaining fifth.
    room = int(free * (1 - KEEP_FREE))

    def need(batch_size: int, sides: Sides) -> int:
        batch_shape = (batch_size, n_channels, *sides)
        return step_bytes(network, batch_shape, precision=precision, device=device.type)

    # Memory is not considered here.
    preferred = _preferred_sides(spacing_mm, shape, longest=LONGEST_SIDE[device.type])
    sides = preferred
    while need(2, sides) > room and max(sides) > MULTIPLE:
        sides = _shrink(sides, spacing_mm)
    batch_size = 2
    if need(batch_size, sides) > room:
        batch_size = 1
    # Doubling keeps the batch even, which splits over processes.
    while 2 * batch_size <= LARGEST_BATCH[device.type] and need(2 * batch_size, sides) <= room:
        batch_size *= 2
    reasons = (
        f"voxels of {times(spacing_mm)} mm: the median of the preprocessed cases",
        _patch_reason(sides, preferred, spacing_mm, shape, device=device.type),
        _batch_reason(batch_size, device=device.type),
    )
    return Plan(
        spacing_mm=spacing_mm,
        patch_size=sides,
        batch_size=batch_size,
        n_workers=min(max(n_cores - 1, 0), MOST_WORKERS[device.type]),
        step_bytes=need(batch_size, sides),
        memory_bytes=free,
        device=device.type,
        reasons=reasons,
        volume=(shape[0], shape[1], shape[2]),
        precision=precision if is_here(device) else None,
    )


def is_here(device: torch.device) -> bool:
    """Tell whether this machine has the device, for which a training may only be planned."""
    return device.type == "cpu" or torch.cuda.is_available()


def _preferred_sides(spacing_mm: Sequence[float], shape: Sequence[int], *, longest: int) -> Sides:
    """Choose sides of equal length in mm, but no longer than the volumes need.

    Voxels of 1 x 1 x 4 mm and `longest` 64 give (64, 64, 16).
    """
    sides: list[int] = []
    for size, n in zip(spacing_mm, shape, strict=True):
        # Thick slices of 4 mm get a quarter of the voxels of 1 mm.
        wanted = longest * min(spacing_mm) / size
        # Thick slices are few, and networks pool less along them.
        multiple = MULTIPLE if min(wanted, n) >= MULTIPLE else THICK_MULTIPLE
        n_multiples = max(round(wanted / multiple), 1)
        n_needed = math.ceil(n / multiple)
        sides.append(min(n_multiples, n_needed) * multiple)
    return sides[0], sides[1], sides[2]


def _shrink(sides: Sides, spacing_mm: Sequence[float]) -> Sides:
    """Shorten the side that is longest in mm, of those above the smallest, by one multiple."""
    # Below one multiple, the networks would pool a side down to nothing.
    shrinkable = [axis for axis in range(3) if sides[axis] > MULTIPLE]
    axis = max(shrinkable, key=lambda i: sides[i] * spacing_mm[i])
    shorter = list(sides)
    shorter[axis] -= MULTIPLE
    return shorter[0], shorter[1], shorter[2]


def _patch_reason(
    sides: Sides,
    preferred: Sides,
    spacing_mm: Sequence[float],
    shape: Sequence[int],
    *,
    device: str,
) -> str:
    covers_volume = any(side >= n for side, n in zip(sides, shape, strict=True))
    if sides != preferred:
        limit = "two larger ones do not fit in memory"
    elif covers_volume:
        limit = "the volumes are no larger"
    elif device == "cpu":
        limit = "larger ones are slow on a CPU"
    else:
        limit = "lesions seldom need more surroundings"
    # In mm, because voxels alone do not say how much anatomy a patch shows.
    extent_mm = [round(n * size) for n, size in zip(sides, spacing_mm, strict=True)]
    return f"patches of {times(sides)} voxels, {times(extent_mm)} mm: {limit}"


def _batch_reason(batch_size: int, *, device: str) -> str:
    if batch_size == 1:
        limit = "a second patch of the smallest size does not fit in memory"
    elif device == "cpu":
        limit = "steps stay short on a CPU"
    else:
        limit = f"as many as fit, at most {LARGEST_BATCH[device]}"
    return f"{batch_size} patches in a batch: {limit}"


def times(numbers: Sequence[float]) -> str:
    """Write numbers as "182 x 218 x 182"."""
    return " x ".join(f"{number:.4g}" for number in numbers)


def _bracketed(numbers: Sequence[float]) -> str:
    return "[" + ",".join(f"{number:g}" for number in numbers) + "]"
