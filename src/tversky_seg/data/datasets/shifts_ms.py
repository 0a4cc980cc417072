"""Shifts 2.0, white matter lesions (Malinin et al. 2022): multiple sclerosis, shifted sites.

arXiv 2206.15407. Names are those of the archives on Zenodo (7051658, which needs the agreement of
OFSEP, and 7051692) and of the organisers' loader (github.com/Shifts-Project/shifts, `mswml`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
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
from tversky_seg.data.image_files import image_stem

SPLITS = {"train": "train", "dev_in": "val", "eval_in": "test", "dev_out": "test"}
WORDS = {"FLAIR": ["FLAIR"], "T1": ["T1"], "T2": ["T2"], "PD": ["PD"], "T1CE": ["T1CE", "T1Post"]}
"""Modality, in small letters the name of a folder -> words in the names of its files."""

MAX_DEPTH = 3  # folders between the root and that of a part
_FLAIR = re.compile(r"(\d+)_FLAIR_isovox")


def find_shifts_ms(root: Path) -> list[Case]:
    """List the scans of an official download, of either archive or of both.

    Images are skull-stripped, with isotropic voxels of 1 mm. The site is the cohort: `msseg`
    (patients of MSSEG 2016), `best` or `ljubljana` (those of `lesjak2017`): do not test on one what
    was trained on the other. Each part of a cohort numbers its scans anew.

    `train` is the training, `dev_in` the validation set, `eval_in` and `dev_out` (Ljubljana, the
    shifted site) are the test set. The second shifted site, Lausanne, is not published.

    Args:
        root: Folder with `best/train/flair/1_FLAIR_isovox.nii.gz`, at most two folders deep.

    Returns:
        Cases with the official split if a training set is present.

    Raises:
        DataError: The folder does not look like this data set.
    """
    root = Path(root)
    cases: list[Case] = []
    for part in SPLITS:
        for folder in folders_below(root, part, max_depth=MAX_DEPTH):
            cases += _cases(folder)
    if not cases:
        raise unlike(root, "Shifts 2.0 MS", "best/train/flair/1_FLAIR_isovox.nii.gz")
    log_left_out(root, cases, {})
    if any(case.split == "train" for case in cases):
        return cases
    return [replace(case, split=None) for case in cases]


def _cases(folder: Path) -> Iterator[Case]:
    cohort, part = folder.absolute().parent.name, folder.name
    numbers = []
    for file in (folder / "flair").glob("*"):
        match = _FLAIR.fullmatch(image_stem(file))
        if match:
            numbers.append(int(match[1]))
    for number in sorted(numbers):
        stems = {}
        for modality, words in WORDS.items():
            stems[modality] = [f"{modality.lower()}/{number}_{word}_isovox" for word in words]
        case_id = f"{cohort}_{part}_{number}"
        yield Case(
            case_id=case_id,
            subject_id=case_id,
            images=find_images(folder, stems),
            labels=find_nifti_each(folder / "gt", [f"{number}_gt_isovox"]),
            brain_mask=find_nifti(folder / "fg_mask", f"{number}_isovox_fg_mask"),
            site=cohort,
            split=SPLITS[part],
        )
