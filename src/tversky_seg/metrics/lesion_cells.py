"""CC-Metrics (arXiv 2410.18684): Dice and surface distances in the cell of each lesion.

The cell of a reference lesion holds the voxels that are nearer to it than to any other reference
lesion. What is predicted inside the cell is compared with this one lesion, and a small lesion
counts as much as a large one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

from tversky_seg.metrics.components import Components
from tversky_seg.metrics.lesion_surfaces import points_mm, surface_points
from tversky_seg.metrics.masks import FloatArray, IntArray
from tversky_seg.metrics.surface import point_distances

N_NEIGHBOURS = 4
"""Nearest voxels that are looked at first, to find lesions at the same distance."""


@dataclass(frozen=True)
class CellScores:
    """Sums over the cells of the reference lesions, of one case or of several."""

    n_lesions: int = 0
    dice_sum: float = 0.0
    nsd_sum: float = 0.0
    hd95_sum_mm: float = 0.0

    def __add__(self, other: CellScores) -> CellScores:
        """Add the cells of another case."""
        return CellScores(
            self.n_lesions + other.n_lesions,
            self.dice_sum + other.dice_sum,
            self.nsd_sum + other.nsd_sum,
            self.hd95_sum_mm + other.hd95_sum_mm,
        )

    @property
    def dice(self) -> float:
        """CC-Dice: mean Dice of the cells, in [0, 1]; NaN without reference lesions."""
        return self._mean(self.dice_sum)

    @property
    def nsd(self) -> float:
        """CC-NSD: mean surface Dice of the cells, in [0, 1]; NaN without reference lesions."""
        return self._mean(self.nsd_sum)

    @property
    def hd95_mm(self) -> float:
        """CC-HD95: mean 95 % Hausdorff distance of the cells; NaN without reference lesions."""
        return self._mean(self.hd95_sum_mm)

    def _mean(self, total: float) -> float:
        if not self.n_lesions:
            return math.nan
        return total / self.n_lesions


NO_CELLS = CellScores()


def score_cells(
    predicted: Components,
    true: Components,
    *,
    spacing_mm: FloatArray,
    tolerance_mm: float,
    penalty_mm: float,
) -> CellScores:
    """Compare each reference lesion with what is predicted in its cell.

    Args:
        predicted: Predicted lesions; their mask leaves the border of its box empty.
        true: Reference lesions in the same box and order.
        spacing_mm: Size of a voxel per axis, in mm.
        tolerance_mm: Distance up to which surfaces agree, for the surface Dice.
        penalty_mm: HD95 of a cell without prediction, where Dice and surface Dice are 0.

    Returns:
        The sums; zeros without reference lesions.
    """
    n_lesions = len(true)
    if not n_lesions:
        return NO_CELLS
    cells = find_cells(predicted, true, spacing_mm=spacing_mm)
    is_shared = true.labels[predicted.positions] > 0
    n_shared = np.bincount(cells[is_shared], minlength=n_lesions)
    n_predicted = np.bincount(cells, minlength=n_lesions)
    dice = 2 * n_shared / (n_predicted + true.n_voxels)

    # A predicted lesion that lies in two cells is cut at their border, which makes it a surface.
    labels = np.zeros(true.labels.size, np.int32)
    labels[predicted.positions] = cells + 1
    predicted_points = surface_points(
        predicted, cells, n_lesions, spacing_mm=spacing_mm, labels=labels
    )
    true_points = surface_points(true, true.rows, n_lesions, spacing_mm=spacing_mm)
    nsd_sum = 0.0
    hd95_sum_mm = 0.0
    for row in range(n_lesions):
        in_cell = predicted_points.group(row)
        if not len(in_cell):
            hd95_sum_mm += penalty_mm
            continue
        distances = point_distances(in_cell, true_points.group(row), tolerance_mm=tolerance_mm)
        nsd_sum += distances.surface_dice
        hd95_sum_mm += distances.hd95_mm
    return CellScores(n_lesions, float(dice.sum()), float(nsd_sum), hd95_sum_mm)


def find_cells(predicted: Components, true: Components, *, spacing_mm: FloatArray) -> IntArray:
    """Find the reference lesion nearest to each predicted voxel.

    Of lesions at the same distance, the one whose first voxel comes first in C order is taken,
    however the masks lie in memory.

    Args:
        predicted: Predicted lesions.
        true: Reference lesions in the same box and order, at least one.
        spacing_mm: Size of a voxel per axis, in mm.

    Returns:
        (v,) row of the lesion for each of `predicted.positions`.
    """
    cells = true.labels[predicted.positions].astype(np.int64) - 1
    is_outside = cells < 0
    # The nearest voxel of a lesion is one of its surface.
    surface = surface_points(true, true.rows, len(true), spacing_mm=spacing_mm)
    rows = np.repeat(np.arange(len(true)), np.diff(surface.first))
    # From rows to ranks in C order, and back: the lowest rank wins a tie.
    rows_by_rank = np.argsort(_first_voxels(true))
    ranks = np.empty(len(true), np.int64)
    ranks[rows_by_rank] = np.arange(len(true))
    outside = points_mm(predicted, predicted.positions[is_outside], spacing_mm)
    nearest = _lowest_nearest(KDTree(surface.points), ranks[rows], outside, N_NEIGHBOURS)
    cells[is_outside] = rows_by_rank[nearest]
    return cells


def _first_voxels(components: Components) -> IntArray:
    """Find the (n,) first voxel of each lesion, as a position in C order."""
    positions = components.positions
    if components.order == "F":
        indices = np.unravel_index(positions, components.shape, order="F")
        positions = np.ravel_multi_index(indices, components.shape)
    first = np.full(len(components), components.labels.size)
    np.minimum.at(first, components.rows, positions)
    return first


def _lowest_nearest(
    tree: KDTree, ranks: IntArray, points: FloatArray, n_neighbours: int
) -> IntArray:
    """Find the lowest rank among the points of the tree that are nearest to each point."""
    n_neighbours = min(n_neighbours, tree.n)
    distances, neighbours = tree.query(points, k=np.arange(1, n_neighbours + 1))
    # Spacing comes from float32 affines, so equal distances may differ in the last digits.
    is_nearest = distances <= distances[:, :1] * (1 + 1e-6)
    lowest: IntArray = np.where(is_nearest, ranks[neighbours], len(ranks)).min(axis=1)
    # Where all neighbours are equally near, there may be more of them.
    may_have_more = is_nearest.all(axis=1)
    if n_neighbours < tree.n and may_have_more.any():
        more = points[may_have_more]
        lowest[may_have_more] = _lowest_nearest(tree, ranks, more, 4 * n_neighbours)
    return lowest
