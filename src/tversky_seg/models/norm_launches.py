"""Calls of the kernels of normalisation: how programs share features, and what they write."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tversky_seg.models.fused import (
    channels_of_a_tile,
    current_device,
    dense,
    is_channels_last,
    power_of_2,
)

N_PROGRAMS = 2048
"""Programs of a kernel, a few for each of a hundred multiprocessors.

The number does not depend on the card, so that sums do not either.
"""
MIN_TILES = 4
"""Tiles of a program: fewer would leave more sums to combine than it saves."""
TILE_FORWARD = 2048
TILE_BACKWARD = 1024
"""Values that a program holds at once, few enough to stay in registers."""
CHANNELS_AT_ONCE = 128
"""Channels of which a program moves the running statistics."""


@dataclass(frozen=True)
class Plan:
    """How a kernel shares out features (N, C, V).

    Attributes:
        n_samples: Samples N.
        n_channels: Channels C.
        n_voxels: Voxels V.
        n_blocks: Spans of voxels in a sample.
        span: Voxels of a span.
        grid: Number of programs.
        settings: Arguments that most kernels share.
    """

    n_samples: int
    n_channels: int
    n_voxels: int
    n_blocks: int
    span: int
    grid: tuple[int]
    settings: dict[str, Any]


@lru_cache(maxsize=1024)
def plan_for(shape: torch.Size, *, channels_last: bool, tile: int) -> Plan:
    """Share out features (N, C, X, Y, Z) among programs that hold `tile` values at once."""
    n_samples, n_channels, *sides = shape
    n_voxels = math.prod(sides)
    # How many channels lie side by side for certain; NCV is read voxel by voxel.
    unit = math.gcd(n_channels, 16) if channels_last else 1
    block_channels = channels_of_a_tile(n_channels) if channels_last else 1
    block_voxels = tile // block_channels
    n_channel_blocks = _ceil_div(n_channels, block_channels)
    n_tiles = _ceil_div(n_voxels, block_voxels)
    # Of many samples each is cut into fewer spans, so that the programs stay as many.
    n_wanted = max(N_PROGRAMS // (n_samples * n_channel_blocks), 1)
    span = _ceil_div(n_tiles, min(n_wanted, _ceil_div(n_tiles, MIN_TILES))) * block_voxels
    n_blocks = _ceil_div(n_voxels, span)
    settings = {
        "n_voxels": n_voxels,
        "n_channel_units": n_channels // unit,
        "n_blocks": n_blocks,
        "span": span,
        "UNIT": unit,
        "CHANNELS_LAST": channels_last,
        "BLOCK_V": block_voxels,
        "BLOCK_C": block_channels,
    }
    return Plan(
        n_samples=n_samples,
        n_channels=n_channels,
        n_voxels=n_voxels,
        n_blocks=n_blocks,
        span=span,
        grid=(n_samples * n_blocks * n_channel_blocks,),
        settings=settings,
    )


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@lru_cache(maxsize=1024)
def _group_tile(n_channels: int) -> dict[str, int]:
    """Return the tile (spans, channels) of the kernels that combine the spans of a group."""
    channels = power_of_2(n_channels)
    return {"BLOCK_B": max(TILE_FORWARD // channels, 1), "BLOCK_D": channels}


def _shape(features: Tensor, *, n_samples: int) -> torch.Size:
    """Return the shape of features (B, C, X, Y, Z), with all samples as one if that is wanted.

    With the channels last, the voxels of all samples follow each other as those of one.
    """
    if n_samples == len(features):
        return features.shape
    b, c, x, y, z = features.shape
    return torch.Size((1, c, b * x, y, z))


def statistics_of(features: Tensor, *, n_samples: int, n_groups: int, eps: float) -> Tensor:
    """Compute mean and 1 / sqrt(variance + eps) of each group of each sample, (N, G, 2).

    Args:
        features: (B, C, X, Y, Z), dense.
        n_samples: N, which is B, or 1 for all samples together; then the channels are last.
        n_groups: Number of groups G.
        eps: Number added to the variance.
    """
    # Here, since Triton comes only with a torch for GPUs.
    from tversky_seg.models import norm_kernels as kernels

    shape = _shape(features, n_samples=n_samples)
    plan = plan_for(shape, channels_last=is_channels_last(features), tile=TILE_FORWARD)
    n, c, b = plan.n_samples, plan.n_channels, plan.n_blocks
    # float32 whatever the features: half precision would lose the sums of a million voxels.
    partial = torch.empty(n, b, 2, c, device=features.device)
    statistics = torch.empty(n, n_groups, 2, device=features.device)
    with current_device(features.device):
        kernels.moments_kernel[plan.grid](features, partial, **plan.settings)
        kernels.statistics_kernel[(n * n_groups,)](
            partial,
            statistics,
            plan.n_voxels,
            c,
            n_groups,
            b,
            plan.span,
            eps,
            **_group_tile(c // n_groups),
        )
    return statistics


def normalised(
    features: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, *, relu: bool
) -> Tensor:
    """Compute (x - mean) scale weight + bias from statistics (N, G, 2), then the ReLU if wanted."""
    from tversky_seg.models.norm_kernels import apply_kernel

    shape = _shape(features, n_samples=len(statistics))
    plan = plan_for(shape, channels_last=is_channels_last(features), tile=TILE_FORWARD)
    result = torch.empty_like(features)
    with current_device(features.device):
        apply_kernel[plan.grid](
            features,
            result,
            weight,
            bias,
            statistics,
            n_groups=statistics.shape[1],
            RELU=relu,
            **plan.settings,
        )
    return result


def gradients(
    features: Tensor,
    gradient: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: Tensor,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of features, weight and bias from that of the result."""
    from tversky_seg.models import norm_kernels as kernels

    channels_last = is_channels_last(features)
    features = dense(features, channels_last=channels_last)
    # The kernels read both by the same offsets.
    gradient = dense(gradient, channels_last=channels_last)
    shape = _shape(features, n_samples=len(statistics))
    plan = plan_for(shape, channels_last=channels_last, tile=TILE_BACKWARD)
    n, c, b = plan.n_samples, plan.n_channels, plan.n_blocks
    n_groups = statistics.shape[1]
    of_features = torch.empty_like(features)
    of_weight = torch.empty_like(weight)
    of_bias = torch.empty_like(bias)
    partial = torch.empty(n, b, 2, c, device=features.device)
    terms = torch.empty_like(statistics)
    inputs = (weight, bias, statistics)
    further = {"n_groups": n_groups, "RELU": relu, **plan.settings}
    with current_device(features.device):
        kernels.gradient_sums_kernel[plan.grid](features, gradient, *inputs, partial, **further)
        kernels.gradient_terms_kernel[(n_groups,)](
            partial,
            weight,
            terms,
            of_weight,
            of_bias,
            n,
            plan.n_voxels,
            c,
            n_groups,
            b,
            **_group_tile(c // n_groups),
        )
        kernels.gradient_kernel[plan.grid](
            features, gradient, of_features, *inputs, terms, **further
        )
    return of_features, of_weight, of_bias


def move_running_statistics(
    mean: Tensor,
    variance: Tensor,
    statistics: Tensor,
    *,
    eps: float,
    momentum: float,
    n_values: int,
) -> None:
    """Move running means and variances (C,), in place, towards those of a batch.

    Args:
        mean: Running means.
        variance: Running variances, of samples (n - 1).
        statistics: Mean and 1 / sqrt(variance + eps) of each channel, (1, C, 2).
        eps: Number added to the variance.
        momentum: Share of the batch.
        n_values: Values of a channel in the batch.
    """
    from tversky_seg.models.norm_kernels import running_kernel

    n_channels = len(mean)
    # A single value has no variance, and is not divided by 0.
    correction = n_values / max(n_values - 1, 1)
    with current_device(mean.device):
        running_kernel[(_ceil_div(n_channels, CHANNELS_AT_ONCE),)](
            statistics, mean, variance, n_channels, eps, momentum, correction, CHANNELS_AT_ONCE
        )
