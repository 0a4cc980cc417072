"""Lesion table: one row for each predicted lesion, and lesions.csv of a folder."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import distance_transform_edt
from scipy.spatial import KDTree

from tversky_seg.data.affines import metric_spacing
from tversky_seg.inference.output_errors import writing
from tversky_seg.metrics.lesion_doubt import doubt_ranks, mean_entropy, structural_uncertainty
from tversky_seg.runtime.files import write_csv

# One transform of the whole brain takes as long as a search for one in this many of its voxels: 1 s
# for a brain of 1 mm, 1 ms for a nodule cut out of CT.
VOXELS_PER_SEARCH = 1000

Row = dict[str, Any]


def number_lesions(
    mask: NDArray[np.bool_], affine: ArrayLike, *, min_volume_mm3: float = 0.0
) -> NDArray[np.uint32]:
    """Number the 26-connected lesions of a mask (X, Y, Z), the largest 1; too small ones get 0.

    Args:
        mask: (X, Y, Z).
        affine: (4, 4) of its grid.
        min_volume_mm3: Size below which a lesion is left out.
    """
    components, n = cc3d.connected_components(
        np.ascontiguousarray(mask), connectivity=26, return_N=True
    )
    n_voxels = np.bincount(components[components > 0], minlength=n + 1)[1:]
    # Stable: lesions of equal size keep the order of their first voxels.
    order = np.argsort(-n_voxels, kind="stable")
    # A lesion of exactly this size stays; the voxel size has the error of float32.
    is_large = n_voxels[order] * math.prod(metric_spacing(affine)) >= min_volume_mm3 * (1 - 1e-6)
    order = order[is_large]
    # From component to number; 0 for the background and for what is too small.
    numbers = np.zeros(n + 1, dtype=np.uint32)
    numbers[order + 1] = np.arange(1, len(order) + 1)
    lesions: NDArray[np.uint32] = numbers[components]
    return lesions


def lesion_rows(
    lesions: NDArray[np.uint32],
    probability: NDArray[np.float32],
    affine: ArrayLike,
    *,
    case_id: str,
    class_name: str | None = None,
    brain: NDArray[np.bool_] | None = None,
    parts: Iterable[NDArray[np.bool_]] = (),
) -> list[Row]:
    """Describe each numbered lesion in a row of lesions.csv.

    Args:
        lesions: (X, Y, Z) numbers of lesions, 0 outside; see `number_lesions`.
        probability: (X, Y, Z) in [0, 1].
        affine: (4, 4) of the grid.
        case_id: Name of the case.
        class_name: Name of the class; None if there is one class.
        brain: (X, Y, Z) mask of the brain; None if it is unknown.
        parts: Masks (X, Y, Z) of networks or views; none if they are not told apart.

    Returns:
        A row for each lesion: case_id, class (if given), lesion, volume_mm3, x_mm, y_mm, z_mm
        (centre, the mean of its voxels in the file's world space, RAS+), mean_probability,
        edge_distance_mm (see `distance_to_edge`; None if the brain is unknown), mean_entropy in
        bits, structural_uncertainty (None without `parts`), and doubt_rank: 1 for the lesion of the
        case, or of its class, with the highest structural uncertainty, or entropy without that.
    """
    voxels = np.argwhere(lesions)
    if not len(voxels):
        return []
    affine = np.asarray(affine, dtype=np.float64)
    spacing_mm = metric_spacing(affine)
    number = lesions[tuple(voxels.T)]
    n_voxels = np.bincount(number)[1:]
    centres_mm = _centres_mm(voxels, number, affine)
    mean_probability = _sums(number, probability[tuple(voxels.T)]) / n_voxels
    edge_mm = _edge_distances_mm(voxels, number, brain, spacing_mm)
    entropy = mean_entropy(lesions, probability)
    disagreement = structural_uncertainty(lesions, parts)
    is_told = not np.isnan(disagreement).any()
    ranks = doubt_ranks(disagreement if is_told else entropy)

    rows = []
    for index, n in enumerate(n_voxels):
        row: Row = {"case_id": case_id}
        if class_name is not None:
            row["class"] = class_name
        row["lesion"] = index + 1
        row["volume_mm3"] = round(float(n * math.prod(spacing_mm)), 3)
        for column, mm in zip(("x_mm", "y_mm", "z_mm"), centres_mm[index], strict=True):
            row[column] = round(float(mm), 3)
        row["mean_probability"] = round(float(mean_probability[index]), 5)
        row["edge_distance_mm"] = None
        if edge_mm is not None:
            row["edge_distance_mm"] = round(float(edge_mm[index]), 3)
        row["mean_entropy"] = round(float(entropy[index]), 5)
        row["structural_uncertainty"] = None
        if is_told:
            row["structural_uncertainty"] = round(float(disagreement[index]), 5)
        row["doubt_rank"] = ranks[index]
        rows.append(row)
    return rows


def _centres_mm(
    voxels: NDArray[np.int64], number: NDArray[np.uint32], affine: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Find the centre (n_lesions, 3) of each lesion in the file's world space."""
    centres = np.stack([_sums(number, axis) for axis in voxels.T]) / np.bincount(number)[1:]
    return np.asarray(np.transpose(centres) @ affine[:3, :3].T + affine[:3, 3])


def _edge_distances_mm(
    voxels: NDArray[np.int64],
    number: NDArray[np.uint32],
    brain: NDArray[np.bool_] | None,
    spacing_mm: ArrayLike,
) -> NDArray[np.float64] | None:
    """Find the distance (n_lesions,) of each lesion to the edge of the brain, if that is known."""
    if brain is None:
        return None
    # Index 0 is the background, which no voxel of a lesion has.
    nearest_mm = np.full(int(number.max()) + 1, np.inf)
    np.minimum.at(nearest_mm, number, distance_to_edge(voxels, brain, spacing_mm=spacing_mm))
    return nearest_mm[1:]


def distance_to_edge(
    voxels: NDArray[np.int64], brain: NDArray[np.bool_], *, spacing_mm: ArrayLike
) -> NDArray[np.float64]:
    """Measure how far voxels lie from the nearest voxel outside the brain, between centres, in mm.

    Beyond the field of view is outside, so a voxel at the edge is one voxel's size from it. Voxels
    outside the brain get 0.

    Args:
        voxels: (n, 3) indices.
        brain: (X, Y, Z).
        spacing_mm: Three voxel sizes.
    """
    # One voxel around, since beyond the field of view is outside.
    padded = np.pad(brain, 1)
    shell = _shell_around(padded)
    # Without any brain, all voxels are outside.
    if not shell.any():
        return np.zeros(len(voxels))
    if len(voxels) * VOXELS_PER_SEARCH > padded.size:
        distance = distance_transform_edt(padded, sampling=spacing_mm)
        return np.asarray(distance[tuple(voxels.T + 1)])
    outside = KDTree((np.argwhere(shell) - 1) * np.asarray(spacing_mm))
    distance, _ = outside.query(voxels * np.asarray(spacing_mm))
    return np.where(brain[tuple(voxels.T)], distance, 0.0)


def _shell_around(brain: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark the voxels outside that touch a face of one inside: the nearest is among them."""
    shell = np.zeros_like(brain)
    for axis in range(3):
        shell_along = np.moveaxis(shell, axis, 0)
        brain_along = np.moveaxis(brain, axis, 0)
        shell_along[1:] |= brain_along[:-1]
        shell_along[:-1] |= brain_along[1:]
    shell &= ~brain
    return shell


def write_lesion_table(
    path: Path, lesions: Mapping[str, Sequence[Row]], *, case_ids: Sequence[str], n_classes: int
) -> None:
    """Write lesions.csv: rows of other cases in the order of the file, then those of these cases.

    Args:
        path: File to write. Its rows of cases that `lesions` does not have stay.
        lesions: Rows by case.
        case_ids: Cases whose rows come last, in this order.
        n_classes: Number of classes; with several there is a column `class`.

    Raises:
        DataError: The file cannot be written.
    """
    columns = _columns(n_classes)
    all_lesions = {**_read_table(path, columns), **lesions}
    # A case without lesions has no row, but replaces those of an earlier prediction.
    others = all_lesions.keys() - set(case_ids)
    order = [case_id for case_id in all_lesions if case_id in others]
    rows = []
    for case_id in [*order, *case_ids]:
        for row in all_lesions.get(case_id, ()):
            rows.append([row.get(column) for column in columns])
    with writing(path):
        write_csv(path, columns, rows)


def _columns(n_classes: int) -> list[str]:
    columns = ["case_id"]
    if n_classes > 1:
        columns.append("class")
    columns += ["lesion", "volume_mm3", "x_mm", "y_mm", "z_mm"]
    columns += ["mean_probability", "edge_distance_mm"]
    columns += ["mean_entropy", "structural_uncertainty", "doubt_rank"]
    return columns


def _read_table(path: Path, columns: Sequence[str]) -> dict[str, list[Row]]:
    """Read the rows of each case from a lesions.csv with these columns; nothing from another."""
    lesions: dict[str, list[Row]] = {}
    with (
        suppress(OSError, UnicodeDecodeError, csv.Error),
        path.open(newline="", encoding="utf-8") as file,
    ):
        reader = csv.DictReader(file)
        if reader.fieldnames != list(columns):
            return {}
        for row in reader:
            lesions.setdefault(row["case_id"], []).append(row)
    return lesions


def _sums(number: NDArray[np.uint32], values: NDArray[Any]) -> NDArray[np.float64]:
    """Sum values over the voxels of each lesion."""
    return np.asarray(np.bincount(number, weights=values)[1:], dtype=np.float64)
