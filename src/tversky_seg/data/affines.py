"""Affines (4, 4) from voxel indices to mm in RAS: voxel sizes, orientation, shifts."""

from __future__ import annotations

import itertools
import math

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

_RIGHT_ANGLE_TOLERANCE = 1e-5  # relative; headers store float32


def spacing_of(affine: ArrayLike) -> tuple[float, float, float]:
    """Measure the distance in mm of neighbouring voxels along each axis of an affine (4, 4)."""
    # Column j is the step in mm from one voxel to the next along axis j.
    steps = np.asarray(affine, dtype=np.float64)[:3, :3]
    x, y, z = np.linalg.norm(steps, axis=0)
    return (float(x), float(y), float(z))


def metric_spacing(affine: ArrayLike) -> tuple[float, float, float]:
    """Return the voxel size in mm to measure volumes and distances with.

    The product of the three is the volume of a voxel, the determinant of the affine. At right
    angles they are the distances of neighbouring voxels; of sheared axes, as of a CT with tilted
    gantry, these times one factor, and distances are approximate.
    """
    x, y, z = spacing_of(affine)
    steps = np.asarray(affine, dtype=np.float64)[:3, :3]
    volume = abs(float(np.linalg.det(steps)))
    share = volume / (x * y * z)
    if share > 1 - _RIGHT_ANGLE_TOLERANCE:
        return (x, y, z)
    factor = math.cbrt(share)
    return (x * factor, y * factor, z * factor)


def axis_codes(affine: ArrayLike) -> str:
    """Name the directions that the axes of an affine (4, 4) run to most nearly: "RAS", "LPS"."""
    return "".join(nib.aff2axcodes(np.asarray(affine, dtype=np.float64)))


def affine_shift_voxels(a: ArrayLike, b: ArrayLike, shape: tuple[int, int, int]) -> float:
    """Measure how far apart two affines (4, 4) put a voxel: the most along any axis.

    Args:
        a: Affine in whose voxels the shift is measured.
        b: The other affine.
        shape: Shape of the array.
    """
    # Two affine maps differ most at a corner of the array, so the corners stand for all voxels.
    corners = corner_voxels(shape)
    homogeneous = np.c_[corners, np.ones(8)]
    # From voxels of b to mm, and from mm to voxels of a: a^-1 b.
    a = np.asarray(a, dtype=np.float64)
    b = np.asarray(b, dtype=np.float64)
    b_to_a = np.linalg.solve(a, b)
    voxels = homogeneous @ b_to_a.T
    return float(np.abs(voxels[:, :3] - corners).max())


def other_orientation(
    shape: tuple[int, int, int],
    affine: ArrayLike,
    reference_shape: tuple[int, int, int],
    reference_affine: ArrayLike,
    *,
    tolerance_voxels: float,
) -> str | None:
    """Name the two orientations of one grid whose axes run in other orders or directions.

    Returns:
        Such as "LPS beside RAS"; None where the two are different grids, or run alike.
    """
    codes = axis_codes(affine)
    reference_codes = axis_codes(reference_affine)
    if codes == reference_codes:
        return None
    turned_shape, turned = ras_grid(shape, affine)
    turned_reference_shape, turned_reference = ras_grid(reference_shape, reference_affine)
    if turned_shape != turned_reference_shape:
        return None
    shift_voxels = affine_shift_voxels(turned_reference, turned, turned_shape)
    return f"{codes} beside {reference_codes}" if shift_voxels <= tolerance_voxels else None


def corner_voxels(shape: tuple[int, int, int]) -> NDArray[np.int64]:
    """List the eight corner voxels of an array: (8, 3)."""
    x, y, z = shape
    corners = itertools.product((0, x - 1), (0, y - 1), (0, z - 1))
    return np.array(list(corners))


def ras_grid(
    shape: tuple[int, int, int], affine: ArrayLike
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Turn a grid by permuting and flipping axes until they run most nearly to R, A and S.

    Returns:
        Shape and affine (4, 4) of the same voxels.
    """
    # For each axis of the array, the axis of space that it runs along, and in which direction.
    orientation = nib.io_orientation(affine)
    order = np.argsort(orientation[:, 0])
    back = nib.orientations.inv_ornt_aff(orientation, shape)
    x, y, z = (shape[axis] for axis in order)
    return (x, y, z), np.asarray(affine, dtype=np.float64) @ back
