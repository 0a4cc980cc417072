"""Scans and their repeats: predictions compared without any label of the repeat."""

import csv
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.manifest import read_manifest, write_manifest
from tversky_seg.evaluation.evaluator import evaluate
from tversky_seg.evaluation.scan_rescan import RepeatPair, summarize_repeats

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
BOXES = (np.s_[2:4, 2:4, 2:4], np.s_[8:10, 8:10, 2:4], np.s_[14:16, 2:4, 2:4])


def save(path: Path, *boxes: tuple[slice, slice, slice], shift_mm: float = 0) -> Path:
    data = np.zeros((20, 12, 8), np.uint8)
    for box in boxes:
        data[box] = 1
    affine = AFFINE.copy()
    affine[0, 3] = shift_mm
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


@pytest.fixture(autouse=True)
def _no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tversky_seg.report.page.draw_charts", lambda *_: iter(()))


def a_cohort(folder: Path) -> list[Case]:
    """A labelled scan with three lesions, its repeat with two of these and one more, and others."""
    label = save(folder / "label.nii.gz", *BOXES)
    masks = folder / "p"
    save(masks / "a_mask.nii.gz", *BOXES)
    save(masks / "a2_mask.nii.gz", *BOXES[:2], np.s_[17:19, 9:11, 5:7], np.s_[6, 6, 6])
    save(masks / "b_mask.nii.gz", BOXES[0])
    save(masks / "b2_mask.nii.gz", BOXES[0], shift_mm=5)
    save(masks / "c_mask.nii.gz", BOXES[0])
    return [
        Case("a", "a", {}, (label,)),
        Case("a2", "a", {}, repeat_of="a"),
        Case("b", "b", {}),
        Case("b2", "b", {}, repeat_of="b"),
        Case("c", "c", {}),
        Case("c2", "c", {}, repeat_of="c"),
    ]


def test_repeats_are_compared_without_labels(tmp_path: Path) -> None:
    cases = a_cohort(tmp_path)
    metrics = evaluate(tmp_path / "p", cases, output_dir=tmp_path / "e", viewer="none")
    assert metrics["n_cases"] == 1
    result = metrics["repeatability"]
    # c2 was not predicted, so its pair is left out.
    assert (result["n_pairs"], result["n_subjects"]) == (2, 2)
    first, other_grid = result["pairs"]
    # Lesions of 8 voxels of 2 mm3; the repeat has two of the three, another, and one voxel.
    assert (first["first_volume_mm3"], first["repeat_volume_mm3"]) == (48, 50)
    assert (first["n_first_lesions"], first["n_repeat_lesions"]) == (3, 4)
    assert first["matched_share"] == pytest.approx(4 / 7)
    assert first["dice"] == pytest.approx(2 * 16 / (24 + 25))
    assert first["cv"] == pytest.approx(2 / 49 / np.sqrt(2))
    # On another grid volumes can still be compared, lesions not.
    assert other_grid["matched_share"] is None
    assert other_grid["n_first_lesions"] is None
    assert other_grid["difference_mm3"] == 0
    assert result["n_on_other_grids"] == 1
    assert result["matched_share"] == pytest.approx(4 / 7)
    assert result["volume_cv"] == pytest.approx(np.sqrt((2 / 49) ** 2 / 2 / 2))
    with (tmp_path / "e" / "repeatability.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["repeat_case"] == "a2"
    assert rows[1]["dice"] == ""
    assert "Scan and rescan" in (tmp_path / "e" / "report.html").read_text()


def test_pairs_of_one_subject_have_no_icc() -> None:
    volumes = ((24.0, 29.0), (24.0, 25.0))
    pairs = [RepeatPair("a", "a", f"a{k}", *volumes[k], 1, 1, 1.0, 0.9) for k in range(2)]
    result = summarize_repeats(pairs)
    assert result is not None
    assert math.isnan(result["icc_agreement"])
    assert math.isnan(result["icc_consistency"])
    assert result["volume_cv"] > 0


def test_without_repeats_there_is_no_such_section(tmp_path: Path) -> None:
    cases = a_cohort(tmp_path)[:1]
    metrics = evaluate(tmp_path / "p", cases, output_dir=tmp_path / "e", viewer="none")
    assert metrics["repeatability"] is None
    assert not (tmp_path / "e" / "repeatability.csv").exists()
    assert "Scan and rescan" not in (tmp_path / "e" / "report.html").read_text()


def test_a_manifest_keeps_space_and_first_scan(tmp_path: Path) -> None:
    image = save(tmp_path / "flair.nii.gz", BOXES[0])
    one = Case("a", "a", {"FLAIR": image}, space="MNI")
    manifest = tmp_path / "m.csv"
    write_manifest([one, Case("a2", "a", {"FLAIR": image}, repeat_of="a")], manifest)
    cases = read_manifest(manifest)
    assert [case.space for case in cases] == ["MNI", None]
    assert [case.repeat_of for case in cases] == [None, "a"]
    write_manifest([one], tmp_path / "n.csv")
    assert "repeat_of" not in (tmp_path / "n.csv").read_text()
    for wrong in ("b", "a2"):
        write_manifest([one, Case("a2", "a", {"FLAIR": image}, repeat_of=wrong)], manifest)
        with pytest.raises(DataError, match="repeat_of"):
            read_manifest(manifest)
