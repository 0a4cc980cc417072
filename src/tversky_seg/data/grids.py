"""Resampling of volumes from one voxel grid to another by their affines.

Exact if axes are only permuted, flipped and shifted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from tversky_seg.data.affines import corner_voxels, metric_spacing, ras_grid, spacing_of

Shape = tuple[int, int, int]
Floats = NDArray[np.float32]
Affine = NDArray[np.float64]
Bools = NDArray[np.bool_]
Box = tuple[slice, ...]
"""A box of a volume (X, Y, Z), one slice for each axis."""

SAME_SPACING = 0.01  # relative difference of two voxel sizes that count as one
FINE_SHIFT_VOXELS = 0.01  # between two affines of one grid: rounding in the files
# Some tools put a voxel's corner where others put its centre: reported, not corrected.
TOLERATED_SHIFT_VOXELS = 0.6
_MIN_SIGMA = 0.1  # voxels; a narrower Gaussian changes nothing
_FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))


@dataclass(frozen=True)
class Geometry:
    """The way from the file's voxels to the network's and back.

    Attributes:
        input_shape: Shape of the file of the first modality.
        input_affine: (4, 4) of that file.
        full_shape: Shape of the network's grid before the crop.
        full_affine: (4, 4) of that grid.
        crop_start: First voxel of the crop in that grid.
        shape: Shape of the crop, which the network sees.
    """

    input_shape: Shape
    input_affine: Affine
    full_shape: Shape
    full_affine: Affine
    crop_start: Shape
    shape: Shape

    @property
    def network_affine(self) -> Affine:
        """Affine (4, 4) of the crop."""
        return self.full_affine @ translation(self.crop_start)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size that the network sees, along R, A, S; the product is a voxel's volume."""
        return metric_spacing(self.full_affine)

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain lists, for JSON."""
        return {name: np.asarray(value).tolist() for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Geometry:
        """Invert `as_dict`."""
        fields: dict[str, Any] = {}
        for name, value in values.items():
            fields[name] = np.array(value) if name.endswith("affine") else tuple(value)
        return cls(**fields)


def network_grid(
    shape: Shape, affine: ArrayLike, *, spacing_mm: Sequence[float | None] | None
) -> tuple[Shape, Affine]:
    """Lay out the grid that the network sees: axes most nearly along R, A, S, voxels as asked for.

    An axis whose voxel size is within 1 % of the one asked for keeps its voxels. A resampled axis
    covers the whole field of view about the same centre. Obliqueness stays: axes are only permuted
    and flipped.

    Args:
        shape: Shape of the file.
        affine: (4, 4) of the file.
        spacing_mm: Voxel size along R, A, S, None for an axis that keeps the file's own; None: all
            axes keep it.

    Returns:
        Shape and affine (4, 4).
    """
    shape, affine = ras_grid(shape, affine)
    if spacing_mm is None:
        return shape, affine
    own = spacing_of(affine)
    wanted: list[float] = []
    for size, own_size in zip(spacing_mm, own, strict=True):
        # None keeps the file's own size.
        wanted.append(own_size if size is None else size)
    step = np.divide(wanted, own)  # file voxels per network voxel
    step[np.abs(step - 1) <= SAME_SPACING] = 1
    # Rounded up, to cover the whole field of view; 10.001 is rounding in the affine, and stays 10.
    exact = np.divide(shape, step)
    n = np.maximum(1, np.ceil(exact - FINE_SHIFT_VOXELS)).astype(int)
    # In file voxels: both grids have their centre at the same place.
    first = (np.array(shape) - 1) / 2 - step * (n - 1) / 2
    x, y, z = n.tolist()
    return (x, y, z), affine @ _homogeneous(np.diag(step), first)


def resample(
    data: NDArray[Any],
    source_affine: ArrayLike,
    affine: ArrayLike,
    shape: Shape,
    *,
    order: int = 1,
    fill: float = 0,
) -> NDArray[Any]:
    """Resample a volume to another grid.

    If every voxel falls on a voxel (within 0.01) the values are copied, and the type stays.
    Otherwise they are interpolated as float32, after a Gaussian that gives coarser voxels the blur
    of their size (Cardoso et al., MICCAI 2015: full width at half maximum of source and target
    voxel add in quadrature).

    Args:
        data: (X, Y, Z).
        source_affine: (4, 4) of the data.
        affine: (4, 4) of the grid wanted.
        shape: Shape of the grid wanted.
        order: 1 linear, 0 nearest.
        fill: Value beyond the field of view of the data (NaN is allowed if values are
            interpolated).

    Returns:
        An array of `shape`; a view of the data if it is only moved.
    """
    matrix = _target_to_source(source_affine, affine)
    # Along the target's axes, the blur below is separable, and a turn by 90 degrees is a view.
    data, matrix = _aligned(data, matrix)
    if _is_shift(matrix, shape):
        x, y, z = np.rint(matrix[:3, 3]).astype(int).tolist()
        return crop_or_pad(data, (x, y, z), shape, fill=fill)
    # The outer voxels reach beyond their centres, by half a voxel.
    padded = np.pad(data, 1, mode="edge").astype(np.float32, copy=False)
    sigma = np.sqrt(np.maximum(_voxel_ratio(matrix) ** 2 - 1, 0)) / _FWHM_PER_SIGMA
    if sigma.max() > _MIN_SIGMA:
        ndimage.gaussian_filter(padded, sigma, output=padded, mode="nearest", truncate=3.0)
    linear = matrix[:3, :3]
    if _are_axes_separate(linear, shape):
        linear = np.diag(linear)  # scipy is faster along separate axes
    resampled: Floats = ndimage.affine_transform(
        padded,
        linear,
        matrix[:3, 3] + 1,  # of the padding
        shape,
        np.float32,
        order=order,
        mode="constant",
        cval=fill,
        prefilter=False,
    )
    return resampled


def to_input_grid(volume: Floats, geometry: Geometry) -> Floats:
    """Bring a volume (X, Y, Z) from the network's grid to the file's own, linearly.

    It is 0 outside the crop. Without resampling the values are only moved, so this is exact.
    """
    return resample(volume, geometry.network_affine, geometry.input_affine, geometry.input_shape)


def voxel_ratio(source_affine: ArrayLike, affine: ArrayLike) -> Affine:
    """Count voxels of the first grid per voxel of the second, along each axis of the first."""
    return _voxel_ratio(_target_to_source(source_affine, affine))


def translation(voxels: ArrayLike) -> Affine:
    """Make the matrix (4, 4) of a shift by voxels.

    `affine @ translation(voxels)` is the affine of an array that starts at this voxel.
    """
    return _homogeneous(np.eye(3), np.asarray(voxels))


def crop_or_pad(data: NDArray[Any], start: Shape, shape: Shape, *, fill: float = 0) -> NDArray[Any]:
    """Cut a box out of a volume, and fill it where it overhangs.

    Args:
        data: (..., X, Y, Z).
        start: First voxel of the box, negative before the volume.
        shape: Shape of the box.
        fill: Value outside the volume.

    Returns:
        (..., *shape); a view if the box lies inside.
    """
    source, target = intersect(start, shape, data.shape[-3:])
    channels = (slice(None),) * (data.ndim - 3)
    box = data[channels + source]
    if box.shape[-3:] == tuple(shape):
        return box
    filled = np.full((*data.shape[:-3], *shape), fill, dtype=data.dtype)
    filled[channels + target] = box
    return filled


def intersect(start: Shape, shape: Shape, available: Sequence[int]) -> tuple[Box, Box]:
    """Intersect a box with a volume.

        intersect((-1, 2, 0), (4, 4, 4), (9, 5, 9))
        # of the volume [0:3, 2:5, 0:4], of the box [1:4, 0:3, 0:4]

    Args:
        start: First voxel of the box, in the volume.
        shape: Shape of the box.
        available: Shape of the volume.

    Returns:
        The intersection as slices of the volume, and as slices of the box.
    """
    in_volume = []
    in_box = []
    for first, n, end in zip(start, shape, available, strict=True):
        low = max(first, 0)
        high = max(min(first + n, end), low)
        in_volume.append(slice(low, high))
        in_box.append(slice(low - first, high - first))
    return tuple(in_volume), tuple(in_box)


def _target_to_source(source_affine: ArrayLike, affine: ArrayLike) -> Affine:
    """Make the matrix (4, 4) from voxels of the target grid to voxels of the source."""
    source = np.asarray(source_affine, dtype=np.float64)
    target = np.asarray(affine, dtype=np.float64)
    return np.asarray(np.linalg.solve(source, target))


def _aligned(data: NDArray[Any], matrix: Affine) -> tuple[NDArray[Any], Affine]:
    """Permute and flip the axes of the data to run along the target's.

    Returns:
        A view of the data, and the matrix from target voxels to its voxels.
    """
    # Of the six orders of axes, the one that turns them least.
    cosines = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)

    def alignment(axes: tuple[int, ...]) -> float:
        """Rate an order: 1 where axis axes[j] runs along target axis j, for each j."""
        x, y, z = axes
        return float(abs(cosines[x, 0] * cosines[y, 1] * cosines[z, 2]))

    order = max(itertools.permutations(range(3)), key=alignment)
    data = data.transpose(order)
    matrix = matrix[[*order, 3]]
    for axis in range(3):
        if matrix[axis, axis] < 0:
            # Voxel i becomes n - 1 - i.
            data = np.flip(data, axis)
            matrix[axis] = -matrix[axis]
            matrix[axis, 3] += data.shape[axis] - 1
    return data, matrix


def _is_shift(matrix: Affine, shape: Shape) -> bool:
    """Tell whether target voxels fall on source voxels, within 0.01 voxel."""
    # An affine map is farthest from a shift at a corner.
    corners = corner_voxels(shape)
    linear = matrix[:3, :3]
    offset = matrix[:3, 3]
    moved = corners @ linear.T + offset
    shifted = corners + np.rint(offset)
    return bool(np.abs(moved - shifted).max() <= FINE_SHIFT_VOXELS)


def _are_axes_separate(linear: Affine, shape: Shape) -> bool:
    """Tell whether the parts of a matrix off its diagonal move no voxel by 0.01 voxel."""
    off_diagonal = np.abs(linear - np.diag(np.diag(linear)))
    # An upper bound: the last voxel of the longest axis, moved by all entries together.
    total = off_diagonal.sum(axis=1) @ np.ones(3)
    return bool(total * max(shape) < FINE_SHIFT_VOXELS)


def _voxel_ratio(matrix: Affine) -> Affine:
    """Count source voxels per target voxel, along each source axis."""
    linear = matrix[:3, :3]
    return np.asarray(np.linalg.norm(linear, axis=1), dtype=np.float64)


def _homogeneous(linear: Affine, offset: Affine) -> Affine:
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = offset
    return matrix
