"""Metrics that count each lesion alike: CC-Metrics, BraTS lesion-wise, panoptic quality."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from tversky_seg.metrics.components import Components, find_components
from tversky_seg.metrics.lesion_brats import CONNECTIVITY as BRATS_CONNECTIVITY
from tversky_seg.metrics.lesion_brats import NO_LESIONS, LesionwiseScores, score_lesionwise
from tversky_seg.metrics.lesion_cells import NO_CELLS, CellScores, score_cells
from tversky_seg.metrics.lesion_rule import ANY_OVERLAP, LesionRule
from tversky_seg.metrics.lesions import lowest_volume
from tversky_seg.metrics.masks import (
    FloatArray,
    Mask,
    as_masks,
    bounding_box,
    check_spacing,
    memory_order,
)
from tversky_seg.metrics.panoptic import NO_PAIRS, PanopticCounts, count_panoptic

# Under "by_lesion" in metrics.json.
LESION_METRICS = (
    "cc_dice",
    "cc_nsd",
    "cc_hd95_mm",
    "lesion_dice_brats",
    "lesion_hd95_brats_mm",
    "pq",
    "rq",
    "sq",
    "recall80_mm3",
)


@dataclass(frozen=True)
class LesionSettings:
    """Settings of the metrics by lesion; those of BraTS are the challenge's for metastases.

    Attributes:
        cc_penalty_mm: CC-HD95 of a lesion in whose cell nothing is predicted; None: the diagonal
            of the volume.
        brats_dilations: Dilations by which reference lesions are merged and matched.
        brats_min_volume_mm3: Merged reference lesions of up to this volume are left out.
        brats_penalty_mm: HD95 of a missed and of a false lesion.
        min_iou: Lesions match, for the panoptic quality, when their IoU is larger, in [0, 1).
    """

    cc_penalty_mm: float | None = None
    brats_dilations: int = 1
    brats_min_volume_mm3: float = 2.0
    brats_penalty_mm: float = 374.0
    min_iou: float = 0.5

    def __post_init__(self) -> None:
        penalty = self.cc_penalty_mm
        if penalty is not None and not 0 <= penalty < math.inf:
            raise ValueError(f"cc_penalty_mm must be >= 0 and finite, or null, got {penalty}")
        if self.brats_dilations < 0:
            raise ValueError(f"brats_dilations must be >= 0, got {self.brats_dilations}")
        if not 0 <= self.brats_min_volume_mm3 < math.inf:
            raise ValueError(
                f"brats_min_volume_mm3 must be >= 0 and finite, got {self.brats_min_volume_mm3}"
            )
        if not 0 <= self.brats_penalty_mm < math.inf:
            raise ValueError(
                f"brats_penalty_mm must be >= 0 and finite, got {self.brats_penalty_mm}"
            )
        if not 0 <= self.min_iou < 1:
            raise ValueError(f"min_iou must lie in [0, 1), got {self.min_iou}")


DEFAULT_SETTINGS = LesionSettings()


@dataclass(frozen=True)
class ByLesion:
    """Sums over the lesions of one case, or of several; the metrics follow from them."""

    cells: CellScores = NO_CELLS
    brats: LesionwiseScores = NO_LESIONS
    panoptic: PanopticCounts = NO_PAIRS
    recall80_mm3: float = math.nan

    def __add__(self, other: ByLesion) -> ByLesion:
        """Pool two cases; the volume from which recall reaches 0.8 does not add up and is NaN."""
        return ByLesion(
            self.cells + other.cells, self.brats + other.brats, self.panoptic + other.panoptic
        )

    def metrics(self) -> dict[str, float]:
        """Compute the metrics of `LESION_METRICS`, by name and in its order."""
        return {
            "cc_dice": self.cells.dice,
            "cc_nsd": self.cells.nsd,
            "cc_hd95_mm": self.cells.hd95_mm,
            "lesion_dice_brats": self.brats.dice,
            "lesion_hd95_brats_mm": self.brats.hd95_mm,
            "pq": self.panoptic.pq,
            "rq": self.panoptic.rq,
            "sq": self.panoptic.sq,
            "recall80_mm3": self.recall80_mm3,
        }


NOTHING_BY_LESION = ByLesion()


def measure_by_lesion(
    prediction: ArrayLike,
    reference: ArrayLike,
    *,
    spacing_mm: ArrayLike,
    tolerance_mm: float = 1.0,
    rule: LesionRule = ANY_OVERLAP,
    settings: LesionSettings = DEFAULT_SETTINGS,
) -> ByLesion:
    """Compare the lesions of two masks one by one; docs/metrics.md defines each metric.

    Args:
        prediction: 0/1 mask (X, Y, Z).
        reference: 0/1 mask of the same shape.
        spacing_mm: Size of a voxel per axis, in mm.
        tolerance_mm: Distance up to which surfaces agree, for CC-NSD.
        rule: Rule of what a lesion is. BraTS has its own: 26 neighbours, and the volume of
            `settings`.
        settings: Settings of the metrics.

    Returns:
        The sums, without the volume from which recall reaches 0.8. All zeros for empty masks.

    Raises:
        ValueError: Shapes that differ, or other values than 0 and 1.
    """
    predicted_mask, true_mask = as_masks(prediction, reference)
    spacing = check_spacing(spacing_mm, ndim=predicted_mask.ndim)
    penalty_mm = settings.cc_penalty_mm
    if penalty_mm is None:
        # Before the crop: the penalty is the diagonal of the whole volume.
        extent_mm = np.array(predicted_mask.shape) * spacing
        penalty_mm = float(np.sqrt((extent_mm**2).sum()))

    # An empty border around the lesions, so that each of their voxels has all its neighbours.
    border = settings.brats_dilations + 1
    box = bounding_box(predicted_mask | true_mask)
    order = memory_order(predicted_mask)
    predicted_mask = _crop(predicted_mask, box, border, order=order)
    true_mask = _crop(true_mask, box, border, order=order)
    predicted = find_components(predicted_mask, connectivity=rule.connectivity, order=order)
    true = find_components(true_mask, connectivity=rule.connectivity, order=order)
    counted_predicted = _drop_small(predicted, rule, spacing)
    counted_true = _drop_small(true, rule, spacing)
    cells = score_cells(
        counted_predicted,
        counted_true,
        spacing_mm=spacing,
        tolerance_mm=tolerance_mm,
        penalty_mm=penalty_mm,
    )
    panoptic = count_panoptic(counted_predicted, counted_true, min_iou=settings.min_iou)
    # Otherwise the components are those that were found above.
    if rule.connectivity != BRATS_CONNECTIVITY:
        predicted = find_components(predicted_mask, connectivity=BRATS_CONNECTIVITY, order=order)
        true = find_components(true_mask, connectivity=BRATS_CONNECTIVITY, order=order)
    brats = score_lesionwise(
        predicted,
        true,
        spacing_mm=spacing,
        n_dilations=settings.brats_dilations,
        min_volume_mm3=settings.brats_min_volume_mm3,
        penalty_mm=settings.brats_penalty_mm,
    )
    return ByLesion(cells, brats, panoptic)


def _crop(mask: Mask, box: tuple[slice, ...], border: int, *, order: Literal["C", "F"]) -> Mask:
    """Copy a box of a mask, with an empty border around it."""
    lesions = mask[box]
    cropped = np.zeros([side + 2 * border for side in lesions.shape], bool, order=order)
    cropped[(slice(border, -border),) * mask.ndim] = lesions
    return cropped


def _drop_small(lesions: Components, rule: LesionRule, spacing_mm: FloatArray) -> Components:
    """Drop the lesions that the rule does not count."""
    volume_mm3 = lesions.n_voxels * float(spacing_mm.prod())
    least_mm3 = lowest_volume(rule.min_volume_mm3, strictly_larger=rule.strictly_larger)
    return lesions.select(volume_mm3 >= least_mm3)
