"""Triton kernel that copies the channels of voxels into or out of wider voxels."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from functools import partial

import triton
import triton.language as tl

_COUNTS = ["from_units", "from_first", "to_units", "to_first", "n_units"]
_kernel = partial(triton.jit, do_not_specialize=_COUNTS)


@_kernel
def copy_kernel(
    from_ptr,
    to_ptr,
    n_rows,
    from_units,
    from_first,
    to_units,
    to_first,
    n_units,
    UNIT: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Copy n_units channels of each row of a matrix (voxels, channels) to another matrix.

    Channels are counted in units, which the compiler knows can be copied at once: those of a row
    (`from_units`, `to_units`) and those before the first one that is copied.
    """
    n_channels = n_units * UNIT
    n_channel_blocks = tl.cdiv(n_channels, BLOCK_C)
    program = tl.program_id(0)
    channels = (program % n_channel_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    # 64 bits: offsets into all voxels may pass 2^31.
    first = (program // n_channel_blocks).to(tl.int64) * BLOCK_V
    rows = tl.arange(0, BLOCK_V)[:, None]
    mask = (first + rows < n_rows) & (channels < n_channels)
    from_origin = first * (from_units * UNIT) + from_first * UNIT
    to_origin = first * (to_units * UNIT) + to_first * UNIT
    values = tl.load(from_ptr + from_origin + (rows * (from_units * UNIT) + channels), mask=mask)
    tl.store(to_ptr + to_origin + (rows * (to_units * UNIT) + channels), values, mask=mask)
