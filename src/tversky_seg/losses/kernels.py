# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Triton kernels of the losses: sums over voxels, and gradients by the logits.

A row holds the voxels of one sample and class. Each program takes every n-th block of one row. It
writes its partial sums, which are then added in a fixed order: equal inputs give equal bits. Voxels
are read once, as they lie in memory, and widened to float32 in registers.

Arguments of all kernels: logits x, target g, weight w and gradient d with their steps in memory
between samples, classes and voxels; n_programs per row; BLOCK voxels that a program holds at once.
"""

import triton
import triton.language as tl

COUNTS = ("n_programs", "n_classes", "n_rows", "n_ratios", "next_sum")
"""Numbers for whose values no kernel is compiled anew."""


@triton.jit
def _row_and_program(n_programs):
    """Split the number of a program into its row and its place there; 64 bits for large rows."""
    number = tl.program_id(0).to(tl.int64)
    return number // n_programs, number % n_programs


@triton.jit
def _read(row, stride, start, BLOCK: tl.constexpr, inside):
    """Read a block of a row as float32; 0 beyond its end."""
    lane = tl.arange(0, BLOCK)
    return tl.load(row + start * stride + lane * stride, mask=inside, other=0).to(tl.float32)


@triton.jit(do_not_specialize=COUNTS)
def soft_sums(
    logits,
    target,
    weight,
    partials,
    n_voxels,
    n_programs,
    n_classes,
    x_sample,
    x_class,
    x_voxel,
    g_sample,
    g_class,
    g_voxel,
    w_sample,
    w_class,
    w_voxel,
    next_sum,
    WEIGHTED: tl.constexpr,
    SQUARED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add up w p g, w p and w g (SQUARED: w p g, w p^2 and w g^2): partials [sum, row, program]."""
    row, program = _row_and_program(n_programs)
    x_row = logits + row // n_classes * x_sample + row % n_classes * x_class
    g_row = target + row // n_classes * g_sample + row % n_classes * g_class
    w_row = weight + row // n_classes * w_sample + row % n_classes * w_class
    both = tl.zeros((BLOCK,), tl.float32)
    predicted = tl.zeros((BLOCK,), tl.float32)
    true = tl.zeros((BLOCK,), tl.float32)
    for block in range(program, tl.cdiv(n_voxels, BLOCK), n_programs):
        start = block * BLOCK
        inside = start + tl.arange(0, BLOCK) < n_voxels
        x = _read(x_row, x_voxel, start, BLOCK, inside)
        g = _read(g_row, g_voxel, start, BLOCK, inside)
        # Beyond the end, logits of 0 would count as p = 0.5.
        p = tl.where(inside, tl.sigmoid(x), 0.0)
        wp = p
        wg = g
        if WEIGHTED:
            w = _read(w_row, w_voxel, start, BLOCK, inside)
            wp = w * p
            wg = w * g
        both += wp * g
        if SQUARED:
            predicted += wp * p
            true += wg * g
        else:
            predicted += wp
            true += wg
    place = partials + row * n_programs + program
    tl.store(place, tl.sum(both))
    tl.store(place + next_sum, tl.sum(predicted))
    tl.store(place + 2 * next_sum, tl.sum(true))


@triton.jit(do_not_specialize=COUNTS)
def tversky_loss(
    partials,
    loss,
    slopes,
    n_rows,
    n_programs,
    next_sum,
    n_ratios,
    alpha,
    beta,
    smooth,
    exponent,
    IS_POWER: tl.constexpr,
    LANES: tl.constexpr,
):
    """Compute the mean over ratios of (1 - index)^exponent, and its slopes by two sums of each.

    Ratio r has the rows r, r + n_ratios ... A single program: all this is a few thousand numbers.
    """
    lane = tl.arange(0, LANES)
    inside = lane < n_programs
    # float64: false positives are the difference of two large sums.
    total = tl.zeros((1,), tl.float64)
    for ratio in range(n_ratios):
        both = tl.zeros((LANES,), tl.float64)
        predicted = tl.zeros((LANES,), tl.float64)
        true = tl.zeros((LANES,), tl.float64)
        for row in range(ratio, n_rows, n_ratios):
            place = partials + row * n_programs + lane
            both += tl.load(place, mask=inside, other=0)
            predicted += tl.load(place + next_sum, mask=inside, other=0)
            true += tl.load(place + 2 * next_sum, mask=inside, other=0)
        tp = tl.sum(both)
        fp = tl.sum(predicted) - tp
        fn = tl.sum(true) - tp
        # As metrics.overlap.tversky_index has it.
        denominator = tp + alpha * fp + beta * fn + smooth
        shortfall = 1 - (tp + smooth) / denominator
        # The denominator is (1 - alpha - beta) tp + alpha sum w p + beta sum w g + smooth.
        by_both = -(1 - (1 - shortfall) * (1 - alpha - beta)) / denominator
        by_predicted = (1 - shortfall) * alpha / denominator
        if IS_POWER:
            # The slope of a root is infinite at 0, as in FocalTverskyLoss.
            limited = tl.where(shortfall < 1e-7, 1e-7, shortfall)  # NaN stays NaN
            power = tl.exp(exponent * tl.log(limited))
            slope = tl.where(shortfall >= 1e-7, exponent * power / limited, 0.0)
            total += power
            by_both *= slope
            by_predicted *= slope
        else:
            total += shortfall
        tl.store(slopes + ratio, by_both / n_ratios)
        tl.store(slopes + n_ratios + ratio, by_predicted / n_ratios)
    tl.store(loss + tl.arange(0, 1), total / n_ratios)


@triton.jit(do_not_specialize=COUNTS)
def soft_sums_gradient(
    logits,
    target,
    weight,
    gradient,
    slopes,
    scale,
    n_voxels,
    n_programs,
    n_classes,
    x_sample,
    x_class,
    x_voxel,
    g_sample,
    g_class,
    g_voxel,
    w_sample,
    w_class,
    w_voxel,
    d_sample,
    d_class,
    d_voxel,
    n_ratios,
    WEIGHTED: tl.constexpr,
    SCALED: tl.constexpr,
    SQUARED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write w (a g + b) p (1 - p), SQUARED w (a g + 2 b p) p (1 - p), with slopes a and b."""
    row, program = _row_and_program(n_programs)
    x_row = logits + row // n_classes * x_sample + row % n_classes * x_class
    g_row = target + row // n_classes * g_sample + row % n_classes * g_class
    w_row = weight + row // n_classes * w_sample + row % n_classes * w_class
    d_row = gradient + row // n_classes * d_sample + row % n_classes * d_class
    ratio = row % n_ratios  # its own, or that of its class
    a = tl.load(slopes + ratio)
    b = tl.load(slopes + n_ratios + ratio)
    if SCALED:
        factor = tl.load(scale)
        a *= factor
        b *= factor
    for block in range(program, tl.cdiv(n_voxels, BLOCK), n_programs):
        start = block * BLOCK
        inside = start + tl.arange(0, BLOCK) < n_voxels
        p = tl.sigmoid(_read(x_row, x_voxel, start, BLOCK, inside))
        g = _read(g_row, g_voxel, start, BLOCK, inside)
        # The slope of w p g by p is w g, that of w p is w, that of w p^2 is 2 w p.
        slope = a * g + 2 * b * p if SQUARED else a * g + b
        if WEIGHTED:
            slope *= _read(w_row, w_voxel, start, BLOCK, inside)
        place = d_row + start * d_voxel + tl.arange(0, BLOCK) * d_voxel
        tl.store(place, slope * p * (1 - p), mask=inside)


@triton.jit
def _log_one_plus(u):
    """Compute log(1 + u) for u in [0, 1] without loss where u is small."""
    one_plus = 1 + u
    added = one_plus - 1  # u as far as it entered the sum
    return tl.where(added == 0, u, tl.log(one_plus) * (u / tl.where(added == 0, 1.0, added)))


@triton.jit
def _cross_entropy(x, g):
    """Compute -g log p - (1 - g) log(1 - p) as relu(x) + log(1 + exp(-|x|)) - g x."""
    return tl.maximum(x, 0.0) + _log_one_plus(tl.exp(-tl.abs(x))) - g * x


@triton.jit
def _miss_to_the_gamma(z, gamma, POWER: tl.constexpr):
    """Compute sigmoid(z)^gamma; POWER is gamma where it is 0, 1 or 2, else -1."""
    if POWER == 0:
        result = tl.zeros_like(z) + 1.0
    elif POWER == 1:
        result = tl.sigmoid(z)
    elif POWER == 2:
        miss = tl.sigmoid(z)
        result = miss * miss
    else:
        log_miss = tl.minimum(z, 0.0) - _log_one_plus(tl.exp(-tl.abs(z)))
        result = tl.exp(gamma * log_miss)
    return result


@triton.jit(do_not_specialize=COUNTS)
def focal_sums(
    logits,
    target,
    weight,
    partials,
    n_voxels,
    n_programs,
    n_classes,
    x_sample,
    x_class,
    x_voxel,
    g_sample,
    g_class,
    g_voxel,
    w_sample,
    w_class,
    w_voxel,
    lesion,
    background,
    gamma,
    share,
    POWER: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add up the focal loss: partials [row, program], times `share`."""
    row, program = _row_and_program(n_programs)
    x_row = logits + row // n_classes * x_sample + row % n_classes * x_class
    g_row = target + row // n_classes * g_sample + row % n_classes * g_class
    w_row = weight + row // n_classes * w_sample + row % n_classes * w_class
    total = tl.zeros((BLOCK,), tl.float32)
    for block in range(program, tl.cdiv(n_voxels, BLOCK), n_programs):
        start = block * BLOCK
        inside = start + tl.arange(0, BLOCK) < n_voxels
        x = _read(x_row, x_voxel, start, BLOCK, inside)
        g = _read(g_row, g_voxel, start, BLOCK, inside)
        factor = _miss_to_the_gamma((1 - 2 * g) * x, gamma, POWER)
        factor *= background + (lesion - background) * g
        if WEIGHTED:
            factor *= _read(w_row, w_voxel, start, BLOCK, inside)
        total += tl.where(inside, factor * _cross_entropy(x, g), 0.0)
    tl.store(partials + row * n_programs + program, share * tl.sum(total))


@triton.jit(do_not_specialize=COUNTS)
def focal_gradient(
    logits,
    target,
    weight,
    gradient,
    scale,
    n_voxels,
    n_programs,
    n_classes,
    x_sample,
    x_class,
    x_voxel,
    g_sample,
    g_class,
    g_voxel,
    w_sample,
    w_class,
    w_voxel,
    d_sample,
    d_class,
    d_voxel,
    lesion,
    background,
    gamma,
    share,
    POWER: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the slopes of the focal loss of each voxel by its logit, times `share` and `scale`."""
    row, program = _row_and_program(n_programs)
    x_row = logits + row // n_classes * x_sample + row % n_classes * x_class
    g_row = target + row // n_classes * g_sample + row % n_classes * g_class
    w_row = weight + row // n_classes * w_sample + row % n_classes * w_class
    d_row = gradient + row // n_classes * d_sample + row % n_classes * d_class
    of_loss = share * tl.load(scale)
    for block in range(program, tl.cdiv(n_voxels, BLOCK), n_programs):
        start = block * BLOCK
        inside = start + tl.arange(0, BLOCK) < n_voxels
        x = _read(x_row, x_voxel, start, BLOCK, inside)
        g = _read(g_row, g_voxel, start, BLOCK, inside)
        sign = 1 - 2 * g
        factor = _miss_to_the_gamma(sign * x, gamma, POWER)
        factor *= of_loss * (background + (lesion - background) * g)
        if WEIGHTED:
            factor *= _read(w_row, w_voxel, start, BLOCK, inside)
        # d m / d x is sign m (1 - m), d cross-entropy / d x is p - g.
        fading = gamma * (1 - tl.sigmoid(sign * x)) * sign * _cross_entropy(x, g)
        place = d_row + start * d_voxel + tl.arange(0, BLOCK) * d_voxel
        tl.store(place, factor * (fading + tl.sigmoid(x) - g), mask=inside)
