"""Surfaces of many lesions at once, from the lists of their voxels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tversky_seg.metrics.components import Components
from tversky_seg.metrics.masks import BoolArray, FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class GroupedPoints:
    """Points in mm, sorted by the group to which they belong."""

    points: FloatArray
    """(v, ndim) points, group after group."""
    first: IntArray
    """(n_groups + 1,) where each group begins; the last number is v."""

    def group(self, row: int) -> FloatArray:
        """List the points of one group."""
        return self.points[self.first[row] : self.first[row + 1]]


def neighbour_steps(components: Components) -> IntArray:
    """Compute the steps from a voxel to its face neighbours, in flat positions.

    In a C-ordered box of 4 x 5 x 6 voxels these are -30, -6, -1, 1, 6 and 30.
    """
    steps = axis_steps(components)
    return np.concatenate([-steps, steps])


def axis_steps(components: Components) -> IntArray:
    """Compute the (ndim,) step to the next voxel along each axis, in flat positions."""
    shape = np.array(components.shape, np.int64)
    if components.order == "F":
        # In Fortran order the first axis runs fastest.
        return np.append(1, np.cumprod(shape[:-1]))
    return np.append(1, np.cumprod(shape[:0:-1]))[::-1]


def points_mm(components: Components, positions: IntArray, spacing_mm: FloatArray) -> FloatArray:
    """Convert flat positions to (v, ndim) points in mm, from the first voxel of the box."""
    indices = np.unravel_index(positions, components.shape, order=components.order)
    return np.stack(indices, axis=-1) * spacing_mm


def surface_points(
    components: Components,
    groups: IntArray,
    n_groups: int,
    *,
    spacing_mm: FloatArray,
    labels: NDArray[np.integer[Any]] | None = None,
) -> GroupedPoints:
    """List the surface voxels of each group of voxels.

    Args:
        components: Lesions whose mask leaves the border of its box empty.
        groups: (v,) group of each voxel of `components.positions`, 0..n_groups - 1.
        n_groups: Number of groups.
        spacing_mm: Size of a voxel per axis, in mm.
        labels: Number at each position of the box; a voxel whose face neighbour has another number
            is on the surface. None: the numbers of the lesions.

    Returns:
        Points in mm, from the first voxel of the box.
    """
    numbers = components.labels if labels is None else labels
    is_surface = surface_voxels(components, numbers)
    return group_points(
        points_mm(components, components.positions[is_surface], spacing_mm),
        groups[is_surface],
        n_groups,
    )


def surface_voxels(components: Components, labels: NDArray[np.integer[Any]]) -> BoolArray:
    """Tell which voxels have a face neighbour of another number, (v,); see `surface_points`."""
    own = labels[components.positions]
    is_surface = np.zeros(len(own), bool)
    for step in neighbour_steps(components):
        # Flat steps never leave the box: its border is empty.
        is_surface |= labels[components.positions + step] != own
    return is_surface


def group_points(points: FloatArray, groups: IntArray, n_groups: int) -> GroupedPoints:
    """Sort points by their group."""
    order = np.argsort(groups, kind="stable")
    # Groups without a point count too, or those after them would move up.
    n_points = np.bincount(groups, minlength=n_groups)
    return GroupedPoints(points[order], np.append(0, np.cumsum(n_points)))
