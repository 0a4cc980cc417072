"""The longitudinal part of open_ms_data of Ljubljana (Lesjak et al. 2016): changes of lesions.

doi 10.1007/s12021-016-9301-1. Names are those of its README, and of the clone on GitHub
(muschellij2/open_ms_data, `longitudinal/coregistered`).
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

MODALITIES = {"FLAIR": "FLAIR", "T1": "T1W", "T2": "T2W"}
MAX_DEPTH = 2  # folders between the root and that of a patient
LEFT_OUT = {
    "*cross_sectional/*": "other patients, of one examination: data=lesjak2017",
    "*raw/*": "images as scanned, on grids of their own",
}


def find_lesjak2016(root: Path) -> list[Case]:
    """List the pairs of a clone, or of the original archive.

    A case is a pair: `FLAIR@1` the earlier image, `FLAIR@2` the later one, both registered to a
    common space. The label holds changes in both directions: lesions that are new, grown, shrunken
    or gone. It does not tell which.

    Left out: the images as scanned (`raw`), and the cross-sectional part.

    Args:
        root: The clone, its folder `longitudinal`, or the folder of the patients, with
            `patient01/study1_FLAIR.nii.gz` (the clone),
            `patient1/patient1_study1_FLAIRreg.nii.gz` (the archive) or `study1_FLAIR_common`
            (a raw FLAIR image, resampled to the common space by its `.txt`).

    Raises:
        DataError: The folder does not look like this data set.
    """
    root = Path(root)
    cases = []
    for patient in folders_below(root, "patient[0-9]*", max_depth=MAX_DEPTH):
        images = find_images(patient, _stems(patient.name))
        if images and patient.absolute().parent.name != "raw":
            cases.append(_case(patient, images))
    if not cases:
        expected = "longitudinal/coregistered/patient01/study1_FLAIR.nii.gz"
        raise unlike(root, "open_ms_data, longitudinal (Lesjak 2016)", expected)
    log_left_out(root, cases, LEFT_OUT)
    return cases


def _stems(patient: str) -> dict[str, list[str]]:
    """Return column -> names of the file, the later image of a modality first."""
    stems = {}
    for modality, word in MODALITIES.items():
        for study in (2, 1):
            name = f"study{study}_{word}"
            stems[f"{modality}@{study}"] = [name, f"{patient}_{name}reg", f"{name}_common"]
    return stems


def _case(patient: Path, images: dict[str, Path]) -> Case:
    return Case(
        case_id=patient.name,
        subject_id=patient.name,
        images=images,
        labels=find_nifti_each(patient, ["gt"]) or find_nifti_each(patient, [f"{patient.name}_gt"]),
        brain_mask=find_nifti(patient, "brainmask", f"{patient.name}_brainmask"),
    )
