"""Sweeps: grouping, joined folds, means and intervals by hand, what validation recommends, what is refused."""

import csv
import io
import json
import runpy
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import yaml

from helpers.cohorts import make_cohort
from helpers.command_line import train
from tversky_seg.analysis.figures import beta_figure, frontier_figure
from tversky_seg.analysis.recommendation import recommend
from tversky_seg.analysis.setting_names import loss_weights
from tversky_seg.analysis.summaries import summarize_settings
from tversky_seg.analysis.sweep import group_runs, read_sweep
from tversky_seg.analysis.sweep_report import (
    reading_notes,
    summary_latex,
    summary_markdown,
    write_summary,
)
from tversky_seg.analysis.weight_lines import weight_lines
from tversky_seg.data.errors import DataError
from tversky_seg.metrics.overlap import overlap_counts

SCRIPT = Path(__file__).parents[2] / "scripts" / "summarize.py"
RULE = {
    "connectivity": 26,
    "min_overlap": 0.0,
    "min_volume_mm3": 0.0,
    "prediction_min_volume_mm3": 0.0,
}
TVERSKY = "tversky_seg.losses.TverskyLoss"


def case_row(value, *, volume=100.0, found=1):
    """A case whose sensitivity and precision are `value`."""
    return {
        "dice": value, "sensitivity": value, "precision": value, "f2": value, "pr_auc": value, "lesion_f1": value,
        "lesion_tpr": found / 2, "lesion_fpr": 0.5, "reference_volume_mm3": volume, "predicted_volume_mm3": volume,
        "n_reference_lesions": 2, "n_predicted_lesions": 4,
    }  # fmt: skip


def write_run(folder, values, *, seed=0, fold=0, loss=None, validation=None, volume=100.0, found=1, subjects=None,
              weighting=None, **rule):  # fmt: skip
    """A finished run with these values by case."""
    cases = [
        {
            "case_id": case,
            "subject_id": (subjects or {}).get(case, case),
            **case_row(v, volume=volume, found=found),
        }
        for case, v in values.items()
    ]
    (folder / "evaluation").mkdir(parents=True)
    metrics = {"n_cases": len(cases), "threshold": 0.5, "lesion_rule": RULE | rule, "cases": cases}
    (folder / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    settings = {
        "loss": {"_target_": TVERSKY, "alpha": None, "beta": None} | (loss or {}), "weighting": weighting, "seed": seed,
        "data": {"fold": fold, "cache_dir": str(folder)}, "trainer": {"monitor": "dice"}, "output_dir": str(folder),
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    rows = [
        (step, f"val_{name}", v)
        for step, of in (validation or {}).items()
        for name, v in of.items()
    ]
    (folder / "metrics.csv").write_text(
        "\n".join(["step,name,value", "1,loss,0.5", *(",".join(map(str, row)) for row in rows)])
        + "\n"
    )
    return folder


def beta_sweep(root):
    """Three betas, two folds, two seeds: on the test cases all rises with beta, validation has F2 best at 0.7."""
    for beta, value, val_f2 in ((0.5, 0.4, 0.5), (0.7, 0.6, 0.7), (0.9, 0.8, 0.6)):
        for fold in (0, 1):
            for seed in (0, 1):
                values = {f"c{2 * fold}": value + 0.1 * seed, f"c{2 * fold + 1}": value - 0.2}
                early = {"dice": 0.1, "f2": 0.99, "sensitivity": 0.1, "precision": 0.9}
                late = {"dice": 0.2, "f2": val_f2, "sensitivity": value, "precision": 1 - value}
                where = root / f"loss.beta={beta},data.fold={fold},seed={seed}"
                write_run(
                    where,
                    values,
                    seed=seed,
                    fold=fold,
                    loss={"beta": beta},
                    validation={10: early, 20: late},
                )
    return root


def run_script(*words):
    out, err = io.StringIO(), io.StringIO()
    argv, status = sys.argv, 0
    sys.argv = [str(SCRIPT), *map(str, words)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as ended:
        status = ended.code or 0
    finally:
        sys.argv = argv
    return status, out.getvalue(), err.getvalue()


def test_runs_are_grouped_by_what_they_set_and_ordered_by_beta(tmp_path):
    settings = group_runs(read_sweep([beta_sweep(tmp_path)]))
    assert [setting.name for setting in settings] == [
        "loss.alpha=0.5, loss.beta=0.5", "loss.alpha=0.3, loss.beta=0.7", "loss.alpha=0.1, loss.beta=0.9"
    ]  # fmt: skip
    assert [len(setting.runs) for setting in settings] == [4, 4, 4]
    assert [setting.weights for setting in settings] == [
        pytest.approx((0.5, 0.5)), pytest.approx((0.3, 0.7)), pytest.approx((0.1, 0.9))
    ]  # fmt: skip


def test_folds_make_one_cohort_of_all_subjects(tmp_path):
    setting = group_runs(read_sweep([beta_sweep(tmp_path)]))[0]
    assert sorted(setting.cohorts) == [0, 1]
    assert sorted(setting.cohorts[0].subjects) == ["c0", "c1", "c2", "c3"]


def test_mean_spread_and_interval_are_those_worked_by_hand(tmp_path):
    settings = group_runs(read_sweep([beta_sweep(tmp_path)]))
    found = {s.metric: s for s in summarize_settings(settings[:1], metrics=["dice", "lesion_tpr"])}
    # seed 0: 0.4 0.2 0.4 0.2, seed 1: 0.5 0.2 0.5 0.2
    assert found["dice"].mean == pytest.approx((0.3 + 0.35) / 2)
    assert found["dice"].sd == pytest.approx(np.std([0.3, 0.35], ddof=1))
    assert 0.2 <= found["dice"].low < found["dice"].mean < found["dice"].high <= 0.45
    assert (found["dice"].n_subjects, found["dice"].n_seeds, found["dice"].n_runs) == (4, 2, 4)
    assert found["lesion_tpr"].pooled == pytest.approx(0.5)


def test_pooled_rates_equal_those_of_all_voxels_together(tmp_path):
    rng = np.random.default_rng(0)
    masks = [
        (rng.random(200) < a, rng.random(200) < b) for a, b in ((0.1, 0.3), (0.5, 0.2), (0.3, 0.02))
    ]
    run = write_run(tmp_path / "run", {"a": 0.5, "b": 0.5, "c": 0.5})
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    for row, (prediction, reference) in zip(metrics["cases"], masks, strict=True):
        row |= {
            "sensitivity": overlap_counts(prediction, reference).sensitivity,
            "reference_volume_mm3": float(reference.sum()), "predicted_volume_mm3": float(prediction.sum()),
        }  # fmt: skip
    (run / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    expected = overlap_counts(*map(np.concatenate, zip(*masks, strict=True)))
    found = {s.metric: s.pooled for s in summarize_settings(group_runs(read_sweep([run])))}
    assert found["dice"] == pytest.approx(expected.dice)
    assert found["precision"] == pytest.approx(expected.precision)
    assert found["f2"] == pytest.approx(expected.f(2))


def test_sessions_of_a_subject_are_averaged_first(tmp_path):
    subjects = {"a1": "a", "a2": "a", "b1": "b"}
    run = write_run(tmp_path / "run", {"a1": 0.2, "a2": 0.4, "b1": 0.9}, subjects=subjects)
    (found,) = summarize_settings(group_runs(read_sweep([run])), metrics=["dice"])
    assert found.mean == pytest.approx((0.3 + 0.9) / 2)
    assert found.n_subjects == 2


def test_undefined_values_are_left_out_and_an_undefined_measure_is_a_dash(tmp_path):
    run = write_run(tmp_path / "run", {"a": 0.5, "b": 0.5})
    path = run / "evaluation" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["cases"][0]["dice"] = None
    for row in metrics["cases"]:
        row["pr_auc"] = None
    path.write_text(json.dumps(metrics))
    table = summary_markdown(
        summarize_settings(group_runs(read_sweep([run])), metrics=["dice", "pr_auc"])
    )
    assert table.splitlines()[-1] == "| all runs | 0.500 | – |"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"loss._target_": TVERSKY, "loss.alpha": None, "loss.beta": None}, (0.3, 0.7)),
        ({"loss._target_": TVERSKY, "loss.alpha": 0.2, "loss.beta": None}, (0.2, 0.8)),
        ({"loss._target_": "tversky_seg.losses.DiceLoss"}, (0.5, 0.5)),
        (
            {"loss._target_": "tversky_seg.losses.AsymmetricSimilarityLoss", "loss.b": 2.0},
            (0.2, 0.8),
        ),
        ({"loss._target_": "tversky_seg.losses.BCELoss"}, None),
    ],
)
def test_a_losss_weights_are_those_it_acts_with(settings, expected):
    found = loss_weights(settings)
    assert found == (None if expected is None else pytest.approx(expected))


def test_settings_of_different_classes_are_named_by_class_and_what_differs_within(tmp_path):
    write_run(tmp_path / "a", {"x": 0.5}, loss={"beta": 0.6})
    write_run(tmp_path / "b", {"x": 0.5}, loss={"beta": 0.8})
    dice = {"_target_": "tversky_seg.losses.DiceLoss"}
    write_run(tmp_path / "c", {"x": 0.5}, loss=dice)
    weighting = {"_target_": "tversky_seg.weighting.inverse_weights", "w_max": 2e5}
    write_run(tmp_path / "d", {"x": 0.5}, loss=dice, weighting=weighting)
    assert {setting.name for setting in group_runs(read_sweep([tmp_path]))} == {
        "TverskyLoss, loss.alpha=0.4, loss.beta=0.6, no weighting",
        "TverskyLoss, loss.alpha=0.2, loss.beta=0.8, no weighting",
        "DiceLoss, no weighting",
        "DiceLoss, inverse_weights",
    }


# Recommended


def test_validation_recommends_whatever_the_test_cases_say(tmp_path):
    settings = group_runs(read_sweep([beta_sweep(tmp_path)]))  # on the test cases 0.9 is best
    recommended = recommend(settings, "f2")
    best, said = recommended.setting, recommended.text
    assert best.weights == pytest.approx((0.3, 0.7))
    for part in ("f2", "12 runs", "loss.alpha=0.3, loss.beta=0.7", "F2 0.700"):
        assert part in said


def test_a_recall_that_is_asked_for_leaves_the_most_precise_setting(tmp_path):
    settings = group_runs(read_sweep([beta_sweep(tmp_path)]))
    recommended = recommend(settings, "recall=0.55")
    best, said = recommended.setting, recommended.text
    assert best.weights == pytest.approx((0.3, 0.7))
    recommended = recommend(settings, "recall=0.95")
    best, said = recommended.setting, recommended.text
    assert best.weights == pytest.approx((0.1, 0.9))
    assert "No setting reaches recall=0.95" in said


def test_nothing_is_recommended_without_validation_cases(tmp_path):
    write_run(tmp_path / "a", {"x": 0.5}, loss={"beta": 0.6})
    recommended = recommend(group_runs(read_sweep([tmp_path])), "dice")
    best, said = recommended.setting, recommended.text
    assert best is None
    assert "1 run had" in said


def test_nothing_is_recommended_where_the_goal_is_undefined_on_validation(tmp_path):
    for beta in (0.6, 0.8):
        undefined = {10: {"dice": "nan", "f2": "nan", "lesion_f1": 0.5}}
        write_run(tmp_path / str(beta), {"x": 0.5}, loss={"beta": beta}, validation=undefined)
    recommended = recommend(group_runs(read_sweep([tmp_path])), "f2")
    best, said = recommended.setting, recommended.text
    assert best is None
    assert "F2 is undefined" in said


def test_an_unknown_goal_is_refused(tmp_path):
    status, _, err = run_script(beta_sweep(tmp_path), "--goal", "luck")
    assert status == 2
    assert err.startswith("error: goal must be one of dice, f2, lesion_f1")


# Refused


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    write_run(tmp_path / "a", {"x": 0.5})
    status, out, err = run_script(tmp_path / "a", tmp_path / "b")
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {tmp_path / 'b'}: no such folder; ")


def test_runs_that_are_not_finished_are_named(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"seed{seed}", {"x": 0.5}, seed=seed)
    (tmp_path / "seed1" / "evaluation" / "metrics.json").unlink()
    (tmp_path / "seed1" / "train.log").touch()
    (tmp_path / "seed0" / "wandb").mkdir()
    (tmp_path / "seed0" / "wandb" / "config.yaml").touch()  # of a tracker
    status, out, _ = run_script(*sorted(tmp_path.iterdir()))
    assert status == 0
    assert f"1 run not finished and left out, as {tmp_path / 'seed1'}." in out
    (tmp_path / "seed0" / "evaluation" / "metrics.json").write_text("{")
    assert run_script(tmp_path)[2].endswith(
        f"(1 run not finished and left out, as {tmp_path / 'seed1'})\n"
    )


def test_a_run_made_again_under_another_name_counts_once(tmp_path, caplog):
    for name in ("loss.beta=0.7", "loss.beta=0.7,seed=0"):
        write_run(tmp_path / name, {"x": 0.5, "y": 0.7}, loss={"beta": 0.7})
    write_run(tmp_path / "loss.beta=0.7,seed=1", {"x": 0.5, "y": 0.9}, loss={"beta": 0.7}, seed=1)
    (setting,) = group_runs(read_sweep([tmp_path]))
    assert (len(setting.runs), len(setting.cohorts)) == (2, 2)
    assert "loss.beta=0.7,seed=0: has the settings of " in caplog.text


def test_settings_evaluated_on_different_cases_are_refused(tmp_path):
    write_run(tmp_path / "a", {"x": 0.5, "y": 0.5}, loss={"beta": 0.6})
    write_run(tmp_path / "b", {"x": 0.5}, loss={"beta": 0.8})
    with pytest.raises(DataError, match="case y"):
        group_runs(read_sweep([tmp_path]))


def test_a_missing_fold_is_refused(tmp_path):
    beta_sweep(tmp_path)
    (tmp_path / "loss.beta=0.9,data.fold=1,seed=0" / "evaluation" / "metrics.json").unlink()
    status, out, err = run_script(tmp_path)
    assert (status, out) == (2, "")
    assert "data.fold=0,seed=0/evaluation: case " in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("other", [{"volume": 90.0}, {"connectivity": 6}])
def test_settings_evaluated_by_other_references_or_rules_are_refused(tmp_path, other):
    write_run(tmp_path / "a", {"x": 0.5}, loss={"beta": 0.6})
    write_run(tmp_path / "b", {"x": 0.5}, loss={"beta": 0.8}, **other)
    with pytest.raises(DataError, match="expected"):
        group_runs(read_sweep([tmp_path]))


def test_a_case_evaluated_twice_in_one_setting_is_refused(tmp_path):
    for fold in (0, 1):
        write_run(tmp_path / str(fold), {"x": 0.5}, fold=fold)
    with pytest.raises(DataError, match="case x "):
        group_runs(read_sweep([tmp_path]))


def test_no_run_and_an_unknown_measure_are_one_line(tmp_path):
    assert "no finished run" in run_script(tmp_path)[2]
    write_run(tmp_path / "a", {"x": 0.5})
    assert "measures: 'luck' is not in" in run_script(tmp_path, "--measures", "luck")[2]


# Written


def test_table_and_figures_are_written(tmp_path):
    status, out, err = run_script(beta_sweep(tmp_path), "--goal", "f2")
    assert (status, err) == (0, "")
    assert "| loss.alpha=0.5, loss.beta=0.5 | 0.325 ± 0.035 |" in out
    assert "4 cases of 4 subjects; 4 runs (2 seeds) for each setting" in out
    assert "Recommended for f2" in out
    names = {path.name for path in (tmp_path / "summary").iterdir()}
    assert names == {"summary.md", "summary.csv", "summary.tex", *(f"{n}.{e}" for n in ("frontier", "beta")
                                                                   for e in ("png", "pdf"))}  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "summary" / "summary.csv").read_text().splitlines()))
    assert len(rows) == 3 * 8
    assert rows[0].keys() >= {"setting", "measure", "mean", "sd", "low", "high", "pooled"}
    assert run_script(tmp_path)[0] == 0, "what was written is no run"


@pytest.mark.parametrize("n", [4, 5])
def test_tables_and_figures_give_no_interval_for_fewer_than_five_subjects(tmp_path, n):
    for beta in (0.6, 0.8):
        values = {f"c{k}": 0.5 + 0.05 * k for k in range(n)}
        write_run(tmp_path / str(beta), values, loss={"beta": beta})
    settings = group_runs(read_sweep([tmp_path]))
    summaries = summarize_settings(settings, metrics=["dice"])
    assert ("[0." in summary_markdown(summaries)) == (n == 5)
    assert ("fewer than 5 subjects" in reading_notes(settings, summaries)) == (n == 4)
    (axes,) = beta_figure(weight_lines(settings)).axes
    assert all(container.has_yerr == (n == 5) for container in axes.containers)


def test_lines_join_settings_that_differ_in_alpha_and_beta_alone(tmp_path):
    weighting = {"_target_": "tversky_seg.weighting.inverse_weights", "w_max": 2e5}
    dice = {"_target_": "tversky_seg.losses.DiceLoss", "squared": False}
    for name, of in (("none", None), ("inverse", weighting)):
        write_run(tmp_path / f"{name}_dice", {"x": 0.5}, loss=dice, weighting=of)
        write_run(tmp_path / f"{name}_tversky", {"x": 0.6}, loss={"beta": 0.7}, weighting=of)
    write_run(tmp_path / "alone", {"x": 0.6}, loss={"beta": 0.7, "smooth": 0.0})
    lines = weight_lines(group_runs(read_sweep([tmp_path])))
    frontier = frontier_figure(lines).axes[0]
    assert sorted(line.get_label() for line in frontier.lines) == [
        "inverse_weights",
        "no weighting",
    ]
    assert {len(line.get_xdata()) for line in frontier.lines} == {2}
    assert sorted(axes.get_title() for axes in beta_figure(lines).axes) == [
        "inverse_weights",
        "no weighting",
    ]


def test_one_setting_shows_its_runs_and_writes_no_figure(tmp_path):
    for seed, value in enumerate((0.2, 0.6, 0.4)):
        write_run(tmp_path / f"seed{seed}", {"x": value}, seed=seed)
    out = run_script(tmp_path, "--measures", "dice")[1]
    assert "| seed1 | 0.600 |" in out
    assert "| median of 3 | 0.400 |" in out
    assert "| all runs | 0.400 ± 0.200 |" in out
    assert not (tmp_path / "summary" / "beta.png").exists()


def split_classes(run, **factors):
    """Give a run several classes, whose metrics are those of the one times a factor."""
    path = run / "evaluation" / "metrics.json"
    metrics = json.loads(path.read_text())
    for case in metrics["cases"]:
        row = {key: case.pop(key) for key in list(case) if key not in ("case_id", "subject_id")}
        for name, factor in factors.items():
            case[name] = {metric: value * factor for metric, value in row.items()}
    path.write_text(json.dumps(metrics))


def test_medians_are_of_runs_and_not_of_classes(tmp_path):
    for seed, value in enumerate((0.2, 0.6, 0.4)):
        run = write_run(tmp_path / f"seed{seed}", {"x": value}, seed=seed)
        split_classes(run, anterior=1, posterior=0.5)
    out = run_script(tmp_path, "--metrics", "dice")[1]
    assert "| seed1, posterior | 0.300 |" in out
    assert "| median of 3, anterior | 0.400 |" in out
    assert "| median of 3, posterior | 0.200 |" in out


def test_a_single_run_has_no_median(tmp_path):
    run = write_run(tmp_path / "run", {"x": 0.2})
    split_classes(run, anterior=1, posterior=0.5)
    out = run_script(run, "--metrics", "dice")[1]
    assert "| run, posterior | 0.100 |" in out
    assert "median" not in out
    assert "1 case of 1 subject; 1 run, " in out


def test_latex_escapes_and_balances(tmp_path):
    table = summary_latex(
        summarize_settings(group_runs(read_sweep([beta_sweep(tmp_path)])), metrics=["dice"])
    )
    assert table.count(r"\\") == 4
    assert r"0.325 $\pm$ 0.035" in table
    loss = {"_target_": "a_package.losses.Own", "form": "x^2~{y}"}
    write_run(tmp_path / "b" / "1", {"x": 0.5}, loss=loss)
    write_run(tmp_path / "b" / "2", {"x": 0.5}, loss=loss | {"form": "z"})
    table = summary_latex(
        summarize_settings(group_runs(read_sweep([tmp_path / "b"])), metrics=["dice"])
    )
    assert r"loss.form=x\textasciicircum{}2\textasciitilde{}\{y\}" in table


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    settings = group_runs(read_sweep([beta_sweep(tmp_path / "runs")]))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        write_summary(
            settings, summarize_settings(settings), "", output_dir=tmp_path / "file" / "out"
        )


# A sweep as train.py makes it


def stamps(folder):
    """When each file was written last, but for the log, TensorBoard's copy and Hydra's note of the sweep."""
    files = [
        path for path in folder.rglob("*.*") if path.is_file() and "tensorboard" not in path.parts
    ]
    files = [path for path in files if path.name not in ("train.log", "multirun.yaml")]
    return {path: path.stat().st_mtime_ns for path in files}


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

    status, out, err = run_script(sweep, "--cohorts", "--output", tmp_path / "summary")
    assert (status, err) == (0, "")
    for beta in (0.5, 0.9):
        cohort = next((tmp_path / "summary" / "cohorts").glob(f"*loss.beta={beta}*")) / "seed0"
        assert str(cohort / "evaluation" / "report.html") in out
        metrics = json.loads((cohort / "evaluation" / "metrics.json").read_text())
        assert metrics["n_cases"] == 4, (
            "all subjects, each predicted by the fold that did not train on it"
        )
    compared = (tmp_path / "summary" / "comparison" / "comparison.md").read_text()
    assert "loss.beta=0.5" in compared
    assert "loss.beta=0.9" in compared

    before = stamps(sweep)
    (runs[0] / "evaluation" / "metrics.json").unlink()  # of this run, the evaluation is missing
    shutil.rmtree(runs[1])  # of this one all
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
