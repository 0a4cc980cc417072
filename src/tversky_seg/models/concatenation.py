"""Concatenation of features along the channels, without gaps in their gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tversky_seg.models.fused import (
    channels_of_a_tile,
    current_device,
    dense,
    is_channels_last,
    is_fused,
    is_traced,
)

TILE = 2048
"""Values that a program copies."""


def concatenate(features: Sequence[Tensor]) -> Tensor:
    """Join features (B, C_i, X, Y, Z) to (B, C_1 + C_2 + ..., X, Y, Z).

    On a GPU, torch copies channels-last features value by value, and the gradients that it hands
    back have gaps, so that they are copied once more. Here whole rows are copied, once.
    """
    if all(_is_fusable(one, like=features[0]) for one in features):
        return _Concatenation.apply(*features)  # type: ignore[no-any-return, no-untyped-call]
    return torch.cat(tuple(features), dim=1)


def _is_fusable(features: Tensor, *, like: Tensor) -> bool:
    return (
        is_fused(features)
        and not is_traced(features)
        and is_channels_last(features)
        and features.dtype == like.dtype
    )


class _Concatenation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *features: Tensor) -> Tensor:
        ctx.widths = [one.shape[1] for one in features]
        # As matrices (voxels, channels), which torch copies in one launch.
        rows = [one.permute(0, 2, 3, 4, 1).flatten(0, 3) for one in features]
        b, _, x, y, z = features[0].shape
        return torch.cat(rows, dim=1).view(b, x, y, z, -1).permute(0, 4, 1, 2, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradient = dense(gradient, channels_last=True)
        parts: list[Tensor | None] = []
        first = 0
        for width, is_needed in zip(ctx.widths, ctx.needs_input_grad, strict=True):
            parts.append(_channels(gradient, first, width) if is_needed else None)
            first += width
        return tuple(parts)


def _channels(features: Tensor, first: int, n_channels: int) -> Tensor:
    """Copy some of the channels of channels-last features, one launch."""
    from tversky_seg.models.concatenation_kernels import copy_kernel

    b, n_all, x, y, z = features.shape
    n_rows = b * x * y * z
    part = torch.empty((b, x, y, z, n_channels), dtype=features.dtype, device=features.device)
    # How many channels lie side by side for certain, in every row.
    unit = math.gcd(n_all, n_channels, first, 16)
    block_channels = channels_of_a_tile(n_channels)
    block_rows = TILE // block_channels
    grid = (-(-n_rows // block_rows) * -(-n_channels // block_channels),)
    with current_device(features.device):
        copy_kernel[grid](
            features,
            part,
            n_rows,
            n_all // unit,
            first // unit,
            n_channels // unit,
            UNIT=unit,
            BLOCK_V=block_rows,
            BLOCK_C=block_channels,
        )
    return part.permute(0, 4, 1, 2, 3)
