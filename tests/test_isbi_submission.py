"""What scripts/isbi_submission.py refuses; what it packs is in test_reproduce.py."""

from pathlib import Path

import pytest

from test_reproduce import isbi_submission, masks
from tversky_seg.data.cases import DataError


def test_a_submission_from_nowhere_or_to_nowhere_is_one_line(tmp_path: Path) -> None:
    folder = masks(tmp_path / "masks")
    with pytest.raises(DataError, match=r"none: no such folder; expected the one that predict\.py wrote"):
        isbi_submission.pack(tmp_path / "none", tmp_path / "out.zip", method="asl")
    for output in (tmp_path / "none" / "out.zip", folder):
        with pytest.raises(DataError, match=rf"--output: {output} cannot be a file there"):
            isbi_submission.pack(folder, output, method="asl")
    (folder / "test14_04_mask.nii.gz").rename(folder / "test15_01_mask.nii.gz")
    with pytest.raises(DataError, match="60 scans of 14 subjects; expected 61 of 14"):
        isbi_submission.pack(folder, tmp_path / "out.zip", method="asl")
