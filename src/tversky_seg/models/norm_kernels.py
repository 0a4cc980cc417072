"""Triton kernels of group normalisation with ReLU, forward and backward.

Features are (N, C, V) with V voxels, stored NCV or NVC. A program works through a span of voxels of
one sample and of up to BLOCK_C channels, BLOCK_V voxels at a time. Sums over voxels are taken in
two stages, by span and then over the spans of a group: enough programs to fill a card, no atomics,
and so the same bits in every run.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from functools import partial

import triton
import triton.language as tl

# One compilation for every number of these: they do not decide how memory is read.
_NOT_IN_ADDRESSES = ["n_groups", "n_blocks", "n_samples", "n_channel_units"]
_kernel = partial(triton.jit, do_not_specialize=_NOT_IN_ADDRESSES)


@triton.jit
def _place(n_blocks, n_channels, BLOCK_C: tl.constexpr):
    """Return the sample, the span of voxels and the first channel of this program."""
    n_channel_blocks = tl.cdiv(n_channels, BLOCK_C)
    program = tl.program_id(0)
    rest = program // n_channel_blocks
    # 64 bits: offsets into all features may pass 2^31.
    sample = (rest // n_blocks).to(tl.int64)
    return sample, rest % n_blocks, (program % n_channel_blocks) * BLOCK_C


@triton.jit
def _origin(sample, voxel, channel, n_voxels, n_channels, CHANNELS_LAST: tl.constexpr):
    """Return the offset of a value."""
    if CHANNELS_LAST:
        return (sample * n_voxels + voxel) * n_channels + channel
    return (sample * n_channels + channel) * n_voxels + voxel


@triton.jit
def _offsets(rows, columns, n_voxels, n_channels, CHANNELS_LAST: tl.constexpr):
    """Return the offsets of a tile (voxels, channels) from its first value."""
    if CHANNELS_LAST:
        return rows[:, None] * n_channels + columns[None, :]
    return rows[:, None] + columns[None, :] * n_voxels


@triton.jit
def _row(pointer, indices, mask):
    """Load a row (1, channels) of float32."""
    return tl.load(pointer + indices, mask=mask, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _pair(pointer, indices, mask):
    """Load two rows (1, channels) from an array of pairs."""
    return _row(pointer, indices * 2, mask), _row(pointer, indices * 2 + 1, mask)


@_kernel
def moments_kernel(
    x_ptr,
    partial_ptr,
    n_voxels,
    n_channel_units,
    n_blocks,
    span,
    UNIT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write the mean and the sum of squared deviations of each span and channel.

    Welford's update for each position of the tile, then Chan's combination of the positions: exact
    also where the mean is far larger than the deviation. `partial` is (N, n_blocks, 2, C).
    """
    # As a multiple of a constant, the compiler knows how many channels it can load at once.
    n_channels = n_channel_units * UNIT
    sample, block, channel = _place(n_blocks, n_channels, BLOCK_C)
    rows = tl.arange(0, BLOCK_V)
    columns = tl.arange(0, BLOCK_C)
    start = block * span
    stop = tl.minimum(start + span, n_voxels)
    offsets = _offsets(rows, columns, n_voxels, n_channels, CHANNELS_LAST)
    has_channel = (channel + columns < n_channels)[None, :]

    # A mean of its own for each position of the tile, so that the loop needs no reduction.
    mean = tl.zeros([BLOCK_V, BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_V, BLOCK_C], tl.float32)
    n_seen = 0.0
    for first in range(start, stop, BLOCK_V):
        origin = _origin(sample, first, channel, n_voxels, n_channels, CHANNELS_LAST)
        mask = (first + rows < stop)[:, None] & has_channel
        x = tl.load(x_ptr + origin + offsets, mask=mask, other=0.0).to(tl.float32)
        n_seen += 1.0
        # Beyond the span nothing moves; `n_values` below counts what each position has seen.
        change = tl.where(mask, x - mean, 0.0)
        mean += change * (1.0 / n_seen)
        squares += change * (x - mean)

    n_values = tl.maximum(tl.cdiv(stop - start - rows, BLOCK_V), 0).to(tl.float32)[:, None]
    span_mean = tl.sum(mean * n_values, 0) / (stop - start).to(tl.float32)
    away = mean - span_mean[None, :]
    span_squares = tl.sum(squares + n_values * away * away, 0)
    is_channel = channel + columns < n_channels
    row = partial_ptr + (sample * n_blocks + block) * 2 * n_channels + channel + columns
    tl.store(row, span_mean, mask=is_channel)
    tl.store(row + n_channels, span_squares, mask=is_channel)


@_kernel
def statistics_kernel(
    partial_ptr,
    statistics_ptr,
    n_voxels,
    n_channels,
    n_groups,
    n_blocks,
    span,
    eps,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Combine the spans and channels of one group of one sample.

    `statistics` is (N, G, 2): the mean and 1 / sqrt(variance + eps).
    """
    program = tl.program_id(0)
    sample = (program // n_groups).to(tl.int64)
    depth = n_channels // n_groups
    columns = tl.arange(0, BLOCK_D)
    offsets = (program % n_groups) * depth + columns
    # A float, since the product of the integers may pass 2^31.
    n_values = n_voxels * 1.0 * depth

    weighted = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
    for first in range(0, n_blocks, BLOCK_B):
        blocks = first + tl.arange(0, BLOCK_B)
        mask = (blocks < n_blocks)[:, None] & (columns < depth)[None, :]
        row = (sample * n_blocks + blocks) * 2 * n_channels
        means = tl.load(partial_ptr + row[:, None] + offsets[None, :], mask=mask, other=0.0)
        weighted += means * tl.minimum(n_voxels - blocks * span, span).to(tl.float32)[:, None]
    mean = tl.sum(tl.sum(weighted, 1), 0) / n_values

    # The partial sums once more: only now is the mean known that they deviate from.
    squares = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
    for first in range(0, n_blocks, BLOCK_B):
        blocks = first + tl.arange(0, BLOCK_B)
        mask = (blocks < n_blocks)[:, None] & (columns < depth)[None, :]
        row = (sample * n_blocks + blocks) * 2 * n_channels
        pointers = partial_ptr + row[:, None] + offsets[None, :]
        away = tl.load(pointers, mask=mask, other=0.0) - mean
        inside = tl.load(pointers + n_channels, mask=mask, other=0.0)
        n_of_block = tl.minimum(n_voxels - blocks * span, span).to(tl.float32)[:, None]
        squares += tl.where(mask, inside + n_of_block * away * away, 0.0)
    variance = tl.sum(tl.sum(squares, 1), 0) / n_values

    pointer = statistics_ptr + program * 2
    tl.store(pointer, mean)
    tl.store(pointer + 1, 1.0 / tl.sqrt(variance + eps))


@_kernel
def apply_kernel(
    x_ptr,
    y_ptr,
    weight_ptr,
    bias_ptr,
    statistics_ptr,
    n_voxels,
    n_channel_units,
    n_groups,
    n_blocks,
    span,
    UNIT: tl.constexpr,
    RELU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write (x - mean) scale + bias of each value, and 0 for what is below 0 with RELU."""
    n_channels = n_channel_units * UNIT
    sample, block, channel = _place(n_blocks, n_channels, BLOCK_C)
    rows = tl.arange(0, BLOCK_V)
    columns = tl.arange(0, BLOCK_C)
    start = block * span
    stop = tl.minimum(start + span, n_voxels)
    offsets = _offsets(rows, columns, n_voxels, n_channels, CHANNELS_LAST)
    channels = channel + columns
    is_channel = channels < n_channels
    group = sample * n_groups + channels // (n_channels // n_groups)
    mean, rstd = _pair(statistics_ptr, group, is_channel)
    weight = _row(weight_ptr, channels, is_channel)
    bias = _row(bias_ptr, channels, is_channel)
    scale = weight * rstd

    for first in range(start, stop, BLOCK_V):
        origin = _origin(sample, first, channel, n_voxels, n_channels, CHANNELS_LAST)
        mask = (first + rows < stop)[:, None] & is_channel[None, :]
        x = tl.load(x_ptr + origin + offsets, mask=mask, other=0.0).to(tl.float32)
        y = (x - mean) * scale + bias
        if RELU:
            y = tl.where(y < 0.0, 0.0, y)  # NaN stays NaN
        tl.store(y_ptr + origin + offsets, y, mask=mask)


@_kernel
def gradient_sums_kernel(
    x_ptr,
    dy_ptr,
    weight_ptr,
    bias_ptr,
    statistics_ptr,
    partial_ptr,
    n_voxels,
    n_channel_units,
    n_groups,
    n_blocks,
    span,
    UNIT: tl.constexpr,
    RELU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write the sums of dy and of dy times the normalised x, of each span and channel.

    dy counts where the ReLU let y pass. `partial` is (N, n_blocks, 2, C).
    """
    n_channels = n_channel_units * UNIT
    sample, block, channel = _place(n_blocks, n_channels, BLOCK_C)
    rows = tl.arange(0, BLOCK_V)
    columns = tl.arange(0, BLOCK_C)
    start = block * span
    stop = tl.minimum(start + span, n_voxels)
    offsets = _offsets(rows, columns, n_voxels, n_channels, CHANNELS_LAST)
    channels = channel + columns
    is_channel = channels < n_channels
    group = sample * n_groups + channels // (n_channels // n_groups)
    mean, rstd = _pair(statistics_ptr, group, is_channel)
    weight = _row(weight_ptr, channels, is_channel)
    bias = _row(bias_ptr, channels, is_channel)
    scale = weight * rstd

    sums = tl.zeros([BLOCK_V, BLOCK_C], tl.float32)
    products = tl.zeros([BLOCK_V, BLOCK_C], tl.float32)
    for first in range(start, stop, BLOCK_V):
        origin = _origin(sample, first, channel, n_voxels, n_channels, CHANNELS_LAST)
        mask = (first + rows < stop)[:, None] & is_channel[None, :]
        x = tl.load(x_ptr + origin + offsets, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + origin + offsets, mask=mask, other=0.0).to(tl.float32)
        centred = x - mean
        if RELU:
            # The result's sign is computed again, which is cheaper than to read the result.
            dy = tl.where(centred * scale + bias <= 0.0, 0.0, dy)
        sums += dy
        products += dy * centred

    row = partial_ptr + (sample * n_blocks + block) * 2 * n_channels + channels
    tl.store(row, tl.sum(sums, 0), mask=is_channel)
    # Times rstd here, once instead of for each value.
    tl.store(row + n_channels, tl.sum(products * rstd, 0), mask=is_channel)


@_kernel
def gradient_terms_kernel(
    partial_ptr,
    weight_ptr,
    terms_ptr,
    dweight_ptr,
    dbias_ptr,
    n_samples,
    n_voxels,
    n_channels,
    n_groups,
    n_blocks,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Combine the spans of one group: gradients of weight and bias, and two terms of dx.

    `terms` is (N, G, 2): the means over a group of weight dy and of weight dy x normalised.
    """
    group = tl.program_id(0)
    depth = n_channels // n_groups
    columns = tl.arange(0, BLOCK_D)
    is_channel = columns < depth
    channels = group * depth + columns
    weight = tl.load(weight_ptr + channels, mask=is_channel, other=0.0).to(tl.float32)
    n_values = n_voxels * 1.0 * depth
    dweight = tl.zeros([BLOCK_D], tl.float32)
    dbias = tl.zeros([BLOCK_D], tl.float32)
    # One sample after another: atomics would add in another order in every run.
    for sample in range(0, n_samples):
        sums = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
        products = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
        for first in range(0, n_blocks, BLOCK_B):
            blocks = first + tl.arange(0, BLOCK_B)
            mask = (blocks < n_blocks)[:, None] & is_channel[None, :]
            row = (sample * n_blocks + blocks).to(tl.int64) * 2 * n_channels
            pointers = partial_ptr + row[:, None] + channels[None, :]
            sums += tl.load(pointers, mask=mask, other=0.0)
            products += tl.load(pointers + n_channels, mask=mask, other=0.0)
        dbias_of_sample = tl.sum(sums, 0)
        dweight_of_sample = tl.sum(products, 0)
        dbias += dbias_of_sample
        dweight += dweight_of_sample
        pointer = terms_ptr + (sample * n_groups + group) * 2
        tl.store(pointer, tl.sum(weight * dbias_of_sample, 0) / n_values)
        tl.store(pointer + 1, tl.sum(weight * dweight_of_sample, 0) / n_values)
    tl.store(dweight_ptr + channels, dweight, mask=is_channel)
    tl.store(dbias_ptr + channels, dbias, mask=is_channel)


@_kernel
def gradient_kernel(
    x_ptr,
    dy_ptr,
    dx_ptr,
    weight_ptr,
    bias_ptr,
    statistics_ptr,
    terms_ptr,
    n_voxels,
    n_channel_units,
    n_groups,
    n_blocks,
    span,
    UNIT: tl.constexpr,
    RELU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write dx = rstd (weight dy - first term - x normalised second term) of each value."""
    n_channels = n_channel_units * UNIT
    sample, block, channel = _place(n_blocks, n_channels, BLOCK_C)
    rows = tl.arange(0, BLOCK_V)
    columns = tl.arange(0, BLOCK_C)
    start = block * span
    stop = tl.minimum(start + span, n_voxels)
    offsets = _offsets(rows, columns, n_voxels, n_channels, CHANNELS_LAST)
    channels = channel + columns
    is_channel = channels < n_channels
    group = sample * n_groups + channels // (n_channels // n_groups)
    mean, rstd = _pair(statistics_ptr, group, is_channel)
    weight = _row(weight_ptr, channels, is_channel)
    bias = _row(bias_ptr, channels, is_channel)
    first_term, second_term = _pair(terms_ptr, group, is_channel)
    # What depends on no voxel, before the loop.
    constant = rstd * first_term
    slope = rstd * rstd * second_term
    scale = weight * rstd

    for first in range(start, stop, BLOCK_V):
        origin = _origin(sample, first, channel, n_voxels, n_channels, CHANNELS_LAST)
        mask = (first + rows < stop)[:, None] & is_channel[None, :]
        x = tl.load(x_ptr + origin + offsets, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + origin + offsets, mask=mask, other=0.0).to(tl.float32)
        centred = x - mean
        if RELU:
            dy = tl.where(centred * scale + bias <= 0.0, 0.0, dy)
        tl.store(dx_ptr + origin + offsets, scale * dy - constant - centred * slope, mask=mask)


@_kernel
def running_kernel(
    statistics_ptr,
    mean_ptr,
    variance_ptr,
    n_channels,
    eps,
    momentum,
    correction,
    BLOCK: tl.constexpr,
):
    """Move running means and variances of batch norm towards those of a batch.

    `correction` is n / (n - 1), for the unbiased variance of n values.
    """
    channels = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = channels < n_channels
    mean = tl.load(statistics_ptr + channels * 2, mask=mask, other=0.0)
    rstd = tl.load(statistics_ptr + channels * 2 + 1, mask=mask, other=1.0)
    # The statistics hold 1 / sqrt(variance + eps) alone, of which the variance is taken.
    variance = (1.0 / (rstd * rstd) - eps) * correction
    old_mean = tl.load(mean_ptr + channels, mask=mask, other=0.0)
    old_variance = tl.load(variance_ptr + channels, mask=mask, other=0.0)
    tl.store(mean_ptr + channels, old_mean + momentum * (mean - old_mean), mask=mask)
    new_variance = old_variance + momentum * (variance - old_variance)
    tl.store(variance_ptr + channels, new_variance, mask=mask)
