"""One modality of a case: read, brought to the network's grid, normalised and quantised."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.errors import DataError
from tversky_seg.data.grids import Bools, Box, Floats, crop_or_pad
from tversky_seg.data.nifti import Volume, read_volume
from tversky_seg.data.preprocessing.note import Note
from tversky_seg.data.preprocessing.reference_grid import ReferenceGrid, align_image, align_mask
from tversky_seg.metrics.masks import bounding_box

MAX_DEVIATIONS = 20.0
"""Normalised intensities are cut here: one hot voxel would coarsen the int16 steps of all."""

LARGEST_INT16 = 32767
IQR_OF_NORMAL = 1.349  # interquartile range of a normal distribution of standard deviation 1


@dataclass(frozen=True)
class Channel:
    """One modality on the network's grid, stored where it is not background.

    Attributes:
        box: Box around the foreground, in the grid.
        packed: Foreground voxels of the box, eight to a byte.
        values: (X, Y, Z) int16 in the box; `values * scale` are the normalised intensities.
        outside: Value beyond the box.
        scale: Factor from int16 to normalised intensity.
    """

    box: Box
    packed: NDArray[np.uint8]
    values: NDArray[np.int16]
    outside: int
    scale: float

    @property
    def foreground(self) -> Bools:
        """Foreground (X, Y, Z) in the box."""
        bits = np.unpackbits(self.packed, count=self.values.size)
        return bits.reshape(self.values.shape).view(bool)

    def within(self, box: Box) -> NDArray[np.int16]:
        """Cut the values of another box of the grid."""
        x, y, z = (new.start - own.start for new, own in zip(box, self.box, strict=True))
        i, j, k = (side.stop - side.start for side in box)
        return crop_or_pad(self.values, (x, y, z), (i, j, k), fill=self.outside)


@dataclass(frozen=True)
class Scaling:
    """Normalisation of intensities: `(values - centre) / width`, cut to an interval.

    Attributes:
        centre: Intensity that becomes 0.
        width: Difference of intensities that becomes 1.
        cut: Smallest and largest normalised value; None: no cut.
    """

    centre: float
    width: float
    cut: tuple[float, float] | None

    def __call__(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Normalise intensities; 0 where they are NaN."""
        # The constants are rounded to float32 first, as in the caches of earlier versions.
        normalised = (values - np.float32(self.centre)) / np.float32(self.width)
        if self.cut is not None:
            np.clip(normalised, *self.cut, out=normalised)
        normalised[np.isnan(normalised)] = 0
        return normalised


@dataclass(frozen=True)
class _Foreground:
    """Intensities of one modality in the box around its foreground.

    Attributes:
        values: (X, Y, Z) float32 in the box; NaN beyond the field of view.
        mask: (X, Y, Z) foreground in the box.
        box: The box, in the network's grid.
        background: Value beyond the box; NaN where there is none.
    """

    values: Floats
    mask: Bools
    box: Box
    background: float


def read_channel(
    path: Path,
    modality: str,
    grid: ReferenceGrid,
    brain: Bools | None,
    *,
    normalization: str,
    limits: tuple[float, float] | None,
    notes: list[Note],
) -> Channel:
    """Read, resample, normalise and quantise one modality.

    Quantising at once keeps few float volumes in memory: a channel is int16 in a box.

    Args:
        path: Image file.
        modality: Name of the modality.
        grid: Grid to bring it to.
        brain: Brain mask (X, Y, Z) in which intensities are measured; None: all voxels that
            differ from the background.
        normalization: One of the names of `Preprocessing.normalization`.
        limits: Percentiles or intensities of the normalisations that have limits.
        notes: List to which oddities of the file are added.

    Raises:
        DataError: The file cannot be read, or shows nothing, or has no contrast.
    """
    image = _read_foreground(path, modality, grid, brain, notes)
    scaling = _scaling_of(image.values[image.mask], normalization, limits, path)
    # fmin and fmax skip the NaN beyond the field of view.
    lowest = np.fmin.reduce(image.values, axis=None)
    highest = np.fmax.reduce(image.values, axis=None)
    extremes = scaling(np.array([lowest, highest, image.background]))
    # The bound of 1e-6 is for an image that the cut makes constant.
    scale = max(float(extremes.max()), -float(extremes.min()), 1e-6) / LARGEST_INT16
    quantised = np.empty(image.values.shape, dtype=np.int16)
    # Slab by slab, because the arithmetic takes float64.
    for slab, rounded in zip(image.values, quantised, strict=True):
        rounded[...] = np.rint(scaling(slab.astype(np.float64)) / np.float32(scale))
    outside = int(np.rint(extremes[2] / np.float32(scale)))
    return Channel(image.box, np.packbits(image.mask), quantised, outside, scale)


def read_brain(path: Path, grid: ReferenceGrid, notes: list[Note]) -> Bools:
    """Read a brain mask onto the network's grid: voxels above 0.5 in the file.

    Returns:
        (X, Y, Z) mask.

    Raises:
        DataError: The file cannot be read, is empty, or lies on another grid.
    """
    volume = align_mask(read_volume(path), "brain mask", path, grid, notes)
    brain = grid.resampled(Volume(volume.data > 0.5, volume.affine)) > 0.5
    if not brain.any():
        raise DataError(path, "holds no voxel above 0.5", "expected a mask of the brain")
    return np.asarray(brain)


def _read_foreground(
    path: Path, modality: str, grid: ReferenceGrid, brain: Bools | None, notes: list[Note]
) -> _Foreground:
    """Read one modality onto the network's grid and find its foreground."""
    volume = align_image(read_volume(path), modality, grid, notes)
    background = math.nan
    if brain is None:
        background = background_of(volume.data)
    if math.isnan(background):
        values = grid.resampled(volume, fill=math.nan)
        foreground = np.isfinite(values)
    else:
        # The mask comes before the values, so that fewer volumes are held at a time.
        differs = Volume(volume.data != background, volume.affine)
        # A network voxel is foreground if more than half of it is.
        foreground = grid.resampled(differs) > 0.5
        values = grid.resampled(volume, fill=background)
    if brain is not None:
        foreground = brain & foreground
    if not foreground.any():
        found = f"holds nothing but {background:g}"
        if math.isnan(background):
            found = "shows nothing of the brain"
        expected = f"expected {modality} of the body part that {grid.modality} shows"
        raise DataError(path, found, expected)
    box = bounding_box(foreground)
    # In C order, in which packbits reads it.
    mask = np.array(foreground[box], order="C")
    return _Foreground(values[box], mask, box, background)


def background_of(data: Floats) -> float:
    """Return the value of more than half of the voxels on the six faces; NaN without one."""
    # Around a skull-stripped brain it is 0, around a CT it may be -1024 or -3024. A head that
    # fills the field of view has none.
    faces = []
    for axis in range(3):
        slices = np.moveaxis(data, axis, 0)
        faces += [slices[0].ravel(), slices[-1].ravel()]
    border = np.concatenate(faces)
    values, counts = np.unique(border, return_counts=True)
    if counts.max() * 2 <= len(border):
        return math.nan
    return float(values[counts.argmax()])


def _scaling_of(
    brain: Floats, normalization: str, limits: tuple[float, float] | None, path: Path
) -> Scaling:
    """Choose the scaling by the intensities of the brain (n,)."""
    if normalization == "none":
        return Scaling(centre=0.0, width=1.0, cut=None)
    if normalization in ("window", "window_minmax"):
        assert limits is not None
        return _between(*limits)
    if normalization == "percentile":
        assert limits is not None
        return _between(*_percentiles(brain, limits, path))
    centre, width = _mean_and_deviation(brain)
    if normalization == "robust":
        low, centre, high = np.percentile(brain, (25, 50, 75)).tolist()
        width = (high - low) / IQR_OF_NORMAL
    # Written with `not`, so that a width of NaN is refused too.
    if not width > 1e-6 * abs(centre):
        _refuse_constant(path, centre)
    return Scaling(centre, width, cut=(-MAX_DEVIATIONS, MAX_DEVIATIONS))


def _between(low: float, high: float) -> Scaling:
    """Map `low` to 0 and `high` to 1."""
    return Scaling(centre=low, width=high - low, cut=(0.0, 1.0))


def _percentiles(brain: Floats, limits: tuple[float, float], path: Path) -> tuple[float, float]:
    """Return the intensities at two percentiles of the brain (n,)."""
    low, high = np.percentile(brain, limits).tolist()
    if not low < high:
        _refuse_constant(path, low)
    return low, high


def _mean_and_deviation(brain: Floats) -> tuple[float, float]:
    """Return mean and standard deviation of intensities (n,), in float64."""
    mean = float(brain.mean(dtype=np.float64))
    squares = 0.0
    # In parts, because the squares take eight bytes a voxel.
    for part in np.array_split(brain, 64):
        squares += float(np.square(part - mean, dtype=np.float64).sum())
    return mean, math.sqrt(squares / len(brain))


def _refuse_constant(path: Path, value: float) -> None:
    raise DataError(path, f"is {value:g} over most of the brain", "expected an image with contrast")
