"""The voxel size of a cohort, from the headers of its files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from tversky_seg.data.affines import ras_grid, spacing_of
from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import read_grid

Spacing = tuple[float, float, float]


def common_spacing(cases: Sequence[Case]) -> Spacing:
    """Return the voxel size of most cases, along R, A, S in mm, by their first modality.

    Sizes that agree to 0.01 mm count as one. Among equally frequent sizes the first is taken.

    Raises:
        DataError: A header cannot be read, or there is no case.
    """
    spacings = _spacings(cases)
    # Headers hold float32 and rounded angles: 0.9999 mm and 1.0001 mm are one size.
    groups = Counter(_rounded(spacing, 2) for spacing in spacings)
    most_frequent, _ = groups.most_common(1)[0]
    first = next(spacing for spacing in spacings if _rounded(spacing, 2) == most_frequent)
    return _rounded(first, 4)


def median_spacing(cases: Sequence[Case]) -> Spacing:
    """Return the median voxel size along each of R, A, S in mm, by the first modality.

    Raises:
        DataError: A header cannot be read, or there is no case.
    """
    x, y, z = np.median(_spacings(cases), axis=0).tolist()
    return _rounded((x, y, z), 4)


def _rounded(spacing: Spacing, decimals: int) -> Spacing:
    x, y, z = np.round(spacing, decimals).tolist()
    return (x, y, z)


def _spacings(cases: Sequence[Case]) -> list[Spacing]:
    """Read the voxel size of each case along R, A, S; gather the faults of all."""
    if not cases:
        raise DataError("data", "no case", "expected at least one")
    spacings, faults = [], []
    for case in cases:
        first_image = next(iter(case.images.values()))
        try:
            shape, affine = read_grid(first_image)
        except DataError as fault:
            faults.append(fault)
            continue
        _, ras_affine = ras_grid(shape, affine)
        spacings.append(spacing_of(ras_affine))
    if faults:
        raise DataError.gather(faults)
    return spacings
