"""Triton kernels of a 3^3 convolution with few channels: stride 1, padding 1, channels last.

With few channels a voxel is a short row of a matrix, and a kernel that reads it once for each of 27
taps waits for memory. So two voxels along Z, which lie side by side, are a row of the result:

    the four voxels z-1 .. z+2, (4 C_in)  x  a matrix (4 C_in, 2 C_out)  ->  z and z+1, (2 C_out)

The matrix holds the three taps along Z twice, one voxel further down for z+1, and a quarter of it
is 0. Nine products (taps along X and Y) take the place of 27, each of four times as many channels.
Sums are float32. An infinite value becomes NaN in the voxel beside its neighbours, too: 0 times it.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from functools import partial

import triton
import triton.language as tl

# One compilation for every number of these: they do not decide how memory is read.
_COUNTS = ["n_x", "n_y", "n_z", "n_z_blocks", "n_y_blocks", "n_x_blocks", "span"]
_STRIDES = ["first", "out_stride", "in_stride", "x_stride", "y_stride", "z_stride"]
_kernel = partial(triton.jit, do_not_specialize=[*_COUNTS, *_STRIDES])


@_kernel
def banded_kernel(
    weight_ptr,
    banded_ptr,
    first,
    out_stride,
    in_stride,
    x_stride,
    y_stride,
    z_stride,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
):
    """Write the matrix (4 C_in, 2 C_out) of one pair of taps along X and Y.

    The weights may have any strides. `banded` is (3, 3, 4 C_in, 2 C_out).
    """
    tap = tl.program_id(0)
    rows = tl.arange(0, 4 * C_IN)[:, None]
    columns = tl.arange(0, 2 * C_OUT)[None, :]
    z_tap = rows // C_IN - columns // C_OUT
    offsets = (columns % C_OUT) * out_stride + (rows % C_IN) * in_stride + z_tap * z_stride
    origin = first + (tap // 3) * x_stride + (tap % 3) * y_stride
    mask = (z_tap >= 0) & (z_tap < 3)
    weights = tl.load(weight_ptr + origin + offsets, mask=mask, other=0.0)
    matrix = banded_ptr + tap * (4 * C_IN * 2 * C_OUT)
    tl.store(matrix + rows * (2 * C_OUT) + columns, weights)


@triton.jit
def _place(n_z_blocks, n_y_blocks, n_x_blocks, program):
    """Return the blocks along Z, Y and X and the sample of this program."""
    z_block = program % n_z_blocks
    rest = program // n_z_blocks
    y_block = rest % n_y_blocks
    rest = rest // n_y_blocks
    # 64 bits: offsets into all features may pass 2^31.
    return z_block, y_block, rest % n_x_blocks, (rest // n_x_blocks).to(tl.int64)


@triton.jit
def _voxels(
    features_ptr,
    sample,
    x,
    y,
    z,
    y_shift: tl.constexpr,
    n_x,
    n_y,
    n_z,
    channel,
    C: tl.constexpr,
    N_CHANNELS: tl.constexpr,
    N_VOXELS: tl.constexpr,
):
    """Load N_CHANNELS of N_VOXELS along Z from each (y + y_shift, z) of a plane; 0 outside.

    y and z are columns. What depends on them alone is the same in each plane, and for each shift.
    """
    columns = tl.arange(0, N_VOXELS * N_CHANNELS)[None, :]
    voxels = columns // N_CHANNELS
    if C == N_CHANNELS:
        # All channels: so the compiler sees that a row has no gaps.
        in_row = columns
    else:
        in_row = voxels * C + columns % N_CHANNELS
    is_inside = (z + voxels >= 0) & (z + voxels < n_z)
    # A plane outside has no rows.
    n_rows = n_y * ((x >= 0) & (x < n_x)).to(tl.int32)
    is_inside = is_inside & (y + y_shift >= 0) & (y + y_shift < n_rows)
    origin = (((sample * n_x + x) * n_y + y_shift) * n_z) * C + channel
    offsets = (y * n_z + z) * C + in_row
    return tl.load(features_ptr + origin + offsets, mask=is_inside, other=0.0)


@triton.jit
def _store(result_ptr, sums, bias, sample, x, y, z, n_x, n_y, n_z, C_OUT: tl.constexpr):
    """Store the sums of voxels z and z+1 at each (y, z) of the plane x, with the bias."""
    columns = tl.arange(0, 2 * C_OUT)[None, :]
    mask = (y < n_y) & (z + columns // C_OUT < n_z)
    plane = (sample * n_x + x) * n_y * n_z * C_OUT
    pointers = result_ptr + plane + ((y * n_z + z) * C_OUT + columns)
    tl.store(pointers, (sums + bias).to(result_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _bias(bias_ptr, C_OUT: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Load the bias of both voxels, (1, 2 C_out)."""
    columns = tl.arange(0, 2 * C_OUT)[None, :]
    if HAS_BIAS:
        return tl.load(bias_ptr + columns % C_OUT).to(tl.float32)
    return columns * 0.0


@triton.jit
def _matrix(banded_ptr, tap, C_IN: tl.constexpr, C_OUT: tl.constexpr):
    """Load the matrix (4 C_in, 2 C_out) of a pair of taps along X and Y."""
    rows = tl.arange(0, 4 * C_IN)[:, None]
    columns = tl.arange(0, 2 * C_OUT)[None, :]
    size: tl.constexpr = 4 * C_IN * 2 * C_OUT
    return tl.load(banded_ptr + tap * size + rows * (2 * C_OUT) + columns)


@_kernel
def march_kernel(
    features_ptr,
    banded_ptr,
    bias_ptr,
    result_ptr,
    n_x,
    n_y,
    n_z,
    n_z_blocks,
    n_y_blocks,
    n_x_blocks,
    span,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """Convolve, plane by plane along X: what is loaded serves three planes of the result."""
    z_block, y_block, x_block, sample = _place(n_z_blocks, n_y_blocks, n_x_blocks, tl.program_id(0))
    rows = tl.arange(0, BLOCK_Y * PAIRS)[:, None]
    y = y_block * BLOCK_Y + rows // PAIRS
    z = 2 * (z_block * PAIRS + rows % PAIRS)
    bias = _bias(bias_ptr, C_OUT, HAS_BIAS)
    # By the taps along X and Y; kept in shared memory.
    w00 = _matrix(banded_ptr, 0, C_IN, C_OUT)
    w01 = _matrix(banded_ptr, 1, C_IN, C_OUT)
    w02 = _matrix(banded_ptr, 2, C_IN, C_OUT)
    w10 = _matrix(banded_ptr, 3, C_IN, C_OUT)
    w11 = _matrix(banded_ptr, 4, C_IN, C_OUT)
    w12 = _matrix(banded_ptr, 5, C_IN, C_OUT)
    w20 = _matrix(banded_ptr, 6, C_IN, C_OUT)
    w21 = _matrix(banded_ptr, 7, C_IN, C_OUT)
    w22 = _matrix(banded_ptr, 8, C_IN, C_OUT)

    start = x_block * span
    n_planes = tl.minimum(span, n_x - start)
    # Of the planes x - 1 and x, which are not complete.
    before = tl.zeros([BLOCK_Y * PAIRS, 2 * C_OUT], tl.float32)
    here = tl.zeros([BLOCK_Y * PAIRS, 2 * C_OUT], tl.float32)
    # A plane more at either end, whose voxels reach into the first and the last result.
    for plane in range(-1, n_planes + 1):
        x = start + plane
        a = _voxels(features_ptr, sample, x, y, z - 1, -1, n_x, n_y, n_z, 0, C_IN, C_IN, 4)
        before = tl.dot(a, w20, before)
        here = tl.dot(a, w10, here)
        after = tl.dot(a, w00)
        a = _voxels(features_ptr, sample, x, y, z - 1, 0, n_x, n_y, n_z, 0, C_IN, C_IN, 4)
        before = tl.dot(a, w21, before)
        here = tl.dot(a, w11, here)
        after = tl.dot(a, w01, after)
        a = _voxels(features_ptr, sample, x, y, z - 1, 1, n_x, n_y, n_z, 0, C_IN, C_IN, 4)
        before = tl.dot(a, w22, before)
        here = tl.dot(a, w12, here)
        after = tl.dot(a, w02, after)
        if plane > 0:
            _store(result_ptr, before, bias, sample, x - 1, y, z, n_x, n_y, n_z, C_OUT)
        before = here
        here = after


@_kernel
def taps_kernel(
    features_ptr,
    banded_ptr,
    bias_ptr,
    result_ptr,
    n_x,
    n_y,
    n_z,
    n_z_blocks,
    n_y_blocks,
    n_x_blocks,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """Convolve a block, tap by tap."""
    z_block, y_block, x_block, sample = _place(n_z_blocks, n_y_blocks, n_x_blocks, tl.program_id(0))
    rows = tl.arange(0, BLOCK_X * BLOCK_Y * PAIRS)[:, None]
    x = rows // (BLOCK_Y * PAIRS)
    y = y_block * BLOCK_Y + (rows // PAIRS) % BLOCK_Y
    z = 2 * (z_block * PAIRS + rows % PAIRS)
    # Planes below each other are further rows.
    start = x_block * BLOCK_X
    sums = tl.zeros([BLOCK_X * BLOCK_Y * PAIRS, 2 * C_OUT], tl.float32)
    for tap in range(0, 9):
        x_in = start + tap // 3 - 1 + x
        y_in = y + (tap % 3 - 1)
        columns = tl.arange(0, 4 * C_IN)[None, :]
        z_in = z - 1 + columns // C_IN
        inside = (x_in >= 0) & (x_in < n_x) & (y_in >= 0) & (y_in < n_y)
        mask = inside & (z_in >= 0) & (z_in < n_z)
        origin = (sample * n_x + start + tap // 3 - 1) * n_y * n_z * C_IN
        offsets = ((x * n_y + y_in) * n_z + z - 1) * C_IN + columns
        a = tl.load(features_ptr + origin + offsets, mask=mask, other=0.0)
        sums = tl.dot(a, _matrix(banded_ptr, tap, C_IN, C_OUT), sums)
    columns = tl.arange(0, 2 * C_OUT)[None, :]
    mask = (start + x < n_x) & (y < n_y) & (z + columns // C_OUT < n_z)
    origin = (sample * n_x + start) * n_y * n_z * C_OUT
    pointers = result_ptr + origin + (((x * n_y + y) * n_z + z) * C_OUT + columns)
    result = sums + _bias(bias_ptr, C_OUT, HAS_BIAS)
    tl.store(pointers, result.to(result_ptr.dtype.element_ty), mask=mask)


@_kernel
def weight_gradient_kernel(
    features_ptr,
    gradient_ptr,
    partial_ptr,
    n_x,
    n_y,
    n_z,
    n_z_blocks,
    n_y_blocks,
    n_x_blocks,
    span,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """Write products of 16 channels of the features with 16 of the gradient, over a block.

    `partial` is (blocks, C_in / 16, C_out / 16, 9, 4 x 16, 2 x 16): the taps along X and Y, then
    four voxels of the features by two of the gradient.
    """
    n_in: tl.constexpr = C_IN // 16
    n_out: tl.constexpr = C_OUT // 16
    program = tl.program_id(0)
    block = program // (n_in * n_out)
    z_block, y_block, x_block, sample = _place(n_z_blocks, n_y_blocks, n_x_blocks, block)
    c_in = ((program // n_out) % n_in) * 16
    c_out = (program % n_out) * 16
    rows = tl.arange(0, BLOCK_Y * PAIRS)[:, None]
    y = y_block * BLOCK_Y + rows // PAIRS
    z = 2 * (z_block * PAIRS + rows % PAIRS)
    # Nine names, since Triton has no list of tensors in registers.
    s00 = tl.zeros([64, 32], tl.float32)
    s01 = tl.zeros([64, 32], tl.float32)
    s02 = tl.zeros([64, 32], tl.float32)
    s10 = tl.zeros([64, 32], tl.float32)
    s11 = tl.zeros([64, 32], tl.float32)
    s12 = tl.zeros([64, 32], tl.float32)
    s20 = tl.zeros([64, 32], tl.float32)
    s21 = tl.zeros([64, 32], tl.float32)
    s22 = tl.zeros([64, 32], tl.float32)
    start = x_block * span
    for plane in range(0, tl.minimum(span, n_x - start)):
        x = start + plane
        # A plane of features counts for three planes of the result.
        g0 = _voxels(gradient_ptr, sample, x + 1, y, z, 0, n_x, n_y, n_z, c_out, C_OUT, 16, 2)
        g1 = _voxels(gradient_ptr, sample, x, y, z, 0, n_x, n_y, n_z, c_out, C_OUT, 16, 2)
        g2 = _voxels(gradient_ptr, sample, x - 1, y, z, 0, n_x, n_y, n_z, c_out, C_OUT, 16, 2)
        a = _voxels(features_ptr, sample, x, y, z - 1, -1, n_x, n_y, n_z, c_in, C_IN, 16, 4)
        a = tl.trans(a)
        s00 = tl.dot(a, g0, s00)
        s10 = tl.dot(a, g1, s10)
        s20 = tl.dot(a, g2, s20)
        a = _voxels(features_ptr, sample, x, y, z - 1, 0, n_x, n_y, n_z, c_in, C_IN, 16, 4)
        a = tl.trans(a)
        s01 = tl.dot(a, g0, s01)
        s11 = tl.dot(a, g1, s11)
        s21 = tl.dot(a, g2, s21)
        a = _voxels(features_ptr, sample, x, y, z - 1, 1, n_x, n_y, n_z, c_in, C_IN, 16, 4)
        a = tl.trans(a)
        s02 = tl.dot(a, g0, s02)
        s12 = tl.dot(a, g1, s12)
        s22 = tl.dot(a, g2, s22)

    pointers = partial_ptr + program.to(tl.int64) * (9 * 64 * 32)
    pointers += tl.arange(0, 64)[:, None] * 32 + tl.arange(0, 32)[None, :]
    tl.store(pointers, s00)
    tl.store(pointers + 1 * 64 * 32, s01)
    tl.store(pointers + 2 * 64 * 32, s02)
    tl.store(pointers + 3 * 64 * 32, s10)
    tl.store(pointers + 4 * 64 * 32, s11)
    tl.store(pointers + 5 * 64 * 32, s12)
    tl.store(pointers + 6 * 64 * 32, s20)
    tl.store(pointers + 7 * 64 * 32, s21)
    tl.store(pointers + 8 * 64 * 32, s22)
