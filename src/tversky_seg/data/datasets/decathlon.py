"""A task of the Medical Segmentation Decathlon (Antonelli et al. 2022, doi 10.1038/s41467-022-30695-9)."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.image_files import file_and_frame

logger = logging.getLogger("tversky_seg")


def find_decathlon(root: Path) -> list[Case]:
    """List the cases of a task; modalities are called as in `dataset.json`, and several are the frames of a 4D file.

    The official test images have no labels: they are predicted, not judged.

    Args:
        root: The folder of one task, which holds `dataset.json`, `imagesTr` and `labelsTr`.

    Raises:
        DataError: There is no readable `dataset.json`, or none of its images is there.
    """
    root = Path(root)
    listing = _read_listing(root / "dataset.json")
    modalities = [str(name).strip().replace(" ", "_") for name in listing["modality"].values()]
    names = [(entry["image"], entry.get("label")) for entry in listing["training"]]
    names += [
        (entry["image"] if isinstance(entry, dict) else entry, None)
        for entry in listing.get("test", [])
    ]
    cases = [_case(root, image, label, modalities=modalities) for image, label in names]
    there = [case for case in cases if all(map(_is_there, (*case.images.values(), *case.labels)))]
    if not there:
        raise DataError(
            root,
            f"none of the {len(cases)} images in dataset.json is there",
            "expected imagesTr, labelsTr",
        )
    if len(there) < len(cases):
        absent = [case.case_id for case in cases if case not in there]
        logger.warning(
            "%d of %d cases in dataset.json have no file: %s",
            len(absent),
            len(cases),
            ", ".join(absent),
        )
    return there


def _is_there(path: Path) -> bool:
    return file_and_frame(path)[0].is_file()


def _case(root: Path, image: str, label: str | None, *, modalities: Sequence[str]) -> Case:
    case_id = PurePosixPath(image).name.removesuffix(".gz").removesuffix(".nii")
    frames = (
        [root / image]
        if len(modalities) == 1
        else [root / f"{image}@{n}" for n in range(len(modalities))]
    )
    return Case(
        case_id=case_id,
        subject_id=case_id,
        images=dict(zip(modalities, frames, strict=True)),
        labels=(root / label,) if label else (),
        split=None if label else "test",
    )


def _read_listing(path: Path) -> dict[str, Any]:
    """`dataset.json`, after a check that it lists what is needed."""
    try:
        listing = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            path, f"{error.strerror}", "expected the folder of one Decathlon task, as Task04"
        ) from error
    except ValueError as error:
        raise DataError(path, "is no JSON", "expected that of a Decathlon task") from error
    try:
        fine = bool(listing["modality"].values()) and all(
            "image" in entry for entry in listing["training"]
        )
    except (AttributeError, KeyError, TypeError):
        fine = False
    if not fine:
        raise DataError(
            path, "lists no modality or no training images", "expected those of a Decathlon task"
        )
    return dict(listing)
