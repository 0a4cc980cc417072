"""Losses: `(logits, target, weight=None)` -> scalar, each in closed form from soft counts."""

from tversky_seg.losses.cross_entropy import BCELoss, FocalLoss, WeightedBCELoss
from tversky_seg.losses.overlap_losses import (
    AsymmetricSimilarityLoss,
    BlobLoss,
    FocalTverskyLoss,
    GeneralizedDiceLoss,
)
from tversky_seg.losses.tversky import CombinedLoss, DiceLoss, TverskyLoss

__all__ = [
    "AsymmetricSimilarityLoss",
    "BCELoss",
    "BlobLoss",
    "CombinedLoss",
    "DiceLoss",
    "FocalLoss",
    "FocalTverskyLoss",
    "GeneralizedDiceLoss",
    "TverskyLoss",
    "WeightedBCELoss",
]
