"""Sampling of training patches: what a sampler is, and the draws that samplers share.

A sampler is a frozen dataclass with a `patch_size` and one method, `aim`: it draws a case and a
voxel that the patch is cut for. `draw_patch` then places the patch around this voxel, in the same
way for all samplers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tversky_seg.data.grids import Shape
from tversky_seg.data.patches.case_list import as_case_list
from tversky_seg.data.patches.spatial import as_shape
from tversky_seg.data.preprocessing.prepared_case import PreparedCase

# A length such as "48mm" is for configs, which replace it by voxels before a sampler is made.
PatchSize = int | tuple[int, int, int] | str
Voxel = tuple[int, int, int]


@dataclass(frozen=True)
class Aim:
    """A drawn case, and the voxel that a patch of it is cut for.

    Attributes:
        case_index: Index of the case.
        voxel: Voxel that the patch is cut for.
        lesion: Index of the lesion that the voxel was drawn from; None: the patch targets no
            lesion.
        jitter: Share of the patch's sides in which the voxel may lie, in [0, 1]: 0 the centre, 1
            anywhere.
        start: First voxel of the patch, where the sampler places the patch itself; else None.
    """

    case_index: int
    voxel: Voxel
    lesion: int | None = None
    jitter: float = 0.0
    start: Shape | None = None


class Sampler(Protocol):
    """Draws what the patches of a training are cut for."""

    @property
    def patch_size(self) -> PatchSize:
        """Sides of a patch in voxels, one number or three."""
        ...

    def aim(
        self, cases: Sequence[PreparedCase], rng: np.random.Generator, *, patch_number: int = 0
    ) -> Aim:
        """Draw a case and a voxel of it.

        Args:
            cases: Prepared cases, at least one.
            rng: Source of all randomness.
            patch_number: Number of the patch in the training, from 0.
        """
        ...


def draw_patch(
    sampler: Sampler,
    cases: Sequence[PreparedCase],
    rng: np.random.Generator,
    *,
    patch_number: int = 0,
) -> tuple[Aim, Shape]:
    """Draw one patch.

    Args:
        sampler: Draws what the patch is cut for.
        cases: Prepared cases, at least one.
        rng: Source of all randomness.
        patch_number: Number of the patch in the training, from 0.

    Returns:
        The aim of the sampler, and the first voxel of the patch in the case `aim.case_index`. Next
        to the border the patch is pushed back into the volume. A volume smaller than the patch lies
        inside it: the first voxel is then negative.

    Raises:
        ValueError: Without cases.
    """
    if not cases:
        raise ValueError("patches are drawn from at least one case, got none")
    aim = sampler.aim(cases, rng, patch_number=patch_number)
    if aim.start is not None:
        return aim, aim.start
    shape = cases[aim.case_index].geometry.shape
    sides = patch_sides(sampler.patch_size)
    return aim, place_patch(aim.voxel, shape, sides, rng, jitter=aim.jitter)


def place_patch(
    voxel: Sequence[int], shape: Shape, sides: Shape, rng: np.random.Generator, *, jitter: float
) -> Shape:
    """Draw the first voxel of a patch around a voxel.

    Args:
        voxel: Voxel to lie in the central `jitter` share of the patch.
        shape: Shape of the volume.
        sides: Sides of the patch.
        rng: Source of all randomness. It is drawn from without jitter, too: old runs did so.
        jitter: Share of the sides, in [0, 1].
    """
    # Place of the voxel in the patch: a share of each side, in [0, 1), then in voxels.
    share = 0.5 + jitter * (rng.random(3) - 0.5)
    voxel_in_patch = np.floor(share * np.array(sides)).astype(int)
    start = np.asarray(voxel) - voxel_in_patch
    # Where the volume is smaller than the patch, room is negative: the patch then starts between
    # room and 0, so that the volume lies inside it.
    room = np.subtract(shape, sides)
    lowest = np.minimum(room, 0)
    highest = np.maximum(room, 0)
    return as_shape(np.clip(start, lowest, highest))


def patch_sides_of_mm(side_mm: float, spacing_mm: Sequence[float]) -> Shape:
    """Choose sides in voxels that are about equally long in mm.

    Multiples of 16; along thick slices, where 16 voxels would be too long, of 4, at least 4. 64 mm
    are 64 x 64 x 64 voxels of 1 mm, 64 x 64 x 8 of 0.9 x 0.9 x 7 mm, 32 x 32 x 32 of 2 mm.

    Args:
        side_mm: Length of a side.
        spacing_mm: Voxel size.
    """
    sides = []
    for size_mm in spacing_mm:
        wanted = side_mm / size_mm
        multiple = 16 if wanted >= 16 else 4
        sides.append(max(round(wanted / multiple), 1) * multiple)
    return sides[0], sides[1], sides[2]


def patch_sides(patch_size: PatchSize) -> Shape:
    """Expand a patch size, one number or three, to its three sides in voxels."""
    if isinstance(patch_size, int):
        return patch_size, patch_size, patch_size
    x, y, z = map(int, patch_size)
    return x, y, z


def check_patch_size(patch_size: PatchSize) -> None:
    """Check that a patch size is one or three numbers of at least 1.

    Raises:
        ValueError: It is not.
    """
    sides: list[int] = []
    if isinstance(patch_size, int):
        sides = [patch_size]
    elif not isinstance(patch_size, str):
        sides = list(patch_size)
    if len(sides) not in (1, 3) or min(sides) < 1:
        raise ValueError(f"patch_size must be one or three numbers >= 1, got {patch_size}")


def check_share(name: str, share: float) -> None:
    """Check that a setting lies in [0, 1].

    Raises:
        ValueError: It does not; names the setting.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {name}={share}")


def draw_case_with_lesions(
    cases: Sequence[PreparedCase], rng: np.random.Generator, *, probability: float
) -> int | None:
    """Draw one of the cases with lesions uniformly.

    Returns:
        Index of the case; None with the probability that remains, and where no case has lesions.
    """
    if rng.random() >= probability:
        return None
    with_lesions = as_case_list(cases).with_lesions
    if not with_lesions:
        return None
    return with_lesions[rng.integers(len(with_lesions))]


def draw_voxel_of_lesion(lesion: int, case: PreparedCase, rng: np.random.Generator) -> Voxel:
    """Draw a voxel of one lesion uniformly."""
    first, end = case.lesion_offsets[lesion : lesion + 2]
    number = rng.integers(first, end)
    return _position(case.lesion_voxels[number], case)


def draw_lesion_voxel(case: PreparedCase, rng: np.random.Generator) -> tuple[int, Voxel]:
    """Draw a voxel of all lesions of a case uniformly: the index of its lesion, and the voxel."""
    number = int(rng.integers(len(case.lesion_voxels)))
    # Lesion i has the voxels offsets[i] to offsets[i + 1] - 1. With the offsets [0, 4, 5, 9],
    # voxel 4 is that of lesion 1: two offsets are <= 4.
    lesion = int(np.searchsorted(case.lesion_offsets, number, side="right")) - 1
    return lesion, _position(case.lesion_voxels[number], case)


def draw_fitting_centre(case: PreparedCase, sides: Shape, rng: np.random.Generator) -> Voxel:
    """Draw the centre of a patch uniformly where it fits; the middle of an axis that is short."""
    room = np.subtract(case.geometry.shape, sides)
    random_start = rng.integers(np.maximum(room, 0) + 1)
    start = np.where(room > 0, random_start, room // 2)
    return as_shape(start + np.array(sides) // 2)


def aim_at_brain(
    cases: Sequence[PreparedCase], rng: np.random.Generator, *, jitter: float = 0.0
) -> Aim:
    """Draw a case uniformly, then a voxel of its brain uniformly."""
    index = int(rng.integers(len(cases)))
    case = cases[index]
    n_voxels = len(case.counted_voxels)
    if n_voxels:
        number = rng.integers(n_voxels)
        voxel = _position(case.counted_voxels[number], case)
    else:  # a blank scan still gives a patch
        voxel = as_shape(rng.integers(case.geometry.shape))
    return Aim(index, voxel, jitter=jitter)


def _position(linear_index: np.int32, case: PreparedCase) -> Voxel:
    """Convert a linear index (C order) into a voxel."""
    return as_shape(np.unravel_index(int(linear_index), case.geometry.shape))
