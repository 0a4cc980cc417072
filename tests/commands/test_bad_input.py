"""Faults of the data: one line, status 2, nothing lost."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from helpers.checkpoints import a_checkpoint
from helpers.cohorts import AFFINE, add_case, make_cohort, save, scan, write_rows
from helpers.command_line import call, train
from helpers.runs import Rows, Run, contents, rows_of, unlabelled

ONE_LINE = re.compile(r"[^:;]+: .+; .+")
"""`<file or key>: <what was found>; <what was expected or to do>`"""


# Bad input: one line, status 2, nothing lost


def cut_off(folder: Path, rows: Rows) -> None:
    path = folder / "c0_T1.nii.gz"
    path.write_bytes(path.read_bytes()[:-200])


def text_as_image(folder: Path, rows: Rows) -> None:
    (folder / "c0_FLAIR.nii.gz").write_text("404: not found\n")


def nan_voxels(folder: Path, rows: Rows) -> None:
    image = scan(0)[0].astype(np.float32)
    image[5, 5, 5] = np.nan
    save(folder / "c0_T1.nii.gz", image)


def other_shape(folder: Path, rows: Rows) -> None:
    save(folder / "c0_label.nii.gz", scan(0)[1][:-2])


def other_affine(folder: Path, rows: Rows) -> None:
    save(folder / "c0_label.nii.gz", scan(0)[1], AFFINE + np.outer([5, 0, 0, 0], [0, 0, 0, 1]))


def unnamed_value(folder: Path, rows: Rows) -> None:
    save(folder / "c0_label.nii.gz", scan(0)[1] * 7)


def fractions(folder: Path, rows: Rows) -> None:
    save(folder / "c0_label.nii.gz", scan(0)[1] * np.float32(0.5))


def missing_file(folder: Path, rows: Rows) -> None:
    (folder / "c0_FLAIR.nii.gz").unlink()


def empty_cell(folder: Path, rows: Rows) -> None:
    rows[0]["T1"] = ""


def twice(folder: Path, rows: Rows) -> None:
    rows[1]["case_id"] = "c0"


def in_two_splits(folder: Path, rows: Rows) -> None:
    rows[0]["subject_id"] = rows[3]["subject_id"]


def way_out(folder: Path, rows: Rows) -> None:
    rows[0]["case_id"] = "../../c0"


def no_lesion(folder: Path, rows: Rows) -> None:
    for path in folder.glob("*_label.nii.gz"):
        save(path, np.zeros_like(scan(0)[1]))


def two_frames(folder: Path, rows: Rows) -> None:
    save(folder / "c0_FLAIR.nii.gz", np.stack([scan(0)[0]] * 2, axis=-1))


FAULTS: list[tuple[Callable[[Path, Rows], None], str]] = [
    (missing_file, "c0_FLAIR.nii.gz: "),
    (cut_off, "c0_T1.nii.gz: "),
    (text_as_image, "c0_FLAIR.nii.gz: "),
    (nan_voxels, "c0_T1.nii.gz: 1 voxels are NaN or infinite; "),
    (two_frames, "c0_FLAIR.nii.gz: has shape 24 x 26 x 22 x 2; "),
    (other_shape, "c0_label.nii.gz: "),
    (other_affine, "c0_label.nii.gz: "),
    (unnamed_value, "c0_label.nii.gz: holds the label values 7 that no class names; "),
    (fractions, "c0_label.nii.gz: "),
    (empty_cell, "line 2: empty cell for T1; "),
    (twice, "duplicate case_id 'c0'; "),
    (in_two_splits, "is in split test and train; "),
    (way_out, "case_id '../../c0'; "),
    (no_lesion, "training set: no lesion in any of "),
]


@pytest.mark.parametrize(("spoil", "found"), FAULTS, ids=[spoil.__name__ for spoil, _ in FAULTS])
def test_a_fault_of_the_data_is_one_line_and_loses_nothing(
    tmp_path: Path, spoil: Callable[[Path, Rows], None], found: str
) -> None:
    manifest = make_cohort(tmp_path / "cohort", n=4, splits=["train", "train", "val", "test"])
    rows = rows_of(manifest)
    spoil(manifest.parent, rows)
    write_rows(manifest, rows)
    before = contents(tmp_path)
    outcome = train(manifest, tmp_path / "run")
    assert found in outcome.error
    assert ONE_LINE.match(outcome.error)
    assert "more: run" not in outcome.error
    assert {
        path: content for path, content in contents(tmp_path).items() if path in before
    } == before
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_fault_in_a_test_case_is_known_before_training(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path, n=4, splits=["test", "train", "val", "train"])
    other_shape(tmp_path, [])
    cut_off(tmp_path, [])
    assert "c0_T1.nii.gz: " in train(manifest, tmp_path / "run").error
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_several_faults_are_counted(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path, n=4)
    for case in ("c0", "c1", "c2"):
        (tmp_path / f"{case}_T1.nii.gz").write_text("no image")
    assert train(manifest, tmp_path / "run").error.endswith(
        "(and 2 more: run scripts/check_data.py)"
    )


def test_a_corrected_cohort_trains_in_the_same_folder(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path, n=4, splits=["train", "train", "val", "test"])
    cut_off(tmp_path, [])
    assert train(manifest, tmp_path / "run").status == 2
    add_case(tmp_path, "c0", seed=0)
    assert train(manifest, tmp_path / "run").status == 0


@pytest.mark.parametrize(
    ("content", "words", "found"),
    [
        ("", [], "my.csv: lists no case; "),
        ("case_id,subject_id,FLAIR,T1,label\n", [], "my.csv: lists no case; "),
        ("subject_id,FLAIR\na,b\n", [], "my.csv: no column case_id among subject_id, FLAIR; "),
        (
            "case_id,subject_id,FLAIR,label\na,b,c,d\n",
            ["data.modalities=[FLAIR,T2]"],
            "my.csv: no column T2 among ",
        ),
        ("case_id,subject_id,label\na,b,c\n", [], "my.csv: no column of images among "),
        (None, [], "my.csv: No such file or directory; "),
    ],
)
def test_a_manifest_that_is_none_is_one_line(
    tmp_path: Path, content: str | None, words: list[str], found: str
) -> None:
    if content is not None:
        (tmp_path / "my.csv").write_text(content)
    outcome = train(tmp_path / "my.csv", tmp_path / "run", *words)
    assert found in outcome.error
    assert ONE_LINE.match(outcome.error)


def test_a_missing_modality_is_named_by_predict(finished: Run, tmp_path: Path) -> None:
    given = unlabelled(finished, tmp_path / "in", "flat folder")
    case_id = finished.metrics["cases"][0]["case_id"]
    (tmp_path / "in" / f"{case_id}_T1.nii.gz").unlink()
    # A network trained without channel dropout, which the default augmentation has.
    path = a_checkpoint(tmp_path / "best.pt")
    words = [f"checkpoint={path}", f"output_dir={tmp_path / 'out'}"]
    assert f"case {case_id} has no T1; " in call("predict", *words, f"input={given}").error
    one = f"{{FLAIR: {tmp_path / 'in' / f'{case_id}_FLAIR.nii.gz'}}}"
    assert "input: no file for modality T1; " in call("predict", *words, f"input={one}").error
    assert "no such file or folder; " in call("predict", *words, f"input={tmp_path / 'none'}").error


def test_masks_that_would_be_one_file_are_refused_before_work(tmp_path: Path) -> None:
    rows = [add_case(tmp_path, f"c{i}", seed=i, values=(1, 2)) for i in range(4)]
    rows[0]["case_id"], rows[1]["case_id"] = "anna", "anna_new"
    manifest = write_rows(tmp_path / "manifest.csv", rows)
    classes = "data.classes={lesion: [1, 2], new_lesion: [2]}"
    error = train(manifest, tmp_path / "run", classes).error
    assert "anna_new_lesion" in error
    assert not list((tmp_path / "cache").glob("anna*")), "nothing was prepared"


def test_a_start_that_failed_does_not_refuse_the_corrected_command(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path / "data", n=2, splits=("train", "test"))
    run = tmp_path / "run"
    assert "no column T3" in train(manifest, run, "data.modalities=[T3]").error
    assert not (run / "config.yaml").exists()
    # Of a run that has begun, the settings stay, whatever fails later.
    (run / "checkpoints").mkdir()
    assert "no column T4" in train(manifest, run, "data.modalities=[T4]").error
    assert "T4" in (run / "config.yaml").read_text()
    assert "holds a run with other settings" in train(manifest, run).error
