"""Patches moved in space, on any device: turned by whole voxels, or resampled by a smooth map."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tversky_seg.data.grids import Shape

Matrix = NDArray[np.float32]
Matrices = tuple[Tensor, Tensor, Tensor]
"""Matrices of x, y and z."""


@dataclass(frozen=True)
class Turn:
    """Mirroring and turns by whole quarters: axis j of the result is axis `axes[j]` of the input.

    Attributes:
        axes: A permutation of 0, 1, 2.
        mirrored: Whether axis j of the result runs backwards.
    """

    axes: tuple[int, ...] = (0, 1, 2)
    mirrored: tuple[bool, ...] = (False, False, False)

    def then_mirror(self, axis: int) -> Turn:
        """Mirror one axis after this turn."""
        mirrored = list(self.mirrored)
        mirrored[axis] = not mirrored[axis]
        return Turn(self.axes, tuple(mirrored))

    def then_turn(self, plane: tuple[int, int], n_quarters: int) -> Turn:
        """Turn by `n_quarters` times 90 degrees from the first axis of the plane to the second."""
        turn = self
        for _ in range(n_quarters % 4):
            turn = turn.then_mirror(plane[1])._then_swap(*plane)
        return turn

    def _then_swap(self, a: int, b: int) -> Turn:
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

    def places(self, size: Shape) -> Places:
        """Compute the same as places in the box, which are whole numbers.

        Args:
            size: Sides of the result.
        """
        rows = []
        for axis, n_voxels in enumerate(size):
            row = torch.zeros(3, n_voxels)
            row[self.axes[axis]] = torch.arange(n_voxels)
            rows.append(row.flip(1) if self.mirrored[axis] else row)
        by_x, by_y, by_z = rows
        return Places(by_x[:, :, None, None], by_y[:, None, :, None], by_z[:, None, None, :])

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
class SeparableField:
    """Smooth field: a sum of products of a function of x, one of y and one of z.

    Attributes:
        coefficients: (..., nx, ny, nz) of the products.
        bases: (X, nx), (Y, ny) and (Z, nz): the functions at each voxel of an axis.
    """

    coefficients: Tensor
    bases: Matrices

    def values(self) -> Tensor:
        """Compute the field (..., X, Y, Z)."""
        return separable(self.coefficients, self.bases)


@dataclass(frozen=True, eq=False)
class Places:
    """Where in a box the voxels of a patch come from: small tensors, from which a GPU computes it.

    Attributes:
        by_x: (3, X, 1, 1) share of each coordinate that depends on x, the constant included.
        by_y: (3, 1, Y, 1) share that depends on y.
        by_z: (3, 1, 1, Z) share that depends on z.
        displacement: Displacement (3, X, Y, Z); None: the map is linear.
    """

    by_x: Tensor
    by_y: Tensor
    by_z: Tensor
    displacement: SeparableField | None = None

    def coordinates(self) -> Tensor:
        """Compute the voxel coordinates (3, X, Y, Z) in the box, float32."""
        # (X, Y) first: one pass over the whole patch
        places = (self.by_x + self.by_y) + self.by_z
        if self.displacement is not None:
            places += self.displacement.values()
        return places


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

    def places(self, size: Shape, *, offset: Sequence[int] = (0, 0, 0)) -> Places:
        """Compute what the places need that the voxels of a patch come from, on the host.

        Args:
            size: Sides of the patch.
            offset: First voxel of the box, counted from the first voxel of the patch.
        """
        by_x, by_y, by_z = torch.from_numpy(self.matrix.astype(np.float32)).unbind(dim=1)
        x, y, z = (_offsets_from_centre(n) for n in size)
        centre = (np.array(size) - 1) / 2
        centre_in_box = torch.from_numpy((centre - offset).astype(np.float32))
        displacement = None
        if self.displacement is not None:
            # matrix (offset + displacement) = matrix offset + matrix displacement
            coefficients = np.tensordot(self.matrix, self.displacement, 1).astype(np.float32)
            bases = map(spline_basis, size, self.knot_distance)
            displacement = SeparableField(torch.from_numpy(coefficients), as_matrices(bases))
        return Places(
            by_x=(by_x[:, None] * x + centre_in_box[:, None])[:, :, None, None],
            by_y=(by_y[:, None] * y)[:, None, :, None],
            by_z=(by_z[:, None] * z)[:, None, None, :],
            displacement=displacement,
        )


def _offsets_from_centre(n_voxels: int) -> Tensor:
    """Compute the offset of each voxel of an axis from the centre of the patch."""
    return torch.arange(n_voxels, dtype=torch.float32) - (n_voxels - 1) / 2


def as_matrices(arrays: Iterable[Matrix]) -> Matrices:
    """Make tensors of three arrays, those of x, y and z."""
    x, y, z = (torch.from_numpy(array) for array in arrays)
    return x, y, z


def separable(values: Tensor, matrices: Matrices) -> Tensor:
    """Multiply one matrix along each of the last three axes.

    This is a smoothing, a change of resolution, or a field computed from its coefficients.

    Args:
        values: (..., x, y, z).
        matrices: (X, x), (Y, y) and (Z, z), on the same device.

    Returns:
        (..., X, Y, Z).
    """
    for_x, for_y, for_z = matrices
    values = values @ for_z.T
    values = for_y @ values
    # With y and z as one axis, the last product is one of two matrices: (X, x) @ (x, y z).
    product = for_x @ values.flatten(-2)
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
    # One voxel of background on each side takes all places outside: clamped to it, they give 0.
    padded = functional.pad(labels, (1,) * 6)
    # Index of the voxel in the flattened array, axis by axis: (x * n_y + y) * n_z + z.
    linear_index = _nearest(places[0], padded.shape[1])
    for axis in (1, 2):
        n = padded.shape[axis + 1]
        linear_index.mul_(n).add_(_nearest(places[axis], n))
    picked = padded.flatten(1).index_select(1, linear_index.flatten())
    return picked.reshape(len(labels), *linear_index.shape)


def _nearest(place: Tensor, n: int) -> Tensor:
    """Round one coordinate to the index of a voxel in the padded axis of `n` voxels."""
    # + 1 for the padding and + 0.5 to round, as the conversion to integers cuts off.
    return (place + 1.5).clamp_(0, n - 0.5).to(torch.int32)


def as_shape(numbers: Sequence[Any] | NDArray[Any]) -> Shape:
    """Convert three numbers to a tuple of int."""
    x, y, z = (int(n) for n in numbers)
    return x, y, z
