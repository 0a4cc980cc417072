"""Patches moved in space on any device: mirrored and turned by whole voxels, or resampled once by a smooth map."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Turn:
    """A mirroring or a turn by whole quarters: axis j of what comes out is axis `axes[j]` of what goes in.

    Attributes:
        axes: A permutation of 0, 1, 2.
        mirrored: Whether axis j of what comes out runs backwards.
    """

    axes: tuple[int, ...] = (0, 1, 2)
    mirrored: tuple[bool, ...] = (False, False, False)

    def flipped(self, axis: int) -> "Turn":
        """This turn, then a mirroring of one axis."""
        return Turn(self.axes, tuple(was != (j == axis) for j, was in enumerate(self.mirrored)))

    def turned(self, plane: tuple[int, int], quarters: int) -> "Turn":
        """This turn, then `quarters` turns of 90 degrees from the first axis of the plane to the second."""
        turn = self
        for _ in range(quarters % 4):
            turn = turn.flipped(plane[1])._swapped(*plane)
        return turn

    def _swapped(self, a: int, b: int) -> "Turn":
        order = [b if j == a else a if j == b else j for j in range(3)]
        return Turn(tuple(self.axes[j] for j in order), tuple(self.mirrored[j] for j in order))

    @property
    def matrix(self) -> NDArray[np.float64]:
        """(3, 3): from an offset to the patch's centre in what comes out to that in what goes in."""
        matrix = np.zeros((3, 3))
        matrix[list(self.axes), range(3)] = np.where(self.mirrored, -1, 1)
        return matrix

    def __call__(self, values: Tensor) -> Tensor:
        """Turn the last three axes; the same tensor where nothing turns, else a contiguous copy."""
        if self == Turn():
            return values
        moved = values.permute(0, *(axis + 1 for axis in self.axes))
        backwards = [j + 1 for j, mirrored in enumerate(self.mirrored) if mirrored]
        return moved.flip(backwards).contiguous() if backwards else moved.contiguous()


def separable(values: Tensor, matrices: Sequence[Matrix]) -> Tensor:
    """One matrix for each of the last three axes: smoothing, a change of resolution, a field from its coefficients.

    Args:
        values: (..., x, y, z).
        matrices: (X, x), (Y, y) and (Z, z).

    Returns:
        (..., X, Y, Z).
    """
    along_x, along_y, along_z = (
        torch.as_tensor(matrix, device=values.device) for matrix in matrices
    )
    values = along_y @ (values @ along_z.T)
    return torch.matmul(along_x, values.flatten(-2)).reshape(
        *values.shape[:-3], len(along_x), *values.shape[-2:]
    )


def spline_basis(n_voxels: int, knot_distance: float) -> Matrix:
    """(n_voxels, n) cubic B-splines with knots `knot_distance` voxels apart, which sum to 1 at every voxel."""
    places = np.arange(n_voxels) / knot_distance
    x = np.abs(places[:, None] - np.arange(-1, int(places[-1]) + 3))
    inner, outer = 2 / 3 - x**2 + x**3 / 2, np.maximum(2 - x, 0) ** 3 / 6
    return np.where(x < 1, inner, outer).astype(np.float32)


def coordinates(
    size: Sequence[int],
    matrix: NDArray[np.float64],
    *,
    offset: Sequence[int] = (0, 0, 0),
    bumps: NDArray[np.float64] | None = None,
    knot_distance: Sequence[float] = (1.0, 1.0, 1.0),
    device: torch.device | None = None,
) -> Tensor:
    """Where each voxel of a patch comes from: centre + matrix (voxel - centre + bumps(voxel)).

    Args:
        size: Of the patch, in voxels.
        matrix: (3, 3) in voxels, about the centre of the patch.
        offset: First voxel of the box that is read, counted from the patch's first voxel.
        bumps: (3, nx, ny, nz) coefficients, in voxels, of the `spline_basis`; their largest bounds the displacement.
        knot_distance: Of that basis along each axis, in voxels.
        device: Where to compute.

    Returns:
        (3, X, Y, Z) float32 voxel coordinates in the box.
    """
    centre = (np.array(size) - 1) / 2
    start = centre - offset
    x, y, z = (
        torch.arange(n, dtype=torch.float32, device=device) - c
        for n, c in zip(size, centre, strict=True)
    )
    places = torch.empty((3, *size), device=device)
    for place, (by_x, by_y, by_z), first in zip(
        places, matrix.tolist(), start.tolist(), strict=True
    ):
        in_plane = (by_x * x + first)[:, None] + by_y * y
        torch.add(in_plane[:, :, None], by_z * z, out=place)
    if bumps is not None:
        bases = [spline_basis(n, distance) for n, distance in zip(size, knot_distance, strict=True)]
        turned = np.tensordot(matrix, bumps, 1).astype(np.float32)
        places += separable(torch.as_tensor(turned, device=device), bases)
    return places


def linear(image: Tensor, places: Tensor) -> Tensor:
    """(C, *size) values of an image (C, x, y, z) at coordinates (3, *size), in one trilinear resampling; 0 outside."""
    grid = places.new_empty((*places.shape[1:], 3))
    for axis, n in enumerate(image.shape[1:]):
        torch.mul(places[axis], 2 / n, out=grid[..., 2 - axis])
    grid += torch.tensor([1 / n - 1 for n in reversed(image.shape[1:])], device=grid.device)
    return functional.grid_sample(
        image[None], grid[None], padding_mode="zeros", align_corners=False
    )[0]


def nearest(labels: Tensor, places: Tensor) -> Tensor:
    """(K, *size) labels of the nearest voxels of (K, x, y, z), of any integer type; 0 outside."""
    if not labels.any():
        return labels.new_zeros((len(labels), *places.shape[1:]))
    padded = functional.pad(labels, (1,) * 6)
    index = torch.zeros(places.shape[1:], dtype=torch.int32, device=places.device)
    for place, n in zip(places, padded.shape[1:], strict=True):
        index.mul_(n).add_((place + 1.5).clamp_(0, n - 0.5).to(torch.int32))
    found = [label.flatten().index_select(0, index.flatten()) for label in padded]
    return torch.stack(found).reshape(len(labels), *index.shape)
