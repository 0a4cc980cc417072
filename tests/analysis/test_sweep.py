"""Sweeps: which runs are read, how they are grouped and joined, and what is refused."""

import json
import shutil

import pytest

from helpers.cohorts import make_cohort
from helpers.command_line import train
from helpers.evaluated_runs import write_beta_sweep, write_sweep_run
from helpers.scripts import run_script
from tversky_seg.analysis.sweep import group_runs, read_sweep
from tversky_seg.data.errors import DataError


def test_runs_are_grouped_by_what_they_set_and_ordered_by_beta(tmp_path):
    settings = group_runs(read_sweep([write_beta_sweep(tmp_path)]))
    assert [setting.name for setting in settings] == [
        "loss.alpha=0.5, loss.beta=0.5",
        "loss.alpha=0.3, loss.beta=0.7",
        "loss.alpha=0.1, loss.beta=0.9",
    ]
    assert [len(setting.runs) for setting in settings] == [4, 4, 4]
    assert [setting.weights for setting in settings] == [
        pytest.approx((0.5, 0.5)),
        pytest.approx((0.3, 0.7)),
        pytest.approx((0.1, 0.9)),
    ]


def test_folds_make_one_cohort_of_all_subjects(tmp_path):
    setting = group_runs(read_sweep([write_beta_sweep(tmp_path)]))[0]
    assert sorted(setting.cohorts) == [0, 1]
    assert sorted(setting.cohorts[0].subjects) == ["c0", "c1", "c2", "c3"]


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    write_sweep_run(tmp_path / "a", {"x": 0.5})
    outcome = run_script("summarize.py", tmp_path / "a", tmp_path / "b")
    assert str(tmp_path / "b") in outcome.error
    assert outcome.stdout == ""


def test_runs_that_are_not_finished_are_named(tmp_path):
    for seed in (0, 1):
        write_sweep_run(tmp_path / f"seed{seed}", {"x": 0.5}, seed=seed)
    (tmp_path / "seed1" / "evaluation" / "metrics.json").unlink()
    (tmp_path / "seed1" / "train.log").touch()
    (tmp_path / "seed0" / "wandb").mkdir()
    (tmp_path / "seed0" / "wandb" / "config.yaml").touch()  # of a tracker
    outcome = run_script("summarize.py", *sorted(tmp_path.iterdir()))
    assert outcome.status == 0
    assert f"1 run not finished and left out, as {tmp_path / 'seed1'}." in outcome.stdout
    (tmp_path / "seed0" / "evaluation" / "metrics.json").write_text("{")
    assert str(tmp_path / "seed1") in run_script("summarize.py", tmp_path).error


def test_a_run_made_again_under_another_name_counts_once(tmp_path, caplog):
    for name in ("loss.beta=0.7", "loss.beta=0.7,seed=0"):
        write_sweep_run(tmp_path / name, {"x": 0.5, "y": 0.7}, loss={"beta": 0.7})
    write_sweep_run(
        tmp_path / "loss.beta=0.7,seed=1", {"x": 0.5, "y": 0.9}, loss={"beta": 0.7}, seed=1
    )
    (setting,) = group_runs(read_sweep([tmp_path]))
    assert (len(setting.runs), len(setting.cohorts)) == (2, 2)
    assert "loss.beta=0.7,seed=0: has the settings of " in caplog.text


def test_settings_evaluated_on_different_cases_are_refused(tmp_path):
    write_sweep_run(tmp_path / "a", {"x": 0.5, "y": 0.5}, loss={"beta": 0.6})
    write_sweep_run(tmp_path / "b", {"x": 0.5}, loss={"beta": 0.8})
    with pytest.raises(DataError, match="case y"):
        group_runs(read_sweep([tmp_path]))


def test_a_missing_fold_is_refused(tmp_path):
    write_beta_sweep(tmp_path)
    (tmp_path / "loss.beta=0.9,data.fold=1,seed=0" / "evaluation" / "metrics.json").unlink()
    outcome = run_script("summarize.py", tmp_path)
    assert "data.fold=0,seed=0/evaluation: case " in outcome.error
    assert outcome.stdout == ""


@pytest.mark.parametrize("other", [{"volume": 90.0}, {"connectivity": 6}])
def test_settings_evaluated_by_other_references_or_rules_are_refused(tmp_path, other):
    write_sweep_run(tmp_path / "a", {"x": 0.5}, loss={"beta": 0.6})
    write_sweep_run(tmp_path / "b", {"x": 0.5}, loss={"beta": 0.8}, **other)
    with pytest.raises(DataError, match="expected"):
        group_runs(read_sweep([tmp_path]))


def test_a_case_evaluated_twice_in_one_setting_is_refused(tmp_path):
    for fold in (0, 1):
        write_sweep_run(tmp_path / str(fold), {"x": 0.5}, fold=fold)
    with pytest.raises(DataError, match="case x "):
        group_runs(read_sweep([tmp_path]))


def test_no_run_and_an_unknown_metric_are_one_line(tmp_path):
    assert str(tmp_path) in run_script("summarize.py", tmp_path).error
    write_sweep_run(tmp_path / "a", {"x": 0.5})
    assert "'luck'" in run_script("summarize.py", tmp_path, "--metrics", "luck").error


# A sweep as train.py makes it


def stamps(folder):
    """Map each file to the time when it was written last.

    Logs are left out, and the file that Hydra leaves in the folder of a sweep.
    """
    times = {}
    for path in folder.rglob("*.*"):
        is_log = "tensorboard" in path.parts or path.name == "train.log"
        if path.is_file() and not is_log and path.name != "multirun.yaml":
            times[path] = path.stat().st_mtime_ns
    return times


@pytest.mark.slow
def test_a_sweep_is_finished_where_it_was_left_and_never_written_over(tmp_path):
    manifest, sweep = make_cohort(tmp_path / "cohort", n=4), tmp_path / "sweep"
    words = (
        "trainer.max_steps=2",
        "evaluation.n_bootstrap=10",
        "evaluation.viewer=none",
        "data.folds=2",
    )
    grid = ("-m", "loss.beta=0.5,0.9", "data.fold=0,1")
    assert train(manifest, sweep, *grid, *words).status == 0
    runs = sorted(path for path in sweep.iterdir() if path.is_dir())
    assert [run.name for run in runs] == [
        "data.fold=0,loss.beta=0.5",
        "data.fold=0,loss.beta=0.9",
        "data.fold=1,loss.beta=0.5",
        "data.fold=1,loss.beta=0.9",
    ]
    settings = group_runs(read_sweep([sweep]))
    assert [len(setting.runs) for setting in settings] == [2, 2]
    assert [len(setting.cohorts[0].subjects) for setting in settings] == [4, 4]

    outcome = run_script("summarize.py", sweep, "--cohorts", "--output", tmp_path / "summary")
    assert (outcome.status, outcome.stderr) == (0, "")
    for beta in (0.5, 0.9):
        cohort = next((tmp_path / "summary" / "cohorts").glob(f"*loss.beta={beta}*")) / "seed0"
        assert str(cohort / "evaluation" / "report.html") in outcome.stdout
        metrics = json.loads((cohort / "evaluation" / "metrics.json").read_text())
        assert metrics["n_cases"] == 4, (
            "all subjects, each predicted by the fold that did not train on it"
        )
    compared = (tmp_path / "summary" / "comparison" / "comparison.md").read_text()
    assert "loss.beta=0.5" in compared
    assert "loss.beta=0.9" in compared

    before = stamps(sweep)
    (runs[0] / "evaluation" / "metrics.json").unlink()  # of this run, the evaluation is missing
    shutil.rmtree(runs[1])  # of this one, everything
    assert train(manifest, sweep, *grid, *words).status == 0
    after = stamps(sweep)
    kept = [
        path
        for path in before
        if runs[1] not in path.parents and runs[0] / "evaluation" not in path.parents
    ]
    assert [
        path
        for path in kept
        if path.parents[0].name == "checkpoints" and before[path] != after[path]
    ] == []
    whole = [path for path in kept if runs[0] not in path.parents]
    assert {path: before[path] for path in whole} == {path: after[path] for path in whole}
    assert after.keys() == before.keys()

    assert (
        train(
            manifest, sweep, "-m", "loss.beta=0.5", "data.fold=0", "optimizer.lr=0.1", *words
        ).status
        == 0
    )
    assert len([path for path in sweep.iterdir() if path.is_dir()]) == 5, (
        "other settings, another directory"
    )
    again = stamps(sweep)
    assert {path: again[path] for path in after} == after
