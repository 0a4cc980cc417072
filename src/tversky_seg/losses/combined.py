"""Weighted sums of losses: Tversky + cross-entropy, and any others."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tversky_seg.losses.cross_entropy import cross_entropy
from tversky_seg.losses.tversky import TverskyLoss


class CombinedLoss(nn.Module):
    """A weighted sum of losses, such as Tversky + focal; each of them gets the voxel weights.

    Args:
        losses: One or more losses `(logits, target, weight=None) -> scalar`.
        weights: Factor of each loss, >= 0; None: 1 each.
    """

    def __init__(
        self, *, losses: Sequence[nn.Module], weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        if weights is None:
            weights = [1.0] * len(losses)
        is_valid = all(0 <= weight < math.inf for weight in weights)
        if not losses or len(weights) != len(losses) or not is_valid:
            raise ValueError(
                f"expected at least one loss and a weight >= 0 for each of {len(losses)} losses, "
                f"got {list(weights)}"
            )
        self.losses = nn.ModuleList(losses)
        self.weights = [float(weight) for weight in weights]

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compute the loss, a scalar, of logits and target (B, C, X, Y, Z)."""
        parts = []
        for factor, loss in zip(self.weights, self.losses, strict=True):
            parts.append(factor * loss(logits, target, weight))
        return torch.stack(parts).sum()

    def extra_repr(self) -> str:
        """Settings, as repr() shows them."""
        return f"weights={self.weights}"


class TverskyCrossEntropyLoss(nn.Module):
    """The Tversky loss plus binary cross-entropy, each with its factor.

    loss = tversky_weight * TverskyLoss + cross_entropy_weight * BCELoss. The sum of equal parts is
    what LST-AI (MS lesions) trains with; alpha = beta = 0.5 makes it the Dice + cross-entropy of
    nnU-Net, there with a softmax. The ratio looks for few lesion voxels among many, the mean over
    voxels ranks and calibrates the probabilities, which the ratio alone drives to 0 and 1.

    Args:
        alpha: Weight of false positives in the Tversky loss, >= 0; as in TverskyLoss.
        beta: Weight of false negatives in the Tversky loss, >= 0; as in TverskyLoss.
        tversky_weight: Factor of the Tversky loss, >= 0.
        cross_entropy_weight: Factor of the cross-entropy, >= 0.
        smooth: As in TverskyLoss.
        over_batch: As in TverskyLoss. The cross-entropy is a mean over the voxels of the batch.
    """

    def __init__(
        self,
        *,
        alpha: float | None = None,
        beta: float | None = None,
        tversky_weight: float = 1.0,
        cross_entropy_weight: float = 1.0,
        smooth: float = 1.0,
        over_batch: bool = True,
    ) -> None:
        super().__init__()
        # One of them may be 0, to switch a part off in a sweep.
        factors = (tversky_weight, cross_entropy_weight)
        if not (all(0 <= factor < math.inf for factor in factors) and sum(factors) > 0):
            raise ValueError(
                "tversky_weight and cross_entropy_weight must be >= 0, finite and not both 0, got "
                f"tversky_weight={tversky_weight}, cross_entropy_weight={cross_entropy_weight}"
            )
        self.tversky = TverskyLoss(alpha=alpha, beta=beta, smooth=smooth, over_batch=over_batch)
        self.tversky_weight = float(tversky_weight)
        self.cross_entropy_weight = float(cross_entropy_weight)

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compute the loss, a scalar >= 0, of logits and target (B, C, X, Y, Z)."""
        of_ratio: Tensor = self.tversky_weight * self.tversky(logits, target, weight)
        of_voxels = self.cross_entropy_weight * cross_entropy(logits, target, weight)
        return of_ratio + of_voxels

    def extra_repr(self) -> str:
        """Settings, as repr() shows them."""
        return (
            f"tversky_weight={self.tversky_weight:g}, "
            f"cross_entropy_weight={self.cross_entropy_weight:g}"
        )
