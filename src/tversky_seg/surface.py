"""Distances between the surfaces of two masks, in mm."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from tversky_seg.masks import Mask, as_masks, bounding_box, check_spacing


@dataclass(frozen=True)
class SurfaceDistances:
    """How far apart two surfaces lie; both are NaN when either mask is empty."""

    assd_mm: float
    """Average symmetric surface distance: mean over both surfaces' voxels of the distance to the other surface."""
    hd95_mm: float
    """95 % Hausdorff distance: the larger of the two directed 95th percentiles (linear interpolation)."""


def surface_distances(prediction: ArrayLike, reference: ArrayLike, *, spacing_mm: ArrayLike) -> SurfaceDistances:
    """Average and 95th-percentile distance between the surfaces of two masks.

    The surface is the mask minus its erosion by the face neighbours (6 in 3D); beyond the volume is background.
    Distances run from voxel centre to voxel centre.

    Args:
        prediction: 0/1 mask, 2D or 3D.
        reference: 0/1 mask of the same shape.
        spacing_mm: size of a voxel per axis, in mm.

    Returns:
        Distances >= 0 in mm; NaN when either mask is empty.

    Raises:
        ValueError: for shapes that differ, other values than 0 and 1, or a spacing that is not positive.
    """
    masks = as_masks(prediction, reference)
    spacing = check_spacing(spacing_mm, ndim=masks[0].ndim)
    if not all(mask.any() for mask in masks):
        return SurfaceDistances(math.nan, math.nan)
    box = bounding_box(masks[0] | masks[1])
    surfaces = [surface(mask[box]) for mask in masks]
    there = _distances(*surfaces, spacing=spacing)
    back = _distances(*surfaces[::-1], spacing=spacing)
    return SurfaceDistances(
        assd_mm=float(np.concatenate([there, back]).mean()),
        hd95_mm=float(max(np.percentile(there, 95), np.percentile(back, 95))),
    )


def surface(mask: Mask) -> Mask:
    """The voxels of a mask that have a face neighbour outside it; the volume's border counts as outside."""
    inside = mask.copy()
    for axis in range(mask.ndim):
        ahead, behind = (np.moveaxis(array, axis, 0) for array in (inside, mask))
        ahead[0] = ahead[-1] = False
        ahead[1:-1] &= behind[:-2] & behind[2:]
    return mask & ~inside


def _distances(origin: Mask, target: Mask, *, spacing: NDArray[np.float64]) -> NDArray[np.float64]:
    """From each voxel of `origin` to the nearest of `target`, in mm; voxels of both are 0 away and need no search."""
    distances = np.zeros(np.count_nonzero(origin))
    apart = np.argwhere(origin & ~target)
    if len(apart):
        tree = cKDTree(np.argwhere(target) * spacing, balanced_tree=False, compact_nodes=False)
        distances[: len(apart)] = tree.query(apart * spacing)[0]
    return distances
