"""From one voxel grid to another by their affines: exact where axes are only permuted, flipped and shifted."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from tversky_seg.data.nifti import ras_grid, spacing_of

Shape = tuple[int, int, int]
Floats = NDArray[np.float32]
Affine = NDArray[np.float64]
Bools = NDArray[np.bool_]

SAME_SPACING = 0.01  # relative difference up to which two voxel sizes are taken as one
SAME_PLACE = 0.01  # voxels
_FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))


@dataclass(frozen=True)
class Geometry:
    """The way from the file's voxels to the network's and back.

    Attributes:
        input_shape: Of the file of the first modality.
        input_affine: (4, 4) of that file.
        full_shape: Of the network grid before the crop.
        full_affine: (4, 4) of it.
        crop_start: First voxel of the crop in it.
        shape: Of the crop: what the network sees.
    """

    input_shape: Shape
    input_affine: Affine
    full_shape: Shape
    full_affine: Affine
    crop_start: Shape
    shape: Shape

    @property
    def network_affine(self) -> Affine:
        """(4, 4) of the crop."""
        return self.full_affine @ translation(self.crop_start)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size that the network sees, along R, A, S."""
        return spacing_of(self.full_affine)

    def as_dict(self) -> dict[str, Any]:
        """Plain lists, for JSON."""
        return {name: np.asarray(value).tolist() for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Geometry":
        """The inverse of `as_dict`."""
        plain: dict[str, Any] = {
            n: np.array(v) if n.endswith("affine") else tuple(v) for n, v in values.items()
        }
        return cls(**plain)


def network_grid(
    shape: Shape, affine: ArrayLike, *, spacing_mm: Sequence[float | None] | None
) -> tuple[Shape, Affine]:
    """The grid that the network sees: axes most nearly along R, A, S, with the voxel size asked for.

    Axes whose voxel size is within 1 % of the one asked for keep their voxels. A resampled axis covers the whole field
    of view about the same centre. Obliqueness stays: only permutations and flips turn the axes.

    Args:
        shape: Of the file.
        affine: (4, 4) of the file.
        spacing_mm: Voxel size along R, A, S, None for an axis that keeps the file's own; None: all of them.
    """
    shape, affine = ras_grid(shape, affine)
    if spacing_mm is None:
        return shape, affine
    own = spacing_of(affine)
    wanted = [size if given is None else given for given, size in zip(spacing_mm, own, strict=True)]
    step = np.divide(wanted, own)  # file voxels per network voxel
    step[np.abs(step - 1) <= SAME_SPACING] = 1
    n = np.maximum(1, np.ceil(np.divide(shape, step) - SAME_PLACE)).astype(int)
    first = (np.array(shape) - 1) / 2 - step * (n - 1) / 2
    return (int(n[0]), int(n[1]), int(n[2])), affine @ _homogeneous(np.diag(step), first)


def resample(
    data: NDArray[Any],
    source_affine: ArrayLike,
    affine: ArrayLike,
    shape: Shape,
    *,
    order: int = 1,
    fill: float = 0,
) -> NDArray[Any]:
    """The values of a volume at the voxels of another grid.

    Where every voxel falls on a voxel (within 0.01) the values are copied, and the type stays. Else they are
    interpolated as float32, after a Gaussian that gives coarser voxels the blur of their size (Cardoso et al., MICCAI
    2015: full width at half maximum of source and target voxel add in quadrature).

    Args:
        data: (X, Y, Z).
        source_affine: (4, 4) of the data.
        affine: (4, 4) of the grid wanted.
        shape: Of the grid wanted.
        order: 1 linear, 0 nearest.
        fill: Value beyond the field of view of the data (NaN allowed where values are interpolated).
    """
    matrix = np.linalg.solve(
        np.asarray(source_affine, dtype=np.float64), np.asarray(affine, dtype=np.float64)
    )
    data, matrix = _aligned(data, matrix)
    if _is_shift(matrix, shape):
        x, y, z = np.rint(matrix[:3, 3]).astype(int).tolist()
        return crop_or_pad(data, (x, y, z), shape, fill=fill)
    padded = np.pad(data, 1, mode="edge").astype(
        np.float32, copy=False
    )  # outer voxels reach beyond their centres
    sigma = np.sqrt(np.maximum(_steps(matrix) ** 2 - 1, 0)) / _FWHM_PER_SIGMA
    if sigma.max() > 0.1:
        ndimage.gaussian_filter(padded, sigma, output=padded, mode="nearest", truncate=3.0)
    linear, offset = matrix[:3, :3], matrix[:3, 3] + 1
    if np.abs(linear - np.diag(np.diag(linear))).sum(axis=1) @ np.ones(3) * max(shape) < SAME_PLACE:
        linear = np.diag(linear)  # scipy is faster along separate axes
    resampled: Floats = ndimage.affine_transform(
        padded,
        linear,
        offset,
        shape,
        np.float32,
        order=order,
        mode="constant",
        cval=fill,
        prefilter=False,
    )
    return resampled


def to_input_grid(volume: Floats, geometry: Geometry) -> Floats:
    """Bring a volume (X, Y, Z) of the network's grid to the file's own, linearly; 0 outside the crop.

    Without resampling in between, the values are only moved, so this is exact.
    """
    return resample(volume, geometry.network_affine, geometry.input_affine, geometry.input_shape)


def voxel_ratio(source_affine: ArrayLike, affine: ArrayLike) -> Affine:
    """Count voxels of the first grid per voxel of the second, along each axis of the first."""
    return _steps(
        np.linalg.solve(
            np.asarray(source_affine, dtype=np.float64), np.asarray(affine, dtype=np.float64)
        )
    )


def translation(voxels: ArrayLike) -> Affine:
    """(4, 4): on the right of an affine it makes that of an array that starts at this voxel."""
    return _homogeneous(np.eye(3), np.asarray(voxels))


def crop_or_pad(data: NDArray[Any], start: Shape, shape: Shape, *, fill: float = 0) -> NDArray[Any]:
    """The box of a volume (..., X, Y, Z) from voxel `start` on, `fill` where it overhangs."""
    source, target = intersect(start, shape, data.shape[-3:])
    channels = (slice(None),) * (data.ndim - 3)
    box = data[channels + source]
    if box.shape[-3:] == tuple(shape):
        return box
    filled = np.full((*data.shape[:-3], *shape), fill, dtype=data.dtype)
    filled[channels + target] = box
    return filled


def intersect(
    start: Shape, shape: Shape, available: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a box from voxel `start` on and a volume of the shape `available` meet: in the volume, and in the box."""
    source, target = [], []
    for first, n, end in zip(start, shape, available, strict=True):
        low, high = max(first, 0), max(min(first + n, end), max(first, 0))
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))
    return tuple(source), tuple(target)


def _aligned(data: NDArray[Any], matrix: Affine) -> tuple[NDArray[Any], Affine]:
    """A view of the data with axes that run along the target's, and the matrix from target voxels to its voxels."""
    scaled = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    order = max(
        itertools.permutations(range(3)),
        key=lambda p: math.prod(abs(scaled[p[j], j]) for j in range(3)),
    )
    data, matrix = data.transpose(order), matrix[[*order, 3]]
    for axis in range(3):
        if matrix[axis, axis] < 0:
            data = np.flip(data, axis)
            matrix[axis] = -matrix[axis]
            matrix[axis, 3] += data.shape[axis] - 1
    return data, matrix


def _is_shift(matrix: Affine, shape: Shape) -> bool:
    """Whether target voxels fall on source voxels, at most 0.01 voxel beside."""
    corners = np.array([*itertools.product(*((0, n - 1) for n in shape))])
    exact = corners + np.rint(matrix[:3, 3])
    return bool(np.abs(corners @ matrix[:3, :3].T + matrix[:3, 3] - exact).max() <= SAME_PLACE)


def _steps(matrix: Affine) -> Affine:
    """Source voxels per target voxel, along each source axis."""
    return np.asarray(np.linalg.norm(matrix[:3, :3], axis=1), dtype=np.float64)


def _homogeneous(linear: Affine, offset: Affine) -> Affine:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = linear, offset
    return matrix
