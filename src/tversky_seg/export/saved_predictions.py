"""Predictions in the layouts of other programs: BIDS derivatives and nnU-Net labels."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tversky_seg
from tversky_seg.data.errors import DataError
from tversky_seg.data.image_files import image_stem
from tversky_seg.data.nifti import read_volume, write_volume
from tversky_seg.inference.case_records import CaseRecord, CaseRecords
from tversky_seg.inference.output_errors import writing
from tversky_seg.inference.prediction_folder import (
    SETTINGS_FILE,
    PredictionFiles,
    label_map_of,
    label_values,
    prediction_files,
)
from tversky_seg.runtime.files import read_json, write_json, write_text

LAYOUTS = ("bids", "nnunet")
BIDS_VERSION = "1.10.0"
SOURCE_ENTITIES = ("sub", "ses", "acq", "ce", "rec", "run", "space")
"""Entities of a file name that its derivatives keep, in the order of BIDS."""


@dataclass(frozen=True)
class SavedPredictions:
    """A folder of predictions.

    Attributes:
        folder: The folder.
        settings: Content of its predictions.json.
        records: Record of each case that is complete.
    """

    folder: Path
    settings: Mapping[str, Any]
    records: Mapping[str, CaseRecord]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(self.settings["classes"])

    def files(self, case_id: str) -> dict[str, PredictionFiles]:
        """Return the files of a case, by class."""
        return prediction_files(self.folder, case_id, self.classes)

    def masks(self, case_id: str) -> Iterator[NDArray[np.bool_]]:
        """Read the masks of a case, class by class."""
        for files in self.files(case_id).values():
            yield read_volume(files.mask).data > 0

    def images(self, case_id: str) -> dict[str, Path]:
        """Return the images that a case was predicted from, by modality."""
        return {name: Path(str(state[0])) for name, state in self.records[case_id].inputs.items()}

    def of_class(self, setting: str, name: str) -> float:
        """Return the threshold, the smallest lesion or the lowest peak of a class."""
        value = self.settings.get(setting) or 0.0  # folders of before have no lowest peak
        return float(value[name] if isinstance(value, Mapping) else value)


def read_predictions(folder: Path) -> SavedPredictions:
    """Read what a folder of predictions holds.

    Raises:
        DataError: It was not written by predict, or holds no complete case.
    """
    path = folder / SETTINGS_FILE
    try:
        settings = read_json(path)
        classes = dict(settings["classes"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            folder, f"has no {SETTINGS_FILE} of predict", "expected the output_dir of predict"
        ) from error
    all_records = CaseRecords(folder)
    records = {}
    for case_id in all_records.lesions():
        record = all_records.read(case_id)
        # A stopped predict leaves a case half written.
        if record is not None and all_records.is_complete(record):
            records[case_id] = record
    if not classes or not records:
        raise DataError(folder, "holds no complete case", "run predict again")
    return SavedPredictions(folder, settings, records)


def write_nnunet(predictions: SavedPredictions, folder: Path) -> None:
    """Write <case_id>.nii.gz of each case, a label map, and dataset.json with their meaning.

    Raises:
        DataError: A file cannot be read or written.
    """
    first = next(iter(predictions.records))
    # The mask is recorded among the inputs, but is no channel.
    modalities = [name for name in predictions.images(first) if name != "brain_mask"]
    for case_id in predictions.records:
        _write_label_map(predictions, case_id, folder / f"{case_id}.nii.gz")
    description = {
        "channel_names": {str(number): name for number, name in enumerate(modalities)},
        "labels": {"background": 0, **label_values(predictions.classes)},
        # nnU-Net asks for the key; these labels train nothing.
        "numTraining": 0,
        "file_ending": ".nii.gz",
    }
    with writing(folder / "dataset.json"):
        write_json(folder / "dataset.json", description)


def write_bids(predictions: SavedPredictions, folder: Path) -> None:
    """Write a BIDS derivative: masks, probabilities and label maps with their sidecars.

    Each case keeps the entities of its first image; one without BIDS name becomes a subject.

    Raises:
        DataError: Two cases would have one name, or a file cannot be read or written.
    """
    root = _source_root(predictions)
    owners: dict[str, str] = {}
    for case_id in predictions.records:
        name = _bids_name(predictions, case_id)
        # On some disks A.nii.gz and a.nii.gz are one file.
        other = owners.setdefault(name.casefold(), case_id)
        if other != case_id:
            raise DataError(
                predictions.folder,
                f"cases {other} and {case_id} would both be {name}",
                "rename a case; BIDS allows letters and digits alone",
            )
        _write_bids_case(predictions, case_id, folder, name=name, root=root)
    with writing(folder / "dataset_description.json"):
        write_json(folder / "dataset_description.json", _dataset_description(root))


def _write_bids_case(
    predictions: SavedPredictions, case_id: str, folder: Path, *, name: str, root: Path
) -> None:
    parents = [part for part in name.split("_") if part.startswith(("sub-", "ses-"))]
    anatomy = folder.joinpath(*parents, "anat")
    sources = []
    for path in predictions.images(case_id).values():
        # A BIDS URI: `raw` is what DatasetLinks says it is.
        sources.append(f"bids:raw:{Path(os.path.relpath(path, root)).as_posix()}")
    common = {
        "Sources": sources,
        "SpatialReference": "orig",
        "Checkpoint": predictions.settings["checkpoint"],
        "GeneratedBy": _generated_by(),
    }
    for class_name, files in predictions.files(case_id).items():
        label = f"label-{_alphanumeric(class_name)}"
        mask = {
            "Description": f"Mask of {class_name}",
            "Type": "Lesion" if class_name == "lesion" else "ROI",
            "Threshold": predictions.of_class("threshold", class_name),
            "MinimumVolume": predictions.of_class("min_volume_mm3", class_name),
            "MinimumVolumeUnits": "mm3",
            "MinimumPeak": predictions.of_class("min_peak", class_name),
        }
        probability = {"Description": f"Probability of {class_name}, 0 to 1"}
        _copy(files.mask, anatomy / f"{name}_{label}_mask.nii.gz", {**mask, **common})
        _copy(
            files.probability,
            anatomy / f"{name}_{label}_probseg.nii.gz",
            {**probability, **common},
        )
    # Of one class the mask says all.
    if len(predictions.classes) > 1:
        path = anatomy / f"{name}_dseg.nii.gz"
        _write_label_map(predictions, case_id, path)
        sidecar = {"Description": "Label map; see the .tsv of the same name", **common}
        write_json(_with_ending(path, ".json"), sidecar)
        rows = [f"{value}\t{each}\n" for each, value in label_values(predictions.classes).items()]
        write_text(_with_ending(path, ".tsv"), "".join(["index\tname\n", *rows]))


def _write_label_map(predictions: SavedPredictions, case_id: str, path: Path) -> None:
    like = next(iter(predictions.files(case_id).values())).mask
    affine = read_volume(like).affine
    write_volume(path, label_map_of(predictions.masks(case_id)), affine, like=like)


def _copy(source: Path, target: Path, sidecar: Mapping[str, Any]) -> None:
    """Copy an image, and write its sidecar."""
    with writing(target):
        shutil.copyfile(source, target)
        write_json(_with_ending(target, ".json"), dict(sidecar))


def _with_ending(path: Path, ending: str) -> Path:
    return path.with_name(path.name.removesuffix(".nii.gz") + ending)


def _bids_name(predictions: SavedPredictions, case_id: str) -> str:
    """Name the files of a case: the entities of its first image, or sub-<case_id>."""
    first = next(iter(predictions.images(case_id).values()))
    # The last part of a name, such as T1w, has no dash and is no entity.
    entities = dict(re.findall(r"(?:^|_)([a-z]+)-([A-Za-z0-9]+)(?=_)", f"{image_stem(first)}_"))
    if "sub" not in entities:
        return f"sub-{_alphanumeric(case_id)}"
    return "_".join(f"{key}-{entities[key]}" for key in SOURCE_ENTITIES if key in entities)


def _source_root(predictions: SavedPredictions) -> Path:
    """Return the folder of the images: above the subjects of BIDS, otherwise above all images."""
    folders = []
    for case_id in predictions.records:
        for path in predictions.images(case_id).values():
            subjects = [parent for parent in path.parents if parent.name.startswith("sub-")]
            # The parents run outward: the last sub- is the one next to the root.
            folders.append(str(subjects[-1].parent if subjects else path.parent))
    return Path(os.path.commonpath(folders))


def _alphanumeric(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", name)


def _generated_by() -> list[dict[str, str]]:
    return [{"Name": "tversky-seg", "Version": tversky_seg.__version__}]


def _dataset_description(root: Path) -> dict[str, Any]:
    return {
        "Name": "Segmentations by tversky-seg",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": _generated_by(),
        "DatasetLinks": {"raw": root.as_uri()},
        "SourceDatasets": [{"URL": root.as_uri()}],
    }
