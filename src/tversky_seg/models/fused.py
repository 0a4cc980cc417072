"""What the fused operations on a GPU share: where they run, and the layout of their features."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

FUSED_TYPES = (torch.float32, torch.bfloat16, torch.float16)

MAX_CHANNELS = 64
"""Channels of a tile: 128 bytes in bf16, the length of a memory transaction."""
MIN_FULL = 0.8
"""Share of a tile's channels that must exist, as far as tiles of fewer channels allow it."""
MIN_CHANNELS = 16


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
    """Tell whether Triton is there, works, and supports a GPU: compute capability 8.0 or later."""
    return _has_kernels(device_index)


# The compiler need not look inside. torch.compiler.assume_constant_result does the same, but
# imports the compiler, which would take a second at the start of every command.
has_kernels._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache
def _has_kernels(device_index: int) -> bool:
    if torch.cuda.get_device_capability(device_index) < (8, 0):
        return False
    try:
        _start_triton()
    except ImportError:
        return False
    except Exception as error:  # Triton needs a C compiler and Python's headers
        warnings.warn(f"networks run without kernels, since Triton failed: {error}", stacklevel=2)
        return False
    return True


def _start_triton() -> None:
    """Have Triton build, in C, what it calls CUDA with; no tensor, for torch.compile may ask."""
    from triton.runtime import driver

    driver.active.get_current_target()


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


def channels_of_a_tile(n_channels: int) -> int:
    """Choose a power of 2 whose multiple is not far above the channels: 64 for 60, 16 for 72."""
    block = min(power_of_2(n_channels), MAX_CHANNELS)
    while block > MIN_CHANNELS and n_channels < MIN_FULL * (-(-n_channels // block) * block):
        block //= 2
    return block


def current_device(device: torch.device) -> AbstractContextManager[Any]:
    """Make a device the current one: Triton launches there, whatever device the tensors are on."""
    if device.index is None or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)
