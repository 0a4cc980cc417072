"""A task of the Medical Segmentation Decathlon (Antonelli et al. 2022).

doi 10.1038/s41467-022-30695-9
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from tversky_seg.data.case import Case, files_of
from tversky_seg.data.datasets._common import log_left_out, read_listing, understanding
from tversky_seg.data.errors import DataError

logger = logging.getLogger("tversky_seg")

FOLDER = "the folder of one Decathlon task, as Task04_Hippocampus"


def find_decathlon(root: Path) -> list[Case]:
    """List the cases of a task.

    Modalities are called as in `dataset.json`; several modalities are the frames of a 4D file.
    The official test images have no labels: they are predicted only.

    Args:
        root: Folder of one task, with `dataset.json`, `imagesTr` and `labelsTr`.

    Raises:
        DataError: There is no readable `dataset.json`, or none of its images exists.
    """
    root = Path(root)
    path = root / "dataset.json"
    listing = read_listing(path, folder_name=FOLDER)
    with understanding(path, folder_name=FOLDER):
        _check_listing(listing, path)
        cases = _existing(_listed_cases(listing, root), root)
    log_left_out(root, cases, {"*": "in no entry of dataset.json, or without their image"})
    return cases


def _listed_cases(listing: dict[str, Any], root: Path) -> list[Case]:
    # Names head the columns of a manifest, which have no spaces.
    modalities = [str(name).strip().replace(" ", "_") for name in listing["modality"].values()]
    cases = []
    for entry in listing["training"]:
        cases.append(_case(root, entry["image"], entry.get("label"), modalities))
    for entry in listing.get("test", []):
        # Tasks list their test images by name, others' data sets as entries.
        image = entry["image"] if isinstance(entry, dict) else entry
        cases.append(_case(root, image, None, modalities))
    return cases


def _case(root: Path, image: str, label: str | None, modalities: Sequence[str]) -> Case:
    case_id = PurePosixPath(image).name.removesuffix(".gz").removesuffix(".nii")
    if len(modalities) == 1:
        images = {modalities[0]: root / image}
    else:
        # image.nii.gz@1 is the second frame of a 4D file.
        images = {name: root / f"{image}@{frame}" for frame, name in enumerate(modalities)}
    return Case(
        case_id=case_id,
        subject_id=case_id,
        images=images,
        labels=(root / label,) if label else (),
        split=None if label else "test",
    )


def _existing(cases: Sequence[Case], root: Path) -> list[Case]:
    """Return the cases whose files exist; log the others."""
    existing, absent = [], []
    for case in cases:
        if all(file.is_file() for file in files_of([case])):
            existing.append(case)
        else:
            absent.append(case.case_id)
    if not existing:
        found = f"none of the {len(cases)} images in dataset.json exists"
        raise DataError(root, found, "expected imagesTr, labelsTr")
    # Half an archive is worth training on, but not without a word.
    if absent:
        message = "%d of %d cases in dataset.json have no file: %s"
        logger.warning(message, len(absent), len(cases), ", ".join(absent))
    return existing


def _check_listing(listing: dict[str, Any], path: Path) -> None:
    """Refuse a `dataset.json` without modalities or training images."""
    modalities = listing.get("modality")
    training = listing.get("training")
    has_modalities = isinstance(modalities, dict) and len(modalities) > 0
    has_images = isinstance(training, list) and all(
        isinstance(entry, dict) and "image" in entry for entry in training
    )
    if not (has_modalities and has_images):
        found = "lists no modality or no training images"
        raise DataError(path, found, f"expected that of {FOLDER}")
