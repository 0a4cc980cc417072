"""Changed scans: each change by what it does to a volume, the way back, and the command."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from helpers.checkpoints import a_checkpoint
from helpers.cohorts import make_cohort
from helpers.command_line import call
from tversky_seg.analysis.scan_changes import (
    ChangeSettings,
    ScanChange,
    change_image,
    change_mask,
    list_changes,
    pose_of,
    smooth_field,
    thicken_slices,
    undo,
)
from tversky_seg.analysis.stress_page import describe_change
from tversky_seg.analysis.stress_rows import coefficient_of_variation
from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import Volume
from tversky_seg.inference.segmenter import Segmenter

SHAPE = (20, 24, 16)
OBLIQUE = np.array([[0.96, -0.2, 0.0, -40], [0.2, 0.96, 0.0, 12], [0.0, 0.0, 1.5, 7], [0, 0, 0, 1]])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def a_brain(seed: int = 0) -> Volume:
    """A smooth brain in a background of -5."""
    data = np.full(SHAPE, -5, dtype=np.float32)
    smooth = ndimage.gaussian_filter(rng(seed).normal(size=SHAPE), 2)
    data[3:-3, 3:-3, 3:-3] = 100 + 200 * smooth[3:-3, 3:-3, 3:-3]
    return Volume(data, OBLIQUE)


@pytest.mark.parametrize("kind", ["rotation_deg", "shift_voxels"])
def test_what_a_moved_head_shows_is_brought_back(kind: str) -> None:
    blob = np.zeros(SHAPE, dtype=np.float32)
    blob[14, 7, 8] = 1
    blob = ndimage.gaussian_filter(blob, 2)
    change = ScanChange(kind, 8.0 if kind == "rotation_deg" else 1.25)
    pose = pose_of(change, SHAPE, OBLIQUE, rng=rng())
    moved = change_image(Volume(blob, OBLIQUE), change, pose, rng=rng())
    assert moved is not None
    assert np.abs(moved.data - blob).max() > 0.1 * blob.max()
    back = undo(moved.data, moved.affine, pose, original_affine=OBLIQUE, original_shape=SHAPE)
    assert np.abs(back - blob).max() < 0.2 * blob.max()
    centre = np.array(ndimage.center_of_mass(back))
    assert centre == pytest.approx([14, 7, 8], abs=0.15)


def test_a_shift_moves_by_voxels_of_the_grid() -> None:
    change = ScanChange("shift_voxels", 2.0)
    image = a_brain()
    moved = change_image(image, change, pose_of(change, SHAPE, OBLIQUE, rng=rng()), rng=rng())
    assert moved is not None
    np.testing.assert_array_equal(moved.data[:-2, :-2, :-2], image.data[2:, 2:, 2:])


def test_a_rotation_keeps_distances_and_turns_by_its_angle() -> None:
    pose = pose_of(ScanChange("rotation_deg", 10.0), SHAPE, OBLIQUE, rng=rng(3))
    rotation = pose[:3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert math.degrees(math.acos((np.trace(rotation) - 1) / 2)) == pytest.approx(10)
    centre = OBLIQUE @ [9.5, 11.5, 7.5, 1]
    np.testing.assert_allclose(pose @ centre, centre, atol=1e-9)


def test_thicker_slices_are_means_that_keep_their_place() -> None:
    image = a_brain()
    thick = thicken_slices(image, 4.5)
    assert thick is not None
    assert thick.shape == (20, 24, 6), "three slices of 1.5 mm each, the last one padded"
    np.testing.assert_allclose(thick.data[..., 1], image.data[..., 3:6].mean(axis=-1), rtol=1e-5)
    np.testing.assert_allclose(thick.affine @ [2, 3, 1, 1], OBLIQUE @ [2, 3, 4, 1])
    assert thick.spacing_mm[2] == pytest.approx(4.5)
    assert thicken_slices(image, 1.6) is None
    ramp = np.broadcast_to(np.arange(16, dtype=np.float32), SHAPE) / 16
    thick = thicken_slices(Volume(ramp, OBLIQUE), 3)
    assert thick is not None
    back = undo(thick.data, thick.affine, np.eye(4), original_affine=OBLIQUE, original_shape=SHAPE)
    np.testing.assert_allclose(back[..., 2:-2], ramp[..., 2:-2], atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "severity"), [("noise", 0.1), ("bias_field", 0.3), ("gamma", 2.0), ("blur_mm", 3.0)]
)
def test_intensities_change_in_the_brain_alone(kind: str, severity: float) -> None:
    image = a_brain()
    before = image.data.copy()
    changed = change_image(image, ScanChange(kind, severity), np.eye(4), rng=rng(1))
    assert changed is not None
    inside = image.data != -5
    assert np.abs(changed.data - image.data)[inside].mean() > 0.3
    np.testing.assert_array_equal(changed.data[~inside], -5)
    np.testing.assert_array_equal(image.data, before)
    again = change_image(image, ScanChange(kind, severity), np.eye(4), rng=rng(1))
    assert again is not None
    np.testing.assert_array_equal(again.data, changed.data)


def test_each_change_of_intensity_is_as_strong_as_it_says() -> None:
    image = a_brain()
    inside = image.data != -5
    values = image.data[inside]
    low, high = np.percentile(values, (1, 99))
    noisy = change_image(image, ScanChange("noise", 0.1), np.eye(4), rng=rng())
    assert noisy is not None
    assert (noisy.data - image.data)[inside].std() == pytest.approx(0.1 * (high - low), rel=0.05)
    biased = change_image(image, ScanChange("bias_field", 0.3), np.eye(4), rng=rng())
    assert biased is not None
    factors = np.log((biased.data[inside] + 5) / (values + 5))
    assert np.abs(factors).max() == pytest.approx(0.3, rel=1e-3)
    bent = change_image(image, ScanChange("gamma", 2.0), np.eye(4), rng=rng())
    assert bent is not None
    low, high = values.min(), values.max()
    expected = low + (high - low) * ((values - low) / (high - low)) ** 2
    np.testing.assert_allclose(bent.data[inside], expected, rtol=1e-4)


def test_a_blur_has_its_width_in_mm() -> None:
    point = np.zeros((31, 31, 31), dtype=np.float32)
    point[15, 15, 15] = 1
    # No voxel is background here, as the blur would keep its value.
    image = Volume(
        point + 1e-9 * rng().random(point.shape, dtype=np.float32), np.diag([1, 1, 2, 1.0])
    )
    blurred = change_image(image, ScanChange("blur_mm", 6.0), np.eye(4), rng=rng())
    assert blurred is not None
    profile = blurred.data[:, 15, 15] / blurred.data[15, 15, 15]
    assert profile[18] == pytest.approx(0.5, abs=0.01), "half of it at half of the width"
    assert blurred.data[15, 15, 15 + 3] / blurred.data[15, 15, 15] < 0.1, "6 mm in 2 mm voxels"


def test_a_field_is_smooth_and_one_at_most() -> None:
    inside = np.ones(SHAPE, dtype=bool)
    field = smooth_field(SHAPE, inside, rng=rng())
    assert np.abs(field).max() == pytest.approx(1)
    assert abs(field.mean()) < 1e-3
    assert np.abs(np.diff(field, n=3, axis=0)).max() < 1e-5, "a polynomial of second order"


def test_a_brain_mask_moves_with_the_head() -> None:
    brain = np.zeros(SHAPE, dtype=bool)
    brain[4:12, 4:12, 4:12] = True
    change = ScanChange("shift_voxels", 2.0)
    moved = change_mask(Volume(brain, OBLIQUE), change, pose_of(change, SHAPE, OBLIQUE, rng=rng()))
    np.testing.assert_array_equal(moved.data[2:10, 2:10, 2:10], True)
    assert moved.data.sum() == brain.sum()


def test_settings_list_their_changes() -> None:
    changes = list_changes(ChangeSettings(gamma=0.7, noise=()), ["FLAIR", "T1"])
    names = [change.name for change in changes]
    assert names[-4:] == ["gamma=0.7", "slice_mm=3", "missing=FLAIR", "missing=T1"]
    assert not any(name.startswith("noise") for name in names)
    assert "missing=FLAIR" not in [c.name for c in list_changes(ChangeSettings(), ["FLAIR"])]
    assert describe_change("rotation_deg=5") == "rotation by 5°"
    with pytest.raises(DataError, match="gamma"):
        ChangeSettings(gamma=[-1.0])
    with pytest.raises(DataError, match="none is set"):
        list_changes(
            ChangeSettings(
                **dict.fromkeys(
                    (
                        "rotation_deg",
                        "shift_voxels",
                        "bias_field",
                        "noise",
                        "blur_mm",
                        "gamma",
                        "slice_mm",
                    ),
                    (),
                )
            ),
            ["FLAIR"],
        )


def test_coefficient_of_variation_by_hand() -> None:
    assert coefficient_of_variation([1, 2, 3]) == pytest.approx(0.5)
    assert math.isnan(coefficient_of_variation([2.0]))
    assert math.isnan(coefficient_of_variation([0.0, 0.0]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of an untrained network, whose test cases are two of three."""
    folder = tmp_path_factory.mktemp("stress") / "run"
    make_cohort(folder, n=3, splits=("train", "test", "test"))
    a_checkpoint(folder / "checkpoints" / "best.pt", threshold=0.5)
    return folder


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "stress.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_tests_the_test_cases_and_resumes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Charts take most of the time of so small a cohort; the next test draws them.
    monkeypatch.setattr("tversky_seg.analysis.stress_page._charts", lambda _: [])
    words = (f"run={run}", f"output_dir={tmp_path}/out", "changes.slice_mm=[4]", "changes.gamma=[]")
    outcome = call("stress", *words)
    assert outcome.status == 0, outcome.stderr
    rows = rows_of(tmp_path / "out")
    assert {row["case_id"] for row in rows} == {"c1", "c2"}
    names = [row["change"] for row in rows if row["case_id"] == "c1"]
    assert names == [
        "original",
        "rotation_deg=5",
        "shift_voxels=0.5",
        "bias_field=0.3",
        "noise=0.05",
        "blur_mm=2",
        "slice_mm=4",
        "missing=FLAIR",
        "missing=T1",
    ]
    original = rows[0]
    assert float(original["agreement_dice"]) == 1
    assert float(original["volume_change"]) == 0
    assert float(original["dice"]) > 0
    predicted = Segmenter.load(run)({name: run / f"c1_{name}.nii.gz" for name in ("FLAIR", "T1")})
    assert float(original["volume_mm3"]) == 8 * predicted.mask.sum(), "as predict gives it"
    content = json.loads((tmp_path / "out" / "stress.json").read_text())
    assert content["n_cases"] == 2
    assert content["volume_cv"]["lesion"] > 0
    page = (tmp_path / "out" / "stress.html").read_text()
    assert "rotation by 5°" in page

    # As a killed command leaves it: one prediction and the results are missing.
    record_file = tmp_path / "out" / "cases" / "c2.json"
    record = json.loads(record_file.read_text())
    del record["noise=0.05"]
    record["blur_mm=2"][0]["volume_mm3"] = 12345.0
    record_file.write_text(json.dumps(record))
    (tmp_path / "out" / "stress.json").unlink()
    before = rows
    assert call("stress", *words).status == 0
    rows = rows_of(tmp_path / "out")
    changed = [new for old, new in zip(before, rows, strict=True) if old != new]
    assert [row["volume_mm3"] for row in changed] == ["12345.0"], "the rest is as before"

    # A finished result stays; other settings are refused.
    page_file = tmp_path / "out" / "stress.html"
    page_file.write_text("as it was")
    assert "already complete" in call("stress", *words).stdout
    assert page_file.read_text() == "as it was"
    refused = call("stress", *words, "seed=1")
    assert refused.status == 2
    assert "seed 0, this command has 1" in refused.error


def test_without_labels_volumes_are_compared_alone(run: Path, tmp_path: Path) -> None:
    images = f"input={{FLAIR: {run}/c0_FLAIR.nii.gz, T1: {run}/c0_T1.nii.gz}}"
    off = ["bias_field", "noise", "blur_mm", "gamma", "slice_mm", "rotation_deg"]
    words = [f"changes.{name}=[]" for name in off]
    outcome = call("stress", f"run={run}", images, f"output_dir={tmp_path}/out", *words)
    assert outcome.status == 0, outcome.stderr
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 4
    assert all(row["dice"] == "" and row["volume_mm3"] for row in rows)


def test_mistakes_are_one_line(run: Path, tmp_path: Path) -> None:
    checkpoint = run / "checkpoints" / "best.pt"
    assert "set input=" in call("stress", f"run={checkpoint}", f"output_dir={tmp_path}/a").error
    assert "set output_dir=" in call("stress", f"run={checkpoint}", f"input={run}").error
    assert "changes.noise" in call("stress", f"run={run}", "changes.noise=[-1]").error
    assert "rotation_deg" in call("stress", f"run={run}", "changes.rotation=[5]").error
    assert not (run / "stress").exists()


def test_a_run_that_does_not_exist_is_named_and_no_other_key(tmp_path: Path) -> None:
    outcome = call("stress", f"run={tmp_path / 'nowhere'}")
    assert outcome.status == 2
    assert outcome.stderr.startswith(f"error: run: {tmp_path / 'nowhere'}: no such file")
