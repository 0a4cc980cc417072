"""tversky-seg follow-up: two masks, the predictions of a manifest, and what predict writes."""

import csv
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from helpers.checkpoints import a_checkpoint
from helpers.cohorts import AFFINE, MODALITIES, SHAPE, add_case, save, write_rows
from helpers.command_line import Outcome, call
from tversky_seg.data.nifti import read_label


def two_masks(folder: Path, affine: np.ndarray = AFFINE) -> tuple[Path, Path]:
    """A lesion that grows from 8 to 27 voxels of 8 mm3, one that vanishes and a new one."""
    before, after = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    before[4:6, 4:6, 4:6] = after[4:7, 4:7, 4:7] = 1
    before[15, 15, 15] = 1
    after[10:12, 18:20, 10] = 1
    return (
        save(folder / "before.nii.gz", before, affine),
        save(folder / "after.nii.gz", after, AFFINE),
    )


def follow_up(folder: Path, *words: object) -> Outcome:
    return call("follow-up", *words, f"output_dir={folder / 'out'}")


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "lesions_over_time.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_two_masks_give_a_table_a_mask_of_new_lesions_and_a_map(tmp_path: Path) -> None:
    before, after = two_masks(tmp_path)
    outcome = follow_up(tmp_path, f"baseline={before}", f"followup={after}")
    assert outcome.status == 0, outcome.stderr
    rows = table(tmp_path / "out")
    assert [row["change"] for row in rows] == ["grown", "new", "vanished"]
    grown, new, vanished = rows
    assert (grown["baseline_mm3"], grown["follow_up_mm3"]) == ("64.000", "216.000")
    assert (grown["change_mm3"], grown["change_percent"]) == ("152.000", "237.5")
    assert (grown["x_mm"], grown["y_mm"], grown["z_mm"]) == ("10.00", "10.00", "10.00")
    assert (new["change_percent"], vanished["change_percent"]) == ("", "-100.0")
    assert (vanished["x_mm"], new["baseline"], new["follow_up"]) == ("30.00", "before", "after")
    new_mask = read_label(tmp_path / "out" / "after_new_lesions.nii.gz")
    assert np.argwhere(new_mask.data).tolist() == [[x, y, 10] for x in (10, 11) for y in (18, 19)]
    changes = read_label(tmp_path / "out" / "after_changes.nii.gz")
    summary = json.loads((tmp_path / "out" / "follow_up.json").read_text())
    assert summary["map_values"]["new"] == changes.data[10, 18, 10] == 1
    assert summary["map_values"]["vanished"] == changes.data[15, 15, 15] == 4
    assert summary["kinds"]["grown"] == {"n": 1, "change_mm3": 152.0}
    assert summary["change_percent"] == pytest.approx(100 * (248 - 72) / 72, abs=0.01)
    assert summary["alignment"] is None
    assert "not measured" in outcome.stdout


def test_a_mask_on_another_grid_is_resampled_and_this_is_said(tmp_path: Path) -> None:
    before, after = two_masks(tmp_path)
    # The same lesions with the axes in another order: no voxel is interpolated.
    image = nib.load(before)
    turned = save(
        tmp_path / "turned.nii.gz",
        np.asarray(image.dataobj).transpose(2, 0, 1),
        AFFINE[:, [2, 0, 1, 3]],
    )
    outcome = follow_up(tmp_path, f"baseline={turned}", f"followup={after}")
    assert "turned.nii.gz lies on another grid: resampled by its affine" in outcome.stdout
    rows = table(tmp_path / "out")
    assert [row["change_mm3"] for row in rows] == ["152.000", "32.000", "-8.000"]


def test_images_that_do_not_lie_on_each_other_are_a_warning(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    brain = np.kron(rng.normal(300, 60, (6, 7, 6)), np.ones((4, 4, 4))).astype(np.float32)
    brain = brain[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    shifted = AFFINE.copy()
    shifted[0, 3] = 6.0
    images = [
        save(tmp_path / "image_1.nii.gz", brain, shifted),
        save(tmp_path / "image_2.nii.gz", brain, AFFINE),
    ]
    before, after = two_masks(tmp_path)
    masks = (f"baseline={before}", f"followup={after}")
    words = (f"baseline_image={images[0]}", f"followup_image={images[1]}")
    outcome = follow_up(tmp_path, *masks, *words)
    assert outcome.status == 0
    assert "register the earlier image to the later one, nothing is moved here" in outcome.stdout
    summary = json.loads((tmp_path / "out" / "follow_up.json").read_text())
    assert summary["alignment"]["fault"] in outcome.stdout


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["baseline=b.nii.gz"], "followup: none given; expected baseline= and followup=, or pred"),
        (["baseline=b.nii", "followup=f.nii"], "b.nii: no such file"),
        (["min_change_percent=-5"], "min_change_percent must be >= 0"),
        (["predictions=p"], "manifest: none given"),
        (
            ["baseline=b", "followup=f", "baseline_image=i"],
            "baseline_image and followup_image: one",
        ),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, words: list[str], line: str) -> None:
    assert line in follow_up(tmp_path, *words).error


def a_subject(folder: Path) -> Path:
    """Two examinations of one subject, in a manifest with a baseline column."""
    rows = [add_case(folder, "a", seed=1), add_case(folder, "b", seed=2)]
    for row in rows:
        row["subject_id"] = "s"
    rows[0]["baseline"] = ""
    rows[1]["baseline"] = "a"
    return write_rows(folder / "cases.csv", rows)


def test_predict_writes_the_table_and_follow_up_makes_it_again(tmp_path: Path) -> None:
    manifest = a_subject(tmp_path)
    checkpoint = a_checkpoint(tmp_path / "best.pt", threshold=0.51)
    masks = tmp_path / "masks"
    words = (f"checkpoint={checkpoint}", f"input={manifest}", f"output_dir={masks}", "device=cpu")
    outcome = call("predict", *words)
    assert outcome.status == 0, outcome.stderr
    rows = table(masks)
    assert rows
    assert {(row["subject_id"], row["baseline"], row["follow_up"]) for row in rows} == {
        ("s", "a", "b")
    }
    assert (masks / "b_new_lesions.nii.gz").is_file()
    assert not (masks / "a_new_lesions.nii.gz").exists()
    again = follow_up(tmp_path, f"predictions={masks}", f"manifest={manifest}")
    assert again.status == 0, again.stderr
    assert table(tmp_path / "out") == rows
    # Rows of other pairs, as of another job of the folder, stay; those of this pair are replaced.
    file = masks / "lesions_over_time.csv"
    header = file.read_text().splitlines()[0]
    other = "t,c,d,,new,0.000,8.000,8.000,,0,1,1.00,2.00,3.00"
    file.write_text(f"{header}\n{other}\n")
    assert call("predict", *words).status == 0
    assert file.read_text().splitlines()[1] == other
    assert table(masks)[1:] == rows


def test_a_network_of_both_times_gives_the_table_of_one_case(tmp_path: Path) -> None:
    row = add_case(tmp_path, "p", seed=1)
    columns = {name: f"{name}@{time}" for time, name in enumerate(MODALITIES, start=1)}
    pair = {columns.get(key, key): value for key, value in row.items()}
    manifest = write_rows(tmp_path / "cases.csv", [pair])
    checkpoint = a_checkpoint(
        tmp_path / "best.pt",
        threshold=0.51,
        modalities=["T1@2", "FLAIR@1"],
        classes={"baseline": [1, 3], "follow_up": [2, 3]},
    )
    masks = tmp_path / "masks"
    words = (f"checkpoint={checkpoint}", f"input={manifest}", f"output_dir={masks}", "device=cpu")
    outcome = call("predict", *words)
    assert outcome.status == 0, outcome.stderr
    assert table(masks)
    assert (masks / "p_new_lesions.nii.gz").is_file()


def test_a_manifest_without_two_examinations_is_one_line(tmp_path: Path) -> None:
    manifest = write_rows(tmp_path / "cases.csv", [add_case(tmp_path, "a", seed=1)])
    (tmp_path / "masks").mkdir()
    outcome = follow_up(tmp_path, f"predictions={tmp_path / 'masks'}", f"manifest={manifest}")
    assert "no two examinations of a subject" in outcome.error


def test_a_real_pair_and_its_shifted_copy(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "open_ms_longitudinal" / "patient12"
    changed = read_label(folder / "gt.nii.gz")
    before = changed.data.copy()
    before[: changed.shape[0] // 2] = 0
    earlier = save(tmp_path / "before.nii.gz", before, changed.affine)
    image = nib.load(folder / "study1_FLAIR_common.nii.gz")
    shifted = image.affine.copy()
    shifted[:3, 3] += (0, 0, 3)
    nib.save(nib.Nifti1Image(image.dataobj, shifted, image.header), tmp_path / "shifted.nii.gz")
    masks = (f"baseline={earlier}", f"followup={folder / 'gt.nii.gz'}")
    later_image = f"followup_image={folder / 'study2_FLAIR_common.nii.gz'}"
    right = follow_up(
        tmp_path, *masks, f"baseline_image={folder / 'study1_FLAIR_common.nii.gz'}", later_image
    )
    assert right.status == 0, right.stderr
    assert "off the later" not in right.stdout
    kinds = [row["change"] for row in table(tmp_path / "out")]
    assert set(kinds) <= {"new", "grown", "stable"}
    assert kinds.count("new") > 5
    wrong = follow_up(
        tmp_path, *masks, f"baseline_image={tmp_path / 'shifted.nii.gz'}", later_image
    )
    assert re.search(r"3\.\d mm off the later \(R .*, S \+3\.\d mm\)", wrong.stdout)
