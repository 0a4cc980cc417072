"""Losses: `(logits, target, weight=None)` -> a scalar to be minimised.

Logits and target are (B, C, X, Y, Z), one channel per foreground class; `weight` is any tensor that
broadcasts to them. Terms that count each lesion also take the lesions: `lesion_terms`. Under
torch.distributed, a loss is that of the global batch.
"""

from tversky_seg.losses.blob import BlobLoss
from tversky_seg.losses.combined import CombinedLoss, TverskyCrossEntropyLoss
from tversky_seg.losses.cross_entropy import BCELoss, FocalLoss, WeightedBCELoss
from tversky_seg.losses.deep_supervision import DeepSupervision
from tversky_seg.losses.generalized_dice import GeneralizedDiceLoss
from tversky_seg.losses.lesion_terms import BlobTerm, CellTerm, LargestProbabilityTerm
from tversky_seg.losses.tversky import (
    AsymmetricSimilarityLoss,
    DiceLoss,
    FocalTverskyLoss,
    TverskyLoss,
)

__all__ = [
    "AsymmetricSimilarityLoss",
    "BCELoss",
    "BlobLoss",
    "BlobTerm",
    "CellTerm",
    "CombinedLoss",
    "DeepSupervision",
    "DiceLoss",
    "FocalLoss",
    "FocalTverskyLoss",
    "GeneralizedDiceLoss",
    "LargestProbabilityTerm",
    "TverskyCrossEntropyLoss",
    "TverskyLoss",
    "WeightedBCELoss",
]
