"""Summaries: means, spread, intervals and pooled rates, by hand and against the metrics."""

import json

import numpy as np
import pytest

from helpers.evaluated_runs import write_beta_sweep, write_sweep_run
from tversky_seg.analysis.summaries import summarize_settings
from tversky_seg.analysis.sweep import group_runs, read_sweep
from tversky_seg.analysis.sweep_report import summary_markdown
from tversky_seg.metrics.overlap import overlap_counts


def test_mean_spread_and_interval_are_those_worked_by_hand(tmp_path):
    settings = group_runs(read_sweep([write_beta_sweep(tmp_path)]))
    dice, lesion_tpr = summarize_settings(settings[:1], metrics=["dice", "lesion_tpr"])
    # seed 0: 0.4 0.2 0.4 0.2, seed 1: 0.5 0.2 0.5 0.2
    assert dice.mean == pytest.approx((0.3 + 0.35) / 2)
    assert dice.sd == pytest.approx(np.std([0.3, 0.35], ddof=1))
    assert 0.2 <= dice.low < dice.mean < dice.high <= 0.45
    assert (dice.n_subjects, dice.n_seeds, dice.n_runs) == (4, 2, 4)
    assert lesion_tpr.pooled == pytest.approx(0.5)


def test_pooled_rates_equal_those_of_all_voxels_together(tmp_path):
    rng = np.random.default_rng(0)
    predictions = [rng.random(200) < share for share in (0.1, 0.5, 0.3)]
    references = [rng.random(200) < share for share in (0.3, 0.2, 0.02)]
    run = write_sweep_run(tmp_path / "run", {"a": 0.5, "b": 0.5, "c": 0.5})
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    for row, prediction, reference in zip(metrics["cases"], predictions, references, strict=True):
        row["sensitivity"] = overlap_counts(prediction, reference).sensitivity
        row["reference_volume_mm3"] = float(reference.sum())
        row["predicted_volume_mm3"] = float(prediction.sum())
    (run / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    expected = overlap_counts(np.concatenate(predictions), np.concatenate(references))
    summaries = summarize_settings(group_runs(read_sweep([run])))
    pooled = {summary.metric: summary.pooled for summary in summaries}
    assert pooled["dice"] == pytest.approx(expected.dice)
    assert pooled["precision"] == pytest.approx(expected.precision)
    assert pooled["f2"] == pytest.approx(expected.f(2))


def test_sessions_of_a_subject_are_averaged_first(tmp_path):
    subjects = {"a1": "a", "a2": "a", "b1": "b"}
    run = write_sweep_run(tmp_path / "run", {"a1": 0.2, "a2": 0.4, "b1": 0.9}, subjects=subjects)
    (summary,) = summarize_settings(group_runs(read_sweep([run])), metrics=["dice"])
    assert summary.mean == pytest.approx((0.3 + 0.9) / 2)
    assert summary.n_subjects == 2


def test_undefined_values_are_left_out_and_an_undefined_metric_is_a_dash(tmp_path):
    run = write_sweep_run(tmp_path / "run", {"a": 0.5, "b": 0.5})
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
