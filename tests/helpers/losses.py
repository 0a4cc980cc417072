"""Losses with settings of every kind, and random arguments for them."""

import pytest
import torch
from torch import Tensor, nn

from tversky_seg.losses import (
    AsymmetricSimilarityLoss,
    BCELoss,
    CombinedLoss,
    DiceLoss,
    FocalLoss,
    FocalTverskyLoss,
    GeneralizedDiceLoss,
    TverskyCrossEntropyLoss,
    TverskyLoss,
    WeightedBCELoss,
)

LOSSES = {
    "tversky": TverskyLoss(alpha=0.2, beta=0.7),
    "tversky per sample": TverskyLoss(alpha=0.2, beta=0.7, over_batch=False),
    "dice": DiceLoss(),
    "dice squared": DiceLoss(squared=True),
    "asymmetric": AsymmetricSimilarityLoss(),
    "asymmetric squared": AsymmetricSimilarityLoss(squared=True, over_batch=False),
    "focal tversky": FocalTverskyLoss(),
    "generalized dice": GeneralizedDiceLoss(),
    "generalized dice of classes alone": GeneralizedDiceLoss(
        background=False, smooth=1.0, over_batch=False
    ),
    "generalized dice squared": GeneralizedDiceLoss(squared=True),
    "bce": BCELoss(),
    "weighted bce": WeightedBCELoss(positive_weight=5.0),
    "adaptive bce": WeightedBCELoss(),
    "focal": FocalLoss(),
    "focal unweighted": FocalLoss(alpha=None, gamma=1.5),
    "combined": CombinedLoss(losses=[TverskyLoss(), FocalLoss()], weights=[1.0, 0.5]),
    "tversky + cross-entropy": TverskyCrossEntropyLoss(alpha=0.2, beta=0.7, tversky_weight=0.5),
}


def each_loss_except(*names: str) -> pytest.MarkDecorator:
    """Run a test with each loss of LOSSES but these."""
    losses = {name: loss for name, loss in LOSSES.items() if name not in names}
    return pytest.mark.parametrize("loss", losses.values(), ids=losses.keys())


each_loss = each_loss_except()


def random_case(
    shape: tuple[int, ...] = (2, 2, 5, 4, 3), *, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, a binary target with lesions in every class, positive weights."""
    rng = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape, generator=rng, dtype=dtype) - 1
    target = (torch.rand(shape, generator=rng) < 0.2).to(dtype)
    weight = 0.5 + 5 * torch.rand(shape, generator=rng, dtype=dtype)
    return logits.requires_grad_(), target, weight


def mask_logits(mask: Tensor) -> Tensor:
    """Logits whose probability is the mask itself."""
    return 200 * mask - 100


def gradient_of(loss: nn.Module, logits: Tensor, *arguments: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss(logits, *arguments), logits)
    return gradient
