"""Rotation matrices."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def rotation_about_axis(axis: int, radians: float) -> NDArray[np.float64]:
    """Compute the rotation (3, 3) about one axis, in the plane of the two others.

        rotation_about_axis(2, a) = [[cos a, -sin a, 0],
                                     [sin a,  cos a, 0],
                                     [0,      0,     1]]

    scipy's Rotation differs in the last bit, and about the second axis in the sign of the angle:
    the cohorts and augmentations of earlier versions would change.

    Args:
        axis: 0, 1 or 2.
        radians: Angle from the first of the two other axes to the second.
    """
    first, second = [other for other in range(3) if other != axis]
    matrix = np.eye(3)
    matrix[[first, second], [first, second]] = np.cos(radians)
    matrix[first, second] = -np.sin(radians)
    matrix[second, first] = np.sin(radians)
    return matrix
