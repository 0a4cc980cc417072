"""The folds of a cross-validation as one cohort, of finished runs made without a training."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.cohorts import AFFINE, make_cohort, scan
from tversky_seg.analysis.cross_validation import evaluate_folds
from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.manifest import read_manifest, write_manifest
from tversky_seg.evaluation.evaluator import evaluate
from tversky_seg.inference.prediction_folder import write_prediction
from tversky_seg.runtime.files import write_json


def finish_run(
    folder: Path, cases: Sequence[Case], held_out: Sequence[int], **settings: Any
) -> Path:
    """Write a run as training leaves it: half of each lesion predicted, and one false voxel."""
    prediction = {
        "checkpoint": folder.name,
        "classes": {"lesion": [1]},
        "threshold": 0.5,
        "min_volume_mm3": 0.0,
    } | settings
    split = [
        replace(case, split="test" if i in held_out else "train") for i, case in enumerate(cases)
    ]
    write_manifest(split, folder / "manifest.csv")
    (folder / "predictions").mkdir()
    for i in held_out:
        _, label = scan(i)
        probability = 0.9 * label.astype(np.float32) * (np.arange(label.shape[2]) % 4 < 2)
        probability[0, 0, 0] = 0.7
        write_prediction(folder / "predictions", cases[i].case_id, probability[None], AFFINE)
    write_json(folder / "predictions" / "predictions.json", prediction)
    tested = [case for case in split if case.split == "test"]
    evaluate(folder / "predictions", tested, output_dir=folder / "evaluation")
    return folder


def change(file: Path, **values: Any) -> None:
    """Replace some values of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def rows(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {case["case_id"]: case for case in metrics["cases"]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folds of six cases."""
    folder = tmp_path_factory.mktemp("folds")
    cases = read_manifest(make_cohort(folder / "scans"))
    for fold in range(3):
        finish_run(folder / f"fold{fold}", cases, (2 * fold, 2 * fold + 1))
    return folder


@pytest.fixture
def folds(finished: Path, tmp_path: Path) -> list[Path]:
    """A copy of these runs, to be spoilt."""
    return [
        shutil.copytree(finished / f"fold{fold}", tmp_path / f"fold{fold}") for fold in range(3)
    ]


def test_a_folds_smallest_lesion_takes_nothing_from_another_fold(
    folds: list[Path], tmp_path: Path
) -> None:
    change(folds[0] / "predictions" / "predictions.json", min_volume_mm3=1e9)
    joined = rows(evaluate_folds(folds, tmp_path / "joined"))
    of_fold = rows(json.loads((folds[1] / "evaluation" / "metrics.json").read_text()))
    assert of_fold["c2"]["n_predicted_lesions"] > 1
    assert {name: joined[name] for name in of_fold} == of_fold


def test_a_cohort_of_other_folds_is_evaluated_again_and_that_of_the_same_is_kept(
    folds: list[Path], tmp_path: Path
) -> None:
    written = tmp_path / "joined" / "evaluation" / "metrics.json"
    for n_folds in (2, 3, 1):  # all of them finished before the first was evaluated
        assert evaluate_folds(folds[:n_folds], tmp_path / "joined")["n_cases"] == 2 * n_folds
        before = written.stat().st_mtime_ns
        assert evaluate_folds(folds[:n_folds], tmp_path / "joined")["n_cases"] == 2 * n_folds
        assert written.stat().st_mtime_ns == before


def test_a_cohort_follows_its_runs_whatever_the_times_of_files(
    folds: list[Path], tmp_path: Path
) -> None:
    joined = tmp_path / "joined"
    evaluate_folds(folds, joined)
    metrics = folds[0] / "evaluation" / "metrics.json"
    evaluated = json.loads(metrics.read_text())
    # Evaluated again with one case fewer, and copied back from a backup: older than the cohort.
    metrics.write_text(json.dumps(evaluated | {"cases": evaluated["cases"][1:]}))
    os.utime(metrics, (0, 0))
    assert evaluate_folds(folds, joined)["n_cases"] == 5


def test_a_cohort_that_was_stopped_in_between_is_evaluated(
    folds: list[Path], tmp_path: Path
) -> None:
    joined = tmp_path / "joined"
    evaluate_folds(folds, joined)
    for content in ("", None):
        (joined / "evaluation" / "metrics.json").unlink()
        if content is not None:
            (joined / "evaluation" / "metrics.json").write_text(content)
        assert evaluate_folds(folds, joined)["n_cases"] == 6


def test_cases_of_a_missing_fold_are_named(
    folds: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):  # the second time the cohort is complete
        evaluate_folds(folds[1:], tmp_path / "joined")
        assert "2 of 6 labelled cases (c0, c1)" in caplog.text
        caplog.clear()
    evaluate_folds(folds, tmp_path / "joined")
    evaluate_folds(folds[:1], tmp_path / "single")  # as of a cohort with a fixed split
    assert "labelled cases" not in caplog.text


def test_a_missing_or_damaged_file_of_a_fold_is_named(folds: list[Path], tmp_path: Path) -> None:
    mask = folds[1] / "predictions" / "c2_mask.nii.gz"
    mask.unlink()
    with pytest.raises(DataError, match=rf"{mask}: "):
        evaluate_folds(folds, tmp_path / "joined")
    (folds[1] / "predictions" / "predictions.json").unlink()
    with pytest.raises(DataError, match=r"fold1/predictions/predictions\.json: "):
        evaluate_folds(folds, tmp_path / "joined")
    (folds[0] / "evaluation" / "metrics.json").write_text('{"n_cases"')
    with pytest.raises(DataError, match=r"fold0/evaluation/metrics\.json: "):
        evaluate_folds(folds, tmp_path / "joined")


def test_folds_of_different_settings_are_refused(folds: list[Path], tmp_path: Path) -> None:
    change(folds[2] / "predictions" / "predictions.json", classes={"liver": [1], "tumour": [2]})
    with pytest.raises(DataError, match=r"fold2: .* classes .*fold0"):
        evaluate_folds(folds, tmp_path / "joined")
    change(folds[1] / "evaluation" / "metrics.json", surface_tolerance_mm=2.0)
    with pytest.raises(DataError, match=r"fold1: .* rule .*fold0"):
        evaluate_folds(folds, tmp_path / "joined")


def test_a_subject_in_two_folds_is_refused(folds: list[Path], tmp_path: Path) -> None:
    manifest = folds[2] / "manifest.csv"
    manifest.write_text(
        manifest.read_text().replace("subject_c0", "another").replace("subject_c4", "subject_c0")
    )
    with pytest.raises(DataError, match=r"fold2: subject subject_c0 .*fold0"):
        evaluate_folds(folds, tmp_path / "joined")
