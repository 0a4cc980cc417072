"""Distances between the surfaces of two masks, in mm."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from tversky_seg.metrics.masks import Mask, as_masks, bounding_box, check_spacing, memory_order

REACH = 2  # voxels around a surface voxel that are looked up before a tree is asked


@dataclass(frozen=True)
class SurfaceDistances:
    """How far apart two surfaces lie; distances are NaN when either mask is empty."""

    assd_mm: float
    """Average symmetric surface distance: mean over both surfaces' voxels of the distance to the other surface."""
    hd95_mm: float
    """95 % Hausdorff distance: the larger of the two directed 95th percentiles (linear interpolation)."""
    hd_mm: float = math.nan
    """Hausdorff distance: the largest of all distances."""
    surface_dice: float = math.nan
    """Share of both surfaces' voxels that lie within the tolerance of the other surface, in [0, 1].

    0 when one mask is empty, NaN when both are.
    """


def surface_distances(
    prediction: ArrayLike, reference: ArrayLike, *, spacing_mm: ArrayLike, tolerance_mm: float = 1.0
) -> SurfaceDistances:
    """Average, largest and 95th-percentile distance between the surfaces of two masks, and their surface Dice.

    The surface is the mask minus its erosion by the face neighbours (6 in 3D); beyond the volume is background.
    Distances run from voxel centre to voxel centre. The surface Dice is that of arXiv 1809.04430, with voxels for
    its surface elements.

    Args:
        prediction: 0/1 mask, 2D or 3D.
        reference: 0/1 mask of the same shape.
        spacing_mm: size of a voxel per axis, in mm.
        tolerance_mm: surfaces at most this far apart agree, for the surface Dice.

    Returns:
        Distances >= 0 in mm, NaN when either mask is empty; the surface Dice in [0, 1].

    Raises:
        ValueError: for shapes that differ, other values than 0 and 1, or a spacing or tolerance out of range.
    """
    masks = as_masks(prediction, reference)
    spacing = check_spacing(spacing_mm, ndim=masks[0].ndim)
    if not 0 <= tolerance_mm < math.inf:
        raise ValueError(f"tolerance_mm must be >= 0 and finite, got {tolerance_mm}")
    there_is = [bool(mask.any()) for mask in masks]
    if not all(there_is):
        return SurfaceDistances(math.nan, math.nan, surface_dice=0.0 if any(there_is) else math.nan)
    box = bounding_box(masks[0] | masks[1])
    order = memory_order(masks[0])
    rims = [_Rim(mask[box], order=order) for mask in masks]
    there, back = (
        _distances(rims[0], rims[1], spacing=spacing),
        _distances(rims[1], rims[0], spacing=spacing),
    )
    both = np.concatenate([there, back])
    return SurfaceDistances(
        assd_mm=float(both.mean()),
        hd95_mm=float(max(np.percentile(there, 95), np.percentile(back, 95))),
        hd_mm=float(both.max()),
        surface_dice=float(
            np.count_nonzero(both <= tolerance_mm * (1 + 1e-6)) / both.size
        ),  # float32 spacing
    )


def surface(mask: Mask) -> Mask:
    """The voxels of a mask that have a face neighbour outside it; the volume's border counts as outside."""
    return _Rim(mask, order=memory_order(mask)).mask[(slice(REACH, -REACH),) * mask.ndim]


class _Rim:
    """The surface of a mask: where it is, and which voxels it consists of."""

    def __init__(self, mask: Mask, *, order: Literal["C", "F"]):
        padded = np.zeros(
            [n + 2 * REACH for n in mask.shape], bool, order=order
        )  # neighbours need no check of range
        padded[(slice(REACH, -REACH),) * mask.ndim] = mask
        self.steps = padded.strides  # in voxels: one byte each
        solid, inside = padded.ravel(order="K"), np.flatnonzero(padded.ravel(order="K"))
        eroded = np.ones(len(inside), bool)
        for step in self.steps:
            eroded &= solid[inside - step] & solid[inside + step]
        self.voxels: NDArray[np.int64] = inside[~eroded]
        self.flat = np.zeros_like(solid)
        self.flat[self.voxels] = True
        self.mask: Mask = self.flat.reshape(padded.shape, order=order)
        self.order = order

    def coordinates(self, voxels: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n, ndim) of flat positions; the same frame for two masks of one shape and memory order."""
        return np.stack(np.unravel_index(voxels, self.mask.shape, order=self.order), axis=-1)


def _distances(origin: _Rim, target: _Rim, *, spacing: NDArray[np.float64]) -> NDArray[np.float64]:
    """From each voxel of `origin` to the nearest of `target`, in mm: near ones looked up, far ones by a tree."""
    distances = np.empty(len(origin.voxels))
    far = np.arange(len(distances))
    for radius_mm, offsets in _shells(spacing):
        around = origin.voxels[far, None] + offsets @ np.array(target.steps)
        near = target.flat[around].any(axis=1)
        distances[far[near]] = radius_mm
        far = far[~near]
    if far.size:
        tree = cKDTree(
            target.coordinates(target.voxels) * spacing, balanced_tree=False, compact_nodes=False
        )
        distances[far] = tree.query(origin.coordinates(origin.voxels[far]) * spacing)[0]
    return distances


def _shells(spacing: NDArray[np.float64]) -> Iterator[tuple[float, NDArray[np.int64]]]:
    """Offsets in voxels by rising distance in mm, those of one distance together; no nearer offset is left out."""
    steps = np.array(list(itertools.product(range(-REACH, REACH + 1), repeat=len(spacing))))
    mm = np.sqrt(((steps * spacing) ** 2).sum(axis=1))
    for radius_mm in np.unique(mm[mm < (REACH + 1) * spacing.min()]).tolist():
        yield radius_mm, steps[mm == radius_mm]
