"""Operating points from held-out predictions: of each fold on the others, of all on all."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from helpers.checkpoints import a_checkpoint
from helpers.cohorts import AFFINE, make_cohort, scan
from tversky_seg import Segmenter
from tversky_seg.analysis.cross_validation import evaluate_folds
from tversky_seg.analysis.held_out_choice import choose_on_held_out
from tversky_seg.data.errors import DataError
from tversky_seg.data.manifest import read_manifest, write_manifest
from tversky_seg.evaluation.evaluator import evaluate
from tversky_seg.inference.operating_point import as_settings
from tversky_seg.inference.prediction_folder import write_prediction
from tversky_seg.runtime.checkpoints import checksum
from tversky_seg.runtime.files import write_json

LEVELS = (0.2, 0.4, 0.8)
"""Probability of lesion voxels in each fold; that of false voxels is a tenth less."""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folds of a subject each, without validation: masks at 0.5 are all or nothing."""
    folder = tmp_path_factory.mktemp("sweep")
    cases = read_manifest(make_cohort(folder / "scans"))[:3]
    for number, level in enumerate(LEVELS):
        run = folder / f"fold{number}"
        split = [
            replace(case, split="test" if i == number else "train") for i, case in enumerate(cases)
        ]
        (run / "predictions").mkdir(parents=True)
        write_manifest(split, run / "manifest.csv")
        label = scan(number)[1].astype(np.float32)
        probability = level * label
        probability[0, :5, :5] = level - 0.1
        write_prediction(run / "predictions", cases[number].case_id, probability[None], AFFINE)
        write_json(
            run / "predictions" / "predictions.json",
            {
                "checkpoint": f"sum{number}",
                "classes": {"lesion": [1]},
                "threshold": 0.5,
                "min_volume_mm3": 0.0,
            },
        )
        (run / "config.yaml").write_text("inference: {goal: f2}\n")
        tested = [case for case in split if case.split == "test"]
        evaluate(run / "predictions", tested, output_dir=run / "evaluation", n_bootstrap=10)
    return folder


def runs_of(sweep: Path) -> list[Path]:
    return [sweep / f"fold{number}" for number in range(3)]


def test_each_fold_gets_the_point_of_the_others_and_the_ensemble_that_of_all(sweep: Path) -> None:
    choice = choose_on_held_out(runs_of(sweep), sweep)
    assert choice.goal == "f2"
    # By hand: two folds keep their lesions at the lower level; all three at the lowest.
    of_folds = [choice.points_of_folds[f"fold{number}"]["lesion"] for number in range(3)]
    assert 0.3 < of_folds[0].threshold <= 0.4
    assert of_folds[1].threshold <= 0.2
    assert of_folds[2].threshold <= 0.2
    assert choice.points["lesion"].threshold <= 0.2
    # Fold 0 has no say in its own threshold, above which all its lesions are lost.
    by_case = {case["case_id"]: case["dice"] for case in choice.metrics["cases"]}
    dice = list(by_case.values())
    assert dice[0] == 0
    assert min(dice[1:]) > 0.8
    written = json.loads((sweep / "operating_point.json").read_text())
    assert written["threshold"] == choice.points["lesion"].threshold
    assert written["folds"]["fold0"]["threshold"] == of_folds[0].threshold
    assert written["checkpoints"] == ["sum0", "sum1", "sum2"]
    assert written["n_cases"] == 3


def test_masks_of_the_cohort_are_at_the_points_of_the_folds_and_runs_stay_as_they_are(
    sweep: Path,
) -> None:
    before = evaluate_folds(runs_of(sweep), sweep / "joined")
    choice = choose_on_held_out(runs_of(sweep), sweep)
    predictions = sweep / "held_out" / "predictions"
    for number, row in enumerate(choice.metrics["cases"]):
        name = row["case_id"]
        threshold = choice.points_of_folds[f"fold{number}"]["lesion"].threshold
        probability = nib.load(predictions / f"{name}_probability.nii.gz").get_fdata()
        mask = nib.load(predictions / f"{name}_mask.nii.gz").get_fdata()
        np.testing.assert_array_equal(mask > 0, probability >= threshold)
        saved = nib.load(sweep / f"fold{number}" / "predictions" / f"{name}_mask.nii.gz")
        np.testing.assert_array_equal(saved.get_fdata() > 0, probability >= 0.5)
    assert evaluate_folds(runs_of(sweep), sweep / "again")["mean"] == before["mean"]


def test_another_goal_is_evaluated_again(sweep: Path) -> None:
    choose_on_held_out(runs_of(sweep), sweep)
    choice = choose_on_held_out(runs_of(sweep), sweep, goal="recall=1.0")
    assert choice.goal == "recall=1.0"
    assert choice.points["lesion"].threshold <= 0.2
    assert json.loads((sweep / "held_out" / "sources.json").read_text())["goal"] == "recall=1.0"


def test_a_single_fold_is_refused(sweep: Path) -> None:
    with pytest.raises(DataError, match="1 finished fold; expected two or more"):
        choose_on_held_out(runs_of(sweep)[:1], sweep)


def test_a_prediction_with_the_folder_uses_the_point(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    best = [tmp_path / f"fold{n}" / "checkpoints" / "best.pt" for n in range(2)]
    for seed, path in enumerate(best):
        a_checkpoint(path, seed, threshold=0.6, temperature=2.0)
    of_networks = Segmenter.load(tmp_path).inference
    point = {"threshold": 0.3, "min_volume_mm3": 5.0, "min_peak": 0.8}
    file = tmp_path / "operating_point.json"
    write_json(file, {**point, "checkpoints": [checksum(path) for path in best]})
    segmenter = Segmenter.load(tmp_path)
    assert as_settings(segmenter.inference.operating_points(["lesion"])) == point
    assert [member.temperature for member in segmenter.ensemble.members] == [(2.0,), (2.0,)]
    assert Segmenter.load(tmp_path, threshold=0.4).inference.threshold == 0.4
    assert Segmenter.load(tmp_path, threshold=0.4).inference.min_peak == 0.8
    # Not for networks that are named one by one, nor for others than those it was chosen for.
    assert Segmenter.load(best).inference == of_networks
    write_json(file, {**point, "checkpoints": ["c"]})
    with caplog.at_level(logging.WARNING):
        assert Segmenter.load(tmp_path).inference == of_networks
    assert "other networks" in caplog.text
    # A point of before there were peaks.
    del point["min_peak"]
    write_json(file, {**point, "checkpoints": [checksum(path) for path in best]})
    assert Segmenter.load(tmp_path).inference.min_peak == 0
    file.write_text("[]")
    with pytest.raises(DataError, match="holds no operating point"):
        Segmenter.load(tmp_path)
