"""MSSEG-2 (MICCAI 2021): new multiple sclerosis lesions between two FLAIR images.

Names and the rule of the consensus are those of the README that comes with the data
(portal.fli-iam.irisa.fr/msseg-2): 100 patients, both images registered halfway to each other.
"""

from __future__ import annotations

from pathlib import Path

from tversky_seg.data.case import Case
from tversky_seg.data.datasets._common import (
    find_images,
    find_nifti,
    find_nifti_each,
    folders_below,
    log_left_out,
    unlike,
)

SPLITS = {"training": "train", "testing": "test"}
IMAGES = {
    "FLAIR@2": ["flair_time02_on_middle_space"],
    "FLAIR@1": ["flair_time01_on_middle_space"],
}
"""Stems of the later and the earlier image."""

EXPERTS = [f"ground_truth_expert{number}" for number in range(1, 5)]
MAX_DEPTH = 3  # folders between the root and that of a patient
LEFT_OUT = {
    "*flair_time0[12].nii*": "images before they were registered, on which no mask is",
}


def find_msseg2(root: Path) -> list[Case]:
    """List the pairs of an official download.

    A case is a pair: `FLAIR@1` the earlier image, `FLAIR@2` the later one. The label holds the new
    lesions alone: the consensus, then the four experts'. Lesions that were there before, and those
    that grew, are not labelled. Some patients have no new lesion: their masks are empty.

    Left out: images that are not registered, where the download has them.

    Args:
        root: Folder with `training/013/flair_time01_on_middle_space.nii.gz` and, if wanted,
            `testing`, at most two folders deep, or one of these.

    Returns:
        Cases with the official split if both of its parts are present.

    Raises:
        DataError: The folder does not look like this data set.
    """
    root = Path(root)
    patients = folders_below(root, "[0-9][0-9][0-9]", max_depth=MAX_DEPTH)
    is_whole = {patient.parent.name for patient in patients} >= set(SPLITS)
    cases = []
    for patient in patients:
        split = SPLITS.get(patient.parent.name) if is_whole else None
        case = _case(patient, split)
        if case.images:
            cases.append(case)
    if not cases:
        raise unlike(root, "MSSEG-2", "training/013/flair_time01_on_middle_space.nii.gz")
    log_left_out(root, cases, LEFT_OUT)
    return cases


def _case(patient: Path, split: str | None) -> Case:
    return Case(
        case_id=patient.name,
        subject_id=patient.name,
        images=find_images(patient, IMAGES),
        labels=find_nifti_each(patient, ["ground_truth", *EXPERTS]),
        # Written by the challenge's own script of brain extraction, if it was run.
        brain_mask=find_nifti(patient, "mask", "brain_mask"),
        split=split,
        consensus=find_nifti(patient, "ground_truth") is not None,
    )
