"""Predictions folder: names of its files, its settings, and the writing of a case."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import PROBABILITY_SCALE, write_volume
from tversky_seg.inference.lesion_table import Row, lesion_rows, number_lesions
from tversky_seg.inference.operating_point import OperatingPoint
from tversky_seg.inference.output_errors import writing
from tversky_seg.metrics.lesions import remove_weak_lesions
from tversky_seg.runtime.files import read_json, write_json

SETTINGS_FILE = "predictions.json"
LESIONS_FILE = "lesions.csv"
PROBABILITY_ENDING = "_probability.nii.gz"
MASK_ENDING = "_mask.nii.gz"
UNCERTAINTY_ENDING = "_uncertainty.nii.gz"
LABELS_ENDING = "_labels.nii.gz"
AT_HALF = OperatingPoint(threshold=0.5)


@dataclass(frozen=True)
class PredictionFiles:
    """The files of one class of one case; `uncertainty` exists only if it was asked for."""

    probability: Path
    mask: Path
    uncertainty: Path


def prediction_files(
    folder: Path, case_id: str, classes: Sequence[str]
) -> dict[str, PredictionFiles]:
    """Name the files of a case, by class; a single class does not appear in the file names."""
    files = {}
    for name in classes:
        stem = _stem(case_id, name, classes)
        files[name] = PredictionFiles(
            probability=folder / f"{stem}{PROBABILITY_ENDING}",
            mask=folder / f"{stem}{MASK_ENDING}",
            uncertainty=folder / f"{stem}{UNCERTAINTY_ENDING}",
        )
    return files


def label_map_file(folder: Path, case_id: str, classes: Sequence[str]) -> Path | None:
    """Name the label map of a case; None if there is one class, whose mask is one already."""
    return folder / f"{case_id}{LABELS_ENDING}" if len(classes) > 1 else None


def label_values(classes: Sequence[str]) -> dict[str, int]:
    """Return the value of each class in a label map: 1, 2, … in their order; 0 is background."""
    return {name: number for number, name in enumerate(classes, start=1)}


def label_map_of(masks: Iterable[NDArray[np.bool_]]) -> NDArray[np.uint8]:
    """Make one label map (X, Y, Z) of the masks of all classes, in their order.

    Where masks overlap the later class stands, as classes within others are listed after these:
    of a tumour within a liver, the tumour.
    """
    labels: NDArray[np.uint8] | None = None
    for value, mask in enumerate(masks, start=1):
        if labels is None:
            labels = np.zeros(mask.shape, dtype=np.uint8)
        labels[mask] = value
    if labels is None:
        raise ValueError("a label map needs one mask at least")
    return labels


@dataclass(frozen=True, eq=False)
class ClassPrediction:
    """What a probability says of one class of a case.

    Attributes:
        probability: (X, Y, Z) as it is read from its file.
        mask: (X, Y, Z) where it reaches the threshold, without lesions that are too small or weak.
        lesions: A row for each lesion, the largest first; see `lesion_table.lesion_rows`.
    """

    probability: NDArray[np.float32]
    mask: NDArray[np.bool_]
    lesions: list[Row]


def check_file_names(case_ids: Iterable[str], classes: Sequence[str]) -> None:
    """Refuse names of cases and classes that would put two predictions into one file.

    Class `b_c` of case `a` and class `c` of case `a_b` are both `a_b_c_mask.nii.gz`.

    Raises:
        DataError: Two names are equal, or differ in capitals only.
    """
    owners: dict[str, tuple[str, str]] = {}
    for case_id in case_ids:
        for name in classes:
            stem = _stem(case_id, name, classes)
            owner = owners.setdefault(stem.casefold(), (case_id, name))
            if owner != (case_id, name):
                raise DataError(
                    "data.classes",
                    f"class {owner[1]} of case {owner[0]} and class {name} of case {case_id} "
                    f"would both be written to {stem}{MASK_ENDING}",
                    "rename the class or the case",
                    case_id=case_id,
                )


def _stem(case_id: str, class_name: str, classes: Sequence[str]) -> str:
    """Begin a file name: `c1` of c1_mask.nii.gz, or of several classes `c1_liver`."""
    return f"{case_id}_{class_name}" if len(classes) > 1 else case_id


def write_prediction(
    output_dir: Path,
    case_id: str,
    probability: Iterable[NDArray[np.float32]],
    affine: ArrayLike,
    *,
    classes: Sequence[str] = ("lesion",),
    points: Mapping[str, OperatingPoint] | OperatingPoint = AT_HALF,
    uncertainty: Iterable[NDArray[np.float32]] | None = None,
    parts: Sequence[Iterable[NDArray[np.bool_]]] | None = None,
    brain: NDArray[np.bool_] | None = None,
    like: Path | None = None,
) -> list[Row]:
    """Write a case's probability and mask for each class, and describe its lesions.

    The mask is where the probability **as stored** (65,536 steps) reaches the threshold, without
    lesions (26-connected) that are too small or whose peak is too low: a reader of the files gets
    the same mask.
    Of several classes a label map is written, too; see `label_map_of`.

    Args:
        output_dir: Folder to write to; see `prediction_files`.
        case_id: Name of the case.
        probability: (K, X, Y, Z) in [0, 1], on the grid of the input; may be made class by class.
        affine: (4, 4) of that grid.
        classes: K names.
        points: How the probability becomes the mask; one point for all classes, or one for each.
        uncertainty: (K, X, Y, Z) in [0, 1], stored as the probability is; None: not asked for.
        parts: For each class the masks (X, Y, Z) of networks or views, whose disagreement the rows
            tell; None: not told apart.
        brain: (X, Y, Z) mask of the brain; None if it is unknown.
        like: Image on the same grid, whose sform and qform the files get; see `write_volume`.

    Returns:
        A row for each lesion, class by class, the largest first; see `lesion_table.lesion_rows`.
        An empty list without lesions.

    Raises:
        DataError: A file cannot be written.
        ValueError: Names and channels differ in number, or a probability lies outside [0, 1].
    """
    files = prediction_files(output_dir, case_id, classes)
    # As it will be read, like the probability below.
    affine = np.asarray(affine, dtype=np.float32)
    if uncertainty is not None:
        for name, of_class in zip(classes, uncertainty, strict=True):
            write_volume(
                files[name].uncertainty, of_class, affine, scale=PROBABILITY_SCALE, like=like
            )
    rows = []
    masks = []
    parts = parts or [()] * len(classes)
    for name, of_class, masks_of_parts in zip(classes, probability, parts, strict=True):
        write_volume(files[name].probability, of_class, affine, scale=PROBABILITY_SCALE, like=like)
        predicted = class_prediction(
            of_class,
            affine,
            point=points[name] if isinstance(points, Mapping) else points,
            case_id=case_id,
            class_name=name if len(classes) > 1 else None,
            brain=brain,
            parts=masks_of_parts,
        )
        write_volume(files[name].mask, predicted.mask, affine, like=like)
        masks.append(predicted.mask)
        rows += predicted.lesions
    label_map = label_map_file(output_dir, case_id, classes)
    if label_map is not None:
        write_volume(label_map, label_map_of(masks), affine, like=like)
    return rows


def class_prediction(
    probability: NDArray[np.float32],
    affine: ArrayLike,
    *,
    point: OperatingPoint,
    case_id: str,
    class_name: str | None = None,
    brain: NDArray[np.bool_] | None = None,
    parts: Iterable[NDArray[np.bool_]] = (),
) -> ClassPrediction:
    """Make mask and lesions of a probability (X, Y, Z), as `write_prediction` writes them.

    Args:
        probability: (X, Y, Z) in [0, 1].
        affine: (4, 4) of its grid.
        point: How the probability becomes the mask.
        case_id: Name of the case, for the rows.
        class_name: Name of the class, for the rows; None if there is one class.
        brain: (X, Y, Z) mask of the brain; None if it is unknown.
        parts: Masks (X, Y, Z) of networks or views, whose disagreement the rows tell.
    """
    affine = np.asarray(affine, dtype=np.float32)  # as it will be read
    stored = as_stored(probability)
    mask = stored >= np.float32(point.threshold)
    mask = remove_weak_lesions(mask, stored, min_score=point.min_peak)
    lesions = number_lesions(mask, affine, min_volume_mm3=point.min_volume_mm3)
    rows = lesion_rows(
        lesions,
        stored,
        affine,
        case_id=case_id,
        class_name=class_name,
        brain=brain,
        parts=parts,
    )
    return ClassPrediction(stored, lesions > 0, rows)


def claim_folder(
    output_dir: Path, settings: Mapping[str, Any], *, notes: Mapping[str, Any] | None = None
) -> bool:
    """Write predictions.json, or make sure that the existing one holds the same settings.

    Args:
        output_dir: Predictions folder.
        settings: Settings that must be the same for all predictions of the folder.
        notes: Further entries, in which commands may differ: the file holds those of the last one.

    Returns:
        Whether it existed: then the predictions in the folder were made with these settings.

    Raises:
        DataError: It holds other settings, or cannot be read or written.
    """
    path = output_dir / SETTINGS_FILE
    if not path.is_file():
        with writing(path):
            write_json(path, {**settings, **(notes or {})})
        return False
    try:
        saved = read_json(path)
        differing = {key: saved.get(key) for key in settings if saved.get(key) != settings[key]}
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            path, f"holds no settings of a prediction ({error})", "name another output_dir"
        ) from error
    # A folder holds predictions of one kind, or nobody knows how a mask was made.
    if differing:
        then = []
        now = []
        for key, value in differing.items():
            then.append(f"{key}={value}")
            now.append(f"{key}={settings[key]}")
        raise DataError(
            path,
            f"its predictions were made with {', '.join(then)}, this command has {', '.join(now)}",
            "name another output_dir",
        )
    updated = {**saved, **(notes or {})}
    if updated != saved:
        with writing(path):
            write_json(path, updated)
    return True


def as_stored(probability: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the probability (X, Y, Z) as it is read from the file."""
    stored = np.empty_like(probability)
    # Plane by plane, as float64 takes eight bytes a voxel.
    for index, plane in enumerate(probability):
        stored[index] = np.rint(plane.astype(np.float64) / PROBABILITY_SCALE)
    stored *= np.float32(PROBABILITY_SCALE)
    return stored
