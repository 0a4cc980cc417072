"""Lesion-wise Dice and HD95 of the BraTS challenges of 2023.

Defined by the challenge's code (Moawad et al., arXiv 2306.00838, for the metastases). Reference
lesions that touch after dilation are one lesion; all predicted lesions that touch the dilated
lesion are compared with it together; missed and false lesions have a Dice of 0 and an HD95 of
374 mm.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tversky_seg.metrics.components import Components, find_components
from tversky_seg.metrics.lesion_surfaces import axis_steps, surface_points, surface_voxels
from tversky_seg.metrics.lesions import shared_voxels
from tversky_seg.metrics.masks import FloatArray, Mask
from tversky_seg.metrics.surface import point_distances

CONNECTIVITY = 26


@dataclass(frozen=True)
class LesionwiseScores:
    """Sums over reference lesions, and false lesions, of one case or of several."""

    n_lesions: int = 0
    """Merged reference lesions larger than the smallest that counts."""
    n_false: int = 0
    """Predicted lesions that touch no dilated reference lesion of any size."""
    dice_sum: float = 0.0
    """Sum of the Dice of the reference lesions; missed ones add 0."""
    hd95_sum_mm: float = 0.0
    """Sum of the HD95 of the reference lesions and of the penalties of missed and false ones."""

    def __add__(self, other: LesionwiseScores) -> LesionwiseScores:
        """Add the lesions of another case."""
        return LesionwiseScores(
            self.n_lesions + other.n_lesions,
            self.n_false + other.n_false,
            self.dice_sum + other.dice_sum,
            self.hd95_sum_mm + other.hd95_sum_mm,
        )

    @property
    def dice(self) -> float:
        """Sum of Dice over reference and false lesions, in [0, 1]; NaN without any of them."""
        return self._mean(self.dice_sum)

    @property
    def hd95_mm(self) -> float:
        """Sum of HD95 over reference and false lesions; NaN without any of them."""
        return self._mean(self.hd95_sum_mm)

    def _mean(self, total: float) -> float:
        n = self.n_lesions + self.n_false
        if not n:
            return math.nan
        return total / n


NO_LESIONS = LesionwiseScores()


def score_lesionwise(
    predicted: Components,
    true: Components,
    *,
    spacing_mm: FloatArray,
    n_dilations: int,
    min_volume_mm3: float,
    penalty_mm: float,
) -> LesionwiseScores:
    """Compare each reference lesion with the predicted lesions that touch it once it is dilated.

    Args:
        predicted: Predicted lesions of 26 neighbours, none of them dropped for its size.
        true: Reference lesions, likewise, in the same box and order. The box has a border of
            `n_dilations` + 1 empty voxels.
        spacing_mm: Size of a voxel per axis, in mm.
        n_dilations: Dilations of the reference by 18 neighbours.
        min_volume_mm3: Reference lesions of up to this volume are left out, after merging; what
            touches them is not false.
        penalty_mm: HD95 of a missed and of a false lesion.

    Returns:
        The sums; zeros where nothing is drawn and nothing predicted.
    """
    dilated = _dilate(true, n_dilations)
    # A lesion dilated by itself is the component of the dilated mask that holds it.
    merged = find_components(dilated, connectivity=CONNECTIVITY, order=true.order)
    lesion_of_voxel = merged.labels[true.positions].astype(np.int64) - 1
    n_voxels = np.bincount(lesion_of_voxel, minlength=len(merged))

    pairs = shared_voxels(predicted, merged)
    i, j, _ = pairs.T
    n_false = len(predicted) - len(np.unique(i))
    n_predicted = np.bincount(j, predicted.n_voxels[i], minlength=len(merged))
    is_shared = predicted.labels[true.positions] > 0
    n_shared = np.bincount(lesion_of_voxel[is_shared], minlength=len(merged))
    dice = 2 * n_shared / (n_predicted + n_voxels)

    # Volumes that differ by less than 1e-6 are equal, as in the lesion rule.
    volume_mm3 = n_voxels * float(spacing_mm.prod())
    counts = volume_mm3 > min_volume_mm3 * (1 + 1e-6)
    true_points = surface_points(true, lesion_of_voxel, len(merged), spacing_mm=spacing_mm)
    predicted_points = surface_points(
        predicted, predicted.rows, len(predicted), spacing_mm=spacing_mm
    )
    hd95_sum_mm = penalty_mm * n_false
    for lesion in np.flatnonzero(counts).tolist():
        partners = i[j == lesion]
        if not len(partners):
            hd95_sum_mm += penalty_mm
            continue
        touching = np.concatenate([predicted_points.group(row) for row in partners.tolist()])
        distances = point_distances(touching, true_points.group(lesion), tolerance_mm=0)
        hd95_sum_mm += distances.hd95_mm
    return LesionwiseScores(
        int(np.count_nonzero(counts)), n_false, float(dice[counts].sum()), hd95_sum_mm
    )


def _dilate(components: Components, n_dilations: int) -> Mask:
    """Dilate a mask by 18 neighbours, in its box."""
    mask: NDArray[np.bool_] = components.labels > 0
    # Only the voxels of the surface reach new ones, and then the new ones.
    front = components.positions[surface_voxels(components, components.labels)]
    for _ in range(n_dilations):
        before = mask.copy()
        for step in _steps_to_18_neighbours(axis_steps(components).tolist()):
            mask[front + step] = True
        front = np.flatnonzero(mask & ~before)
    return mask.reshape(components.shape, order=components.order)


def _steps_to_18_neighbours(axes: Sequence[int]) -> list[int]:
    """List the steps to the neighbours that differ in one or two axes, in flat positions."""
    steps: list[int] = []
    for moves in itertools.product((-1, 0, 1), repeat=len(axes)):
        if 0 < np.count_nonzero(moves) <= 2:
            steps.append(sum(move * axis for move, axis in zip(moves, axes, strict=True)))
    return steps
