"""LiTS, the Liver Tumor Segmentation benchmark (Bilic et al. 2023).

doi 10.1016/j.media.2022.102680
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tversky_seg.data.affines import affine_shift_voxels
from tversky_seg.data.case import Case
from tversky_seg.data.datasets._common import check_split
from tversky_seg.data.errors import DataError
from tversky_seg.data.grids import TOLERATED_SHIFT_VOXELS
from tversky_seg.data.image_files import image_stem, is_nifti
from tversky_seg.data.nifti import read_grid, read_label, write_volume

logger = logging.getLogger("tversky_seg")

SHIROKIKH2020 = "shirokikh2020"
_TRAINING = re.compile(r"volume-(\d+)")
_TEST = re.compile(r"test-volume-(\d+)")


def find_lits(root: Path, *, split: str | None = None, repaired: str | None = None) -> list[Case]:
    """List the CT volumes of an official download: both training batches and the test set.

    Label values: 1 liver, 2 tumour. The test volumes have no labels: they are predicted only.

    Some masks of the archive lack the geometry of their scan: their affine is the identity. Their
    voxels fit the scan's one by one, as the authors' own loaders read them
    (github.com/MIC-DKFZ/nnUNet/issues/2751). Such masks are copied with the scan's affine.

    Args:
        root: Folder that holds `volume-0.nii`, `segmentation-0.nii` and so on at any depth, as in
            `Training Batch 1` or `media/nas/01_Datasets/CT/LITS/Training Batch 1`.
        split: None: folds are drawn. "shirokikh2020": volumes 0 to 27 (batch 1) are the test set,
            28 to 32 the validation set, the others are trained on, and the official test set is
            left out.
        repaired: Folder of the copied masks, made if needed, some 20 MB; None: masks are taken as
            they are.

    Raises:
        DataError: The folder does not look like this data set, there is no such split, or
            `repaired` cannot be written.
    """
    check_split(split, [SHIROKIKH2020])
    # By name, because scans and masks may lie in different folders.
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
    if repaired is not None:
        cases = _with_repaired_masks(cases, Path(repaired).expanduser())
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


def _with_repaired_masks(cases: Sequence[Case], folder: Path) -> list[Case]:
    """Replace masks that lie elsewhere than their scan by copies with the scan's affine."""
    repaired_cases = []
    names = []
    for case in cases:
        if case.label is not None and _lies_elsewhere(case.label, case.images["CT"]):
            name = image_stem(case.label)
            names.append(name)
            copy = folder / f"{name}.nii.gz"
            # Written once: the cache of prepared cases goes by the time of the file.
            if not copy.is_file():
                _, affine = read_grid(case.images["CT"])
                write_volume(copy, read_label(case.label).data, affine)
            case = replace(case, labels=(copy,))
        repaired_cases.append(case)
    if names:
        message = "%d masks have another affine than their scans (%s): copied with the scan's to %s"
        logger.warning(message, len(names), ", ".join(names), folder)
    return repaired_cases


def _lies_elsewhere(mask: Path, scan: Path) -> bool:
    """Tell whether a mask has the shape of its scan, but another place or voxel size."""
    try:
        shape, affine = read_grid(scan)
        mask_shape, mask_affine = read_grid(mask)
    except DataError:  # preprocessing names the fault
        return False
    if mask_shape != shape:
        return False
    return affine_shift_voxels(affine, mask_affine, shape) > TOLERATED_SHIFT_VOXELS
