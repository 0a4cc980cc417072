"""What the fused operations on a GPU share: where they run, and the layout of their features."""

from __future__ import annotations

import importlib.util
from functools import lru_cache

import torch
from torch import Tensor

FUSED_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def is_fused(features: Tensor) -> bool:
    """Tell whether kernels exist for these features: (B, C, X, Y, Z) on a GPU with Triton."""
    return (
        features.is_cuda
        and features.ndim == 5
        and features.dtype in FUSED_TYPES
        and features.numel() > 0
        and has_kernels(features.device.index)
    )


def has_kernels(device_index: int) -> bool:
    """Tell whether Triton is there and supports a GPU: compute capability 8.0 or later."""
    return _has_kernels(device_index)


# The compiler need not look inside. torch.compiler.assume_constant_result does the same, but
# imports the compiler, which would take a second at the start of every command.
has_kernels._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache
def _has_kernels(device_index: int) -> bool:
    has_triton = importlib.util.find_spec("triton") is not None
    return has_triton and torch.cuda.get_device_capability(device_index) >= (8, 0)


def is_traced(features: Tensor) -> bool:
    """Tell whether an operation is recorded (torch.compile) or has shapes alone (fake tensors).

    Then it has to be a registered operator, which costs the host some 30 us more a call than a
    `torch.autograd.Function`.
    """
    return torch.compiler.is_compiling() or type(features) is not Tensor


def is_channels_last(features: Tensor) -> bool:
    """Tell whether the channels of a voxel lie side by side, and nothing else does."""
    last = features.is_contiguous(memory_format=torch.channels_last_3d)
    return last and not features.is_contiguous()


def dense(features: Tensor, *, channels_last: bool) -> Tensor:
    """Return features without gaps in one of the two layouts; a copy only if they are not so."""
    if channels_last:
        return features.contiguous(memory_format=torch.channels_last_3d)
    return features.contiguous()


def power_of_2(n: int) -> int:
    """Return the smallest power of 2 that is not below n."""
    return 1 << (n - 1).bit_length()
