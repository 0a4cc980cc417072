"""A folder of predictions: masks and probabilities on each file's own grid, lesions.csv, predictions.json."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import cc3d
import numpy as np
from numpy.typing import ArrayLike, NDArray

from tversky_seg.data.cases import DataError
from tversky_seg.data.volumes import PROBABILITY_SCALE, read_volume, spacing_of, write_volume


def prediction_files(output_dir: Path, case_id: str, classes: Sequence[str]) -> dict[str, tuple[Path, Path]]:
    """Class name -> its probability file and its mask file; with one class its name is not in the file names."""
    stems = {name: f"{case_id}_{name}" if len(classes) > 1 else case_id for name in classes}
    return {
        name: (output_dir / f"{stem}_probability.nii.gz", output_dir / f"{stem}_mask.nii.gz")
        for name, stem in stems.items()
    }


def write_prediction(
    output_dir: Path,
    case_id: str,
    probability: NDArray[np.float32],
    affine: ArrayLike,
    *,
    classes: Sequence[str] = ("lesion",),
    threshold: float | Mapping[str, float] = 0.5,
    min_volume_mm3: float = 0.0,
) -> list[dict[str, Any]]:
    """Write a case's probability and mask for each class, and list its lesions.

    The mask is where the probability **as stored** (65,536 steps) reaches the threshold, without lesions (26-connected)
    smaller than `min_volume_mm3`: whoever reads the files finds the same mask.

    Args:
        output_dir: Where to write; see `prediction_files`.
        case_id: Of the case.
        probability: (K, X, Y, Z) in [0, 1], on the grid of the input.
        affine: (4, 4) of that grid.
        classes: K names.
        threshold: One for all classes, or one for each.
        min_volume_mm3: Smaller lesions are taken out of the mask.

    Returns:
        A row for each lesion, class by class, the largest first: case_id, class (where there are several), lesion,
        volume_mm3, x_mm, y_mm, z_mm (centre, the mean of its voxels in the file's world space, RAS+), mean_probability.
        None without lesions.

    Raises:
        DataError: A file cannot be written.
        ValueError: Names and channels differ in number, or a probability lies outside [0, 1].
    """
    rows = []
    files = prediction_files(output_dir, case_id, classes)
    affine = np.asarray(affine, dtype=np.float32)  # as it will be read, like the probability below
    for name, of_class in zip(classes, probability, strict=True):
        lowest = threshold[name] if isinstance(threshold, Mapping) else threshold
        write_volume(files[name][0], of_class, affine, scale=PROBABILITY_SCALE)
        stored = np.rint(of_class.astype(np.float64) / PROBABILITY_SCALE).astype(np.float32)
        stored *= np.float32(PROBABILITY_SCALE)
        lesions = _lesions(stored >= np.float32(lowest), affine, min_volume_mm3=min_volume_mm3)
        write_volume(files[name][1], lesions > 0, affine)
        rows += _lesion_rows(lesions, stored, affine, names=_names(case_id, name, classes))
    return rows


def read_lesions(output_dir: Path, case_id: str, *, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The lesion table of a case from its files, the same as `write_prediction` returned."""
    rows = []
    for name, (probability, mask) in prediction_files(output_dir, case_id, classes).items():
        stored = read_volume(probability)
        lesions = _lesions(read_volume(mask).data > 0, stored.affine)
        rows += _lesion_rows(lesions, stored.data, stored.affine, names=_names(case_id, name, classes))
    return rows


def claim_folder(output_dir: Path, settings: Mapping[str, Any]) -> bool:
    """Write predictions.json, or make sure that the one there says the same.

    Returns:
        Whether it was there: then the predictions in the folder were made with these settings.

    Raises:
        DataError: It says something else, or cannot be read or written.
    """
    path = output_dir / "predictions.json"
    if not path.is_file():
        _write_text(path, json.dumps(settings, indent=2) + "\n")
        return False
    try:
        found = json.loads(path.read_text())
        differing = [key for key, value in settings.items() if found[key] != value]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: no settings of a prediction ({error}); name another output_dir") from error
    if differing:
        there = ", ".join(f"{key}={found[key]}" for key in differing)
        here = ", ".join(f"{key}={settings[key]}" for key in differing)
        raise DataError(f"{path}: the predictions there have {there}, these {here}; name another output_dir")
    return True


def write_lesions(path: Path, rows: Sequence[Mapping[str, Any]], *, case_ids: Sequence[str], n_classes: int) -> None:
    """Write lesions.csv, whole or not at all; rows of other cases than `case_ids` that are there already stay.

    Raises:
        DataError: The file cannot be written.
    """
    of_class = ["class"] if n_classes > 1 else []
    columns = ["case_id", *of_class, "lesion", "volume_mm3", "x_mm", "y_mm", "z_mm", "mean_probability"]
    earlier = []
    if path.is_file():
        with path.open(newline="") as file:
            earlier = [row for row in csv.DictReader(file) if row.get("case_id") not in case_ids]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows([*earlier, *rows])
    _write_text(path, text.getvalue())


def _lesions(mask: NDArray[np.bool_], affine: ArrayLike, *, min_volume_mm3: float = 0.0) -> NDArray[Any]:
    """Number the 26-connected lesions of a mask (X, Y, Z), the largest 1; smaller ones than asked for get 0."""
    components, n = cc3d.connected_components(np.ascontiguousarray(mask), connectivity=26, return_N=True)
    counts = np.bincount(components[components > 0], minlength=n + 1)[1:]
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] * math.prod(spacing_of(affine)) >= min_volume_mm3 * (1 - 1e-6)]
    numbers = np.zeros(n + 1, dtype=np.uint32)
    numbers[order + 1] = np.arange(1, len(order) + 1)
    lesions: NDArray[np.uint32] = numbers[components]
    return lesions


def _lesion_rows(
    lesions: NDArray[Any], probability: NDArray[np.float32], affine: ArrayLike, *, names: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One row for each numbered lesion."""
    voxels = np.argwhere(lesions)
    number = lesions[tuple(voxels.T)]
    counts = np.bincount(number)[1:]
    sums = [np.bincount(number, weights=w)[1:] for w in (*voxels.T, probability[tuple(voxels.T)])]
    *centres, mean_probability = np.array(sums).reshape(4, -1) / counts
    affine = np.asarray(affine, dtype=np.float64)
    voxel_mm3 = math.prod(spacing_of(affine))
    centres_mm = np.transpose(centres) @ affine[:3, :3].T + affine[:3, 3]
    return [
        {
            **names,
            "lesion": lesion,
            "volume_mm3": round(float(n * voxel_mm3), 3),
            **{f"{axis}_mm": round(float(mm), 3) for axis, mm in zip("xyz", centre, strict=True)},
            "mean_probability": round(float(mean), 5),
        }
        for lesion, (n, centre, mean) in enumerate(zip(counts, centres_mm, mean_probability, strict=True), 1)
    ]


def _names(case_id: str, class_name: str, classes: Sequence[str]) -> dict[str, str]:
    return {"case_id": case_id, "class": class_name} if len(classes) > 1 else {"case_id": case_id}


def _write_text(path: Path, text: str) -> None:
    """Write a text file so that it appears whole or not at all."""
    partial = path.with_name(f".{uuid4().hex}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); name a folder with room") from error
