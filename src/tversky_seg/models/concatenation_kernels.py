"""Triton kernel that copies some of the channels of each voxel."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from functools import partial

import triton
import triton.language as tl

_COUNTS = ["n_all_units", "first_unit", "n_units"]
_kernel = partial(triton.jit, do_not_specialize=_COUNTS)


@_kernel
def copy_kernel(
    from_ptr,
    to_ptr,
    n_rows,
    n_all_units,
    first_unit,
    n_units,
    UNIT: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Copy n_units from first_unit on of each row of a matrix (voxels, channels).

    A unit is a number of channels that the compiler knows can be copied at once.
    """
    n_all = n_all_units * UNIT
    n_channels = n_units * UNIT
    n_channel_blocks = tl.cdiv(n_channels, BLOCK_C)
    program = tl.program_id(0)
    channels = (program % n_channel_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    # 64 bits: offsets into all voxels may pass 2^31.
    first = (program // n_channel_blocks).to(tl.int64) * BLOCK_V
    rows = tl.arange(0, BLOCK_V)[:, None]
    mask = (first + rows < n_rows) & (channels < n_channels)
    origin = first * n_all + first_unit * UNIT
    values = tl.load(from_ptr + origin + (rows * n_all + channels), mask=mask)
    tl.store(to_ptr + first * n_channels + (rows * n_channels + channels), values, mask=mask)
