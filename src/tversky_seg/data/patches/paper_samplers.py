"""Samplers of two papers, as their released code has them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.grids import Shape
from tversky_seg.data.patches.case_list import as_case_list
from tversky_seg.data.patches.sampling import (
    Aim,
    PatchSize,
    aim_at_brain,
    check_patch_size,
    check_share,
    draw_fitting_centre,
    draw_lesion_voxel,
    draw_voxel_of_lesion,
    patch_sides,
    place_patch,
)
from tversky_seg.data.preprocessing.prepared_case import PreparedCase

MAX_ATTEMPTS = 50  # of Hashemi2018Sampler, for one patch


@dataclass(frozen=True)
class Hashemi2018Sampler:
    """Draw patches with lesion voxels in their central half, as arXiv:1803.11078 (released code).

    A case is drawn uniformly among those with at least `min_case_voxels` lesion voxels, then one of
    its lesion voxels uniformly. This voxel lies off the centre of the patch by -20 to 19 voxels
    along each axis; the patch is pushed back into the volume. It is drawn again while the cube of
    half its sides in its middle holds fewer lesion voxels than asked for, at most 50 times; then
    the patch with most is taken. So lesions at the border of the volume come in patches drawn for
    other lesions, or where no patch holds enough. Both limits are lower after the first patches of
    a training. (In the released code, subjects take turns.) Without any lesion, patches are drawn
    from the brain.

    Args:
        patch_size: Sides of a patch in voxels, one number or three.
        jitter_voxels: Largest distance from the centre; 20 is -20 to 19.
        min_voxels: Lesion voxels in the middle, for the first 1000 patches and after.
        min_case_voxels: Lesion voxels of a case, for the first 100 patches and after.

    Raises:
        ValueError: A side below 1, or a limit below 0.
    """

    patch_size: PatchSize = 128
    jitter_voxels: int = 20
    min_voxels: tuple[int, int] = (50, 5)
    min_case_voxels: tuple[int, int] = (100, 10)

    def __post_init__(self) -> None:
        """Check the settings."""
        check_patch_size(self.patch_size)
        _check_limits("min_voxels", self.min_voxels)
        _check_limits("min_case_voxels", self.min_case_voxels)
        if self.jitter_voxels < 0:
            raise ValueError(f"jitter_voxels must be >= 0, got jitter_voxels={self.jitter_voxels}")

    def aim(
        self, cases: Sequence[PreparedCase], rng: np.random.Generator, *, patch_number: int = 0
    ) -> Aim:
        """Draw a lesion voxel, and place the patch so that its middle holds enough of them."""
        min_case_voxels = _limit(self.min_case_voxels, patch_number, n_first=100)
        min_voxels = _limit(self.min_voxels, patch_number, n_first=1000)
        n_voxels_by_case = as_case_list(cases).n_lesion_voxels
        is_eligible = n_voxels_by_case >= max(min_case_voxels, 1)
        indices = np.flatnonzero(is_eligible)
        if not len(indices):
            return aim_at_brain(cases, rng)

        index = int(indices[rng.integers(len(indices))])
        case = cases[index]
        coordinates = np.unravel_index(case.lesion_voxels, case.geometry.shape)
        lesion_coordinates = np.stack(coordinates, axis=1)
        attempts: list[tuple[int, Aim]] = []
        for _ in range(MAX_ATTEMPTS):
            lesion, voxel = draw_lesion_voxel(case, rng)
            start = self._place(voxel, case.geometry.shape, rng)
            # Counted where the patch lies in the end, pushed back into the volume.
            n_voxels = self._count_in_middle(lesion_coordinates, start)
            attempts.append((n_voxels, Aim(index, voxel, lesion, start=start)))
            if n_voxels >= min_voxels:
                break
        # The first of the best, where several hold the same number.
        _, best = max(attempts, key=lambda attempt: attempt[0])
        return best

    def _place(self, voxel: Sequence[int], shape: Shape, rng: np.random.Generator) -> Shape:
        """Draw the first voxel of a patch, centred at most `jitter_voxels` off a voxel."""
        # numpy leaves the upper end out: 20 gives -20 to 19, as the released code.
        off_centre = rng.integers(-self.jitter_voxels, max(self.jitter_voxels, 1), 3)
        centre = np.add(voxel, off_centre).tolist()
        return place_patch(centre, shape, patch_sides(self.patch_size), rng, jitter=0)

    def _count_in_middle(self, lesion_coordinates: NDArray[np.int_], start: Shape) -> int:
        """Count the lesion voxels (n, 3) in the cube of half the sides in the middle of a patch."""
        sides = np.array(patch_sides(self.patch_size))
        low = start + sides // 4
        high = low + (sides + 1) // 2
        is_in_middle = (lesion_coordinates >= low) & (lesion_coordinates < high)
        return int(is_in_middle.all(axis=1).sum())


@dataclass(frozen=True)
class Shirokikh2020Sampler:
    """Draw cases by their number of lesions, as arXiv:2007.10033 (released code).

    A case is drawn in proportion to its number of lesions, so that a case without lesions never
    comes. Then, with `lesion_probability`, a lesion is drawn uniformly and one of its voxels
    uniformly, which lies in the centre of the patch. Otherwise the patch lies uniformly where it
    fits. Without any lesion, patches are drawn from the brain.

    Args:
        patch_size: Sides of a patch in voxels, one number or three.
        lesion_probability: Share of patches drawn from lesions, in [0, 1].

    Raises:
        ValueError: A side below 1, or a share outside [0, 1].
    """

    patch_size: PatchSize = 128
    lesion_probability: float = 0.5

    def __post_init__(self) -> None:
        """Check the settings."""
        check_patch_size(self.patch_size)
        check_share("lesion_probability", self.lesion_probability)

    def aim(
        self, cases: Sequence[PreparedCase], rng: np.random.Generator, *, patch_number: int = 0
    ) -> Aim:
        """Draw a case by its number of lesions, then a lesion or a place where the patch fits."""
        n_lesions = as_case_list(cases).n_lesions
        if not n_lesions.any():
            return aim_at_brain(cases, rng)
        probability = n_lesions / n_lesions.sum()
        index = int(rng.choice(len(cases), p=probability))
        case = cases[index]
        if rng.random() >= self.lesion_probability:
            return Aim(index, draw_fitting_centre(case, patch_sides(self.patch_size), rng))
        lesion = int(rng.integers(n_lesions[index]))
        return Aim(index, draw_voxel_of_lesion(lesion, case, rng), lesion)


def _check_limits(name: str, limits: Sequence[int]) -> None:
    if len(limits) != 2 or min(limits) < 0:
        raise ValueError(f"{name} must be two numbers >= 0, got {name}={limits}")


def _limit(limits: tuple[int, int], patch_number: int, *, n_first: int) -> int:
    """Pick the limit for the first `n_first` patches of a training, or that for the others."""
    first, later = limits
    return first if patch_number < n_first else later
