"""Recommendations: the setting that validation prefers, and where it does not tell."""

import pytest

from helpers.evaluated_runs import write_beta_sweep, write_sweep_run
from helpers.scripts import run_script
from tversky_seg.analysis.recommendation import recommend
from tversky_seg.analysis.sweep import group_runs, read_sweep


def test_validation_recommends_whatever_the_test_cases_say(tmp_path):
    settings = group_runs(read_sweep([write_beta_sweep(tmp_path)]))  # on the test cases 0.9 is best
    best = recommend(settings, "f2")
    assert best.setting.weights == pytest.approx((0.3, 0.7))
    for part in ("f2", "12 runs", "loss.alpha=0.3, loss.beta=0.7", "F2 0.700"):
        assert part in best.text


def test_a_recall_that_is_asked_for_leaves_the_most_precise_setting(tmp_path):
    settings = group_runs(read_sweep([write_beta_sweep(tmp_path)]))
    assert recommend(settings, "recall=0.55").setting.weights == pytest.approx((0.3, 0.7))
    best = recommend(settings, "recall=0.95")
    assert best.setting.weights == pytest.approx((0.1, 0.9))
    assert "No setting reaches recall=0.95" in best.text


def test_nothing_is_recommended_without_validation_cases(tmp_path):
    write_sweep_run(tmp_path / "a", {"x": 0.5}, loss={"beta": 0.6})
    recommended = recommend(group_runs(read_sweep([tmp_path])), "dice")
    assert recommended.setting is None
    assert "1 run had" in recommended.text


def test_nothing_is_recommended_where_the_goal_is_undefined_on_validation(tmp_path):
    undefined = {10: {"dice": "nan", "f2": "nan", "lesion_f1": 0.5}}
    for beta in (0.6, 0.8):
        folder = tmp_path / str(beta)
        write_sweep_run(folder, {"x": 0.5}, loss={"beta": beta}, validation=undefined)
    recommended = recommend(group_runs(read_sweep([tmp_path])), "f2")
    assert recommended.setting is None
    assert "F2 is undefined" in recommended.text


def test_an_unknown_goal_is_refused(tmp_path):
    outcome = run_script("summarize.py", write_beta_sweep(tmp_path), "--goal", "luck")
    assert "luck" in outcome.error


@pytest.mark.parametrize(("spread", "warns"), [(0.2, True), (0.01, False)])
def test_a_lead_below_the_spread_of_seeds_is_said(tmp_path, spread, warns):
    for beta, f2 in ((0.5, 0.60), (0.7, 0.65)):
        for seed in (0, 1):
            write_sweep_run(
                tmp_path / f"loss.beta={beta},seed={seed}",
                {"a": 0.5},
                seed=seed,
                loss={"beta": beta},
                validation={10: {"dice": 0.5, "f2": f2 + spread * (seed - 0.5)}},
            )
    text = recommend(group_runs(read_sweep([tmp_path])), "f2").text
    assert "loss.beta=0.7" in text
    assert ("smaller than the spread of seeds" in text) == warns
