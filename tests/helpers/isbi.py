"""Masks of the ISBI 2015 test scans."""

import shutil
from pathlib import Path

import numpy as np

from helpers.cohorts import save


def write_test_masks(folder: Path, *, n: int = 61) -> Path:
    """Write the masks of the first `n` of 70 scans, test01_01, test02_01, … test14_05.

    The first 61 are of 14 subjects, as in the challenge.
    """
    scans = []
    for visit in range(1, 6):
        for subject in range(1, 15):
            scans.append(f"test{subject:02}_{visit:02}")
    mask = (np.indices((4, 5, 6)).sum(0) % 3 == 0).astype(np.uint8)
    first = save(folder / f"{scans[0]}_mask.nii.gz", mask)
    for scan in scans[1:n]:
        shutil.copy(first, folder / f"{scan}_mask.nii.gz")
    (folder / "lesions.csv").write_text("")
    return folder
