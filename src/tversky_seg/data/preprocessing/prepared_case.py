"""A case ready to train on: arrays that are opened when touched, and the patches cut from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.grids import Bools, Floats, Geometry, Shape, crop_or_pad, intersect
from tversky_seg.data.preprocessing.note import Note

SLAB_VOXELS = 2**15  # 128 KiB of float32
ARRAYS_OF_A_RATER = ("target", "components", "cells", "lesion_voxels", "lesion_offsets")


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """One case as the network sees it: RAS axes, network spacing, cropped to brain and label.

    Arrays of a cached case are memory-mapped when touched, and few are held open at a time, so
    that thousands of cases cost no memory. The case travels between processes by its path.

    Attributes:
        case_id: Name of the case.
        subject_id: Name of its subject.
        geometry: Way back to the file's grid.
        image_scale: (C,) factors from the int16 image to normalised intensities.
        n_lesions: Number of connected components of each class; empty without label.
        notes: Oddities of the files.
        rater_lesions: n_lesions of each rater where one is drawn for every patch; else empty.
        rater: Rater whose lesions these are, from 1 on; 0: those of the label.
        missing: Channels of the modalities that the case lacks; they are 0 throughout.
        n_raters: Number of raters whose mean is the target; 0: the target is one mask.
        has_ignored: Whether voxels of the case are to be ignored.
        folder: Cache entry; None for a case in memory.
        rebuild: Function that makes the cache entry again, should it be lost during a run.
        cells_folder: Cache entry of the cells (`lesion_cells.with_cells`); None: without, or in
            memory.
        rebuild_cells: Function that makes that entry again.
        arrays: Arrays of a case in memory.
    """

    case_id: str
    subject_id: str
    geometry: Geometry
    image_scale: Floats = field(repr=False)
    n_lesions: tuple[int, ...] = ()
    notes: tuple[Note, ...] = ()
    rater_lesions: tuple[tuple[int, ...], ...] = ()
    rater: int = 0
    missing: tuple[int, ...] = ()
    n_raters: int = 0
    has_ignored: bool = False
    folder: Path | None = None
    rebuild: Callable[[], None] | None = field(default=None, repr=False)
    cells_folder: Path | None = None
    rebuild_cells: Callable[[], None] | None = field(default=None, repr=False)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False)

    @property
    def image(self) -> NDArray[np.int16]:
        """Image (C, X, Y, Z); times image_scale normalised intensities, 0 in the background."""
        return self._array("image")

    @property
    def target(self) -> NDArray[np.uint8] | None:
        """Target (K, X, Y, Z) of 0 and 1, one channel per class; None without label."""
        return self._array("target") if self.n_lesions else None

    @property
    def votes(self) -> NDArray[np.uint8] | None:
        """Number of the `n_raters` raters (K, X, Y, Z) that drew a voxel; None for one mask."""
        return self._array("votes") if self.n_raters else None

    @property
    def components(self) -> NDArray[np.int32] | None:
        """26-connected components (K, X, Y, Z) of the whole volume; None without label.

        Each class counts from 1 on; 0 is background.
        """
        return self._array("components") if self.n_lesions else None

    @property
    def cells(self) -> NDArray[Any]:
        """Lesion (K, X, Y, Z) that each voxel is nearest to, by its number in `components`.

        0 for voxels that are farther from all lesions than the cells reach.
        """
        name = rater_array("cells", self.rater)
        if self.cells_folder is None:
            return self.arrays[name]
        return _open_or_rebuild(f"{self.cells_folder}/{name}.npy", self.rebuild_cells)

    @property
    def lesion_voxels(self) -> NDArray[np.int32]:
        """Linear indices (C order, into X, Y, Z) of lesion voxels, lesion by lesion."""
        return self._array("lesion_voxels")

    @property
    def lesion_offsets(self) -> NDArray[np.int64]:
        """Offsets (n_lesions + 1,): lesion i is `lesion_voxels[offsets[i]:offsets[i + 1]]`."""
        return self._array("lesion_offsets")

    @property
    def foreground_voxels(self) -> NDArray[np.int32]:
        """Linear indices (C order, into X, Y, Z) of the voxels of the brain, ascending."""
        return self._array("foreground_voxels")

    @property
    def foreground(self) -> Bools:
        """Mask (X, Y, Z) of the brain."""
        mask = np.zeros(self.geometry.shape, dtype=bool)
        mask.reshape(-1)[self.foreground_voxels] = True
        return mask

    @property
    def ignored(self) -> Bools | None:
        """Mask (X, Y, Z) of voxels that count neither in training nor in validation; None: none."""
        return np.asarray(self._array("ignored")).view(bool) if self.has_ignored else None

    @property
    def counted_voxels(self) -> NDArray[np.int32]:
        """The voxels of `foreground_voxels` that are not ignored."""
        return self._array("counted_voxels") if self.has_ignored else self.foreground_voxels

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along R, A, S."""
        return self.geometry.spacing_mm

    def intensities(self, start: Shape, size: Shape) -> Floats:
        """Cut the normalised image (C, *size) of a box, 0 where it overhangs.

        Args:
            start: First voxel; may be negative.
            size: Sides in voxels.
        """
        return _scaled_box(np.asarray(self.image), self.image_scale, start, size)

    def labels(self, start: Shape, size: Shape, *, components: bool = False) -> NDArray[Any]:
        """Cut the target (K, *size) of a box, or its components, 0 where it overhangs.

        Returns:
            A view of the cache where the box lies inside the volume, else a copy. With ignored
            voxels always a copy, of a signed type, which is -1 there.

        Raises:
            ValueError: The case has no label.
        """
        volume = self.components if components else self.target
        if volume is None:
            raise ValueError(f"{self.case_id} has no label; patches to train on need one")
        labels = crop_or_pad(np.asarray(volume), start, size)
        ignored = self.ignored
        if ignored is None:
            return labels
        return np.where(crop_or_pad(ignored, start, size), np.int32(-1), labels)

    def _array(self, name: str) -> NDArray[Any]:
        name = rater_array(name, self.rater)
        if self.folder is None:
            return self.arrays[name]
        return _open_or_rebuild(f"{self.folder}/{name}.npy", self.rebuild)


def rater_array(name: str, rater: int) -> str:
    """Name an array of a rater in the cache; image and brain are the same for all raters."""
    if rater and name in ARRAYS_OF_A_RATER:
        return f"{name}_{rater}"
    return name


def one_case_per_rater(cases: Sequence[PreparedCase]) -> list[PreparedCase]:
    """List each case once per rater, so that drawing a case also draws a rater.

    Cases that were not prepared for this (`data.rater=random`) stay as they are.
    """
    views = []
    for case in cases:
        if not case.rater_lesions:
            views.append(replace(case, rater=0))
        for rater, n_lesions in enumerate(case.rater_lesions, start=1):
            views.append(replace(case, rater=rater, n_lesions=n_lesions))
    return views


def _open_or_rebuild(path: str, rebuild: Callable[[], None] | None) -> NDArray[Any]:
    """Open an array of the cache, and make its entry again if it is gone."""
    try:
        return _open_array(path)
    except (OSError, ValueError, EOFError):
        # The cache may be deleted at any time; a file may also have been cut short.
        if rebuild is None:
            raise
    rebuild()
    return _open_array(path)


def _open_array(path: str) -> NDArray[Any]:
    """Map a stored array into memory, as the file is now.

    A file that was replaced or cut has another inode or size: to read the pages that it had before
    would end the process by SIGBUS, which Python cannot catch.
    """
    status = Path(path).stat()
    return _opened(path, status.st_ino, status.st_size)


@lru_cache(maxsize=96)  # each holds a file descriptor, of which a process on macOS has 256
def _opened(path: str, inode: int, size: int) -> NDArray[Any]:
    opened: NDArray[Any] = np.load(path, mmap_mode="r")
    return opened


def close_arrays() -> None:
    """Let go of all open files, after one of them was replaced."""
    _opened.cache_clear()


def _scaled_box(image: NDArray[np.int16], scale: Floats, start: Shape, size: Shape) -> Floats:
    """Scale a box (C, *size) of an image, by slabs that fit the processor's cache."""
    source, place = intersect(start, size, image.shape[-3:])
    is_inside = all(part == slice(0, n) for part, n in zip(place, size, strict=True))
    # Zeros that are written over at once would be written in vain.
    new_array = np.empty if is_inside else np.zeros
    values = new_array((len(image), *size), dtype=np.float32)
    n_rows = max(1, SLAB_VOXELS // max(1, size[1] * size[2]))
    for channel, filled, factor in zip(image, values, scale, strict=True):
        box = channel[source]
        covered = filled[place]
        for x in range(0, len(box), n_rows):
            slab = covered[x : x + n_rows]
            slab[...] = box[x : x + n_rows]
            slab *= factor
    return values
