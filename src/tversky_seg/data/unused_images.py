"""Images of an input folder that belong to no case, so that none is passed over in silence."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tversky_seg.data.case import Case
from tversky_seg.data.image_files import file_and_frame, is_nifti

logger = logging.getLogger("tversky_seg")


def log_images_outside_anat(folder: Path) -> None:
    """Say which images of a BIDS folder are not read: those in `dwi`, `func` and the like."""
    first: dict[str, Path] = {}
    counts = Counter[str]()
    for path in sorted([*folder.glob("sub-*/*/*"), *folder.glob("sub-*/ses-*/*/*")]):
        kind = path.parent.name
        if is_nifti(path) and kind != "anat" and not kind.startswith("ses-"):
            counts[kind] += 1
            first.setdefault(kind, path)
    if not counts:
        return
    kinds = []
    for kind, count in counts.items():
        kinds.append(f"{count} in {kind}, as {first[kind].relative_to(folder)}")
    logger.warning(
        "%s: only images in anat are read; passed over %s; a manifest CSV can list any image",
        folder,
        "; ".join(kinds),
    )


def unused_images(folder: Path, cases: Sequence[Case]) -> list[Path]:
    """List the NIfTI files of a folder and its folders that no case uses, sorted.

    Args:
        folder: Folder of `<case_id>_<MODALITY>.nii.gz` or `<case_id>/<MODALITY>.nii.gz`.
        cases: All cases that were made of it.
    """
    used = set()
    for case in cases:
        for path in (*case.images.values(), case.brain_mask):
            if path is not None:
                file, _ = file_and_frame(path)
                used.add(file.absolute())
    unused = []
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        is_image = is_nifti(path) and not path.name.startswith(".")
        if is_image and path.absolute() not in used:
            unused.append(path)
    return unused
