"""ISLES 2022 (Hernandez Petzsche et al. 2022): acute and subacute ischaemic stroke.

doi 10.1038/s41597-022-01875-5. Names are those of the archives on Zenodo (7153326 and 7960856),
which hold the 250 subjects of the training set; the test set is not published.
"""

from __future__ import annotations

from pathlib import Path

from tversky_seg.data.case import Case
from tversky_seg.data.datasets._common import (
    find_images,
    find_nifti_each,
    folders_below,
    log_left_out,
    unlike,
)

STEMS = {"DWI": ["dwi"], "ADC": ["adc", "ADC"], "FLAIR": ["FLAIR", "flair"]}
"""Ends of the names, whose letters differ between the releases."""

FOLDERS = (".", "dwi", "anat")  # of a session; the earlier release has no folders in it
MAX_DEPTH = 2  # folders between the root and that of a subject
LEFT_OUT = {"*derivatives/*": "masks of subjects whose images are not here"}


def find_isles2022(root: Path) -> list[Case]:
    """List the subjects of an official download.

    DWI (b = 1000) and ADC lie on the grid of the mask; FLAIR lies on another, is not registered,
    and is resampled to it by its affine. Label value 1: infarct.

    Left out: nothing. `data=bids` reads this data set too, but FLAIR alone.

    Args:
        root: Folder with `sub-strokecase0001/ses-0001/dwi` or with
            `rawdata/sub-strokecase0001/ses-0001`, and `derivatives`, at most one folder deep.

    Raises:
        DataError: The folder does not look like this data set.
    """
    root = Path(root)
    cases = []
    for subject in folders_below(root, "sub-strokecase[0-9]*", max_depth=MAX_DEPTH):
        for session in sorted(subject.glob("ses-*/")):
            images = _images(session, f"{subject.name}_{session.name}")
            if images:
                cases.append(_case(session, images))
    if not cases:
        expected = "sub-strokecase0001/ses-0001/dwi/sub-strokecase0001_ses-0001_dwi.nii.gz"
        raise unlike(root, "ISLES 2022", expected)
    log_left_out(root, cases, LEFT_OUT)
    return cases


def _images(session: Path, stem: str) -> dict[str, Path]:
    stems: dict[str, list[str]] = {}
    for modality, ends in STEMS.items():
        stems[modality] = []
        # Folder before ending: `find_images` takes the first name that exists.
        for folder in FOLDERS:
            stems[modality] += [f"{folder}/{stem}_{end}" for end in ends]
    return find_images(session, stems)


def _case(session: Path, images: dict[str, Path]) -> Case:
    subject = session.parent
    labels: tuple[Path, ...] = ()
    # Beside the subjects, or beside the folder `rawdata` of the subjects.
    for place in (subject.parent, subject.parent.parent):
        folder = place / "derivatives" / subject.name / session.name
        labels = labels or find_nifti_each(folder, [f"{subject.name}_{session.name}_msk"])
    return Case(
        case_id=subject.name,
        subject_id=subject.name,
        images=images,
        labels=labels,
        session=session.name.removeprefix("ses-"),
    )
