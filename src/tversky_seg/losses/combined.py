"""A weighted sum of losses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


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
