"""Lesions as objects: connected components, their sizes and places, and which were found, missed or invented."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import cc3d
import numpy as np
from numpy.typing import ArrayLike, NDArray

from tversky_seg.metrics.masks import (
    Mask,
    as_array,
    as_mask,
    as_masks,
    bounding_box,
    check_spacing,
    memory_order,
)

CONNECTIVITIES = (6, 18, 26)


@dataclass(frozen=True)
class LesionCounts:
    """How many lesions were found, missed and invented; counts of cases add up."""

    n_reference: int
    n_detected: int
    n_predicted: int
    n_unmatched: int

    def __add__(self, other: LesionCounts) -> LesionCounts:
        """The counts of both cases together."""
        return LesionCounts(
            n_reference=self.n_reference + other.n_reference,
            n_detected=self.n_detected + other.n_detected,
            n_predicted=self.n_predicted + other.n_predicted,
            n_unmatched=self.n_unmatched + other.n_unmatched,
        )

    @property
    def tpr(self) -> float:
        """Lesion-wise true positive rate (LTPR, ISBI 2015), in [0, 1]; NaN without reference lesions."""
        return self.n_detected / self.n_reference if self.n_reference else math.nan

    @property
    def fpr(self) -> float:
        """Lesion-wise false positive rate (LFPR, ISBI 2015), a false discovery rate; NaN without predictions."""
        return self.n_unmatched / self.n_predicted if self.n_predicted else math.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of `tpr` and 1 - `fpr` (MSSEG 2016), in [0, 1].

        0 when nothing is detected or nothing matched, so also when one of the masks is empty; NaN when both are.
        """
        if not self.n_reference and not self.n_predicted:
            return math.nan
        if not self.n_detected or self.n_unmatched == self.n_predicted:
            return 0.0
        sensitivity, precision = self.tpr, 1 - self.fpr
        return 2 * sensitivity * precision / (sensitivity + precision)


@dataclass(frozen=True, eq=False)
class Lesions:
    """The lesions of one mask, one row each."""

    volume_mm3: NDArray[np.float64]
    """(n,) size."""
    centre: NDArray[np.float64]
    """(n, ndim) centre of mass in voxel coordinates; an affine takes it to mm."""
    overlap: NDArray[np.float64]
    """(n,) share of the lesion, in [0, 1], that the other mask covers; NaN where there is no other mask."""
    n_voxels: NDArray[np.int64]
    """(n,) size in voxels."""

    def __len__(self) -> int:
        """The number of lesions."""
        return len(self.volume_mm3)


@dataclass(frozen=True, eq=False)
class LesionMatch:
    """Which predicted lesions share voxels with which reference lesions, and how many; all rates are made of this."""

    predicted: Lesions
    referred: Lesions
    pairs: NDArray[np.int64]
    """(m, 3): row of `predicted`, row of `referred`, voxels in common; every pair that has any."""
    highest: NDArray[np.float64] | None = None
    """(n_predicted,) highest score inside each predicted lesion, where scores were given."""

    @property
    def n_split(self) -> int:
        """Reference lesions that two or more predicted lesions overlap."""
        return _n_repeated(self.pairs[:, 1])

    @property
    def n_merged(self) -> int:
        """Predicted lesions that overlap two or more reference lesions."""
        return _n_repeated(self.pairs[:, 0])

    @property
    def false(self) -> NDArray[np.bool_]:
        """(n_predicted,) predicted lesions without any overlap."""
        found: NDArray[np.bool_] = self.predicted.overlap == 0
        return found

    def best_dice(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """For each reference lesion the predicted one of highest Dice, and that Dice: (-1, NaN) for a missed one.

        Both (n_reference,). Of equal Dice the larger overlap, then the lower number. Object Dice: arXiv 2007.10033.
        """
        i, j, n = self.pairs.T
        dice = 2 * n / (self.predicted.n_voxels[i] + self.referred.n_voxels[j])
        order = np.lexsort((-i, n, dice))  # the last written stays
        best, best_dice = np.full(len(self.referred), -1), np.full(len(self.referred), math.nan)
        best[j[order]], best_dice[j[order]] = i[order], dice[order]
        return best, best_dice


def lesion_counts(
    prediction: ArrayLike,
    reference: ArrayLike,
    *,
    spacing_mm: ArrayLike,
    connectivity: int = 26,
    min_overlap: float = 0.0,
    min_volume_mm3: float = 0.0,
) -> LesionCounts:
    """Count reference lesions that were detected and predicted lesions that match none.

    Args:
        prediction: 0/1 mask (X, Y, Z).
        reference: 0/1 mask of the same shape.
        spacing_mm: size of a voxel per axis, in mm.
        connectivity: 6, 18 or 26 neighbours make one lesion.
        min_overlap: a reference lesion is detected when more than this share of it is covered, in [0, 1). A predicted
            lesion is unmatched when no voxel of it overlaps, whatever `min_overlap` is.
        min_volume_mm3: smaller lesions are dropped from both masks before anything is compared.

    Returns:
        The counts, with rates `.tpr`, `.fpr`, `.f1`. Empty masks count 0 lesions.

    Raises:
        ValueError: for shapes that differ, other values than 0 and 1, or a setting out of range.
    """
    predicted, referred = match_lesions(
        prediction,
        reference,
        spacing_mm=spacing_mm,
        connectivity=connectivity,
        min_volume_mm3=min_volume_mm3,
    )
    return count_lesions(predicted, referred, min_overlap=min_overlap)


def count_lesions(
    predicted: Lesions, referred: Lesions, *, min_overlap: float = 0.0
) -> LesionCounts:
    """The counts of lesions that `match_lesions` compared; `min_overlap` as for `lesion_counts`."""
    if not 0 <= min_overlap < 1:
        raise ValueError(f"min_overlap must lie in [0, 1), got {min_overlap}")
    return LesionCounts(
        n_reference=len(referred),
        n_detected=int((referred.overlap > min_overlap).sum()),
        n_predicted=len(predicted),
        n_unmatched=int((predicted.overlap == 0).sum()),
    )


def match_lesions(
    prediction: ArrayLike,
    reference: ArrayLike,
    *,
    spacing_mm: ArrayLike,
    connectivity: int = 26,
    min_volume_mm3: float = 0.0,
) -> tuple[Lesions, Lesions]:
    """The predicted and the reference lesions, each with the share that the other mask covers.

    Arguments and errors as for `lesion_counts`.
    """
    match = overlap_lesions(
        prediction,
        reference,
        spacing_mm=spacing_mm,
        connectivity=connectivity,
        min_volume_mm3=min_volume_mm3,
    )
    return match.predicted, match.referred


def overlap_lesions(
    prediction: ArrayLike,
    reference: ArrayLike,
    *,
    spacing_mm: ArrayLike,
    connectivity: int = 26,
    min_volume_mm3: float = 0.0,
    strictly_larger: bool = False,
    scores: ArrayLike | None = None,
) -> LesionMatch:
    """All lesions of both masks, and the voxels that each predicted one shares with each reference one.

    Args:
        prediction: 0/1 mask (X, Y, Z).
        reference: 0/1 mask of the same shape.
        spacing_mm: size of a voxel per axis, in mm.
        connectivity: 6, 18 or 26 neighbours make one lesion.
        min_volume_mm3: smaller lesions are dropped from both masks before anything is compared.
        strictly_larger: lesions of just `min_volume_mm3` are dropped too.
        scores: of the same shape; the highest inside each predicted lesion is kept.

    Raises:
        ValueError: as for `lesion_counts`.
    """
    masks = as_masks(prediction, reference)
    spacing = check_spacing(spacing_mm, ndim=masks[0].ndim)
    _check_volume(min_volume_mm3)
    box, order = bounding_box(masks[0] | masks[1]), memory_order(masks[0])
    least = (min_volume_mm3, strictly_larger)
    predicted, referred = (
        _Components(
            mask[box],
            connectivity=connectivity,
            voxel_mm3=float(spacing.prod()),
            least=least,
            order=order,
        )
        for mask in masks
    )
    shared = referred.flat[predicted.where]
    i, j = predicted.lesion[shared > 0], shared[shared > 0].astype(np.int64) - 1
    codes, n = np.unique(i * max(referred.n, 1) + j, return_counts=True)
    pairs = np.stack([codes // max(referred.n, 1), codes % max(referred.n, 1), n], axis=-1)
    start = np.array([side.start for side in box])
    return LesionMatch(
        predicted.table(np.bincount(pairs[:, 0], pairs[:, 2], predicted.n), start),
        referred.table(np.bincount(pairs[:, 1], pairs[:, 2], referred.n), start),
        pairs,
        None if scores is None else predicted.highest(as_array(scores)[box]),
    )


def find_lesions(
    mask: ArrayLike, *, spacing_mm: ArrayLike, connectivity: int = 26, other: Mask | None = None
) -> Lesions:
    """Size and centre of each lesion of a mask, and the share of it that `other` covers; no rows for an empty mask."""
    mask = as_mask(mask)
    spacing, box, order = (
        check_spacing(spacing_mm, ndim=mask.ndim),
        bounding_box(mask),
        memory_order(mask),
    )
    found = _Components(
        mask[box], connectivity=connectivity, voxel_mm3=float(spacing.prod()), order=order
    )
    covered = None
    if other is not None:
        covered = np.bincount(found.lesion, other[box].ravel(order=order)[found.where], found.n)
    return found.table(covered, np.array([side.start for side in box]))


def remove_small_lesions(
    mask: ArrayLike, *, spacing_mm: ArrayLike, min_volume_mm3: float, connectivity: int = 26
) -> Mask:
    """The mask without lesions smaller than `min_volume_mm3`; a lesion of just this size stays.

    Raises:
        ValueError: for a negative or NaN volume, other values than 0 and 1, or an unknown connectivity.
    """
    mask = as_mask(mask)
    voxel_mm3 = check_spacing(spacing_mm, ndim=mask.ndim).prod()
    _check_volume(min_volume_mm3)
    if min_volume_mm3 <= voxel_mm3:
        return mask
    box, least, order = bounding_box(mask), (min_volume_mm3, False), memory_order(mask)
    large = _Components(
        mask[box], connectivity=connectivity, voxel_mm3=float(voxel_mm3), least=least, order=order
    )
    kept = np.zeros_like(mask)
    kept[box] = (large.flat > 0).reshape(large.shape, order=order)
    return kept


def label_lesions(mask: Mask, *, connectivity: int = 26) -> tuple[NDArray[Any], int]:
    """Number the connected components 1..n, background 0; also how many there are.

    Raises:
        ValueError: for a connectivity other than 6, 18 and 26 or more than three axes.
    """
    if connectivity not in CONNECTIVITIES:
        raise ValueError(f"connectivity must be one of 6, 18, 26, got {connectivity}")
    if mask.ndim > 3:
        raise ValueError(f"lesions need a mask of at most three axes, got shape {mask.shape}")
    solid = mask.reshape(mask.shape + (1,) * (3 - mask.ndim))
    if not solid.size:
        return np.zeros(mask.shape, np.uint32), 0
    components, n_lesions = cc3d.connected_components(
        solid, connectivity=connectivity, return_N=True
    )
    return components.reshape(mask.shape), int(n_lesions)


class _Components:
    """The lesions of a mask as lists of voxels: masks are large and lesions small."""

    def __init__(
        self,
        mask: Mask,
        *,
        connectivity: int,
        voxel_mm3: float,
        least: tuple[float, bool] = (0.0, False),
        order: Literal["C", "F"] = "C",
    ):
        """Label `mask`; lesions smaller than `least[0]` mm3 are dropped, if `least[1]` also those of just this size."""
        mask = np.asarray(mask, order=order)
        self.shape, self.order, self.voxel_mm3 = mask.shape, order, voxel_mm3
        components, n = label_lesions(mask, connectivity=connectivity)
        self.flat: NDArray[np.unsignedinteger[Any]] = components.ravel(
            order=order
        )  # 0 or number, of every voxel
        where = np.flatnonzero(mask.ravel(order=order))
        number = self.flat[where]
        sizes = np.bincount(number, minlength=n + 1)[1:]
        margin = 1 + 1e-6 if least[1] else 1 - 1e-6  # spacing comes from float32 affines
        large = sizes * voxel_mm3 >= least[0] * margin
        if not large.all():
            renumbered = np.zeros(n + 1, self.flat.dtype)
            renumbered[1:][large] = np.arange(1, large.sum() + 1)
            number = renumbered[number]
            self.flat = self.flat.copy()
            self.flat[where] = number
            where, number = where[number > 0], number[number > 0]
        self.n_voxels, self.n = sizes[large], int(large.sum())
        self.where, self.lesion = (
            where,
            number.astype(np.int64) - 1,
        )  # (v,) flat position and row of each voxel

    def table(self, covered: NDArray[Any] | None, start: NDArray[np.int64]) -> Lesions:
        """One row per lesion, from the voxels of each that are covered and the first corner of the box."""
        axes = np.unravel_index(self.where, self.shape, order=self.order) if self.where.size else ()
        sums = [np.bincount(self.lesion, axis, self.n) for axis in axes]
        centre = (
            np.stack(sums, axis=-1) / self.n_voxels[:, None]
            if sums
            else np.zeros((0, len(self.shape)))
        )
        overlap = np.full(self.n, math.nan) if covered is None else covered / self.n_voxels
        volume_mm3 = np.multiply(self.n_voxels, self.voxel_mm3, dtype=np.float64)
        return Lesions(volume_mm3, centre + start, overlap, self.n_voxels)

    def highest(self, scores: NDArray[Any]) -> NDArray[np.float64]:
        """(n,) highest score of each lesion; `scores` has the shape of the mask."""
        found = np.full(self.n, -math.inf)
        np.maximum.at(found, self.lesion, scores.ravel(order=self.order)[self.where])
        return found


def _n_repeated(numbers: NDArray[np.int64]) -> int:
    return int((np.unique(numbers, return_counts=True)[1] > 1).sum())


def _check_volume(min_volume_mm3: float) -> None:
    if not min_volume_mm3 >= 0:
        raise ValueError(f"min_volume_mm3 must be >= 0, got {min_volume_mm3}")
