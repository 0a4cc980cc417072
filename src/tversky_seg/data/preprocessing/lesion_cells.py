"""Cells of lesions: which lesion of the whole volume each voxel near one is nearest to.

They are made for the training cases of a run whose lesion term needs them, and kept in the cache in
a folder beside the entry of the case.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tversky_seg.data.cache import read_entry, write_entry
from tversky_seg.data.errors import DataError
from tversky_seg.data.preprocessing.prepared_case import (
    PreparedCase,
    close_arrays,
    one_case_per_rater,
    rater_array,
)
from tversky_seg.runtime.progress import Reporter
from tversky_seg.runtime.workers import WorkerDied, map_in_processes

SLAB_VOXELS = 2**22
"""Voxels of a slab; the distances in it take some 30 bytes each."""


def nearest_lesion(
    components: NDArray[Any], *, max_distance_mm: float, spacing_mm: Sequence[float]
) -> NDArray[Any]:
    """Find the lesion that each voxel is nearest to.

    Args:
        components: (X, Y, Z) components of the whole volume, 0 in the background; below 0 where
            voxels are ignored, which are no lesion.
        max_distance_mm: Distance from a lesion, from centre to centre of voxels, beyond which a
            voxel belongs to none.
        spacing_mm: Voxel size.

    Returns:
        (X, Y, Z) number of that lesion, 0 for none, in the narrowest type of unsigned integers. Of
        lesions at the same distance, any one.
    """
    n_lesions = int(components.max(initial=0))
    cells = np.zeros(components.shape, dtype=np.min_scalar_type(n_lesions))
    if n_lesions == 0:
        return cells
    # Slab by slab: farther than the margin no lesion matters, and distances take much memory.
    margin = math.ceil(max_distance_mm / spacing_mm[0])
    thickness = max(margin, SLAB_VOXELS // components[0].size, 1)
    for first in range(0, len(components), thickness):
        low = max(first - margin, 0)
        around = np.asarray(components[low : first + thickness + margin])
        is_lesion = around > 0
        if not is_lesion.any():
            continue
        distance_mm, places = ndimage.distance_transform_edt(
            ~is_lesion, sampling=spacing_mm, return_indices=True
        )
        nearest = np.where(distance_mm <= max_distance_mm, around[tuple(places)], 0)
        cells[first : first + thickness] = nearest[first - low :][:thickness]
    return cells


def with_cells(
    cases: Sequence[PreparedCase], *, max_distance_mm: float, n_workers: int | None = None
) -> list[PreparedCase]:
    """Add the cells of their lesions to prepared cases; those in the cache are only checked.

    Args:
        cases: Prepared cases. Those without label stay as they are.
        max_distance_mm: As in `nearest_lesion`.
        n_workers: Processes, as in `prepare_all`.

    Raises:
        DataError: The cache cannot be written.
    """
    add_cells = partial(_with_cells, max_distance_mm=max_distance_mm)
    completed = list(cases)
    with Reporter("cells of lesions", total=len(cases)) as reporter:
        try:
            for number, case in map_in_processes(add_cells, cases, n_workers=n_workers):
                completed[number] = case
                reporter.advance(case.case_id)
        except WorkerDied as error:
            raise DataError("cells of lesions", str(error)) from error
    return completed


def _with_cells(case: PreparedCase, *, max_distance_mm: float) -> PreparedCase:
    if not case.n_lesions:
        return case
    if case.folder is None:
        cells = _cells_of_raters(case, max_distance_mm=max_distance_mm)
        return replace(case, arrays={**case.arrays, **cells})
    # The name of the entry stands for files and settings.
    folder = case.folder.with_name(f"{case.folder.name}-cells{max_distance_mm:g}mm")
    write = partial(_write_cells, folder, case, max_distance_mm=max_distance_mm)
    if read_entry(folder) is None:
        write()
    return replace(case, cells_folder=folder, rebuild_cells=write)


def _write_cells(folder: Path, case: PreparedCase, *, max_distance_mm: float) -> None:
    cells = _cells_of_raters(case, max_distance_mm=max_distance_mm)
    write_entry(folder, cells, {"max_distance_mm": max_distance_mm})
    # A damaged folder made room: what this process has mapped is the old one.
    close_arrays()


def _cells_of_raters(case: PreparedCase, *, max_distance_mm: float) -> dict[str, NDArray[Any]]:
    """Make the cells (K, X, Y, Z) of the label or of each rater, by the name of the array."""
    arrays: dict[str, NDArray[Any]] = {}
    for view in one_case_per_rater([case]):
        assert view.components is not None
        classes = []
        for components in view.components:
            cells = nearest_lesion(
                components, max_distance_mm=max_distance_mm, spacing_mm=case.spacing_mm
            )
            classes.append(cells)
        arrays[rater_array("cells", view.rater)] = np.stack(classes)
    return arrays
