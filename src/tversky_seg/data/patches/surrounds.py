"""Labels that also say which lesion a background voxel is near to, as one array.

A patch has one integer for each voxel, which the augmentation moves: lesion k is k. Where cells are
asked for, a background voxel in the cell of lesion k is -(k + 1); -1 is left for voxels that are
ignored. So cells are turned and deformed with the lesions, by the nearest voxel, and where lesions
grow the new voxels take the number of the lesion that grew, while the rest of the cells stays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def with_surrounds(labels: NDArray[Any], cells: NDArray[Any]) -> NDArray[np.int32]:
    """Mark the background near lesions.

    Args:
        labels: (K, x, y, z) components; 0 in the background.
        cells: (K, x, y, z) cells of the same box.

    Returns:
        (K, x, y, z): lesion k as k, its surround as -(k + 1), 0 elsewhere.
    """
    cells = cells.astype(np.int32)
    surrounds = np.where(cells > 0, -1 - cells, 0)
    return np.where(labels != 0, labels, surrounds).astype(np.int32)


def cells_of(labels: Tensor) -> Tensor:
    """Look up the cells in labels with surrounds: k for lesion k and its surround, else 0."""
    return torch.where(labels > 0, labels, -1 - labels).clamp_(min=0)
