"""The images below a folder, and what was passed over there."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tversky_seg.data.image_files import image_stem, is_nifti, is_other_image

RESULT_FOLDERS = ("derivatives", "methods", "predictions", "results")
"""Folders that hold what programs computed from the images."""

HIDDEN = "hidden"
DANGLING = "links to files that are not here"
OTHER_FORMAT = "in another format, convert them to .nii.gz"
IN_RESULTS = "folders of results, not searched"


@dataclass
class Listing:
    """Images below a folder."""

    images: list[Path] = field(default_factory=list)
    """NIfTI files, sorted."""
    skipped: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    """Reason -> images or folders that were passed over."""


def list_images(folder: Path, *, enter: Sequence[str] = ()) -> Listing:
    """List the NIfTI files in a folder and in all folders below, links among them.

    Hidden files and folders are passed over, and so are `RESULT_FOLDERS`.

    Args:
        folder: Folder to search.
        enter: Names of result folders, in small letters, to search nevertheless.
    """
    listing = Listing()
    visited: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        here = Path(parent)
        real = os.path.realpath(parent)
        if real in visited:
            folders.clear()  # a link back to a folder above, or a second way to one
            continue
        visited.add(real)
        for name in list(folders):
            is_result = name.lower() in RESULT_FOLDERS and name.lower() not in enter
            if is_result:
                listing.skipped[IN_RESULTS].append(here / name)
            if is_result or name.startswith("."):
                folders.remove(name)
        folders.sort()
        for name in sorted(files):
            _sort_in(here / name, listing)
    _drop_converted(listing)
    return listing


def _sort_in(path: Path, listing: Listing) -> None:
    """Put one file where it belongs; what is no image is not mentioned."""
    if not (is_nifti(path) or is_other_image(path)):
        return
    if path.name.startswith("."):
        listing.skipped[HIDDEN].append(path)
    elif not path.is_file():
        listing.skipped[DANGLING].append(path)
    elif is_nifti(path):
        listing.images.append(path)
    else:
        listing.skipped[OTHER_FORMAT].append(path)


def _drop_converted(listing: Listing) -> None:
    """Forget images in other formats that lie beside their NIfTI file."""
    if OTHER_FORMAT not in listing.skipped:
        return
    converted = {path.with_name(image_stem(path)) for path in listing.images}
    others = []
    for path in listing.skipped[OTHER_FORMAT]:
        if path.with_name(image_stem(path)) not in converted:
            others.append(path)
    listing.skipped[OTHER_FORMAT] = others
