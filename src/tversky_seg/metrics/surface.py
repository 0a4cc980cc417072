"""Distances between the surfaces of two masks, in mm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage
from scipy.spatial import KDTree

from tversky_seg.metrics.masks import (
    FloatArray,
    Mask,
    as_masks,
    bounding_box,
    check_spacing,
    memory_order,
)


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances between two surfaces; NaN when either mask is empty."""

    assd_mm: float
    """Average symmetric surface distance: the mean, over the voxels of both surfaces, of the
    distance to the other surface."""
    hd95_mm: float
    """95 % Hausdorff distance: the larger of the two directed 95th percentiles, with linear
    interpolation."""
    hd_mm: float = math.nan
    """Hausdorff distance: the largest of all distances."""
    surface_dice: float = math.nan
    """Share of the voxels of both surfaces that lie within the tolerance of the other surface, in
    [0, 1]; 0 when one mask is empty, NaN when both are."""


def surface_distances(
    prediction: ArrayLike, reference: ArrayLike, *, spacing_mm: ArrayLike, tolerance_mm: float = 1.0
) -> SurfaceDistances:
    """Measure the distances between the surfaces of two masks, and their surface Dice.

    The surface is the mask minus its erosion by the face neighbours (6 in 3D); beyond the volume is
    background. Distances run from voxel centre to voxel centre. The surface Dice is that of
    arXiv 1809.04430, with voxels instead of surface elements.

    Args:
        prediction: 0/1 mask, 2D or 3D.
        reference: 0/1 mask of the same shape.
        spacing_mm: Size of a voxel per axis, in mm.
        tolerance_mm: Distance up to which surfaces agree, for the surface Dice.

    Returns:
        Distances >= 0 in mm, NaN when either mask is empty; the surface Dice in [0, 1].

    Raises:
        ValueError: Shapes that differ, other values than 0 and 1, or a spacing or tolerance out of
            range.
    """
    predicted, true = as_masks(prediction, reference)
    spacing = check_spacing(spacing_mm, ndim=predicted.ndim)
    if not 0 <= tolerance_mm < math.inf:
        raise ValueError(f"tolerance_mm must be >= 0 and finite, got {tolerance_mm}")
    if not predicted.any() and not true.any():
        return SurfaceDistances(math.nan, math.nan)
    if not predicted.any() or not true.any():
        return SurfaceDistances(math.nan, math.nan, surface_dice=0.0)

    box = bounding_box(predicted | true)
    order = memory_order(predicted)
    predicted_points = _surface_points(predicted[box], spacing, order=order)
    true_points = _surface_points(true[box], spacing, order=order)
    return point_distances(predicted_points, true_points, tolerance_mm=tolerance_mm)


def point_distances(
    predicted_points: FloatArray, true_points: FloatArray, *, tolerance_mm: float
) -> SurfaceDistances:
    """Measure the distances between two surfaces that are lists of points.

    Args:
        predicted_points: (n, ndim) points in mm, at least one.
        true_points: (m, ndim) points in mm, at least one.
        tolerance_mm: Distance up to which surfaces agree, for the surface Dice.
    """
    # Surfaces are sparse in their box: a tree of their voxels is faster than a distance transform.
    to_true, _ = KDTree(true_points).query(predicted_points)
    to_predicted, _ = KDTree(predicted_points).query(true_points)
    distances = np.concatenate([to_true, to_predicted])
    directed_95th = [np.percentile(to_true, 95), np.percentile(to_predicted, 95)]
    # Spacing comes from float32 affines: 1 mm may read as 1.0000001 mm, and is within 1 mm.
    n_within = np.count_nonzero(distances <= tolerance_mm * (1 + 1e-6))
    return SurfaceDistances(
        assd_mm=float(distances.mean()),
        hd95_mm=float(max(directed_95th)),
        hd_mm=float(distances.max()),
        surface_dice=n_within / distances.size,
    )


def surface(mask: Mask) -> Mask:
    """Find the voxels with a face neighbour outside the mask, or outside the volume."""
    # The structuring element of scipy's default holds the face neighbours, and no others.
    is_surface: Mask = mask & ~ndimage.binary_erosion(mask)
    return is_surface


def _surface_points(mask: Mask, spacing_mm: FloatArray, *, order: Literal["C", "F"]) -> FloatArray:
    """List the voxels of the surface, (n, ndim), in mm."""
    if order == "C":
        points = np.argwhere(surface(mask))
    else:
        # NIfTI files hold their voxels in Fortran order: transposed, they are read as they lie.
        points = np.argwhere(surface(mask.T))[:, ::-1]
    return points * spacing_mm
