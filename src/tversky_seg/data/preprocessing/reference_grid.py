"""The two grids of a case: that of its first modality's file, and that of the network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tversky_seg.data.affines import affine_shift_voxels, other_orientation
from tversky_seg.data.errors import DataError
from tversky_seg.data.grids import (
    FINE_SHIFT_VOXELS,
    TOLERATED_SHIFT_VOXELS,
    Affine,
    Box,
    Geometry,
    Shape,
    resample,
)
from tversky_seg.data.nifti import Volume
from tversky_seg.data.preprocessing.note import HALF_VOXEL, OTHER_GRID, Note


@dataclass(frozen=True)
class ReferenceGrid:
    """The grid to which all volumes of a case are brought.

    Attributes:
        modality: First modality. The label shares the grid of its file, and predictions come
            back on it.
        input_shape: Voxels of that file.
        input_affine: (4, 4) affine of that file.
        shape: Voxels of the network's grid before the crop.
        affine: (4, 4) affine of the network's grid.
    """

    modality: str
    input_shape: Shape
    input_affine: Affine
    shape: Shape
    affine: Affine

    def resampled(self, volume: Volume, *, fill: float = 0) -> NDArray[Any]:
        """Bring a volume to the network's grid; `fill` is the value beyond its field of view."""
        return resample(volume.data, volume.affine, self.affine, self.shape, fill=fill)

    def shift_of(self, volume: Volume) -> float:
        """Return how far a volume's affine moves its voxels at most, in voxels."""
        return affine_shift_voxels(self.input_affine, volume.affine, volume.shape)

    def cropped_to(self, box: Box) -> Geometry:
        """Describe a box of the network's grid, and the way from it back to the file's grid."""
        x, y, z = (side.start for side in box)
        i, j, k = (side.stop - side.start for side in box)
        return Geometry(
            input_shape=self.input_shape,
            input_affine=self.input_affine,
            full_shape=self.shape,
            full_affine=self.affine,
            crop_start=(x, y, z),
            shape=(i, j, k),
        )


def align_image(volume: Volume, name: str, grid: ReferenceGrid, notes: list[Note]) -> Volume:
    """Give an image the affine of the first modality if both share a grid; else keep its own."""
    if volume.shape == grid.input_shape and grid.shift_of(volume) <= TOLERATED_SHIFT_VOXELS:
        return _with_reference_affine(volume, name, grid, notes)
    found = f"{name} lies on another grid than {grid.modality}"
    notes.append(Note(OTHER_GRID, name, found, "resampled to it by its affine"))
    return volume


def align_mask(
    volume: Volume, name: str, path: Path, grid: ReferenceGrid, notes: list[Note]
) -> Volume:
    """Give a label or brain mask the affine of the first modality.

    Raises:
        DataError: The mask lies on another grid.
    """
    expected = f"expected {name} on the grid of {grid.modality}"
    # Told apart from another grid, since the remedy is another.
    codes = other_orientation(
        volume.shape,
        volume.affine,
        grid.input_shape,
        grid.input_affine,
        tolerance_voxels=TOLERATED_SHIFT_VOXELS,
    )
    if codes is not None:
        found = f"covers the voxels of {grid.modality}, but its axes run otherwise ({codes})"
        raise DataError(path, found, "store both in one orientation")
    # An image may lie on another grid; a mask that does belongs to another file.
    if volume.shape != grid.input_shape:
        found = f"has shape {volume.shape}, {grid.modality} has {grid.input_shape}"
        raise DataError(path, found, expected)
    shift = grid.shift_of(volume)
    if shift > TOLERATED_SHIFT_VOXELS:
        found = f"its affine puts voxels up to {shift:.3g} voxels from those of {grid.modality}"
        raise DataError(path, found, expected)
    return _with_reference_affine(volume, name, grid, notes)


def _with_reference_affine(
    volume: Volume, name: str, grid: ReferenceGrid, notes: list[Note]
) -> Volume:
    if grid.shift_of(volume) > FINE_SHIFT_VOXELS:
        found = f"the affine of {name} is up to half a voxel off that of {grid.modality}"
        notes.append(Note(HALF_VOXEL, name, found, "voxels taken to agree"))
    return Volume(volume.data, grid.input_affine)
