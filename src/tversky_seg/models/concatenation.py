"""Concatenation of features along the channels, without gaps in their gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
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
    back have gaps, so that they are copied once more. Here each is one copy of whole rows.
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
        joined = _empty(features[0], sum(ctx.widths))
        for one, first in zip(features, _starts(ctx.widths), strict=True):
            _copy(one, joined, n_channels=one.shape[1], to_first=first)
        return joined

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradient = dense(gradient, channels_last=True)
        parts: list[Tensor | None] = []
        for index, (width, first) in enumerate(zip(ctx.widths, _starts(ctx.widths), strict=True)):
            part = None
            if ctx.needs_input_grad[index]:
                part = _empty(gradient, width)
                _copy(gradient, part, n_channels=width, from_first=first)
            parts.append(part)
        return tuple(parts)


def _starts(widths: Sequence[int]) -> list[int]:
    """Return the first channel of each part: widths 4, 2, 3 start at 0, 4, 6."""
    return [0, *accumulate(widths[:-1])]


def _empty(like: Tensor, n_channels: int) -> Tensor:
    b, _, x, y, z = like.shape
    # By strides: with one channel or voxel, two layouts have the same.
    rows = torch.empty((b, x, y, z, n_channels), dtype=like.dtype, device=like.device)
    return rows.permute(0, 4, 1, 2, 3)


def _copy(
    source: Tensor, target: Tensor, *, n_channels: int, from_first: int = 0, to_first: int = 0
) -> None:
    """Copy channels of channels-last features into channels of others."""
    from tversky_seg.models.concatenation_kernels import copy_kernel

    n_rows = source.numel() // source.shape[1]
    # How many channels lie side by side for certain, in every row.
    unit = math.gcd(source.shape[1], target.shape[1], n_channels, from_first, to_first, 16)
    block_channels = channels_of_a_tile(n_channels)
    block_rows = TILE // block_channels
    grid = (-(-n_rows // block_rows) * -(-n_channels // block_channels),)
    with current_device(source.device):
        copy_kernel[grid](
            source,
            target,
            n_rows,
            source.shape[1] // unit,
            from_first // unit,
            target.shape[1] // unit,
            to_first // unit,
            n_channels // unit,
            UNIT=unit,
            BLOCK_V=block_rows,
            BLOCK_C=block_channels,
        )
