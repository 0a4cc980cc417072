"""LiTS, the Liver Tumor Segmentation benchmark (Bilic et al. 2023).

doi 10.1016/j.media.2022.102680
"""

from __future__ import annotations

import re
from pathlib import Path

from tversky_seg.data.case import Case
from tversky_seg.data.datasets._common import check_split
from tversky_seg.data.errors import DataError
from tversky_seg.data.image_files import image_stem, is_nifti

SHIROKIKH2020 = "shirokikh2020"
_TRAINING = re.compile(r"volume-(\d+)")
_TEST = re.compile(r"test-volume-(\d+)")


def find_lits(root: Path, *, split: str | None = None) -> list[Case]:
    """List the CT volumes of an official download: both training batches and the test set.

    Label values: 1 liver, 2 tumour. The test volumes have no labels: they are predicted only.

    Args:
        root: Folder that holds `volume-0.nii`, `segmentation-0.nii` and so on at any depth, as in
            `Training Batch 1` or `media/nas/01_Datasets/CT/LITS/Training Batch 1`.
        split: None: folds are drawn. "shirokikh2020": volumes 0 to 27 (batch 1) are the test set,
            28 to 32 the validation set, the others are trained on, and the official test set is
            left out.

    Raises:
        DataError: The folder does not look like this data set, or there is no such split.
    """
    check_split(split, [SHIROKIKH2020])
    files = {}
    for file in sorted(Path(root).rglob("*.nii*")):
        if is_nifti(file):
            files[image_stem(file)] = file
    cases = []
    for number, name in _numbered(files, _TRAINING):
        label = files.get(f"segmentation-{number}")
        case = Case(
            case_id=name,
            subject_id=name,
            images={"CT": files[name]},
            labels=(label,) if label else (),
            split=None if split is None else _part_in_shirokikh2020(number),
        )
        cases.append(case)
    if split is None:
        for _, name in _numbered(files, _TEST):
            cases.append(Case(name, name, {"CT": files[name]}, split="test"))
    if not cases:
        raise DataError(
            root,
            "does not look like LiTS",
            "expected Training Batch 1/volume-0.nii and segmentation-0.nii",
        )
    return cases


def _numbered(files: dict[str, Path], pattern: re.Pattern[str]) -> list[tuple[int, str]]:
    """List number and name of the files that match, by number: volume-2 before volume-10."""
    numbered = []
    for name in files:
        match = pattern.fullmatch(name)
        if match:
            numbered.append((int(match[1]), name))
    return sorted(numbered)


def _part_in_shirokikh2020(number: int) -> str:
    if number < 28:
        return "test"
    if number < 33:
        return "val"
    return "train"
