"""Where the training patches lie: lesion by lesion, so that small lesions are seen as often as large ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tversky_seg.data.preprocessing import PreparedCase


@dataclass(frozen=True)
class LesionSampler:
    """Draw a patch around a random voxel of a random lesion, or around a random voxel of the brain.

    With probability `lesion_probability`: a case uniformly among those with lesions, one of its lesions uniformly (of
    all classes together), one voxel of it uniformly. Otherwise: a case uniformly among all, a voxel of its brain
    uniformly. Drawing voxels instead of lesions would give the smallest half of MS lesions 4 % of the patches.
    Without any lesion in any case every patch is a brain patch.

    The voxel then lies uniformly in the central `jitter` share of the patch's sides, so that no place in the patch
    tells of a lesion; next to the border the patch is pushed back into the volume. A volume smaller than the patch
    lies wholly inside it.

    Args:
        patch_size: Sides of a patch in voxels, one number or three.
        lesion_probability: Share of patches drawn from lesions, in [0, 1].
        jitter: Share of each side in which the drawn voxel may lie, in [0, 1]: 0 puts it in the centre, 1 anywhere.

    Raises:
        ValueError: A side below 1, or a share outside [0, 1].
    """

    patch_size: int | tuple[int, int, int] = 64
    lesion_probability: float = 0.5
    jitter: float = 0.75

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        sides = (self.patch_size,) * 3 if isinstance(self.patch_size, int) else self.patch_size
        if len(sides) != 3 or min(sides) < 1:
            raise ValueError(f"patch_size must be one or three numbers >= 1, got {self.patch_size}")
        for name, share in (("lesion_probability", self.lesion_probability), ("jitter", self.jitter)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {name}={share}")

    @property
    def sides(self) -> tuple[int, int, int]:
        """The three sides of a patch in voxels."""
        if isinstance(self.patch_size, int):
            return self.patch_size, self.patch_size, self.patch_size
        x, y, z = self.patch_size
        return x, y, z

    def draw(self, cases: Sequence[PreparedCase], rng: np.random.Generator) -> tuple[int, tuple[int, int, int]]:
        """Draw one patch.

        Args:
            cases: The prepared cases, at least one.
            rng: All randomness comes from here.

        Returns:
            The index of the case, and the patch's first voxel (X, Y, Z); negative where the volume is too small.

        Raises:
            ValueError: Without cases.
        """
        if not cases:
            raise ValueError("patches are drawn from at least one case, got none")
        index = _case_with_lesions(cases, rng) if rng.random() < self.lesion_probability else None
        if index is not None:
            voxel = _lesion_voxel(cases[index], rng)
        else:
            index = int(rng.integers(len(cases)))
            voxel = _brain_voxel(cases[index], rng)
        return index, self._start(voxel, cases[index].geometry.shape, rng)

    def _start(self, voxel: Sequence[int], shape: Sequence[int], rng: np.random.Generator) -> tuple[int, int, int]:
        sides = np.array(self.sides)
        room = np.array(shape) - sides  # negative where the volume is smaller than the patch
        place = 0.5 + self.jitter * (rng.random(3) - 0.5)  # of the voxel in the patch, in [0, 1)
        start = np.asarray(voxel) - np.floor(place * sides).astype(int)
        x, y, z = np.clip(start, np.minimum(room, 0), np.maximum(room, 0)).tolist()
        return x, y, z


def _case_with_lesions(cases: Sequence[PreparedCase], rng: np.random.Generator) -> int | None:
    """Uniform among the cases with lesions; None where no case has any."""
    with_lesions = [index for index, case in enumerate(cases) if any(case.n_lesions)]
    return with_lesions[rng.integers(len(with_lesions))] if with_lesions else None


def _lesion_voxel(case: PreparedCase, rng: np.random.Generator) -> tuple[int, ...]:
    lesion = rng.integers(len(case.lesion_offsets) - 1)
    first, end = case.lesion_offsets[lesion : lesion + 2]
    return _position(case.lesion_voxels[rng.integers(first, end)], case)


def _brain_voxel(case: PreparedCase, rng: np.random.Generator) -> tuple[int, ...]:
    n_voxels = len(case.foreground_voxels)
    if n_voxels == 0:  # a blank scan still gives a patch
        return tuple(rng.integers(case.geometry.shape).tolist())
    return _position(case.foreground_voxels[rng.integers(n_voxels)], case)


def _position(linear: np.int32, case: PreparedCase) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(linear), case.geometry.shape))
