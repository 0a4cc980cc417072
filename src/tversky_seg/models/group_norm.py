"""Group normalisation with ReLU: torch's own on the CPU, fused kernels on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tversky_seg.models.fused import dense, is_channels_last, is_fused, is_traced
from tversky_seg.models.norm_launches import gradients, normalised, statistics_of


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
            result = self._in_the_input_s_type(features)
        else:
            result = super().forward(features)
        return F.relu(result, inplace=True) if self.relu else result

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
    result, _ = fused_norm_with_statistics(
        features, weight, bias, n_groups, eps, relu, len(features)
    )
    return result


def fused_norm_with_statistics(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    n_groups: int,
    eps: float,
    relu: bool,
    n_samples: int,
) -> tuple[Tensor, Tensor]:
    """Normalise as `fused_group_norm`, each sample (N = B) or all together (N = 1, channels last).

    Returns:
        The normalised features, and mean and 1 / sqrt(variance + eps) of each group, (N, G, 2).
    """
    arguments = (features, weight, bias, n_groups, eps, relu, n_samples)
    if is_traced(features):
        return torch.ops.tversky_seg.group_norm(*arguments)  # type: ignore[no-any-return]
    return _GroupNormFunction.apply(*arguments)  # type: ignore[no-any-return, no-untyped-call]


def _forward(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    n_groups: int,
    eps: float,
    relu: bool,
    n_samples: int,
) -> tuple[Tensor, Tensor]:
    """Return the normalised features, and mean and 1 / deviation of each group (N, G, 2)."""
    features = dense(features, channels_last=is_channels_last(features))
    statistics = statistics_of(features, n_samples=n_samples, n_groups=n_groups, eps=eps)
    return normalised(features, weight, bias, statistics, relu=relu), statistics


class _GroupNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        outputs = _forward(*arguments)
        _save(ctx, arguments, outputs)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        return _backward(ctx, gradient, gradients)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep for the backward pass what it needs."""
    features, weight, bias, _, _, relu, _ = inputs
    _, statistics = output
    ctx.save_for_backward(features, weight, bias, statistics)
    ctx.relu = relu
    ctx.set_materialize_grads(False)  # the statistics have no gradient


def _backward(
    ctx: Any, gradient: Tensor | None, compute: Callable[..., tuple[Tensor, Tensor, Tensor]]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of all arguments of `fused_norm_with_statistics`."""
    if gradient is None:
        return (None,) * 7
    features, weight, bias, statistics = ctx.saved_tensors
    return *compute(features, gradient, weight, bias, statistics, ctx.relu), None, None, None, None


# The operators for torch.compile, and for tensors that have a shape alone.

_forward_operator = torch.library.custom_op("tversky_seg::group_norm", _forward, mutates_args=())
_backward_operator = torch.library.custom_op(
    "tversky_seg::group_norm_backward", gradients, mutates_args=()
)


@_forward_operator.register_fake
def _forward_shapes(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    n_groups: int,
    eps: float,
    relu: bool,
    n_samples: int,
) -> tuple[Tensor, Tensor]:
    like = dense(features, channels_last=is_channels_last(features))
    statistics = features.new_empty(n_samples, n_groups, 2, dtype=torch.float32)
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
