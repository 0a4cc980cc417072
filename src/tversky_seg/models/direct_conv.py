"""A 3^3 convolution of 16 or 32 channels by kernels of our own, on a GPU in half precision.

For so few channels cuDNN reads a voxel from memory for each of 27 taps: on an H100, 16 channels at
nine times 96^3 voxels take it 1.96 ms in bf16, of which the bytes need 0.17 and the sums 0.15; the
kernels take 0.51 (benchmarks/convolution_gpu.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tversky_seg.models.convolution_launches import convolved, input_gradient, weight_gradient
from tversky_seg.models.fused import dense, is_channels_last, is_fused, is_traced

WIDTHS = frozenset({(16, 16), (32, 16), (16, 32), (32, 32)})
IN_PREDICTION = WIDTHS
"""Channels (C_in, C_out) that the kernels take where no gradient is recorded; empty: none."""
IN_TRAINING = WIDTHS
"""Channels that the kernels take where gradients are recorded, forward and backward."""


def is_direct(conv: nn.Conv3d, features: Tensor) -> bool:
    """Tell whether the kernels take a convolution of features (B, C, X, Y, Z)."""
    widths = IN_TRAINING if torch.is_grad_enabled() else IN_PREDICTION
    return (
        (conv.in_channels, conv.out_channels) in widths
        and is_fused(features)
        and not is_traced(features)
        and has_kernel(conv)
        and torch.is_autocast_enabled("cuda")
        and features.dtype == torch.get_autocast_dtype("cuda")
        and features.dtype in (torch.bfloat16, torch.float16)
        and is_channels_last(features)
    )


def has_kernel(conv: nn.Conv3d) -> bool:
    """Tell whether a convolution is of 3^3, stride 1 and padding 1, of 16 or 32 channels each."""
    return (
        (conv.in_channels, conv.out_channels) in WIDTHS
        and conv.kernel_size == (3, 3, 3)
        and conv.padding == conv.stride == conv.dilation == (1, 1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
    )


def direct_convolution(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve features (B, C_in, X, Y, Z) by weights (C_out, C_in, 3, 3, 3).

    Args:
        features: bfloat16 or float16, channels last, 16 or 32 channels.
        weight: Weights, rounded to the type of the features.
        bias: (C_out,).

    Returns:
        (B, C_out, X, Y, Z) in the type of the features, channels last; sums are float32.
    """
    return _DirectConvolution.apply(  # type: ignore[no-any-return, no-untyped-call]
        features, weight, bias
    )


class _DirectConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(features, weight)
        return convolved(features, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, weight = ctx.saved_tensors
        gradient = dense(gradient, channels_last=True)
        of_features, of_weight, of_bias = None, None, None
        if ctx.needs_input_grad[0]:
            of_features = input_gradient(gradient, weight)
        if ctx.needs_input_grad[1]:
            of_weight = weight_gradient(features, gradient, weight)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3, 4), dtype=torch.float32)
        return of_features, of_weight, of_bias
