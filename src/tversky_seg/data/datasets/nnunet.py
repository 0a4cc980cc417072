"""A raw data set of nnU-Net, version 2 (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z)."""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tversky_seg.data.case import Case
from tversky_seg.data.datasets._common import ENDINGS
from tversky_seg.data.errors import DataError

logger = logging.getLogger("tversky_seg")
_CHANNEL = re.compile(r"(.+)_(\d{4})")


def find_nnunet(root: Path) -> list[Case]:
    """List the cases of a folder `DatasetXXX_Name`; channels are called as in `dataset.json`.

    Images are `imagesTr/<case>_0000.nii.gz` and so on, labels `labelsTr/<case>.nii.gz`, or where the key `dataset` of
    the JSON says; `imagesTs` are predicted, and judged where there is a `labelsTs`. Each case is taken as a subject of
    its own: where subjects have several, write the manifest alone and fill in `subject_id`.

    Args:
        root: The folder, which holds `dataset.json`.

    Raises:
        DataError: There is no readable `dataset.json`, its files are no NIfTI, or none of them is there.
    """
    root = Path(root)
    listing = _read_listing(root / "dataset.json")
    channels = {int(number): name for number, name in _channels(listing).items()}
    if isinstance(listing.get("dataset"), dict):
        cases = [_listed(root, name, entry, channels) for name, entry in listing["dataset"].items()]
    else:
        cases = _in_folder(root, "Tr", channels, listing["file_ending"], split=None)
    tests = _in_folder(root, "Ts", channels, listing["file_ending"], split="test")
    if any(case.labels for case in tests):
        cases = [replace(case, split="train") for case in cases]
    cases += tests
    if not cases:
        raise DataError(
            root,
            "holds no case",
            f"expected imagesTr/<case>_0000{listing['file_ending']}, as dataset.json says",
        )
    _say_labels(listing)
    return cases


def _in_folder(
    root: Path, part: str, channels: Mapping[int, str], ending: str, *, split: str | None
) -> list[Case]:
    found: dict[str, dict[str, Path]] = {}
    for file in sorted((root / f"images{part}").glob(f"*{ending}")):
        match = _CHANNEL.fullmatch(file.name.removesuffix(ending))
        if match and int(match[2]) in channels:
            found.setdefault(match[1], {})[channels[int(match[2])]] = file
    cases = []
    for name, images in found.items():
        label = root / f"labels{part}" / f"{name}{ending}"
        labels = (label,) if label.is_file() else ()
        cases.append(Case(name, name, images, labels, split=split))
    return cases


def _listed(root: Path, name: str, entry: Mapping[str, Any], channels: Mapping[int, str]) -> Case:
    images = {channels[i]: root / file for i, file in enumerate(entry["images"]) if i in channels}
    return Case(name, name, images, (root / entry["label"],) if entry.get("label") else ())


def _channels(listing: Mapping[str, Any]) -> dict[str, str]:
    """Number -> name that can head a column; names that stand twice get their number."""
    names = {number: re.sub(r"[^\w.=+@-]+", "_", str(name)).strip("_.") for number, name in
             listing["channel_names"].items()}  # fmt: skip
    values = list(names.values())
    return {
        number: name if values.count(name) == 1 else f"{name}_{number}"
        for number, name in names.items()
    }


def _say_labels(listing: Mapping[str, Any]) -> None:
    labels = {name: values for name, values in listing["labels"].items() if name != "background"}
    if "ignore" in labels:
        raise DataError(
            "dataset.json",
            f"has a label 'ignore' ({labels['ignore']})",
            "expected labels drawn everywhere",
        )
    classes = {
        name: values if isinstance(values, list) else [values] for name, values in labels.items()
    }
    written = ", ".join(f"{name}: {values}" for name, values in classes.items())
    logger.info("dataset.json names the labels data.classes='{%s}'", written)


def _read_listing(path: Path) -> dict[str, Any]:
    """`dataset.json`, after a check that it has what is needed."""
    try:
        listing = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            path, f"{error.strerror}", "expected the folder DatasetXXX_Name of nnU-Net v2"
        ) from error
    except ValueError as error:
        raise DataError(path, "is no JSON", "expected that of nnU-Net v2") from error
    missing = [key for key in ("channel_names", "labels", "file_ending") if key not in listing]
    if (
        missing
        or not isinstance(listing["channel_names"], dict)
        or not isinstance(listing["labels"], dict)
    ):
        raise DataError(path, f"has no {', '.join(missing) or 'named channels and labels'}", 'expected those of nnU-Net v2 (a Decathlon task: data=decathlon)')  # fmt: skip
    if listing["file_ending"] not in ENDINGS:
        raise DataError(
            path, f"file_ending {listing['file_ending']!r}", f"expected {' or '.join(ENDINGS)}"
        )
    return dict(listing)
