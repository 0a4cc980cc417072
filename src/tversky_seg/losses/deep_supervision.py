"""A loss at several resolutions: the lower levels of a network learn from the labels directly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DeepSupervision(nn.Module):
    """The weighted sum of a loss over a network's outputs at full, half, quarter ... resolution.

    Labels and voxel weights are reduced by the maximum of each 2^3 block (fewer axes where the
    network halves fewer): a block is lesion if any of its voxels is. Taking the nearest voxel would
    drop seven in eight lesions of one voxel at each level.

    Args:
        loss: Loss `(logits, target, weight) -> scalar`.
        weights: Weight of each resolution, full first, >= 0. None: 1, 1/2, 1/4 ... over their sum,
            as in nnU-Net.
    """

    def __init__(self, loss: nn.Module, *, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if weights is not None:
            is_valid = all(0 <= weight < math.inf for weight in weights)
            if not weights or not is_valid:
                raise ValueError(
                    f"weights must be >= 0, one for each resolution, got {list(weights)}"
                )
        self.loss = loss
        self.weights = weights

    def forward(
        self, logits: Tensor | Sequence[Tensor], target: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Compute the loss, a scalar.

        Args:
            logits: (B, K, X, Y, Z), (B, K, X/2, Y/2, Z/2) ..., rounded up; an axis that is not
                halved keeps its side. One tensor, not in a sequence, gives the loss itself.
            target: (B, K, X, Y, Z).
            weight: Weight of each voxel; broadcasts to the target.
        """
        if isinstance(logits, Tensor):
            return self.loss(logits, target, weight)  # type: ignore[no-any-return]
        weights = self.weights or _halving_weights(len(logits))
        if len(weights) != len(logits):
            raise ValueError(
                f"weights must be {len(logits)}, one for each resolution, got {list(weights)}"
            )
        if weight is not None:
            weight = weight.expand_as(target)
        parts = [weights[0] * self.loss(logits[0], target, weight)]
        for scale_weight, scale_logits in zip(weights[1:], logits[1:], strict=True):
            # From level to level: the maximum of maxima is that of the larger block.
            target = _reduce(target, to=scale_logits)
            if weight is not None:
                weight = _reduce(weight, to=scale_logits)
            parts.append(scale_weight * self.loss(scale_logits, target, weight))
        return torch.stack(parts).sum()

    def extra_repr(self) -> str:
        """Settings, as repr() shows them."""
        return f"weights={self.weights}"


def with_deep_supervision(loss: nn.Module) -> nn.Module:
    """Make a loss ready for the outputs of a network with deep supervision."""
    if isinstance(loss, DeepSupervision):
        return loss
    return DeepSupervision(loss)


def _halving_weights(n: int) -> list[float]:
    """Return 1, 1/2, 1/4 ... over their sum: (4/7, 2/7, 1/7) for n = 3."""
    total = 2**n - 1
    return [2.0 ** (n - 1 - scale) / total for scale in range(n)]


def _reduce(values: Tensor, *, to: Tensor) -> Tensor:
    """Take the maximum of each block of (B, K, X, Y, Z); those over the border have fewer voxels.

    Args:
        values: Values at one resolution.
        to: Logits of the next: blocks have 2 voxels along the axes that are shorter there.
    """
    block = [2 if n > m else 1 for n, m in zip(values.shape[2:], to.shape[2:], strict=True)]
    return F.max_pool3d(values, block, ceil_mode=True)
