"""Triton kernels of 2^3 max-pooling, forward and backward.

Features are (planes, Y, Z, C): planes are the X of all samples, Z and C lie side by side. Features
whose channels come first are given as planes of all samples and channels, with C = 1. A program
makes BLOCK_Z voxels of one line of the result, with up to BLOCK_C channels. The voxels of a window
are numbered 0 to 7, z first, as torch visits them.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from functools import partial

import triton
import triton.language as tl

# Only Z and C decide how memory is read.
_kernel = partial(triton.jit, do_not_specialize=["n_y"])


@triton.jit
def _place(n_y, n_z, n_channels, BLOCK_Z: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return where this program's windows begin, and offsets and mask of its results.

    Returns:
        Offset of the first voxel of the first window, offsets of the windows from there, offset of
        the first result, offsets of the results from there, and which of them exist.
    """
    n_z_blocks = tl.cdiv(n_z, BLOCK_Z)
    n_channel_blocks = tl.cdiv(n_channels, BLOCK_C)
    program = tl.program_id(0)
    channel = (program % n_channel_blocks) * BLOCK_C
    rest = program // n_channel_blocks
    z = (rest % n_z_blocks) * BLOCK_Z
    line = (rest // n_z_blocks).to(tl.int64)
    # The lines of a plane are followed by those of the next, twice as many before pooling.
    line_before = (line // n_y) * 4 * n_y + (line % n_y) * 2

    rows = tl.arange(0, BLOCK_Z)[:, None]
    columns = tl.arange(0, BLOCK_C)[None, :]
    window = (line_before * 2 * n_z + 2 * z) * n_channels + channel
    windows = rows * 2 * n_channels + columns
    result = (line * n_z + z) * n_channels + channel
    results = rows * n_channels + columns
    mask = (z + rows < n_z) & (channel + columns < n_channels)
    return window, windows, result, results, mask


@_kernel
def pool_kernel(
    x_ptr,
    y_ptr,
    index_ptr,
    n_y,
    n_z,
    n_channel_units,
    UNIT: tl.constexpr,
    BLOCK_Z: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write the largest value of each window, and the number of its voxel.

    Of equal values the first counts; NaN is larger than any value. `n_y` and `n_z` are the sides of
    the result.
    """
    # As a multiple of a constant, the compiler knows how many channels it can load at once.
    n_channels = n_channel_units * UNIT
    window, windows, result, results, mask = _place(n_y, n_z, n_channels, BLOCK_Z, BLOCK_C)
    largest = tl.load(x_ptr + window + windows, mask=mask, other=0.0).to(tl.float32)
    index = tl.zeros([BLOCK_Z, BLOCK_C], tl.int8)
    for voxel in tl.static_range(1, 8):
        line = (voxel // 4) * 2 * n_y + (voxel // 2) % 2
        origin = window + (line * 2 * n_z + voxel % 2) * n_channels
        value = tl.load(x_ptr + origin + windows, mask=mask, other=0.0).to(tl.float32)
        is_larger = (value > largest) | (value != value)
        largest = tl.where(is_larger, value, largest)
        index = tl.where(is_larger, voxel, index).to(tl.int8)
    tl.store(y_ptr + result + results, largest, mask=mask)
    tl.store(index_ptr + result + results, index, mask=mask)


@_kernel
def pool_gradient_kernel(
    dy_ptr,
    index_ptr,
    dx_ptr,
    n_y,
    n_z,
    n_channel_units,
    UNIT: tl.constexpr,
    BLOCK_Z: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write dy to the voxel of each window that was the largest, and 0 to the others."""
    n_channels = n_channel_units * UNIT
    window, windows, result, results, mask = _place(n_y, n_z, n_channels, BLOCK_Z, BLOCK_C)
    dy = tl.load(dy_ptr + result + results, mask=mask, other=0.0)
    index = tl.load(index_ptr + result + results, mask=mask, other=0)
    for voxel in tl.static_range(0, 8):
        line = (voxel // 4) * 2 * n_y + (voxel // 2) % 2
        origin = window + (line * 2 * n_z + voxel % 2) * n_channels
        dx = tl.where(index == voxel, dy, 0.0)
        tl.store(dx_ptr + origin + windows, dx, mask=mask)
