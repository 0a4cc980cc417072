"""Calls of the kernels of 3^3 convolutions: how programs share the voxels, and how many there are.

Features are (B, C, X, Y, Z) in half precision, dense and channels last, of 16 or 32 channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tversky_seg.models.fused import current_device


@dataclass(frozen=True)
class Blocks:
    """What a program computes.

    Attributes:
        rows: Pairs of voxels along Z that it computes at once, a power of 2.
        planes: Planes along X that it works through; 0: it has `depth` of them at once.
        depth: Planes among its rows.
        n_warps: Warps of 32 threads.
        n_stages: Loads under way at once; 1 where it works through planes of a convolution.
    """

    rows: int
    planes: int
    depth: int = 1
    n_warps: int = 4
    n_stages: int = 1


WEIGHT = "weight"
BLOCKS: dict[object, Blocks] = {
    (16, 16): Blocks(rows=64, planes=32),
    (32, 16): Blocks(rows=64, planes=32),
    (16, 32): Blocks(rows=128, planes=0, depth=2, n_stages=3),
    (32, 32): Blocks(rows=128, planes=0, depth=2, n_warps=8),
    WEIGHT: Blocks(rows=64, planes=128, n_stages=2),
}
"""By the channels of the features and of the result: few enough numbers to stay in registers."""
OLDER_BLOCKS: dict[object, Blocks] = {
    **BLOCKS,
    (16, 32): Blocks(rows=64, planes=32, n_warps=8),
    WEIGHT: Blocks(rows=32, planes=128, n_warps=8),
}
"""The same for GPUs before compute capability 9.0, which multiply from registers."""
MIN_PROGRAMS = 512
"""Programs of a kernel, if there are voxels enough: a few for each of 132 multiprocessors."""
MIN_PLANES = 4
PARTS = 16
"""Channels of features and gradient whose products a program sums."""


@dataclass(frozen=True)
class Plan:
    """How a kernel shares out features.

    Attributes:
        n_blocks: Blocks of voxels.
        numbers: Arguments of the kernel that are no addresses.
    """

    n_blocks: int
    numbers: dict[str, int]


@lru_cache(maxsize=1024)
def plan_for(shape: torch.Size, blocks: Blocks, *, n_parts: int = 1) -> Plan:
    """Share out features (B, C, X, Y, Z), with `n_parts` programs for each block of voxels."""
    n_samples, _, n_x, n_y, n_z = shape
    block_y, pairs = _fitted(blocks.rows // blocks.depth, n_y, n_z)
    n_y_blocks = _ceil_div(n_y, block_y)
    n_z_blocks = _ceil_div(n_z, 2 * pairs)
    planes = blocks.planes or blocks.depth
    n_columns = n_samples * n_y_blocks * n_z_blocks
    if blocks.planes:
        n_least = MIN_PROGRAMS // n_parts
        # A small volume is cut finer, or most of the GPU would be idle.
        while planes > MIN_PLANES and n_columns * _ceil_div(n_x, planes) < n_least:
            planes //= 2
    n_x_blocks = _ceil_div(n_x, planes)
    numbers = {
        "n_x": n_x,
        "n_y": n_y,
        "n_z": n_z,
        "n_z_blocks": n_z_blocks,
        "n_y_blocks": n_y_blocks,
        "n_x_blocks": n_x_blocks,
        "BLOCK_Y": block_y,
        "PAIRS": pairs,
    }
    if blocks.planes:
        numbers["span"] = planes
    else:
        numbers["BLOCK_X"] = planes
    return Plan(n_blocks=n_columns * n_x_blocks, numbers=numbers)


def _fitted(n_rows: int, n_y: int, n_z: int) -> tuple[int, int]:
    """Share rows between Y and pairs along Z so that the fewest lie outside."""
    best = (n_rows, 1)
    fewest = None
    for pairs in (16, 8, 4):  # the longest first: they are read at once
        block_y = n_rows // pairs
        n_computed = _ceil_div(n_y, block_y) * block_y * _ceil_div(n_z, 2 * pairs) * pairs
        if fewest is None or n_computed < fewest:
            best, fewest = (block_y, pairs), n_computed
    return best


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@lru_cache
def blocks_for(device: torch.device, part: object) -> Blocks:
    """Choose what a program computes: by channels (C_in, C_out), or for the weights' gradient."""
    is_older = device.type == "cuda" and torch.cuda.get_device_capability(device) < (9, 0)
    return (OLDER_BLOCKS if is_older else BLOCKS)[part]


def convolved(
    features: Tensor, weight: Tensor, bias: Tensor | None, *, blocks: Blocks | None = None
) -> Tensor:
    """Convolve features (B, C_in, X, Y, Z).

    Args:
        features: Half precision, channels last.
        weight: (C_out, C_in, 3, 3, 3) of any type and strides.
        bias: (C_out,).
        blocks: What a program computes; None is as in `BLOCKS`.
    """
    out_stride, in_stride, *tap_strides = weight.stride()
    n_out, n_in = weight.shape[:2]
    banded = _banded(weight, features, 0, (out_stride, in_stride, *tap_strides), (n_in, n_out))
    return _product(features, banded, bias, n_out, blocks)


def input_gradient(gradient: Tensor, weight: Tensor, *, blocks: Blocks | None = None) -> Tensor:
    """Compute the gradient (B, C_in, X, Y, Z) of the features from that of the result.

    It is a convolution by the weights from the last tap to the first, of the other channels.
    """
    out_stride, in_stride, x, y, z = weight.stride()
    n_out, n_in = weight.shape[:2]
    # The offset of the last tap, from which negative strides run back to the first.
    last = 2 * (x + y + z)
    banded = _banded(weight, gradient, last, (in_stride, out_stride, -x, -y, -z), (n_out, n_in))
    return _product(gradient, banded, None, n_in, blocks)


def _banded(
    weight: Tensor,
    features: Tensor,
    first: int,
    strides: tuple[int, ...],
    channels: tuple[int, int],
) -> Tensor:
    """Arrange weights as (9, 4 C_in, 2 C_out), in the type of the features."""
    from tversky_seg.models.convolution_kernels import banded_kernel

    n_in, n_out = channels
    banded = torch.empty((9, 4 * n_in, 2 * n_out), dtype=features.dtype, device=features.device)
    with current_device(features.device):
        banded_kernel[(9,)](weight, banded, first, *strides, C_IN=n_in, C_OUT=n_out)
    return banded


def _product(
    features: Tensor, banded: Tensor, bias: Tensor | None, n_out: int, blocks: Blocks | None
) -> Tensor:
    from tversky_seg.models.convolution_kernels import march_kernel, taps_kernel

    b, n_in, x, y, z = features.shape
    blocks = blocks or blocks_for(features.device, (n_in, n_out))
    plan = plan_for(features.shape, blocks)
    kernel = march_kernel if blocks.planes else taps_kernel
    result = torch.empty((b, x, y, z, n_out), dtype=features.dtype, device=features.device)
    with current_device(features.device):
        kernel[(plan.n_blocks,)](
            features,
            banded,
            banded if bias is None else bias,  # an address that is not read
            result,
            **plan.numbers,
            C_IN=n_in,
            C_OUT=n_out,
            HAS_BIAS=bias is not None,
            num_warps=blocks.n_warps,
            num_stages=blocks.n_stages,
        )
    return result.permute(0, 4, 1, 2, 3)


def weight_gradient(
    features: Tensor, gradient: Tensor, weight: Tensor, *, blocks: Blocks | None = None
) -> Tensor:
    """Compute the gradient of the weights (C_out, C_in, 3, 3, 3), in their type and layout.

    Blocks of voxels are summed apart and then together: the same bits in every run.
    """
    from tversky_seg.models.convolution_kernels import weight_gradient_kernel

    n_out, n_in = weight.shape[:2]
    blocks = blocks or blocks_for(features.device, WEIGHT)
    n_parts = (n_in // PARTS) * (n_out // PARTS)
    plan = plan_for(features.shape, blocks, n_parts=n_parts)
    parts = (plan.n_blocks, n_in // PARTS, n_out // PARTS, 3, 3, 4, PARTS, 2, PARTS)
    partial = torch.empty(parts, dtype=torch.float32, device=features.device)
    with current_device(features.device):
        weight_gradient_kernel[(plan.n_blocks * n_parts,)](
            features,
            gradient,
            partial,
            **plan.numbers,
            C_IN=n_in,
            C_OUT=n_out,
            num_warps=blocks.n_warps,
            num_stages=blocks.n_stages,
        )
    # (I, O, taps along X and Y, voxel of the features, channel, voxel of the gradient, channel)
    sums = partial.sum(0)
    # The tap along Z is the difference of the two voxels.
    taps = sums[:, :, :, :, :3, :, 0] + sums[:, :, :, :, 1:, :, 1]
    in_order = taps.permute(1, 6, 0, 5, 2, 3, 4).reshape(weight.shape)
    return torch.empty_like(weight).copy_(in_order)
