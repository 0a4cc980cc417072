"""ISBI 2015: each rater's score of training scans, and what scripts/isbi_submission.py refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers.cohorts import add_case, save, write_rows
from helpers.command_line import call
from helpers.isbi import isbi_submission, masks
from tversky_seg.data.errors import DataError


def test_a_submission_from_nowhere_or_to_nowhere_is_one_line(tmp_path: Path) -> None:
    folder = masks(tmp_path / "masks")
    with pytest.raises(
        DataError, match=r"none: no such folder; expected the one that predict\.py wrote"
    ):
        isbi_submission.pack(tmp_path / "none", tmp_path / "out.zip", method="asl")
    for output in (tmp_path / "none" / "out.zip", folder):
        with pytest.raises(DataError, match=rf"--output: {output} cannot be a file there"):
            isbi_submission.pack(folder, output, method="asl")
    (folder / "test14_04_mask.nii.gz").rename(folder / "test15_01_mask.nii.gz")
    with pytest.raises(DataError, match="60 scans of 14 subjects; expected 61 of 14"):
        isbi_submission.pack(folder, tmp_path / "out.zip", method="asl")


def test_training_scans_are_judged_by_both_raters_beside_test_scans_without_labels(
    tmp_path: Path,
) -> None:
    """List the whole download as the importer does: the test set has its split, and no label."""
    rows = [add_case(tmp_path, f"training0{i}_01", seed=i) for i in (1, 2)]
    for row in rows:
        label = tmp_path / row["label"]
        row["label_2"] = shutil.copy(label, tmp_path / f"{row['case_id']}_mask2.nii.gz").name
        row["split"] = ""
        shutil.copy(label, tmp_path / f"{row['case_id']}_found.nii.gz")
    save(tmp_path / "training01_01_mask2.nii.gz", np.zeros((24, 26, 22), np.uint8))
    test = add_case(tmp_path, "test01_01", seed=3) | {"label": "", "label_2": "", "split": "test"}
    manifest = write_rows(tmp_path / "m.csv", [*rows, test])
    words = (
        "evaluation.pattern='{case_id}_found.nii.gz'",
        "evaluation=isbi2015",
        f"output_dir={tmp_path / 'out'}",
    )
    outcome = call("evaluate", f"predictions={tmp_path}", f"manifest={manifest}", *words)
    assert outcome.status == 0, outcome.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    first, second = metrics["raters"]
    assert (metrics["n_cases"], first["isbi_score"], second["n_cases"]) == (2, pytest.approx(1), 2)
    assert second["mean"]["dice"] == pytest.approx(0.5)
