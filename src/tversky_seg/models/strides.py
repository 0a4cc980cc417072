"""Strides and kernels of networks whose voxels are longer along one axis, as thick slices are."""

from collections.abc import Sequence

Triple = tuple[int, int, int]

THICK = 2.0
"""A voxel is thick along an axis where it is this many times as long as along its shortest."""


def strides_for(spacing_mm: Sequence[float], *, n_steps: int) -> list[Triple]:
    """Choose strides that bring voxels near to cubes: none along an axis while voxels are thick.

    At each step the axes along which the voxel is less than twice as long as along its shortest
    are halved: the rule of nnU-Net (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z), without
    its limit by the size of the patch. Voxels of 0.9 x 0.9 x 7 mm give (2, 2, 1), (2, 2, 1),
    (2, 2, 2): 3.6 x 3.6 x 7 mm are near enough to a cube.

    Args:
        spacing_mm: Voxel size of the image, three positive numbers.
        n_steps: Number of halvings, one fewer than there are levels.
    """
    size_mm = list(spacing_mm)
    strides = []
    for _ in range(n_steps):
        limit_mm = THICK * min(size_mm)
        x, y, z = (2 if size < limit_mm else 1 for size in size_mm)
        strides.append((x, y, z))
        size_mm = [size * stride for size, stride in zip(size_mm, (x, y, z), strict=True)]
    return strides


def kernels_for(strides: Sequence[Triple]) -> list[Triple]:
    """Choose the kernel of each level: 1 along an axis before its first halving, otherwise 3.

    Across thick slices a kernel of 3 reaches farther than the anatomy that a level looks at. The
    lowest level has 3 along every axis, so that slices are never blind to each other.
    """
    kernels = []
    for level in range(len(strides)):
        # The largest step along each axis up to this level: above 1 once it was halved.
        x, y, z = map(max, zip(*strides[: level + 1], strict=True))
        kernel = (
            3 if x > 1 else 1,
            3 if y > 1 else 1,
            3 if z > 1 else 1,
        )
        kernels.append(kernel)
    return [*kernels, (3, 3, 3)]


def resolve_strides(
    strides: str | Sequence[Sequence[int]] | None,
    *,
    n_steps: int,
    spacing_mm: Sequence[float] | None,
) -> list[Triple]:
    """Return the strides that a setting means.

    Args:
        strides: One [x, y, z] of 1 and 2 a step; "auto": those of `strides_for`; None: 2 along
            every axis.
        n_steps: Number of steps.
        spacing_mm: Voxel size, for "auto".

    Raises:
        ValueError: Another number of steps, another stride, or "auto" without a voxel size.
    """
    if strides is None:
        return [(2, 2, 2)] * n_steps
    if isinstance(strides, str):
        if strides != "auto" or spacing_mm is None:
            raise ValueError(
                f"strides must be a list, null, or auto with spacing_mm, "
                f"got strides={strides}, spacing_mm={spacing_mm}"
            )
        return strides_for(spacing_mm, n_steps=n_steps)
    resolved = [_triple(stride) for stride in strides]
    if len(resolved) != n_steps:
        raise ValueError(f"strides must be {n_steps}, one a halving, got {len(resolved)}")
    return resolved


def total_stride(strides: Sequence[Triple]) -> Triple:
    """Multiply strides: the sides of an image must be multiples of this."""
    x, y, z = 1, 1, 1
    for stride in strides:
        x, y, z = x * stride[0], y * stride[1], z * stride[2]
    return x, y, z


def _triple(stride: Sequence[int]) -> Triple:
    if isinstance(stride, int) or len(stride) != 3 or not set(stride) <= {1, 2}:
        raise ValueError(f"strides must be lists of three numbers, 1 or 2, got {stride}")
    x, y, z = stride
    return x, y, z
