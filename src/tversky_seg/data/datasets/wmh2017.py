"""WMH Segmentation Challenge 2017 (Kuijf et al. 2019): hyperintensities of vascular origin.

doi 10.1109/TMI.2019.2905770. Names are those of the release on DataverseNL (doi 10.34894/AECRSD),
which has the test set with its labels; what they mean is told in its `readme.pdf`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
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

SPLITS = {"training": "train", "test": "test"}
IMAGES = {"FLAIR": ["FLAIR"], "T1": ["T1"]}
OBSERVERS = ("observer_o3", "observer_o4")
MAX_DEPTH = 4  # folders between the root and that of a subject
LEFT_OUT = {
    "*pre/3DT1.*": "the T1 image on a grid of its own; pre/T1 is the same on that of FLAIR",
    "*orig/*": "images before the correction of their bias, and masks that hide the face",
    "*additional_annotations/*": "masks of subjects whose images are not here",
}


def find_wmh2017(root: Path) -> list[Case]:
    """List the subjects of an official download.

    Label values: 1 white matter hyperintensity, 2 other pathology, whose voxels the challenge
    ignores. The first label is observer O1's, revised by O2; those of O3 and O4, of the training
    set only, follow and have the value 1 alone.

    A site is a hospital and a scanner: Utrecht, Singapore and Amsterdam_GE3T in both sets,
    Amsterdam_GE1T5 and Amsterdam_Philips in the test set alone.

    Left out: the images as scanned (`orig`), the T1 image on a grid of its own (`3DT1`).

    Args:
        root: Folder with `training/Utrecht/0/pre/FLAIR.nii.gz`, `test/Amsterdam/GE1T5/150` and
            `additional_annotations`, or part of it; `Utrecht/0`, as in 2017, is read too.

    Returns:
        Cases with the official split if both of its parts are present.

    Raises:
        DataError: The folder does not look like this data set.
    """
    root = Path(root)
    subjects: dict[str, Path] = {}
    for folder in folders_below(root, "[0-9]*", max_depth=MAX_DEPTH):
        has_files = find_nifti(folder / "pre", "FLAIR") or find_nifti(folder, "wmh")
        if has_files and folder.name.isdecimal():
            # Numbers are unique across hospitals.
            subjects.setdefault(folder.name, folder)
    if not subjects:
        raise unlike(root, "WMH 2017", "training/Utrecht/0/pre/FLAIR.nii.gz")
    parts = {number: _part(folder, root) for number, folder in subjects.items()}
    is_whole = set(parts.values()) == set(SPLITS)
    annotations = _annotations(root)
    cases = []
    for number in sorted(subjects, key=int):
        folder = subjects[number]
        case = _case(
            folder,
            site=_site(folder.absolute().parent.name),
            split=SPLITS[parts[number]] if is_whole else None,
            annotations=annotations.get(number, ()),
        )
        cases.append(case)
    log_left_out(root, cases, LEFT_OUT)
    return cases


def _case(folder: Path, *, site: str, split: str | None, annotations: Sequence[Path]) -> Case:
    labels = find_nifti_each(folder, ["wmh"])
    return Case(
        case_id=f"{site}_{folder.name}",
        subject_id=f"{site}_{folder.name}",
        images=find_images(folder / "pre", IMAGES),
        # Those of other observers alone would be taken for the first one's.
        labels=(*labels, *annotations) if labels else (),
        site=site,
        split=split,
    )


def _annotations(root: Path) -> dict[str, list[Path]]:
    """Return number of a subject -> masks of observers O3 and O4."""
    masks: dict[str, list[Path]] = defaultdict(list)
    for observer in OBSERVERS:
        for folder in folders_below(root, f"additional_annotations/{observer}", max_depth=1):
            for file in sorted(folder.rglob("result.nii*")):
                masks[file.parent.name].append(file)
    return masks


def _part(folder: Path, root: Path) -> str:
    """Return "test" or "training", which is also that of a folder below neither."""
    # The nearest to the root counts; the root itself may have either name.
    for name in (*folder.relative_to(root).parts, root.absolute().name):
        if name in SPLITS:
            return name
    return "training"


def _site(folder: str) -> str:
    """Name hospital and scanner by the folder of the subjects, as "Philips_VU .PETMR_01."."""
    if folder in ("GE3T", "GE1T5"):
        return f"Amsterdam_{folder}"
    return "Amsterdam_Philips" if folder.startswith("Philips") else folder
