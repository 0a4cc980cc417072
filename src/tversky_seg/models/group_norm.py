"""Group normalisation with ReLU: torch's own on the CPU, fused kernels on a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tversky_seg.models.fused import dense, is_channels_last, is_fused, is_traced, power_of_2

N_PROGRAMS = 2048
"""Programs of a kernel, a few for each of a hundred multiprocessors.

The number does not depend on the card, so that sums do not either.
"""
MIN_TILES = 4
"""Tiles of a program: fewer would leave more sums to combine than it saves."""
TILE_FORWARD = 2048
TILE_BACKWARD = 1024
"""Values that a program holds at once, few enough to stay in registers."""
MAX_CHANNELS = 64
"""Channels of a tile: 128 bytes in bf16, the length of a memory transaction."""


class GroupNorm(nn.GroupNorm):
    """Group normalisation of (B, C, X, Y, Z) with a learnt scale and shift, and a ReLU if wanted.

    Same parameters and state dict as `torch.nn.GroupNorm`, and on the CPU the same bits. On a GPU
    the result keeps type and memory format of the features (torch's autocast would make it
    float32); sums are float32. With Triton, normalisation and ReLU are one operation there, which
    keeps its input alone for the backward pass.

    Args:
        num_groups: Number of groups, a divisor of C.
        num_channels: Channels C.
        eps: Number added to the variance.
        relu: Set what is below 0 to 0.
    """

    def __init__(
        self, num_groups: int, num_channels: int, *, eps: float = 1e-5, relu: bool = False
    ):
        super().__init__(num_groups, num_channels, eps=eps)
        self.relu = relu

    def forward(self, features: Tensor) -> Tensor:
        """Normalise features (B, C, X, Y, Z)."""
        if is_fused(features):
            return fused_group_norm(
                features, self.weight, self.bias, self.num_groups, self.eps, self.relu
            )
        if features.is_cuda:
            normalised = self._in_the_input_s_type(features)
        else:
            normalised = super().forward(features)
        return F.relu(normalised, inplace=True) if self.relu else normalised

    def extra_repr(self) -> str:
        """Describe the settings."""
        return f"{super().extra_repr()}, relu={self.relu}"

    def _in_the_input_s_type(self, features: Tensor) -> Tensor:
        weight = self.weight.to(features.dtype)
        bias = self.bias.to(features.dtype)
        with torch.autocast("cuda", enabled=False):
            return F.group_norm(features, self.num_groups, weight, bias, self.eps)


def fused_group_norm(
    features: Tensor, weight: Tensor, bias: Tensor, n_groups: int, eps: float, relu: bool
) -> Tensor:
    """Normalise features (B, C, X, Y, Z) by groups, by Triton kernels.

    Args:
        features: (B, C, X, Y, Z) float32, bfloat16 or float16, with at least one value.
        weight: (C,) scale.
        bias: (C,) shift.
        n_groups: Number of groups, a divisor of C.
        eps: Number added to the variance.
        relu: Set what is below 0 to 0.

    Returns:
        (B, C, X, Y, Z) in the type and memory format of the features.
    """
    arguments = (features, weight, bias, n_groups, eps, relu)
    if is_traced(features):
        normalised, _ = torch.ops.tversky_seg.group_norm(*arguments)
    else:
        normalised, _ = _GroupNormFunction.apply(*arguments)  # type: ignore[no-untyped-call]
    return normalised  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Plan:
    """How a kernel shares out features (N, C, V)."""

    n_samples: int
    n_channels: int
    n_voxels: int
    channels_last: bool
    block_channels: int
    block_voxels: int
    n_blocks: int  # spans of a sample
    span: int  # voxels

    @property
    def grid(self) -> tuple[int]:
        n_channel_blocks = -(-self.n_channels // self.block_channels)
        return (self.n_samples * self.n_blocks * n_channel_blocks,)

    def settings(self) -> dict[str, Any]:
        """Return arguments that most kernels share."""
        # How many channels lie side by side for certain; NCV is read voxel by voxel.
        unit = math.gcd(self.n_channels, 16) if self.channels_last else 1
        return {
            "n_voxels": self.n_voxels,
            "n_channel_units": self.n_channels // unit,
            "n_blocks": self.n_blocks,
            "span": self.span,
            "UNIT": unit,
            "CHANNELS_LAST": self.channels_last,
            "BLOCK_V": self.block_voxels,
            "BLOCK_C": self.block_channels,
        }


@lru_cache(maxsize=1024)
def _plan(shape: torch.Size, *, channels_last: bool, tile: int) -> _Plan:
    n_samples, n_channels, *sides = shape
    n_voxels = math.prod(sides)
    block_channels = min(power_of_2(n_channels), MAX_CHANNELS) if channels_last else 1
    block_voxels = tile // block_channels
    n_columns = n_samples * -(-n_channels // block_channels)
    n_tiles = -(-n_voxels // block_voxels)
    n_blocks = min(max(N_PROGRAMS // n_columns, 1), -(-n_tiles // MIN_TILES))
    span = -(-n_tiles // n_blocks) * block_voxels
    return _Plan(
        n_samples=n_samples,
        n_channels=n_channels,
        n_voxels=n_voxels,
        channels_last=channels_last,
        block_channels=block_channels,
        block_voxels=block_voxels,
        n_blocks=-(-n_voxels // span),
        span=span,
    )


def _group_tile(plan: _Plan, n_groups: int) -> dict[str, int]:
    """Return the tile (spans, channels of a group) of the kernels that combine spans."""
    channels = power_of_2(plan.n_channels // n_groups)
    spans = min(max(TILE_FORWARD // channels, 1), power_of_2(plan.n_blocks))
    return {"BLOCK_B": spans, "BLOCK_D": channels}


def _forward(
    features: Tensor, weight: Tensor, bias: Tensor, n_groups: int, eps: float, relu: bool
) -> tuple[Tensor, Tensor]:
    """Return the normalised features, and mean and 1 / deviation of each group (N, G, 2)."""
    from tversky_seg.models import norm_kernels as kernels

    channels_last = is_channels_last(features)
    features = dense(features, channels_last=channels_last)
    plan = _plan(features.shape, channels_last=channels_last, tile=TILE_FORWARD)
    settings = plan.settings()
    n, c, b = plan.n_samples, plan.n_channels, plan.n_blocks
    normalised = torch.empty_like(features)
    partial = torch.empty(n, b, 2, c, device=features.device)
    statistics = torch.empty(n, n_groups, 2, device=features.device)
    # Triton launches on the current device, whatever device the tensors are on.
    with torch.cuda.device_of(features):  # type: ignore[no-untyped-call]
        kernels.moments_kernel[plan.grid](features, partial, **settings)
        kernels.statistics_kernel[(n * n_groups,)](
            partial,
            statistics,
            plan.n_voxels,
            c,
            n_groups,
            b,
            plan.span,
            eps,
            **_group_tile(plan, n_groups),
        )
        kernels.apply_kernel[plan.grid](
            features,
            normalised,
            weight,
            bias,
            statistics,
            n_groups=n_groups,
            RELU=relu,
            **settings,
        )
    return normalised, statistics


def _gradients(
    features: Tensor,
    gradient: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: Tensor,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of features, weight and bias."""
    from tversky_seg.models import norm_kernels as kernels

    channels_last = is_channels_last(features)
    features = dense(features, channels_last=channels_last)
    gradient = dense(gradient, channels_last=channels_last)
    plan = _plan(features.shape, channels_last=channels_last, tile=TILE_BACKWARD)
    settings = plan.settings()
    n_groups = statistics.shape[1]
    n, c, b = plan.n_samples, plan.n_channels, plan.n_blocks
    of_features = torch.empty_like(features)
    of_weight = torch.empty_like(weight)
    of_bias = torch.empty_like(bias)
    partial = torch.empty(n, b, 2, c, device=features.device)
    terms = torch.empty_like(statistics)
    with torch.cuda.device_of(features):  # type: ignore[no-untyped-call]
        kernels.gradient_sums_kernel[plan.grid](
            features,
            gradient,
            weight,
            bias,
            statistics,
            partial,
            n_groups=n_groups,
            RELU=relu,
            **settings,
        )
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
            **_group_tile(plan, n_groups),
        )
        kernels.gradient_kernel[plan.grid](
            features,
            gradient,
            of_features,
            weight,
            bias,
            statistics,
            terms,
            n_groups=n_groups,
            RELU=relu,
            **settings,
        )
    return of_features, of_weight, of_bias


class _GroupNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        outputs = _forward(*arguments)
        _save(ctx, arguments, outputs)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        return _backward(ctx, gradient, _gradients)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep for the backward pass what it needs."""
    features, weight, bias, _, _, relu = inputs
    _, statistics = output
    ctx.save_for_backward(features, weight, bias, statistics)
    ctx.relu = relu
    ctx.set_materialize_grads(False)  # the statistics have no gradient


def _backward(
    ctx: Any, gradient: Tensor | None, gradients: Callable[..., tuple[Tensor, Tensor, Tensor]]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of all arguments of `fused_group_norm`."""
    if gradient is None:
        return (None,) * 6
    features, weight, bias, statistics = ctx.saved_tensors
    return *gradients(features, gradient, weight, bias, statistics, ctx.relu), None, None, None


# The operators for torch.compile, and for tensors that have a shape alone.

_forward_operator = torch.library.custom_op("tversky_seg::group_norm", _forward, mutates_args=())
_backward_operator = torch.library.custom_op(
    "tversky_seg::group_norm_backward", _gradients, mutates_args=()
)


@_forward_operator.register_fake
def _forward_shapes(
    features: Tensor, weight: Tensor, bias: Tensor, n_groups: int, eps: float, relu: bool
) -> tuple[Tensor, Tensor]:
    like = dense(features, channels_last=is_channels_last(features))
    statistics = features.new_empty(features.shape[0], n_groups, 2, dtype=torch.float32)
    return torch.empty_like(like), statistics


@_backward_operator.register_fake
def _gradient_shapes(
    features: Tensor,
    gradient: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: Tensor,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    like = dense(features, channels_last=is_channels_last(features))
    return torch.empty_like(like), torch.empty_like(weight), torch.empty_like(bias)


def _operator_backward(ctx: Any, gradient: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    return _backward(ctx, gradient, _backward_operator)


_forward_operator.register_autograd(_operator_backward, setup_context=_save)
