"""Lesions as objects: their volumes and centres, and how those of two masks overlap."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from tversky_seg.metrics.components import Components, find_components
from tversky_seg.metrics.masks import (
    BoolArray,
    FloatArray,
    IntArray,
    Mask,
    as_array,
    as_mask,
    as_masks,
    bounding_box,
    check_spacing,
    memory_order,
)


@dataclass(frozen=True)
class LesionCounts:
    """Numbers of lesions in one case, or in several: counts of cases add up."""

    n_reference: int
    """Lesions of the reference."""
    n_detected: int
    """Those of the reference that were detected: true positives."""
    n_predicted: int
    """Lesions of the prediction."""
    n_unmatched: int
    """Those of the prediction that match no reference lesion: false positives."""

    def __add__(self, other: LesionCounts) -> LesionCounts:
        """Add the counts of another case."""
        return LesionCounts(
            n_reference=self.n_reference + other.n_reference,
            n_detected=self.n_detected + other.n_detected,
            n_predicted=self.n_predicted + other.n_predicted,
            n_unmatched=self.n_unmatched + other.n_unmatched,
        )

    @property
    def tpr(self) -> float:
        """Lesion-wise true positive rate (LTPR, ISBI 2015), in [0, 1].

        Detected reference lesions over all reference lesions; NaN without reference lesions.
        """
        if not self.n_reference:
            return math.nan
        return self.n_detected / self.n_reference

    @property
    def fpr(self) -> float:
        """Lesion-wise false positive rate (LFPR, ISBI 2015), in [0, 1]; a false discovery rate.

        Unmatched predicted lesions over all predicted lesions; NaN without predicted lesions.
        """
        if not self.n_predicted:
            return math.nan
        return self.n_unmatched / self.n_predicted

    @property
    def f1(self) -> float:
        """Harmonic mean of `tpr` and 1 - `fpr` (MSSEG 2016), in [0, 1].

        0 when no lesion is detected or none is matched, so also when one of the masks is empty;
        NaN when both are.
        """
        if not self.n_reference and not self.n_predicted:
            return math.nan
        if not self.n_detected or self.n_unmatched == self.n_predicted:
            return 0.0
        sensitivity = self.tpr
        precision = 1 - self.fpr
        return 2 * sensitivity * precision / (sensitivity + precision)


@dataclass(frozen=True, eq=False)
class Lesions:
    """The lesions of one mask, one row each."""

    volume_mm3: FloatArray
    """(n,) size."""
    centre: FloatArray
    """(n, ndim) centre of mass in voxel coordinates; an affine takes it to mm."""
    overlap: FloatArray
    """(n,) share of the lesion, in [0, 1], that the other mask covers."""
    n_voxels: IntArray
    """(n,) size in voxels."""

    def __len__(self) -> int:
        """Number of lesions."""
        return len(self.volume_mm3)


@dataclass(frozen=True, eq=False)
class LesionMatch:
    """Overlaps of predicted with reference lesions: all lesion-wise rates are made of these."""

    predicted: Lesions
    reference: Lesions
    pairs: IntArray
    """(m, 3) row of `predicted`, row of `reference`, voxels in common: every pair with any.

    [[0, 2, 14], [1, 0, 3]]: the first predicted lesion shares 14 voxels with the third reference
    lesion, the second one 3 voxels with the first. Sorted by the first, then the second column.
    """
    highest_score: FloatArray | None = None
    """(n_predicted,) highest score inside each predicted lesion; None without scores."""
    highest_reference_score: FloatArray | None = None
    """(n_reference,) highest score inside each reference lesion, whether predicted or not."""

    @property
    def n_split(self) -> int:
        """Number of reference lesions that two or more predicted lesions overlap."""
        return _n_repeated(self.pairs[:, 1])

    @property
    def n_merged(self) -> int:
        """Number of predicted lesions that overlap two or more reference lesions."""
        return _n_repeated(self.pairs[:, 0])

    @property
    def is_false_positive(self) -> BoolArray:
        """(n_predicted,) whether each predicted lesion overlaps no reference lesion at all."""
        # Shares are counts over counts: without a voxel in common they are 0 exactly.
        is_apart: BoolArray = self.predicted.overlap == 0
        return is_apart

    def best_dice(self) -> tuple[IntArray, FloatArray]:
        """Find the predicted lesion of highest Dice for each reference lesion (arXiv 2007.10033).

        Of equal Dice the one with the larger overlap is taken, then the one with the lower row.

        Returns:
            (n_reference,) row of `predicted`, -1 for a reference lesion that none overlaps; and
            (n_reference,) that Dice, the object Dice, NaN for such a lesion.
        """
        i, j, n_shared = self.pairs.T
        n_predicted = self.predicted.n_voxels[i]
        n_reference = self.reference.n_voxels[j]
        dice = 2 * n_shared / (n_predicted + n_reference)
        best = np.full(len(self.reference), -1)
        best_dice = np.full(len(self.reference), math.nan)
        # The best pair of each reference lesion comes last, and overwrites those before it.
        order = np.lexsort((-i, n_shared, dice))
        best[j[order]] = i[order]
        best_dice[j[order]] = dice[order]
        return best, best_dice


def match_lesions(
    prediction: ArrayLike,
    reference: ArrayLike,
    *,
    spacing_mm: ArrayLike,
    connectivity: int = 26,
    min_volume_mm3: float = 0.0,
    strictly_larger: bool = False,
    scores: ArrayLike | None = None,
) -> LesionMatch:
    """Find the lesions of two masks, and the voxels that each pair of them shares.

    Args:
        prediction: 0/1 mask (X, Y, Z).
        reference: 0/1 mask of the same shape.
        spacing_mm: Size of a voxel per axis, in mm.
        connectivity: 6, 18 or 26 neighbours make one lesion.
        min_volume_mm3: Smaller lesions are dropped from both masks before anything is compared.
        strictly_larger: Whether lesions of exactly `min_volume_mm3` are dropped too.
        scores: Scores of the same shape, of which each lesion gets its highest.

    Returns:
        The match. Empty masks have no lesions and no pairs.

    Raises:
        ValueError: Shapes that differ, other values than 0 and 1, or a setting out of range.
    """
    predicted_mask, reference_mask = as_masks(prediction, reference)
    spacing = check_spacing(spacing_mm, ndim=predicted_mask.ndim)
    voxel_mm3 = float(spacing.prod())
    _check_volume(min_volume_mm3)
    least_mm3 = lowest_volume(min_volume_mm3, strictly_larger=strictly_larger)
    # Lesions fill little of a volume: all that follows happens inside the box that holds them.
    box = bounding_box(predicted_mask | reference_mask)
    corner = np.array([side.start for side in box])
    order = memory_order(predicted_mask)

    predicted = find_components(predicted_mask[box], connectivity=connectivity, order=order)
    predicted = predicted.select(predicted.n_voxels * voxel_mm3 >= least_mm3)
    true = find_components(reference_mask[box], connectivity=connectivity, order=order)
    true = true.select(true.n_voxels * voxel_mm3 >= least_mm3)

    pairs = shared_voxels(predicted, true)
    # Voxels of each lesion that the other mask covers.
    i, j, n_shared = pairs.T
    predicted_covered = np.bincount(i, n_shared, len(predicted))
    true_covered = np.bincount(j, n_shared, len(true))
    highest_score = highest_reference_score = None
    if scores is not None:
        scores_in_box = as_array(scores)[box]
        highest_score = predicted.highest_scores(scores_in_box)
        highest_reference_score = true.highest_scores(scores_in_box)
    return LesionMatch(
        predicted=_table(predicted, predicted_covered, voxel_mm3=voxel_mm3, corner=corner),
        reference=_table(true, true_covered, voxel_mm3=voxel_mm3, corner=corner),
        pairs=pairs,
        highest_score=highest_score,
        highest_reference_score=highest_reference_score,
    )


def remove_small_lesions(
    mask: ArrayLike, *, spacing_mm: ArrayLike, min_volume_mm3: float, connectivity: int = 26
) -> Mask:
    """Remove the lesions smaller than `min_volume_mm3` from a mask.

    Args:
        mask: 0/1 mask (X, Y, Z).
        spacing_mm: Size of a voxel per axis, in mm.
        min_volume_mm3: Volume of the smallest lesion that stays, >= 0.
        connectivity: 6, 18 or 26 neighbours make one lesion.

    Returns:
        A mask without them; the mask itself where no lesion can be that small.

    Raises:
        ValueError: Negative or NaN volume, other values than 0 and 1, or unknown connectivity.
    """
    mask = as_mask(mask)
    voxel_mm3 = float(check_spacing(spacing_mm, ndim=mask.ndim).prod())
    _check_volume(min_volume_mm3)
    if min_volume_mm3 <= voxel_mm3:
        return mask  # every lesion has a voxel, at least
    box = bounding_box(mask)
    components = find_components(mask[box], connectivity=connectivity, order=memory_order(mask))
    large = components.select(components.n_voxels * voxel_mm3 >= lowest_volume(min_volume_mm3))
    remaining = np.zeros_like(mask)
    remaining[box] = large.to_mask()
    return remaining


def remove_weak_lesions(
    mask: ArrayLike, scores: ArrayLike, *, min_score: float, connectivity: int = 26
) -> Mask:
    """Remove the lesions whose highest score does not reach `min_score` from a mask.

    Args:
        mask: 0/1 mask (X, Y, Z).
        scores: Probability, or another score, of the same shape.
        min_score: Score that one voxel of a lesion must reach for it to stay, >= 0.
        connectivity: 6, 18 or 26 neighbours make one lesion.

    Returns:
        A mask without them; the mask itself where `min_score` is 0.

    Raises:
        ValueError: Negative or NaN score, other values than 0 and 1, or unknown connectivity.
    """
    mask = as_mask(mask)
    if not min_score >= 0:
        raise ValueError(f"min_score must be >= 0, got {min_score}")
    if min_score == 0:
        return mask
    box = bounding_box(mask)
    components = find_components(mask[box], connectivity=connectivity, order=memory_order(mask))
    peaks = components.highest_scores(as_array(scores)[box])
    remaining = np.zeros_like(mask)
    remaining[box] = components.select(peaks >= lowest_score(min_score)).to_mask()
    return remaining


def lowest_score(min_score: float) -> float:
    """Compute the score that a lesion must reach, with a margin for rounding."""
    # A stored 0.8 (level 52428 of 65535) may be read as 0.79999995.
    return min_score * (1 - 1e-6)


def lowest_volume(min_volume_mm3: float, *, strictly_larger: bool = False) -> float:
    """Compute the volume that a lesion must reach, with a margin for rounding."""
    # Spacing comes from float32 affines, so volumes that differ by less than 1e-6 are equal:
    # three voxels of 0.9 x 0.7 x 0.1 mm may read as 0.18900001 mm3.
    margin = 1 + 1e-6 if strictly_larger else 1 - 1e-6
    return min_volume_mm3 * margin


def shared_voxels(predicted: Components, true: Components) -> IntArray:
    """Count the voxels that each predicted lesion shares with each reference lesion.

    Returns:
        (m, 3) as `LesionMatch.pairs`.
    """
    numbers = true.labels[predicted.positions]
    is_shared = numbers > 0
    i = predicted.rows[is_shared]
    j = numbers[is_shared].astype(np.int64) - 1
    # A sparse matrix adds up the ones at equal (i, j), and sorts by row and column.
    ones = np.ones(len(i), np.int64)
    shape = (len(predicted), len(true))
    overlaps = sparse.coo_array((ones, (i, j)), shape=shape).tocsr()
    overlaps.sum_duplicates()
    sums = overlaps.tocoo()
    pairs = np.stack([sums.row, sums.col, sums.data], axis=-1)
    return pairs.astype(np.int64)


def _table(
    components: Components,
    n_covered: NDArray[Any],
    *,
    voxel_mm3: float,
    corner: IntArray,
) -> Lesions:
    """Describe each lesion; `corner` is the first voxel of the box in which they were found."""
    return Lesions(
        volume_mm3=components.n_voxels.astype(np.float64) * voxel_mm3,
        centre=components.centres() + corner,
        overlap=n_covered / components.n_voxels,
        n_voxels=components.n_voxels,
    )


def _n_repeated(rows: IntArray) -> int:
    """Count the rows that occur more than once."""
    _, n_times = np.unique(rows, return_counts=True)
    return int(np.count_nonzero(n_times > 1))


def _check_volume(min_volume_mm3: float) -> None:
    if not min_volume_mm3 >= 0:
        raise ValueError(f"min_volume_mm3 must be >= 0, got {min_volume_mm3}")
