"""Samplers: patches drawn lesion by lesion, voxel by voxel, anywhere, or on a grid."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.grids import Shape
from tversky_seg.data.patches.sampling import (
    Aim,
    PatchSize,
    aim_at_brain,
    check_patch_size,
    check_share,
    draw_case_with_lesions,
    draw_fitting_centre,
    draw_lesion_voxel,
    draw_voxel_of_lesion,
    patch_sides,
)
from tversky_seg.data.patches.spatial import as_shape
from tversky_seg.data.preprocessing.prepared_case import PreparedCase


@dataclass(frozen=True)
class LesionSampler:
    """Draw a patch around a random voxel of a random lesion, or around a random voxel of the brain.

    With probability `lesion_probability`: a case uniformly among those with lesions, one of its
    lesions uniformly (of all classes together), one voxel of it uniformly. Otherwise: a case
    uniformly among all, a voxel of its brain uniformly. Drawing voxels instead of lesions would
    give the smallest half of MS lesions 5 % of the patches. Without any lesion in any case every
    patch is a brain patch.

    The voxel then lies uniformly in the central `jitter` share of the patch's sides, so that the
    network cannot learn where in a patch lesions lie; next to the border the patch is pushed back
    into the volume. A volume smaller than the patch lies inside it.

    Args:
        patch_size: Sides of a patch in voxels, one number or three.
        lesion_probability: Share of patches drawn from lesions, in [0, 1].
        jitter: Share of each side in which the drawn voxel may lie, in [0, 1]: 0 puts it in the
            centre, 1 anywhere.

    Raises:
        ValueError: A side below 1, or a share outside [0, 1].
    """

    patch_size: PatchSize = 64
    lesion_probability: float = 0.5
    jitter: float = 0.75

    def __post_init__(self) -> None:
        """Check the settings."""
        check_patch_size(self.patch_size)
        check_share("lesion_probability", self.lesion_probability)
        check_share("jitter", self.jitter)

    def aim(
        self, cases: Sequence[PreparedCase], rng: np.random.Generator, *, patch_number: int = 0
    ) -> Aim:
        """Draw a voxel of a lesion, or of the brain."""
        index = draw_case_with_lesions(cases, rng, probability=self.lesion_probability)
        if index is None:
            return aim_at_brain(cases, rng, jitter=self.jitter)
        case = cases[index]
        lesion = int(rng.integers(len(case.lesion_offsets) - 1))
        voxel = draw_voxel_of_lesion(lesion, case, rng)
        return Aim(index, voxel, lesion, jitter=self.jitter)


@dataclass(frozen=True)
class SizeTemperedSampler:
    """Draw as `LesionSampler`, but a lesion in proportion to its number of voxels ^ `power`.

    Args:
        patch_size: Sides of a patch in voxels, one number or three.
        lesion_probability: Share of patches drawn from lesions, in [0, 1].
        jitter: Share of each side in which the drawn voxel may lie, as in `LesionSampler`.
        power: Exponent in [0, 1]: 0 draws lesions uniformly, 1 their voxels.

    Raises:
        ValueError: A side below 1, or a share outside [0, 1].
    """

    patch_size: PatchSize = 64
    lesion_probability: float = 0.5
    jitter: float = 0.75
    power: float = 0.5

    def __post_init__(self) -> None:
        """Check the settings."""
        check_patch_size(self.patch_size)
        check_share("lesion_probability", self.lesion_probability)
        check_share("jitter", self.jitter)
        check_share("power", self.power)

    def aim(
        self, cases: Sequence[PreparedCase], rng: np.random.Generator, *, patch_number: int = 0
    ) -> Aim:
        """Draw a voxel of a lesion, or of the brain."""
        index = draw_case_with_lesions(cases, rng, probability=self.lesion_probability)
        if index is None:
            return aim_at_brain(cases, rng, jitter=self.jitter)
        case = cases[index]
        n_voxels = np.diff(case.lesion_offsets)
        # Lesions of 1, 4 and 9 voxels are drawn as 1 : 2 : 3 with the power 0.5.
        weights = n_voxels.astype(float) ** self.power
        probability = weights / weights.sum()
        lesion = int(rng.choice(len(weights), p=probability))
        voxel = draw_voxel_of_lesion(lesion, case, rng)
        return Aim(index, voxel, lesion, jitter=self.jitter)


@dataclass(frozen=True)
class ForegroundSampler:
    """Draw as other tools do: a case uniformly, then one of its lesion voxels uniformly.

    The voxel lies in the centre of the patch. So lesions are drawn in proportion to their volume.
    Otherwise, and in a case without lesion, the patch lies uniformly where it fits.

    Args:
        patch_size: Sides of a patch in voxels, one number or three.
        lesion_probability: Share of patches drawn from lesion voxels, in [0, 1].
        jitter: Share of each side in which the drawn voxel may lie, as in `LesionSampler`; 0 is the
            centre.

    Raises:
        ValueError: A side below 1, or a share outside [0, 1].
    """

    patch_size: PatchSize = 64
    lesion_probability: float = 0.33
    jitter: float = 0.0

    def __post_init__(self) -> None:
        """Check the settings."""
        check_patch_size(self.patch_size)
        check_share("lesion_probability", self.lesion_probability)
        check_share("jitter", self.jitter)

    def aim(
        self, cases: Sequence[PreparedCase], rng: np.random.Generator, *, patch_number: int = 0
    ) -> Aim:
        """Draw a lesion voxel of a case, or a place where the patch fits."""
        index = int(rng.integers(len(cases)))
        case = cases[index]
        if rng.random() >= self.lesion_probability or not any(case.n_lesions):
            return Aim(index, draw_fitting_centre(case, patch_sides(self.patch_size), rng))
        lesion, voxel = draw_lesion_voxel(case, rng)
        return Aim(index, voxel, lesion, jitter=self.jitter)


@dataclass(frozen=True)
class UniformSampler:
    """Draw a case uniformly, then a place uniformly where the patch fits.

    Args:
        patch_size: Sides of a patch in voxels, one number or three.

    Raises:
        ValueError: A side below 1.
    """

    patch_size: PatchSize = 64

    def __post_init__(self) -> None:
        """Check the settings."""
        check_patch_size(self.patch_size)

    def aim(
        self, cases: Sequence[PreparedCase], rng: np.random.Generator, *, patch_number: int = 0
    ) -> Aim:
        """Draw the centre of a patch."""
        index = int(rng.integers(len(cases)))
        centre = draw_fitting_centre(cases[index], patch_sides(self.patch_size), rng)
        return Aim(index, centre)


@dataclass(frozen=True)
class GridSampler:
    """Take all patches of a regular grid over every case, once a round, in a random order.

    Patches are spaced as evenly as possible and cover each volume, overlapping by at least
    `overlap` of their sides.

    Args:
        patch_size: Sides of a patch in voxels, one number or three.
        overlap: Share of a side, in [0, 1).

    Raises:
        ValueError: A side below 1, or an overlap outside [0, 1).
    """

    patch_size: PatchSize = 64
    overlap: float = 0.0

    def __post_init__(self) -> None:
        """Check the settings."""
        check_patch_size(self.patch_size)
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap must lie in [0, 1), got overlap={self.overlap}")

    def aim(
        self, cases: Sequence[PreparedCase], rng: np.random.Generator, *, patch_number: int = 0
    ) -> Aim:
        """Take the patch at place `patch_number` of the drawn order; rng is not used."""
        n_patches: list[int] = []
        for case in cases:
            along_x, along_y, along_z = self._starts(case.geometry.shape)
            n_patches.append(len(along_x) * len(along_y) * len(along_z))
        ends = np.cumsum(n_patches)
        n_in_round = int(ends[-1])
        number_of_round, place = divmod(patch_number, n_in_round)
        order = _order_of_round(number_of_round, n_in_round)

        # Patches are numbered case by case: with 6 and 4 patches, ends = [6, 10], and number 7 is
        # patch 1 of case 1.
        number = int(order[place])
        index = int(np.searchsorted(ends, number, side="right"))
        number_in_case = number - int(ends[index] - n_patches[index])
        along_x, along_y, along_z = self._starts(cases[index].geometry.shape)
        grid_shape = (len(along_x), len(along_y), len(along_z))
        i, j, k = np.unravel_index(number_in_case, grid_shape)
        start = (along_x[i], along_y[j], along_z[k])
        half = np.array(patch_sides(self.patch_size)) // 2
        return Aim(index, as_shape(start + half), start=start)

    def _starts(self, shape: Shape) -> list[list[int]]:
        """Compute the first voxels of the patches along each axis."""
        sides = patch_sides(self.patch_size)
        return [
            _starts_along(side, n_voxels, self.overlap)
            for side, n_voxels in zip(sides, shape, strict=True)
        ]


@lru_cache(maxsize=1024)  # of a large cohort many cases have one shape
def _starts_along(side: int, n_voxels: int, overlap: float) -> list[int]:
    room = n_voxels - side
    if room <= 0:  # one patch, with the volume in its middle
        return [room // 2]
    # As few patches as overlap enough, then spread evenly from border to border: sides of 10
    # voxels without overlap start at 0, 7 and 15 on an axis of 25.
    step = max(1, int(side * (1 - overlap)))
    n_patches = 1 + math.ceil(room / step)
    starts: list[int] = np.linspace(0, room, n_patches).astype(int).tolist()
    return starts


@lru_cache(maxsize=2)  # a batch may end a round and begin the next
def _order_of_round(number_of_round: int, n_in_round: int) -> NDArray[np.int64]:
    """Draw the order of a round, keyed by its number: a resumed run draws the same one."""
    return np.random.default_rng(number_of_round).permutation(n_in_round)
