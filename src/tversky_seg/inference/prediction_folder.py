"""A folder of predictions: masks and probabilities on each file's own grid, lesions.csv, predictions.json."""

import csv
import io
import itertools
import json
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import cc3d
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import distance_transform_edt
from scipy.spatial import KDTree

from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import (
    PROBABILITY_SCALE,
    read_label,
    read_volume,
    spacing_of,
    write_volume,
)

MANY_VOXELS = (
    20_000  # beyond, one transform of the whole brain (1 s) is faster than a search for each voxel
)


def prediction_files(
    output_dir: Path, case_id: str, classes: Sequence[str]
) -> dict[str, tuple[Path, Path]]:
    """Class name -> its probability file and its mask file; with one class its name is not in the file names."""
    stems = {name: f"{case_id}_{name}" if len(classes) > 1 else case_id for name in classes}
    return {
        name: (output_dir / f"{stem}_probability.nii.gz", output_dir / f"{stem}_mask.nii.gz")
        for name, stem in stems.items()
    }


def uncertainty_files(output_dir: Path, case_id: str, classes: Sequence[str]) -> dict[str, Path]:
    """Class name -> the file of its uncertainty."""
    files = prediction_files(output_dir, case_id, classes)
    return {
        name: path.with_name(path.name.replace("_probability.nii.gz", "_uncertainty.nii.gz"))
        for name, (path, _) in files.items()
    }


def is_written(
    output_dir: Path, case_id: str, *, classes: Sequence[str], with_uncertainty: bool = False
) -> bool:
    """Whether all files of a case are there."""
    pairs = prediction_files(output_dir, case_id, classes).values()
    extra = uncertainty_files(output_dir, case_id, classes).values() if with_uncertainty else ()
    return all(path.is_file() for path in (*itertools.chain(*pairs), *extra))


def write_prediction(
    output_dir: Path,
    case_id: str,
    probability: Iterable[NDArray[np.float32]],
    affine: ArrayLike,
    *,
    classes: Sequence[str] = ("lesion",),
    threshold: float | Mapping[str, float] = 0.5,
    min_volume_mm3: float | Mapping[str, float] = 0.0,
    uncertainty: Iterable[NDArray[np.float32]] | None = None,
    brain: NDArray[np.bool_] | None = None,
) -> list[dict[str, Any]]:
    """Write a case's probability and mask for each class, and list its lesions.

    The mask is where the probability **as stored** (65,536 steps) reaches the threshold, without lesions (26-connected)
    smaller than `min_volume_mm3`: whoever reads the files finds the same mask.

    Args:
        output_dir: Where to write; see `prediction_files`.
        case_id: Of the case.
        probability: (K, X, Y, Z) in [0, 1], on the grid of the input; may be made class by class.
        affine: (4, 4) of that grid.
        classes: K names.
        threshold: One for all classes, or one for each.
        min_volume_mm3: Smaller lesions are taken out of the mask; one for all classes, or one for each.
        uncertainty: (K, X, Y, Z) in [0, 1], stored as the probability is; None: not asked for.
        brain: (X, Y, Z): where the brain is; None: not known.

    Returns:
        A row for each lesion, class by class, the largest first: case_id, class (where there are several), lesion,
        volume_mm3, x_mm, y_mm, z_mm (centre, the mean of its voxels in the file's world space, RAS+), mean_probability,
        edge_distance_mm (see `distance_to_edge`; None where the brain is not known). None without lesions.

    Raises:
        DataError: A file cannot be written.
        ValueError: Names and channels differ in number, or a probability lies outside [0, 1].
    """
    rows = []
    files = prediction_files(output_dir, case_id, classes)
    affine = np.asarray(affine, dtype=np.float32)  # as it will be read, like the probability below
    if uncertainty is not None:
        for path, of_class in zip(
            uncertainty_files(output_dir, case_id, classes).values(), uncertainty, strict=True
        ):
            write_volume(path, of_class, affine, scale=PROBABILITY_SCALE)
    for name, of_class in zip(classes, probability, strict=True):
        lowest, smallest = _of_class(threshold, name), _of_class(min_volume_mm3, name)
        write_volume(files[name][0], of_class, affine, scale=PROBABILITY_SCALE)
        stored = _as_stored(of_class)
        lesions = _lesions(stored >= np.float32(lowest), affine, min_volume_mm3=smallest)
        write_volume(files[name][1], lesions > 0, affine)
        rows += _lesion_rows(
            lesions, stored, affine, brain=brain, names=_names(case_id, name, classes)
        )
    return rows


def read_lesions(
    output_dir: Path,
    case_id: str,
    *,
    classes: Sequence[str],
    find_brain: Callable[[], NDArray[np.bool_] | None] = lambda: None,
) -> list[dict[str, Any]]:
    """The lesion table of a case from its files, the same as `write_prediction` returned.

    Args:
        output_dir: As in `write_prediction`.
        case_id: Of the case.
        classes: As in `write_prediction`.
        find_brain: Gives (X, Y, Z), where the brain is; asked only where there is a lesion.
    """
    rows = []
    for name, (probability, mask) in prediction_files(output_dir, case_id, classes).items():
        found = read_label(mask)
        if found.data.any():
            lesions, names = _lesions(found.data > 0, found.affine), _names(case_id, name, classes)
            stored = read_volume(probability).data
            rows += _lesion_rows(lesions, stored, found.affine, brain=find_brain(), names=names)
    return rows


def distance_to_edge(
    voxels: NDArray[np.int64], brain: NDArray[np.bool_], *, spacing_mm: ArrayLike
) -> NDArray[Any]:
    """How far voxels lie from the nearest voxel outside the brain, between centres, in mm; 0 for those outside.

    Beyond the field of view is outside, so a voxel at the edge is one voxel's size from it.

    Args:
        voxels: (n, 3) indices.
        brain: (X, Y, Z).
        spacing_mm: Three voxel sizes.
    """
    padded = np.pad(brain, 1)
    shell = np.zeros_like(padded)
    for axis in range(3):  # the nearest voxel outside touches a face of one inside
        along, there = np.moveaxis(shell, axis, 0), np.moveaxis(padded, axis, 0)
        along[1:] |= there[:-1]
        along[:-1] |= there[1:]
    shell &= ~padded
    if not shell.any():
        return np.zeros(len(voxels))
    if len(voxels) > MANY_VOXELS:
        distance = distance_transform_edt(padded, sampling=spacing_mm)
        return np.asarray(distance[tuple(voxels.T + 1)])
    outside = KDTree((np.argwhere(shell) - 1) * np.asarray(spacing_mm))
    found, _ = outside.query(voxels * np.asarray(spacing_mm))
    return np.where(brain[tuple(voxels.T)], found, 0.0)


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
        differing = [key for key, value in settings.items() if found.get(key) != value]
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            path, f"no settings of a prediction ({error})", "name another output_dir"
        ) from error
    if differing:
        there = ", ".join(f"{key}={found.get(key)}" for key in differing)
        here = ", ".join(f"{key}={settings[key]}" for key in differing)
        raise DataError(
            path, f"the predictions there have {there}, these {here}", "name another output_dir"
        )
    return True


class LesionTable:
    """lesions.csv of a folder, known case by case, so that a stopped prediction of thousands goes on where it was.

    The file itself is always whole. While cases are added, their rows are kept beside it, a line of JSON for each case,
    of which a kill can spoil the last.
    """

    def __init__(self, folder: Path, *, n_classes: int, resumes: bool) -> None:
        of_class = ["class"] if n_classes > 1 else []
        place = ["x_mm", "y_mm", "z_mm"]
        self.columns = [
            "case_id",
            *of_class,
            "lesion",
            "volume_mm3",
            *place,
            "mean_probability",
            "edge_distance_mm",
        ]
        self.path, self.journal = folder / "lesions.csv", folder / ".lesions.jsonl"
        self._earlier = _read_table(self.path, self.columns) if resumes else {}
        self._rows: dict[str, list[dict[str, Any]]] = dict(self._earlier)
        self._rows |= _read_journal(self.journal) if resumes else {}
        if not resumes:
            self.journal.unlink(missing_ok=True)

    def known(self, case_id: str) -> list[dict[str, Any]] | None:
        """The rows of a case, if it is known to have any."""
        return self._rows.get(case_id)

    def add(self, case_id: str, rows: list[dict[str, Any]]) -> None:
        """Keep the rows of a case that is done.

        Raises:
            DataError: They cannot be written.
        """
        if self._rows.get(case_id) == rows:
            return
        self._rows[case_id] = rows
        try:
            with self.journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"case_id": case_id, "rows": rows}) + "\n")
        except OSError as error:
            raise DataError(
                self.journal,
                f"cannot be written ({error.strerror or error})",
                "name a folder with room",
            ) from error

    def write(self, case_ids: Sequence[str], *, failed: Container[str] = ()) -> None:
        """Write lesions.csv, whole or not at all: rows of other cases that are there already, then those of these.

        Raises:
            DataError: The file cannot be written.
        """
        asked = set(case_ids)
        order = [name for name in self._rows if name not in asked] + [
            name for name in case_ids if name not in failed
        ]
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for name in order:
            writer.writerows(self._rows.get(name, ()))
        _write_text(self.path, text.getvalue())
        self.journal.unlink(missing_ok=True)


def _read_table(path: Path, columns: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Case -> rows of a lesions.csv with these columns; nothing where there is none."""
    found: dict[str, list[dict[str, Any]]] = {}
    with (
        suppress(OSError, UnicodeDecodeError, csv.Error),
        path.open(newline="", encoding="utf-8") as file,
    ):
        reader = csv.DictReader(file)
        for row in reader if reader.fieldnames == columns else ():
            found.setdefault(row["case_id"], []).append(row)
    return found


def _read_journal(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Case -> rows of the cases that were added before a stop; a line that was cut off is left out."""
    found = {}
    with suppress(OSError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                found[str(entry["case_id"])] = list(entry["rows"])
    return found


def _as_stored(probability: NDArray[np.float32]) -> NDArray[np.float32]:
    """The probability (X, Y, Z) as a reader of the file finds it."""
    stored = np.empty_like(probability)
    for plane, into in zip(probability, stored, strict=True):
        into[...] = np.rint(plane.astype(np.float64) / PROBABILITY_SCALE)
    stored *= np.float32(PROBABILITY_SCALE)
    return stored


def _lesions(
    mask: NDArray[np.bool_], affine: ArrayLike, *, min_volume_mm3: float = 0.0
) -> NDArray[Any]:
    """Number the 26-connected lesions of a mask (X, Y, Z), the largest 1; smaller ones than asked for get 0."""
    components, n = cc3d.connected_components(
        np.ascontiguousarray(mask), connectivity=26, return_N=True
    )
    counts = np.bincount(components[components > 0], minlength=n + 1)[1:]
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] * math.prod(spacing_of(affine)) >= min_volume_mm3 * (1 - 1e-6)]
    numbers = np.zeros(n + 1, dtype=np.uint32)
    numbers[order + 1] = np.arange(1, len(order) + 1)
    lesions: NDArray[np.uint32] = numbers[components]
    return lesions


def _lesion_rows(
    lesions: NDArray[Any],
    probability: NDArray[np.float32],
    affine: ArrayLike,
    *,
    brain: NDArray[np.bool_] | None,
    names: Mapping[str, str],
) -> list[dict[str, Any]]:
    """One row for each numbered lesion."""
    voxels = np.argwhere(lesions)
    if not len(voxels):
        return []
    number = lesions[tuple(voxels.T)]
    counts = np.bincount(number)[1:]
    sums = [np.bincount(number, weights=w)[1:] for w in (*voxels.T, probability[tuple(voxels.T)])]
    *centres, mean_probability = np.array(sums).reshape(4, -1) / counts
    affine = np.asarray(affine, dtype=np.float64)
    voxel_mm3 = math.prod(spacing_of(affine))
    edges: list[float | None] = [None] * len(counts)
    if brain is not None:
        nearest = np.full(len(counts) + 1, np.inf)
        np.minimum.at(
            nearest, number, distance_to_edge(voxels, brain, spacing_mm=spacing_of(affine))
        )
        edges = [round(float(mm), 3) for mm in nearest[1:]]
    centres_mm = np.transpose(centres) @ affine[:3, :3].T + affine[:3, 3]
    return [
        {
            **names,
            "lesion": lesion,
            "volume_mm3": round(float(n * voxel_mm3), 3),
            **{f"{axis}_mm": round(float(mm), 3) for axis, mm in zip("xyz", centre, strict=True)},
            "mean_probability": round(float(mean), 5),
            "edge_distance_mm": edge,
        }
        for lesion, (n, centre, mean, edge) in enumerate(
            zip(counts, centres_mm, mean_probability, edges, strict=True), 1
        )
    ]


def _of_class(setting: float | Mapping[str, float], name: str) -> float:
    return setting[name] if isinstance(setting, Mapping) else setting


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
        raise DataError(
            path, f"cannot be written ({error.strerror or error})", "name a folder with room"
        ) from error
