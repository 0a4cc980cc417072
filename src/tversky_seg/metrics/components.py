"""Connected components of a mask, listed voxel by voxel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import cc3d
import numpy as np
from numpy.typing import NDArray

from tversky_seg.metrics.masks import BoolArray, FloatArray, IntArray, Mask

CONNECTIVITIES = (6, 18, 26)


@dataclass(frozen=True, eq=False)
class Components:
    """The lesions of a mask as lists of voxels, since masks are large and lesions small.

    Positions are flat indices into the mask, raveled in `order`. Lesion number k has row k - 1.
    """

    shape: tuple[int, ...]
    """Shape of the mask."""
    order: Literal["C", "F"]
    """Order in which the mask is raveled."""
    labels: NDArray[np.unsignedinteger[Any]]
    """(mask.size,) number of the lesion at each position, 1..n; 0 in the background."""
    positions: IntArray
    """(v,) position of each lesion voxel."""
    rows: IntArray
    """(v,) row of the lesion to which each of these voxels belongs, 0..n-1."""
    n_voxels: IntArray
    """(n,) size of each lesion."""

    def __len__(self) -> int:
        """Number of lesions."""
        return len(self.n_voxels)

    def select(self, is_selected: BoolArray) -> Components:
        """Drop the lesions that are not selected, and renumber the others.

        Args:
            is_selected: (n,) whether each lesion remains.
        """
        # The usual case, and the arrays may be as large as the mask.
        if is_selected.all():
            return self
        # With lesions 1 and 3 of three selected, new_numbers is [0, 1, 0, 2].
        n_selected = np.count_nonzero(is_selected)
        new_numbers = np.zeros(len(self) + 1, self.labels.dtype)
        new_numbers[1:][is_selected] = np.arange(1, n_selected + 1)
        numbers = new_numbers[self.rows + 1]
        labels = self.labels.copy()
        labels[self.positions] = numbers
        remains = numbers > 0
        return Components(
            shape=self.shape,
            order=self.order,
            labels=labels,
            positions=self.positions[remains],
            rows=numbers[remains].astype(np.int64) - 1,
            n_voxels=self.n_voxels[is_selected],
        )

    def centres(self) -> FloatArray:
        """Compute the (n, ndim) centres of mass, in voxels from the first voxel of the mask."""
        centres = np.zeros((len(self), len(self.shape)))
        if not len(self):
            return centres
        coordinates = np.unravel_index(self.positions, self.shape, order=self.order)
        for axis, coordinate in enumerate(coordinates):
            total = np.bincount(self.rows, coordinate, len(self))
            centres[:, axis] = total / self.n_voxels
        return centres

    def highest_scores(self, scores: NDArray[Any]) -> FloatArray:
        """Find the (n,) highest score inside each lesion; `scores` has the shape of the mask."""
        highest = np.full(len(self), -np.inf)
        scores_inside = scores.ravel(order=self.order)[self.positions]
        np.maximum.at(highest, self.rows, scores_inside)
        return highest

    def to_mask(self) -> Mask:
        """Draw the lesions as a mask."""
        is_lesion: Mask = self.labels > 0
        return is_lesion.reshape(self.shape, order=self.order)


def find_components(mask: Mask, *, connectivity: int, order: Literal["C", "F"]) -> Components:
    """List the voxels of each lesion of a mask.

    Args:
        mask: Mask of one to three axes.
        connectivity: 6, 18 or 26 neighbours make one lesion.
        order: Order in memory of the mask, so that raveling it needs no copy.

    Raises:
        ValueError: As for `label_lesions`.
    """
    mask = np.asarray(mask, order=order)
    numbers, n_lesions = label_lesions(mask, connectivity=connectivity)
    labels = numbers.ravel(order=order)
    positions = np.flatnonzero(mask.ravel(order=order))
    rows = labels[positions].astype(np.int64) - 1
    return Components(
        shape=mask.shape,
        order=order,
        labels=labels,
        positions=positions,
        rows=rows,
        n_voxels=np.bincount(rows, minlength=n_lesions),
    )


def label_lesions(mask: Mask, *, connectivity: int = 26) -> tuple[NDArray[Any], int]:
    """Number the connected components of a mask.

    Args:
        mask: Mask of one to three axes.
        connectivity: 6, 18 or 26 neighbours make one lesion.

    Returns:
        The numbers 1..n in the shape of the mask, 0 in the background; and n.

    Raises:
        ValueError: Connectivity other than 6, 18 and 26, or more than three axes.
    """
    if connectivity not in CONNECTIVITIES:
        raise ValueError(f"connectivity must be one of 6, 18, 26, got {connectivity}")
    if mask.ndim > 3:
        raise ValueError(f"lesions need a mask of at most three axes, got shape {mask.shape}")
    # Of an empty array cc3d keeps the type, which is bool.
    if not mask.size:
        return np.zeros(mask.shape, np.uint32), 0
    # cc3d takes 26 neighbours in three axes only.
    further_axes = (1,) * (3 - mask.ndim)
    in_3d = mask.reshape(mask.shape + further_axes)
    numbers, n_lesions = cc3d.connected_components(in_3d, connectivity=connectivity, return_N=True)
    return numbers.reshape(mask.shape), int(n_lesions)
