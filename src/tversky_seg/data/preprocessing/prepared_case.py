"""A case ready to train on: arrays that are opened when touched, and the patches cut from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.grids import Bools, Floats, Geometry, Shape, crop_or_pad, intersect

SLAB_VOXELS = 2**15  # 128 KiB of float32


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """One case as the network sees it: RAS axes, network spacing, cropped to the brain and the label.

    Arrays of a cached case are memory-mapped when touched, and few are held open at a time, so that thousands of cases
    cost no memory; the case itself travels between processes by its path.

    Attributes:
        case_id: Of the case.
        subject_id: Of the case.
        geometry: The way back to the file's grid.
        n_lesions: Number of connected components of each class; empty without label.
        notes: What was odd about the files and how it was taken.
        rater_lesions: As n_lesions, for each rater where a random one is drawn for every patch; else empty.
        rater: Whose target, components and lesions these are: 0 the label's, else the number of the rater.
        folder: The cache entry, or None for a case in memory.
        arrays: The arrays of a case in memory.
    """

    case_id: str
    subject_id: str
    geometry: Geometry
    image_scale: Floats = field(repr=False)
    n_lesions: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    rater_lesions: tuple[tuple[int, ...], ...] = ()
    rater: int = 0
    folder: Path | None = None
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False)

    @property
    def image(self) -> NDArray[np.int16]:
        """(C, X, Y, Z); `image * image_scale` are the normalised intensities, 0 outside the foreground."""
        return self._array("image")

    @property
    def target(self) -> NDArray[np.uint8] | None:
        """(K, X, Y, Z) 0 or 1, one channel per class; None without label."""
        return self._array("target") if self.n_lesions else None

    @property
    def components(self) -> NDArray[np.int32] | None:
        """(K, X, Y, Z) 26-connected components of the whole volume, per class from 1 on, 0 background; or None."""
        return self._array("components") if self.n_lesions else None

    @property
    def lesion_voxels(self) -> NDArray[np.int32]:
        """Linear indices (C order, into X, Y, Z) of all lesion voxels, lesion by lesion, class by class."""
        return self._array("lesion_voxels")

    @property
    def lesion_offsets(self) -> NDArray[np.int64]:
        """(n_lesions + 1,): lesion i is `lesion_voxels[offsets[i]:offsets[i + 1]]`."""
        return self._array("lesion_offsets")

    @property
    def foreground_voxels(self) -> NDArray[np.int32]:
        """Linear indices (C order, into X, Y, Z) of the voxels of the brain, ascending."""
        return self._array("foreground_voxels")

    @property
    def foreground(self) -> Bools:
        """(X, Y, Z): the brain."""
        mask = np.zeros(self.geometry.shape, dtype=bool)
        mask.reshape(-1)[self.foreground_voxels] = True
        return mask

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along R, A, S."""
        return self.geometry.spacing_mm

    def patch(
        self, start: Shape, size: Shape
    ) -> tuple[Floats, NDArray[np.uint8], NDArray[np.int32]]:
        """Image (C, *size) float32, target (K, *size) and components (K, *size) of a box, 0 where it overhangs.

        Args:
            start: First voxel, may be negative.
            size: Sides in voxels.

        Raises:
            ValueError: The case has no label.
        """
        target, components = (
            self.labels(start, size, components=of_lesions) for of_lesions in (False, True)
        )
        return self.intensities(start, size), target, components

    def intensities(self, start: Shape, size: Shape) -> Floats:
        """Normalised image (C, *size) of a box, 0 where it overhangs."""
        return _scaled(np.asarray(self.image), self.image_scale, start, size)

    def labels(self, start: Shape, size: Shape, *, components: bool = False) -> NDArray[Any]:
        """Target (K, *size) of a box, or its components, 0 where it overhangs; a view of the file where it does not.

        Raises:
            ValueError: The case has no label.
        """
        volume = self.components if components else self.target
        if volume is None:
            raise ValueError(f"{self.case_id} has no label; patches to train on need one")
        return crop_or_pad(np.asarray(volume), start, size)

    def _array(self, name: str) -> NDArray[Any]:
        name = rater_array(name, self.rater)
        return self.arrays[name] if self.folder is None else _opened(f"{self.folder}/{name}.npy")


def rater_array(name: str, rater: int) -> str:
    """The name under which an array of a rater is stored; those of the image are the same for all."""
    return (
        f"{name}_{rater}"
        if rater and name in ("target", "components", "lesion_voxels", "lesion_offsets")
        else name
    )


def one_case_per_rater(cases: Sequence[PreparedCase]) -> list[PreparedCase]:
    """Each case as often as it has raters, each time with another's lesions: what a sampler draws a random rater from.

    Cases that were not prepared for this (`data.rater=random`) stay as they are.
    """
    return [
        replace(case, rater=rater, n_lesions=n_lesions)
        for case in cases
        for rater, n_lesions in (
            enumerate(case.rater_lesions, start=1) if case.rater_lesions else [(0, case.n_lesions)]
        )
    ]


@lru_cache(maxsize=96)  # each holds a file descriptor, of which a process on macOS has 256
def _opened(path: str) -> NDArray[Any]:
    opened: NDArray[Any] = np.load(path, mmap_mode="r")
    return opened


def _scaled(image: NDArray[np.int16], scale: Floats, start: Shape, size: Shape) -> Floats:
    """`crop_or_pad(image) * scale` (C, *size), by slabs that the processor's cache holds."""
    source, place = intersect(start, size, image.shape[-3:])
    is_inside = all(part == slice(0, n) for part, n in zip(place, size, strict=True))
    values = (np.empty if is_inside else np.zeros)((len(image), *size), dtype=np.float32)
    slab = max(1, SLAB_VOXELS // max(1, size[1] * size[2]))
    for channel, into, factor in zip(image, values, scale, strict=True):
        box, into = channel[source], into[place]
        for x in range(0, len(box), slab):
            part = into[x : x + slab]
            part[...] = box[x : x + slab]
            part *= factor
    return values


def forget_opened() -> None:
    """Let go of all open files, after one of them was replaced."""
    _opened.cache_clear()
