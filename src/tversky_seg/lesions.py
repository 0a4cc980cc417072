"""Lesions as objects: connected components, their sizes and places, and which were found, missed or invented."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
from numpy.typing import ArrayLike, NDArray

from tversky_seg.masks import Mask, as_mask, as_masks, bounding_box, check_spacing

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

    def __len__(self) -> int:
        """The number of lesions."""
        return len(self.volume_mm3)


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
        prediction, reference, spacing_mm=spacing_mm, connectivity=connectivity, min_volume_mm3=min_volume_mm3
    )
    return count_lesions(predicted, referred, min_overlap=min_overlap)


def count_lesions(predicted: Lesions, referred: Lesions, *, min_overlap: float = 0.0) -> LesionCounts:
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
    prediction, reference = (
        remove_small_lesions(mask, spacing_mm=spacing_mm, connectivity=connectivity, min_volume_mm3=min_volume_mm3)
        for mask in as_masks(prediction, reference)
    )
    return (
        find_lesions(prediction, spacing_mm=spacing_mm, connectivity=connectivity, other=reference),
        find_lesions(reference, spacing_mm=spacing_mm, connectivity=connectivity, other=prediction),
    )


def find_lesions(
    mask: ArrayLike, *, spacing_mm: ArrayLike, connectivity: int = 26, other: Mask | None = None
) -> Lesions:
    """Size and centre of each lesion of a mask, and the share of it that `other` covers; no rows for an empty mask."""
    mask = as_mask(mask)
    box = bounding_box(mask)
    components, n_lesions = label_lesions(mask[box], connectivity=connectivity)
    n_voxels = _count(components, n_lesions)
    covered = np.full(n_lesions, math.nan) if other is None else _count(components[other[box]], n_lesions)
    return Lesions(
        volume_mm3=n_voxels * check_spacing(spacing_mm, ndim=mask.ndim).prod(),
        centre=_centres(components, n_voxels) + [side.start for side in box],
        overlap=covered / n_voxels,
    )


def remove_small_lesions(
    mask: ArrayLike, *, spacing_mm: ArrayLike, min_volume_mm3: float, connectivity: int = 26
) -> Mask:
    """The mask without lesions smaller than `min_volume_mm3`; a lesion of just this size stays.

    Raises:
        ValueError: for a negative or NaN volume, other values than 0 and 1, or an unknown connectivity.
    """
    mask = as_mask(mask)
    voxel_mm3 = check_spacing(spacing_mm, ndim=mask.ndim).prod()
    if not min_volume_mm3 >= 0:
        raise ValueError(f"min_volume_mm3 must be >= 0, got {min_volume_mm3}")
    if min_volume_mm3 <= voxel_mm3:
        return mask
    box = bounding_box(mask)
    components, n_lesions = label_lesions(mask[box], connectivity=connectivity)
    large = _count(components, n_lesions) * voxel_mm3 >= min_volume_mm3 * (1 - 1e-6)  # spacing from float32 affines
    kept = np.zeros_like(mask)
    kept[box] = np.append(False, large)[components]
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
    components, n_lesions = cc3d.connected_components(solid, connectivity=connectivity, return_N=True)
    return components.reshape(mask.shape), int(n_lesions)


def _count(components: NDArray[Any], n_lesions: int) -> NDArray[np.int64]:
    """(n,) voxels of each lesion among these."""
    return np.bincount(components.ravel(order="K"), minlength=n_lesions + 1)[1:]


def _centres(components: NDArray[Any], n_voxels: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n, ndim) mean voxel coordinates of each lesion."""
    places = np.nonzero(components)
    lesion = components[places]
    sums = [np.bincount(lesion, weights=place, minlength=len(n_voxels) + 1)[1:] for place in places]
    return np.stack(sums, axis=-1) / n_voxels[:, None]
