"""Panoptic quality of lesions: matched one to one by their IoU."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tversky_seg.metrics.components import Components
from tversky_seg.metrics.lesions import shared_voxels


@dataclass(frozen=True)
class PanopticCounts:
    """Matched and unmatched lesions, of one case or of several: counts of cases add up.

    Kirillov et al. 2019 (arXiv 1801.00868), eq. 1 and 2, as in panoptica (arXiv 2312.02608).
    """

    tp: int = 0
    """Pairs of a predicted and a reference lesion that match."""
    fp: int = 0
    """Predicted lesions without a partner."""
    fn: int = 0
    """Reference lesions without a partner."""
    iou_sum: float = 0.0
    """Sum of the IoU of the pairs."""

    def __add__(self, other: PanopticCounts) -> PanopticCounts:
        """Add the counts of another case."""
        return PanopticCounts(
            self.tp + other.tp,
            self.fp + other.fp,
            self.fn + other.fn,
            self.iou_sum + other.iou_sum,
        )

    @property
    def rq(self) -> float:
        """Recognition quality tp / (tp + fp / 2 + fn / 2), in [0, 1]; NaN without any lesion."""
        total = self.tp + self.fp / 2 + self.fn / 2
        if not total:
            return math.nan
        return self.tp / total

    @property
    def sq(self) -> float:
        """Segmentation quality: mean IoU of the pairs; NaN without a pair."""
        if not self.tp:
            return math.nan
        return self.iou_sum / self.tp

    @property
    def pq(self) -> float:
        """Panoptic quality rq times sq, in [0, 1]: 0 without a pair, NaN without any lesion."""
        total = self.tp + self.fp / 2 + self.fn / 2
        if not total:
            return math.nan
        return self.iou_sum / total


NO_PAIRS = PanopticCounts()


def count_panoptic(predicted: Components, true: Components, *, min_iou: float) -> PanopticCounts:
    """Match lesions one to one, the pair of highest IoU first.

    Above an IoU of 0.5 no lesion has two possible partners, and the order does not matter.

    Args:
        predicted: Predicted lesions.
        true: Reference lesions in the same box and order.
        min_iou: A pair matches when its IoU is larger than this, in [0, 1).
    """
    i, j, n_shared = shared_voxels(predicted, true).T
    # Only of lesions that share a voxel: all others have an IoU of 0.
    iou = n_shared / (predicted.n_voxels[i] + true.n_voxels[j] - n_shared)
    is_free_i = np.ones(len(predicted), bool)
    is_free_j = np.ones(len(true), bool)
    tp = 0
    iou_sum = 0.0
    # Stable, so that equal pairs are taken in the same order everywhere.
    for pair in np.argsort(-iou, kind="stable"):
        if iou[pair] > min_iou and is_free_i[i[pair]] and is_free_j[j[pair]]:
            is_free_i[i[pair]] = False
            is_free_j[j[pair]] = False
            tp += 1
            iou_sum += float(iou[pair])
    return PanopticCounts(tp, len(predicted) - tp, len(true) - tp, iou_sum)
