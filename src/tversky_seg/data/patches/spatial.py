"""Patches moved in space, on any device: turned by whole voxels, or resampled by a smooth map."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tversky_seg.data.grids import Shape

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Turn:
    """Mirroring and turns by whole quarters: axis j of the result is axis `axes[j]` of the input.

    Attributes:
        axes: A permutation of 0, 1, 2.
        mirrored: Whether axis j of the result runs backwards.
    """

    axes: tuple[int, ...] = (0, 1, 2)
    mirrored: tuple[bool, ...] = (False, False, False)

    def then_mirror(self, axis: int) -> "Turn":
        """Mirror one axis after this turn."""
        mirrored = list(self.mirrored)
        mirrored[axis] = not mirrored[axis]
        return Turn(self.axes, tuple(mirrored))

    def then_turn(self, plane: tuple[int, int], n_quarters: int) -> "Turn":
        """Turn by `n_quarters` times 90 degrees from the first axis of the plane to the second."""
        turn = self
        for _ in range(n_quarters % 4):
            turn = turn.then_mirror(plane[1])._then_swap(*plane)
        return turn

    def _then_swap(self, a: int, b: int) -> "Turn":
        axes = list(self.axes)
        axes[a], axes[b] = axes[b], axes[a]
        mirrored = list(self.mirrored)
        mirrored[a], mirrored[b] = mirrored[b], mirrored[a]
        return Turn(tuple(axes), tuple(mirrored))

    @property
    def matrix(self) -> NDArray[np.float64]:
        """(3, 3): maps an offset from the centre of the result to the offset in the input."""
        matrix = np.zeros((3, 3))
        matrix[list(self.axes), range(3)] = np.where(self.mirrored, -1, 1)
        return matrix

    def apply(self, values: Tensor) -> Tensor:
        """Turn the last three of four axes: a contiguous copy, without a turn the tensor itself."""
        if self == Turn():
            return values
        # + 1, because the channels stay the first axis.
        x, y, z = self.axes
        moved = values.permute(0, x + 1, y + 1, z + 1)
        backwards = np.flatnonzero(self.mirrored) + 1
        if len(backwards):
            moved = moved.flip(backwards.tolist())
        return moved.contiguous()


@dataclass(frozen=True, eq=False)
class Deformation:
    """Smooth map of a patch.

    A voxel comes from centre + matrix (voxel - centre + displacement(voxel)).

    Attributes:
        matrix: (3, 3) in voxels, about the centre of the patch.
        displacement: (3, nx, ny, nz) coefficients, in voxels, of the `spline_basis`; the largest of
            them bounds the displacement. None: the map is linear.
        knot_distance: Distance of the spline's knots along each axis, in voxels.
    """

    matrix: NDArray[np.float64]
    displacement: NDArray[np.float64] | None = None
    knot_distance: Sequence[float] = (1.0, 1.0, 1.0)

    def box(self, start: Shape, size: Shape, shape: Shape) -> tuple[Shape, Shape]:
        """Find the part of a volume that a patch comes from: its first voxel and its size.

        Args:
            start: First voxel of the patch.
            size: Sides of the patch.
            shape: Shape of the volume. The box ends at its border; beyond lies background.
        """
        half = (np.array(size) - 1) / 2
        reach = half
        if self.displacement is not None:
            # A B-spline nowhere exceeds its largest coefficient.
            reach = half + np.abs(self.displacement).max(axis=(1, 2, 3))
        reach = np.abs(self.matrix) @ reach
        centre = start + half
        first = np.floor(centre - reach)
        end = np.ceil(centre + reach) + 1
        # At least one voxel, even where all of the patch lies outside.
        last_voxel = np.array(shape) - 1
        low = np.clip(first, 0, last_voxel).astype(int)
        high = np.clip(end, low + 1, shape).astype(int)
        return as_shape(low), as_shape(high - low)

    def coordinates(
        self,
        size: Shape,
        *,
        offset: Sequence[int] = (0, 0, 0),
        device: torch.device | None = None,
    ) -> Tensor:
        """Compute the place in the box that each voxel of a patch comes from.

        Args:
            size: Sides of the patch.
            offset: First voxel of the box, counted from the first voxel of the patch.
            device: Device to compute on.

        Returns:
            (3, X, Y, Z) float32 voxel coordinates in the box.
        """
        x = _offsets_from_centre(size[0], device)[:, None]
        y = _offsets_from_centre(size[1], device)
        z = _offsets_from_centre(size[2], device)
        centre = (np.array(size) - 1) / 2
        centre_in_box = (centre - offset).tolist()
        places = torch.empty((3, *size), device=device)
        for axis, row in enumerate(self.matrix.tolist()):
            by_x, by_y, by_z = row
            # (X, Y) first: one pass over the whole patch for each axis, and no copy of it
            in_plane = (by_x * x + centre_in_box[axis]) + by_y * y
            torch.add(in_plane[:, :, None], by_z * z, out=places[axis])
        if self.displacement is not None:
            # matrix (offset + displacement) = matrix offset + matrix displacement
            displacement = np.tensordot(self.matrix, self.displacement, 1)
            coefficients = copy_to_device(displacement.astype(np.float32), places.device)
            bases = []
            for n_voxels, distance in zip(size, self.knot_distance, strict=True):
                bases.append(spline_basis(n_voxels, distance))
            places += separable(coefficients, bases)
        return places


def _offsets_from_centre(n_voxels: int, device: torch.device | None) -> Tensor:
    """Compute the offset of each voxel of an axis from the centre of the patch."""
    index = torch.arange(n_voxels, dtype=torch.float32, device=device)
    return index - (n_voxels - 1) / 2


def copy_to_device(values: NDArray[np.float32], device: torch.device) -> Tensor:
    """Make a tensor of an array, on a device.

    A copy from ordinary memory to a GPU waits for all work that is queued there; one from
    page-locked memory does not.
    """
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor


def separable(values: Tensor, matrices: Sequence[Matrix]) -> Tensor:
    """Multiply one matrix along each of the last three axes.

    This is a smoothing, a change of resolution, or a field computed from its coefficients.

    Args:
        values: (..., x, y, z).
        matrices: (X, x), (Y, y) and (Z, z).

    Returns:
        (..., X, Y, Z).
    """
    device = values.device
    for_x, for_y, for_z = matrices
    values = values @ copy_to_device(for_z, device).T
    values = copy_to_device(for_y, device) @ values
    # With y and z as one axis, the last product is one of two matrices: (X, x) @ (x, y z).
    product = copy_to_device(for_x, device) @ values.flatten(-2)
    return product.reshape(*values.shape[:-3], len(for_x), *values.shape[-2:])


def spline_basis(n_voxels: int, knot_distance: float) -> Matrix:
    """Evaluate the cubic B-splines with knots `knot_distance` voxels apart.

    Returns:
        (n_voxels, n) values of the n splines that reach the axis; each row sums to 1.
    """
    places = np.arange(n_voxels) / knot_distance
    knots = np.arange(-1, int(places[-1]) + 3)
    x = np.abs(places[:, None] - knots)
    inner = 2 / 3 - x**2 + x**3 / 2
    outer = np.maximum(2 - x, 0) ** 3 / 6
    values = np.where(x < 1, inner, outer)
    return values.astype(np.float32)


def resample_linear(image: Tensor, places: Tensor) -> Tensor:
    """Interpolate an image (C, x, y, z) at voxel coordinates (3, *size): (C, *size), 0 outside."""
    grid = places.new_empty((*places.shape[1:], 3))
    for axis, n in enumerate(image.shape[1:]):
        # grid_sample takes the axes in the order z, y, x, and -1 to 1 from border to border:
        # voxel i of n lies at (2 i + 1) / n - 1.
        of_axis = grid[..., 2 - axis]
        torch.mul(places[axis], 2 / n, out=of_axis)
        of_axis += 1 / n - 1
    sampled = functional.grid_sample(
        image[None], grid[None], padding_mode="zeros", align_corners=False
    )
    return sampled[0]


def resample_nearest(labels: Tensor, places: Tensor) -> Tensor:
    """Take the labels (K, x, y, z), integers, of the nearest voxels: (K, *size), 0 outside."""
    if not labels.any():
        return labels.new_zeros((len(labels), *places.shape[1:]))
    # One voxel of background on each side takes all places outside: clamped to it, they give 0.
    padded = functional.pad(labels, (1,) * 6)
    # Index of the voxel in the flattened array, axis by axis: (x * n_y + y) * n_z + z.
    linear_index = torch.zeros(places.shape[1:], dtype=torch.int32, device=places.device)
    for axis, n in enumerate(padded.shape[1:]):
        # + 1 for the padding and + 0.5 to round, as the conversion to integers cuts off.
        index = (places[axis] + 1.5).clamp_(0, n - 0.5).to(torch.int32)
        linear_index.mul_(n).add_(index)
    picked = padded.flatten(1).index_select(1, linear_index.flatten())
    return picked.reshape(len(labels), *linear_index.shape)


def as_shape(numbers: Sequence[Any] | NDArray[Any]) -> Shape:
    """Convert three numbers to a tuple of int."""
    x, y, z = (int(n) for n in numbers)
    return x, y, z
