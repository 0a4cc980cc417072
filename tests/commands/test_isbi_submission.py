"""ISBI 2015: scripts/isbi_submission.py, and the score of each rater on training scans."""

import json
import shutil
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from helpers.cohorts import add_case, save, write_rows
from helpers.command_line import call
from helpers.isbi import write_test_masks
from tversky_seg.commands import isbi_submission
from tversky_seg.data.errors import DataError


def test_a_submission_holds_61_plain_masks_named_by_scan_and_method(tmp_path: Path) -> None:
    folder = write_test_masks(tmp_path / "masks")
    assert isbi_submission.pack(folder, tmp_path / "out.zip", method="asl") == 61
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        names = archive.namelist()
        archive.extract("test01_01_asl.nii", tmp_path)
    assert len(names) == 61
    assert all(name.endswith("_asl.nii") for name in names)
    packed = nib.load(tmp_path / "test01_01_asl.nii")
    source = nib.load(folder / "test01_01_mask.nii.gz")
    assert packed.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(packed.dataobj), np.asarray(source.dataobj))
    assert np.allclose(packed.affine, source.affine)


def test_an_incomplete_submission_is_refused_unless_it_is_asked_for(tmp_path: Path) -> None:
    folder = write_test_masks(tmp_path / "masks", n=60)
    output = tmp_path / "out.zip"
    with pytest.raises(DataError, match="60 scans of 14 subjects"):
        isbi_submission.pack(folder, output, method="asl")
    assert not output.exists()
    assert isbi_submission.pack(folder, output, method="asl", is_complete=False) == 60


def test_a_subject_that_the_challenge_does_not_have_is_not_counted(tmp_path: Path) -> None:
    folder = write_test_masks(tmp_path / "masks")
    (folder / "test14_04_mask.nii.gz").rename(folder / "test15_01_mask.nii.gz")
    with pytest.raises(DataError, match="60 scans of 14 subjects"):
        isbi_submission.pack(folder, tmp_path / "out.zip", method="asl")


def test_a_mask_of_other_values_is_refused(tmp_path: Path) -> None:
    folder = write_test_masks(tmp_path / "masks", n=1)
    save(folder / "test01_01_mask.nii.gz", np.full((4, 5, 6), 2, np.uint8))
    with pytest.raises(DataError) as error:
        isbi_submission.pack(folder, tmp_path / "out.zip", method="asl", is_complete=False)
    assert error.value.where == str(folder / "test01_01_mask.nii.gz")


def test_names_and_places_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    folder = write_test_masks(tmp_path / "masks")
    with pytest.raises(DataError, match="--method"):
        isbi_submission.pack(folder, tmp_path / "out.zip", method="a/b")
    with pytest.raises(DataError, match="none"):
        isbi_submission.pack(tmp_path / "none", tmp_path / "out.zip", method="asl")
    for output in (tmp_path / "none" / "out.zip", folder):
        with pytest.raises(DataError, match=f"--output: {output}"):
            isbi_submission.pack(folder, output, method="asl")


def test_training_scans_are_evaluated_by_both_raters_next_to_test_scans_without_labels(
    tmp_path: Path,
) -> None:
    """The manifest lists the whole download, as the importer does: test scans have no label."""
    rows = [add_case(tmp_path, f"training0{i}_01", seed=i) for i in (1, 2)]
    for row in rows:
        label = tmp_path / row["label"]
        row["label_2"] = shutil.copy(label, tmp_path / f"{row['case_id']}_mask2.nii.gz").name
        row["split"] = ""
        shutil.copy(label, tmp_path / f"{row['case_id']}_predicted.nii.gz")
    save(tmp_path / "training01_01_mask2.nii.gz", np.zeros((24, 26, 22), np.uint8))
    test = add_case(tmp_path, "test01_01", seed=3) | {"label": "", "label_2": "", "split": "test"}
    manifest = write_rows(tmp_path / "m.csv", [*rows, test])
    outcome = call(
        "evaluate",
        f"predictions={tmp_path}",
        f"manifest={manifest}",
        "evaluation.pattern='{case_id}_predicted.nii.gz'",
        "evaluation=isbi2015",
        f"output_dir={tmp_path / 'out'}",
    )
    assert outcome.status == 0, outcome.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    first, second = metrics["raters"]
    assert metrics["n_cases"] == 2
    assert first["isbi_score"] == pytest.approx(1)
    assert second["n_cases"] == 2
    assert second["mean"]["dice"] == pytest.approx(0.5)
