"""Max-pooling by 2 along some axes: torch's own on the CPU, without atomics on a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tversky_seg.models.fused import (
    channels_of_a_tile,
    current_device,
    dense,
    is_channels_last,
    is_fused,
    is_traced,
    power_of_2,
)

TILE = 1024
"""Values of the result that a program makes at once, few enough to stay in registers."""


class MaxPool(nn.Module):
    """See `max_pool`; with a stride of 1 the windows have one voxel along that axis.

    Args:
        stride: 1 or 2 along each axis.
    """

    def __init__(self, stride: tuple[int, int, int] = (2, 2, 2)) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, features: Tensor) -> Tensor:
        """Halve the sides of features (B, C, X, Y, Z) that have a stride of 2."""
        if self.stride == (2, 2, 2):
            return max_pool(features)
        return _pool_some_axes(features, self.stride)


def max_pool(features: Tensor) -> Tensor:
    """Take the largest value of each window of 2^3 voxels, in (B, C, X, Y, Z).

    On a GPU the gradient has the same bits in every run, unlike that of torch's max_pool3d, which
    adds by atomics in any order. Of equal values, the first gets the gradient; on a GPU without
    Triton they share it.

    Args:
        features: (B, C, X, Y, Z). A last voxel of an odd side is left out.

    Returns:
        (B, C, X/2, Y/2, Z/2), rounded down.
    """
    if not features.is_cuda or _has_odd_side(features):
        return F.max_pool3d(features, 2)
    if not is_fused(features):
        return _without_triton(features)
    if is_traced(features):
        pooled, _ = torch.ops.tversky_seg.max_pool(features)
    else:
        pooled, _ = _MaxPoolFunction.apply(features)  # type: ignore[no-untyped-call]
    return pooled  # type: ignore[no-any-return]


def _pool_some_axes(features: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """Pool along the axes of stride 2; a last voxel of an odd side is left out."""
    if not features.is_cuda:
        return F.max_pool3d(features, stride)
    pooled = features
    # Axis by axis, since torch's pooling adds its gradient by atomics, in any order.
    for axis, step in enumerate(stride, start=2):
        if step > 1:
            n_windows = pooled.shape[axis] // step
            windows = pooled.narrow(axis, 0, n_windows * step)
            sides = (*windows.shape[:axis], n_windows, step, *windows.shape[axis + 1 :])
            pooled = windows.reshape(sides).amax(axis + 1)
    return pooled


def _has_odd_side(features: Tensor) -> bool:
    return any(side % 2 != 0 for side in features.shape[2:])


def _without_triton(features: Tensor) -> Tensor:
    b, c, x, y, z = features.shape
    windows = features.reshape(b, c, x // 2, 2, y // 2, 2, z // 2, 2)
    return windows.amax((3, 5, 7))


def _pool(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pooled features, and which voxel of each window they come from (int8)."""
    from tversky_seg.models.pooling_kernels import pool_kernel

    channels_last = is_channels_last(features)
    features = dense(features, channels_last=channels_last)
    pooled = _halved(features)
    index = torch.empty_like(pooled, dtype=torch.int8)
    grid, settings = _launch(pooled.shape, channels_last=channels_last)
    with current_device(features.device):
        pool_kernel[grid](features, pooled, index, **settings)
    return pooled, index


def _gradient(gradient: Tensor, index: Tensor) -> Tensor:
    """Return the gradient of the features, in the layout of the index."""
    from tversky_seg.models.pooling_kernels import pool_gradient_kernel

    channels_last = is_channels_last(index)
    gradient = dense(gradient, channels_last=channels_last)
    index = dense(index, channels_last=channels_last)
    of_features = _doubled(gradient)
    grid, settings = _launch(gradient.shape, channels_last=channels_last)
    with current_device(gradient.device):
        pool_gradient_kernel[grid](gradient, index, of_features, **settings)
    return of_features


def _halved(features: Tensor) -> Tensor:
    """Return the pooled features' memory."""
    b, c, x, y, z = features.shape
    return _empty((b, c, x // 2, y // 2, z // 2), like=features)


def _doubled(features: Tensor) -> Tensor:
    """Return the memory of features whose pooled ones have this shape."""
    b, c, x, y, z = features.shape
    return _empty((b, c, 2 * x, 2 * y, 2 * z), like=features)


def _empty(shape: tuple[int, ...], *, like: Tensor) -> Tensor:
    layout = torch.channels_last_3d if is_channels_last(like) else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def _launch(shape: torch.Size, *, channels_last: bool) -> tuple[tuple[int], dict[str, int]]:
    """Return the number of programs and the kernels' settings for a pooled shape."""
    b, c, x, y, z = shape
    # Channels that come first are so many more samples.
    n_planes, n_channels = (b * x, c) if channels_last else (b * c * x, 1)
    block_channels = channels_of_a_tile(n_channels)
    block_z = min(power_of_2(z), TILE // block_channels)
    n_programs = n_planes * y * -(-z // block_z) * -(-n_channels // block_channels)
    unit = math.gcd(n_channels, 16)
    settings = {
        "n_y": y,
        "n_z": z,
        "n_channel_units": n_channels // unit,
        "UNIT": unit,
        "BLOCK_Z": block_z,
        "BLOCK_C": block_channels,
    }
    return (n_programs,), settings


class _MaxPoolFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor) -> tuple[Tensor, Tensor]:
        pooled, index = _pool(features)
        ctx.mark_non_differentiable(index)
        _save(ctx, (features,), (pooled, index))
        return pooled, index

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, _: None) -> Tensor | None:
        return _backward(ctx, gradient, _gradient)


def _save(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    """Keep for the backward pass what it needs: one byte a window."""
    _, index = output
    ctx.save_for_backward(index)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, gradient: Tensor | None, gradient_of: Callable[[Tensor, Tensor], Tensor]
) -> Tensor | None:
    if gradient is None:
        return None
    (index,) = ctx.saved_tensors
    return gradient_of(gradient, index)


# The operators for torch.compile, and for tensors that have a shape alone.

_pool_operator = torch.library.custom_op("tversky_seg::max_pool", _pool, mutates_args=())
_gradient_operator = torch.library.custom_op(
    "tversky_seg::max_pool_backward", _gradient, mutates_args=()
)


@_pool_operator.register_fake
def _pooled_shapes(features: Tensor) -> tuple[Tensor, Tensor]:
    pooled = _halved(dense(features, channels_last=is_channels_last(features)))
    return pooled, torch.empty_like(pooled, dtype=torch.int8)


@_gradient_operator.register_fake
def _gradient_shape(gradient: Tensor, index: Tensor) -> Tensor:
    return _doubled(dense(gradient, channels_last=is_channels_last(index)))


def _operator_backward(ctx: Any, gradient: Tensor | None, _: None) -> Tensor | None:
    return _backward(ctx, gradient, _gradient_operator)


_pool_operator.register_autograd(_operator_backward, setup_context=_save)
