"""A loss at several resolutions, so that the lower levels of a network learn from the labels directly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DeepSupervision(nn.Module):
    """The weighted sum of a loss over a network's outputs at full, half, quarter ... resolution.

    Labels and voxel weights are taken to a lower resolution by the maximum of each 2^3 block: a block is lesion where
    any of its voxels is. The nearest voxel instead would drop seven in eight lesions of one voxel at each level.

    Args:
        loss: `(logits, target, weight) -> scalar`.
        weights: The share of each resolution, full first, >= 0. None: 1, 1/2, 1/4 ... over their sum, as in nnU-Net.
    """

    def __init__(self, loss: nn.Module, *, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if weights is not None and not (
            len(weights) and all(0 <= share < math.inf for share in weights)
        ):
            raise ValueError(f"weights must be >= 0, one for each resolution, got {list(weights)}")
        self.loss, self.weights = loss, weights

    def forward(
        self, logits: Tensor | Sequence[Tensor], target: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Logits (B, K, X, Y, Z), (B, K, X/2, Y/2, Z/2) ..., rounded up, target (B, K, X, Y, Z) -> a scalar.

        Logits of one resolution alone, not in a sequence, give the loss itself.
        """
        if isinstance(logits, Tensor):
            return self.loss(logits, target, weight)  # type: ignore[no-any-return]
        shares = _halving(len(logits)) if self.weights is None else self.weights
        if len(shares) != len(logits):
            raise ValueError(
                f"weights must be {len(logits)}, one for each resolution, got {list(shares)}"
            )
        weight = None if weight is None else weight.expand_as(target)
        parts = []
        for number, (share, of_scale) in enumerate(zip(shares, logits, strict=True)):
            if number:
                target, weight = _halved(target), None if weight is None else _halved(weight)
            parts.append(share * self.loss(of_scale, target, weight))
        return torch.stack(parts).sum()


def with_deep_supervision(loss: nn.Module) -> nn.Module:
    """The loss, ready for the outputs of a network with deep supervision."""
    return loss if isinstance(loss, DeepSupervision) else DeepSupervision(loss)


def _halving(n: int) -> list[float]:
    """1, 1/2, 1/4 ..., over their sum."""
    return [2.0 ** (n - 1 - scale) / (2**n - 1) for scale in range(n)]


def _halved(values: Tensor) -> Tensor:
    """(B, K, X, Y, Z) -> the maximum of each 2^3 block; blocks over the border have fewer voxels."""
    return F.max_pool3d(values, 2, ceil_mode=True)
