"""A raw data set of nnU-Net, version 1 or 2 (Isensee et al. 2021).

doi 10.1038/s41592-020-01008-z
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tversky_seg.data.case import Case
from tversky_seg.data.datasets._common import log_left_out, read_listing, understanding
from tversky_seg.data.errors import DataError
from tversky_seg.data.image_files import NIFTI_ENDINGS

logger = logging.getLogger("tversky_seg")

FOLDER = "the folder DatasetXXX_Name or TaskXXX_Name of nnU-Net"
LEFT_OUT = {"*": "a channel that dataset.json does not name, or a label without image"}
_CHANNEL_FILE = re.compile(r"(.+)_(\d{4})")


def find_nnunet(root: Path) -> list[Case]:
    """List the cases of a raw data set; channels are called as in `dataset.json`.

    Images are `imagesTr/<case>_0000.nii.gz` and so on, labels `labelsTr/<case>.nii.gz`, or the
    files under the key `dataset` of the JSON. The images of `imagesTs` are predicted, and
    evaluated where there is a `labelsTs`. Each case is taken as a subject of its own: if subjects
    have several cases, write the manifest with `scripts/import_dataset.py` and fill in
    `subject_id`.

    Args:
        root: Folder that holds `dataset.json`: `DatasetXXX_Name` of version 2, or `TaskXXX_Name` of
            version 1.

    Raises:
        DataError: There is no readable `dataset.json`, its files are not NIfTI, or none exists.
    """
    root = Path(root)
    path = root / "dataset.json"
    listing = read_listing(path, folder_name=FOLDER)
    with understanding(path, folder_name=FOLDER):
        if "modality" in listing and "channel_names" not in listing:
            listing = _as_version_2(listing)
        _check_listing(listing, path)
        cases = _cases(listing, root)
        _log_classes(listing)
    log_left_out(root, cases, LEFT_OUT)
    return cases


def _cases(listing: Mapping[str, Any], root: Path) -> list[Case]:
    channels = _channels(listing)
    ending = listing["file_ending"]
    # Version 2 may list files anywhere on the disk, in place of the folders.
    if isinstance(listing.get("dataset"), dict):
        cases = [_listed(root, name, entry, channels) for name, entry in listing["dataset"].items()]
    else:
        cases = _in_folders(root, "Tr", channels, ending)
    tests = [replace(case, split="test") for case in _in_folders(root, "Ts", channels, ending)]
    # Labels of the test images make it an official split; else folds are drawn.
    if any(case.labels for case in tests):
        cases = [replace(case, split="train") for case in cases]
    cases += tests
    if not cases:
        expected = f"expected imagesTr/<case>_0000{ending} (a Decathlon task: data=decathlon)"
        raise DataError(root, "holds no case", expected)
    return cases


def _as_version_2(listing: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the `dataset.json` of version 1, where labels are number -> name."""
    labels = listing.get("labels")
    if isinstance(labels, dict):
        labels = {name: int(value) for value, name in labels.items() if value.isdecimal()}
    return {"channel_names": listing["modality"], "labels": labels, "file_ending": ".nii.gz"}


def _in_folders(root: Path, part: str, channels: Mapping[int, str], ending: str) -> list[Case]:
    """List the cases of `images<part>` and `labels<part>`."""
    images_of: dict[str, dict[str, Path]] = {}
    for file in sorted((root / f"images{part}").glob(f"*{ending}")):
        match = _CHANNEL_FILE.fullmatch(file.name.removesuffix(ending))
        # A channel that dataset.json does not name is left out.
        if match and int(match[2]) in channels:
            channel = channels[int(match[2])]
            images_of.setdefault(match[1], {})[channel] = file
    cases = []
    for name, images in images_of.items():
        label = root / f"labels{part}" / f"{name}{ending}"
        labels = (label,) if label.is_file() else ()
        cases.append(Case(name, name, images, labels))
    return cases


def _listed(root: Path, name: str, entry: Mapping[str, Any], channels: Mapping[int, str]) -> Case:
    """Make a case of an entry under the key `dataset`."""
    images = {}
    for number, file in enumerate(entry["images"]):
        if number in channels:
            images[channels[number]] = root / file
    labels = (root / entry["label"],) if entry.get("label") else ()
    return Case(name, name, images, labels)


def _channels(listing: Mapping[str, Any]) -> dict[int, str]:
    """Name the channels as columns of a manifest; equal names get their number.

    {"0": "T1 post", "1": "CT", "2": "CT"} -> {0: "T1_post", 1: "CT_1", 2: "CT_2"}
    """
    safe_names = {}
    for number, name in listing["channel_names"].items():
        safe_names[number] = re.sub(r"[^\w.=+@-]+", "_", str(name)).strip("_.")
    frequencies = list(safe_names.values())
    channels = {}
    for number, name in safe_names.items():
        # nnU-Net takes two channels of one name; columns of a manifest differ.
        is_unique = frequencies.count(name) == 1
        channels[int(number)] = name if is_unique else f"{name}_{number}"
    return channels


def _log_classes(listing: Mapping[str, Any]) -> None:
    """Log the settings that match the labels of `dataset.json`: data.classes, and data.ignore."""
    classes = []
    ignore = ""
    for name, values in listing["labels"].items():
        if name == "ignore":
            ignore = f" data.ignore=[{values}]"
        elif name != "background":
            values = values if isinstance(values, list) else [values]
            classes.append(f"{name}: {values}")
    logger.info("for the labels of dataset.json: data.classes='{%s}'%s", ", ".join(classes), ignore)


def _check_listing(listing: Mapping[str, Any], path: Path) -> None:
    """Refuse a `dataset.json` that lacks a key, or names files that are not NIfTI."""
    missing = [key for key in ("channel_names", "labels", "file_ending") if key not in listing]
    expected = "expected those of nnU-Net (a Decathlon task: data=decathlon)"
    if missing:
        raise DataError(path, f"has no {', '.join(missing)}", expected)
    for key in ("channel_names", "labels"):
        if not isinstance(listing[key], dict):
            raise DataError(path, f"has no names in {key}", expected)
    if listing["file_ending"] not in NIFTI_ENDINGS:
        found = f"file_ending {listing['file_ending']!r}"
        raise DataError(path, found, f"expected {' or '.join(NIFTI_ENDINGS)}")
