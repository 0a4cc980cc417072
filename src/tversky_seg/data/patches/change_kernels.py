"""Triton kernels of the augmentation: a patch moved in space, and a channel's values changed.

Each reads and writes a voxel once, where the operations of torch that do the same take dozens of
passes. `spatial` and `intensity` define what they compute; on a CPU only these are used.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from functools import partial

import triton
import triton.language as tl

# Sides of the box differ from patch to patch: no kernel of its own for those divisible by 16.
_kernel = partial(triton.jit, do_not_specialize=["box_x", "box_y", "box_z"])


@triton.jit
def _nearest(place, n):
    """Round a coordinate to the index of a voxel, -1 or n outside, as `spatial._nearest` does."""
    return tl.minimum(tl.maximum(place + 1.5, 0.0), n + 1.5).to(tl.int32) - 1


@triton.jit
def _sum_of_rows(by_x, by_y, by_z, x, y, z, exists):
    """Add up the shares of a coordinate, in the order of the CPU: labels come from equal voxels."""
    place = tl.load(by_x + x, mask=exists, other=0) + tl.load(by_y + y, mask=exists, other=0)
    return place + tl.load(by_z + z, mask=exists, other=0)


@triton.jit
def _is_inside(a, b, c, n_a, n_b, n_c):
    """Tell which voxels lie in a box."""
    return (a >= 0) & (b >= 0) & (c >= 0) & (a < n_a) & (b < n_b) & (c < n_c)


@_kernel
def move_kernel(
    image,
    scale,
    labels,
    by_x,
    by_y,
    by_z,
    displacement,
    moved,
    moved_labels,
    brain,
    box_x,
    box_y,
    box_z,
    size_x,
    size_y,
    size_z,
    n_channels,
    n_classes,
    IS_ELASTIC: tl.constexpr,
    WITH_LABELS: tl.constexpr,
    SIDE: tl.constexpr,
):
    """Resample an image (C, box) linearly and scale it; labels (K, box) by the nearest voxel.

    Where a voxel comes from is the sum of three rows for each axis, as in `spatial.Places`. `brain`
    becomes 1 where any channel is not 0. A program computes a cube: however the patch is turned,
    its voxels come from a compact part of the box, and share what is read from memory.
    """
    BLOCK: tl.constexpr = SIDE * SIDE * SIDE
    n_voxels = size_x * size_y * size_z
    n_in_box = box_x * box_y * box_z
    cube = tl.program_id(0)
    cubes_y = tl.cdiv(size_y, SIDE)
    cubes_z = tl.cdiv(size_z, SIDE)
    in_cube = tl.arange(0, BLOCK)
    x = cube // (cubes_y * cubes_z) * SIDE + in_cube // (SIDE * SIDE)
    y = cube // cubes_z % cubes_y * SIDE + in_cube // SIDE % SIDE
    z = cube % cubes_z * SIDE + in_cube % SIDE
    exists = (x < size_x) & (y < size_y) & (z < size_z)
    voxel = (x * size_y + y) * size_z + z
    place_x = _sum_of_rows(by_x, by_y, by_z, x, y, z, exists)
    place_y = _sum_of_rows(by_x + size_x, by_y + size_y, by_z + size_z, x, y, z, exists)
    by_x += 2 * size_x
    by_y += 2 * size_y
    by_z += 2 * size_z
    place_z = _sum_of_rows(by_x, by_y, by_z, x, y, z, exists)
    if IS_ELASTIC:
        place_x += tl.load(displacement + voxel, mask=exists, other=0)
        place_y += tl.load(displacement + n_voxels + voxel, mask=exists, other=0)
        place_z += tl.load(displacement + 2 * n_voxels + voxel, mask=exists, other=0)

    low_x = tl.floor(place_x)
    low_y = tl.floor(place_y)
    low_z = tl.floor(place_z)
    share_x = place_x - low_x
    share_y = place_y - low_y
    share_z = place_z - low_z
    is_brain = tl.zeros((BLOCK,), tl.int32)
    for channel in range(n_channels):
        total = tl.zeros((BLOCK,), tl.float32)
        for corner in tl.static_range(8):
            # The corners of the voxel that the place lies in; those beyond the box are 0.
            a = low_x.to(tl.int32) + corner // 4
            b = low_y.to(tl.int32) + corner // 2 % 2
            c = low_z.to(tl.int32) + corner % 2
            weight = share_x if corner // 4 == 1 else 1 - share_x
            weight *= share_y if corner // 2 % 2 == 1 else 1 - share_y
            weight *= share_z if corner % 2 == 1 else 1 - share_z
            is_read = exists & (weight != 0) & _is_inside(a, b, c, box_x, box_y, box_z)
            value = tl.load(image + (a * box_y + b) * box_z + c, mask=is_read, other=0)
            total += weight * value.to(tl.float32)
        total *= tl.load(scale + channel)
        is_brain = is_brain | (total != 0).to(tl.int32)
        tl.store(moved + voxel, total, mask=exists)
        image += n_in_box
        moved += n_voxels
    tl.store(brain + voxel, is_brain.to(tl.uint8), mask=exists)

    if WITH_LABELS:
        a = _nearest(place_x, box_x)
        b = _nearest(place_y, box_y)
        c = _nearest(place_z, box_z)
        is_read = exists & _is_inside(a, b, c, box_x, box_y, box_z)
        for _ in range(n_classes):
            label = tl.load(labels + (a * box_y + b) * box_z + c, mask=is_read, other=0)
            tl.store(moved_labels + voxel, label, mask=exists)
            labels += n_in_box
            moved_labels += n_voxels


@triton.jit
def values_kernel(
    channel,
    brain,
    low,
    high,
    ranks,
    quantiles,
    n_voxels,
    gamma,
    contrast,
    scale,
    shift,
    noise_sd,
    HAS_RANGE: tl.constexpr,
    HAS_NOISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Change the values of a channel in place: gamma, S-curve, scale, shift, noise; 0 outside.

    Args of changes that were not drawn: gamma 1, contrast 0, scale 1, shift 0, HAS_NOISE False.
    HAS_RANGE: gamma or contrast was drawn; low and high then are the smallest and largest value.
    """
    voxel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = voxel < n_voxels
    value = tl.load(channel + voxel, mask=exists, other=0)
    if HAS_RANGE:
        smallest = tl.load(low)
        # A constant channel has no width: the smallest one avoids 0 / 0.
        width = tl.maximum(tl.load(high) - smallest, 1e-20)
        value -= smallest
        if gamma != 1:
            # width (v / width)^g = exp(g log v + (1 - g) log width)
            logarithm = gamma * tl.log(value) + (1 - gamma) * tl.log(width)
            value = tl.exp(logarithm)
        # t + c t (1 - t) (1 - 2 t) = t ((2 c t - 3 c) t + 1 + c), all of it times the width
        t = value / width
        value = t * ((2 * contrast * t - 3 * contrast) * t + 1 + contrast) * width + smallest
    value = value * scale + shift
    if HAS_NOISE:
        rank = tl.load(ranks + voxel, mask=exists, other=0)
        value += noise_sd * tl.load(quantiles + rank.to(tl.int32), mask=exists, other=0)
    is_brain = tl.load(brain + voxel, mask=exists, other=0)
    tl.store(channel + voxel, tl.where(is_brain != 0, value, 0.0), mask=exists)
