"""ISBI 2015, longitudinal multiple sclerosis (Carass et al. 2017).

doi 10.1016/j.neuroimage.2016.12.064
"""

from __future__ import annotations

import re
from pathlib import Path

from tversky_seg.data.case import Case
from tversky_seg.data.datasets._common import (
    find_images,
    find_nifti_each,
    folders_below,
    log_left_out,
    unlike,
    with_baselines,
)
from tversky_seg.data.image_files import is_nifti

FILE_NAMES = {"FLAIR": "flair", "T1": "mprage", "T2": "t2", "PD": "pd"}
MASKS = ("mask1", "mask2")
SUBJECT_FOLDERS = ("training[0-9][0-9]", "test[0-9][0-9]")
MAX_DEPTH = 3  # folders between the root and that of a subject
LEFT_OUT = {
    "*orig/*": "images as scanned, on grids of their own",
    "*_pp.nii*": "copies of images",
    "*masks/*": "masks of scans that are not here, or copies",
}
_SCAN = re.compile(r"((?:training|test)\d\d_\d\d)_[a-z0-9]+_pp")


def find_isbi2015(root: Path) -> list[Case]:
    """List the preprocessed scans of an official download.

    Time points are sessions, and each names the one before it as its baseline. There is no
    consensus: the label is the first rater's, followed by the second's. The scans of the 14 test
    subjects have no labels: they are predicted only.

    Left out: the images as scanned (`orig`).

    Args:
        root: Folder with `training/training01/{preprocessed,masks}`, or
            `testdata_website/test01/preprocessed`, or both, at most four folders deep.

    Raises:
        DataError: The folder does not look like this data set.
    """
    cases: dict[str, Case] = {}
    for pattern in SUBJECT_FOLDERS:
        for folder in folders_below(Path(root), pattern, max_depth=MAX_DEPTH):
            for case_id in _scans(folder / "preprocessed"):
                # Of copies of a scan the one nearest to the root stays.
                cases.setdefault(case_id, _case(folder, case_id))
    if not cases:
        raise unlike(
            Path(root),
            "ISBI 2015",
            "training/training01/preprocessed/training01_01_flair_pp.nii "
            "or testdata_website/test01/preprocessed/test01_01_flair_pp.nii",
        )
    log_left_out(Path(root), list(cases.values()), LEFT_OUT)
    return with_baselines(list(cases.values()))


def _case(folder: Path, case_id: str) -> Case:
    subject, session = case_id.split("_")
    stems = {modality: [f"{case_id}_{name}_pp"] for modality, name in FILE_NAMES.items()}
    return Case(
        case_id=case_id,
        subject_id=subject,
        images=find_images(folder / "preprocessed", stems),
        labels=find_nifti_each(folder / "masks", [f"{case_id}_{mask}" for mask in MASKS]),
        session=session,
        split="test" if subject.startswith("test") else None,
    )


def _scans(folder: Path) -> list[str]:
    """List the scans of a subject: `training01_02` of `training01_02_flair_pp.nii`."""
    case_ids = set()
    for file in folder.glob("*"):
        # A link or a log may lie beside the scans.
        match = _SCAN.match(file.name)
        if match and is_nifti(file):
            case_ids.add(match[1])
    return sorted(case_ids)
