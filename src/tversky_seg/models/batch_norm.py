"""Batch normalisation and the ReLU after it as one operation on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tversky_seg.models.fused import is_channels_last, is_fused, is_traced
from tversky_seg.models.group_norm import fused_norm_with_statistics
from tversky_seg.models.norm_launches import move_running_statistics, normalised


class Layers(nn.Sequential):
    """Layers one after another, where every batch norm is followed by a ReLU.

    State dict and numbers (but for rounding on a GPU) are those of `nn.Sequential`.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Pass features (B, C, X, Y, Z) through all layers."""
        layers = iter(self)
        for layer in layers:
            if isinstance(layer, nn.BatchNorm3d):
                features = norm_relu(layer, next(layers), features)
            else:
                features = layer(features)
        return features


def norm_relu(norm: nn.Module, relu: nn.Module, features: Tensor) -> Tensor:
    """Compute relu(norm(features)) of features (B, C, X, Y, Z).

    On a GPU with Triton, a batch norm and its ReLU on features in channels-last layout are one
    operation, in training or without gradients. torch.compile fuses the two by itself.
    """
    if isinstance(norm, nn.BatchNorm3d) and _is_fusable(norm, features):
        return fused_batch_norm_relu(norm, features)
    return relu(norm(features))  # type: ignore[no-any-return]


def _is_fusable(norm: nn.BatchNorm3d, features: Tensor) -> bool:
    return (
        is_fused(features)
        and not is_traced(features)
        and is_channels_last(features)
        and norm.affine
        and norm.momentum is not None
        and norm.running_mean is not None
        and (norm.training or not torch.is_grad_enabled())
    )


def fused_batch_norm_relu(norm: nn.BatchNorm3d, features: Tensor) -> Tensor:
    """Compute batch norm and ReLU, and update the running statistics in training.

    Args:
        norm: Batch norm with weights, running statistics and a momentum.
        features: (B, C, X, Y, Z) in channels-last layout, on a GPU.
    """
    n_channels = features.shape[1]
    if norm.training:
        # All samples together are one, and each channel is a group.
        result, statistics = fused_norm_with_statistics(
            features, norm.weight, norm.bias, n_channels, norm.eps, True, 1
        )
        _update(norm, statistics, n_values=features.numel() // n_channels)
        return result
    assert norm.running_mean is not None
    assert norm.running_var is not None
    rstd = torch.rsqrt(norm.running_var + norm.eps)
    statistics = torch.stack((norm.running_mean, rstd), dim=1)[None]
    return normalised(features, norm.weight, norm.bias, statistics, relu=True)


@torch.no_grad()
def _update(norm: nn.BatchNorm3d, statistics: Tensor, *, n_values: int) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.momentum is not None
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    move_running_statistics(
        norm.running_mean,
        norm.running_var,
        statistics.detach(),
        eps=norm.eps,
        momentum=norm.momentum,
        n_values=n_values,
    )
