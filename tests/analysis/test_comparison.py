"""Comparing runs: the statistics against scipy and by hand, what is refused, and what is written."""

import csv
import io
import itertools
import json
import math
import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tversky_seg.analysis.comparison import compare
from tversky_seg.analysis.comparison_text import comparison_latex, comparison_markdown
from tversky_seg.analysis.runs import average_runs, read_runs
from tversky_seg.analysis.statistics import bootstrap_interval, holm, pair_subjects, wilcoxon_p
from tversky_seg.data.errors import DataError

SCRIPT = Path(__file__).parents[2] / "scripts" / "compare.py"
RULE = {
    "connectivity": 26,
    "min_overlap": 0.0,
    "min_volume_mm3": 0.0,
    "prediction_min_volume_mm3": 0.0,
}


def write_run(
    folder, values, *, threshold=0.5, volume=100.0, subjects=None, classes=("lesion",), **rule
):
    """A run that was evaluated: dice (and lesion_fpr, its complement) by case, None where undefined."""
    rows = {
        case: {
            "dice": value,
            "lesion_fpr": None if value is None else 1 - value,
            "pr_auc": None,
            "reference_volume_mm3": volume,
        }
        for case, value in values.items()
    }
    cases = [
        {"case_id": case, "subject_id": (subjects or {}).get(case, case)}
        | (row if len(classes) == 1 else dict.fromkeys(classes, row))
        for case, row in rows.items()
    ]
    metrics = {
        "n_cases": len(cases),
        "threshold": threshold,
        "lesion_rule": RULE | rule,
        "cases": cases,
    }
    (folder / "evaluation").mkdir(parents=True)
    (folder / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    lines = [
        f"{name},{t},{p},{r}" for name in classes for t, p, r in ((0.1, 0.5, 1.0), (0.9, 0.8, 0.25))
    ]
    (folder / "evaluation" / "pr_curve.csv").write_text(
        "\n".join(["class,threshold,precision,recall", *lines]) + "\n"
    )
    return folder


@pytest.mark.parametrize("n", [1, 2, 5, 12, 60])
def test_signed_rank_test_equals_scipy_without_ties(n):
    values = np.random.default_rng(n).normal(0.3, 1, n)
    assert wilcoxon_p(values) == pytest.approx(
        stats.wilcoxon(values, method="exact").pvalue, rel=1e-9
    )


def test_signed_rank_test_with_ties_counts_all_signs():
    values = np.array([1, 1, -1, 2, 2, 3, -4, 0, 5.0])
    nonzero = values[values != 0]
    ranks = stats.rankdata(np.abs(nonzero))
    middle = ranks.sum() / 2
    found = abs(ranks[nonzero > 0].sum() - middle)
    sums = [
        ranks[list(signs)].sum() for signs in itertools.product((False, True), repeat=len(ranks))
    ]
    assert wilcoxon_p(values) == pytest.approx(
        np.mean([abs(total - middle) >= found for total in sums]), rel=1e-12
    )


def test_signed_rank_test_of_many_equals_scipys_normal_form():
    values = np.round(np.random.default_rng(0).normal(0.15, 1, 500), 1)
    expected = stats.wilcoxon(values, method="approx", correction=False).pvalue
    assert wilcoxon_p(values) == pytest.approx(expected, rel=1e-9)


def test_signed_rank_test_at_its_borders():
    assert wilcoxon_p([0.0, 0.0]) == 1
    assert math.isnan(wilcoxon_p([]))
    assert wilcoxon_p([1, 2, 3, 4]) == pytest.approx(0.125)  # 2 of 16 ways


def test_holm_by_hand_and_as_closed_testing():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, math.nan, 0.9]).tolist() == pytest.approx([1, math.nan, 1], nan_ok=True)
    assert holm([]).size == 0
    p = np.random.default_rng(1).random(5) ** 3
    subsets = [s for k in range(1, 6) for s in itertools.combinations(range(5), k)]
    closed = [max(min(1, len(s) * min(p[list(s)])) for s in subsets if i in s) for i in range(5)]
    assert holm(p) == pytest.approx(closed)


def test_interval_agrees_with_scipys_bootstrap():
    values = np.random.default_rng(0).normal(0.1, 0.3, 25)
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    found = bootstrap_interval(values, n_bootstrap=20_000, rng=np.random.default_rng(2))
    assert found == pytest.approx(expected, abs=0.006)
    assert all(map(math.isnan, bootstrap_interval([0.3], rng=np.random.default_rng(0))))


def test_cases_of_a_subject_are_one_pair_and_undefined_ones_are_counted():
    first = {"a1": 0.2, "a2": 0.4, "b1": 0.5, "c1": math.nan, "d1": 0.1}
    second = {"a1": 0.4, "a2": 0.8, "b1": 0.4, "c1": 0.9, "d1": math.nan}
    pairs = pair_subjects(first, second, subjects={case: case[0] for case in first})
    assert pairs.means.ravel().tolist() == pytest.approx([0.3, 0.6, 0.5, 0.4])
    assert pairs.n_undefined == 2


def test_runs_are_compared_with_the_first_by_subject(tmp_path):
    subjects = {"a1": "a", "a2": "a", "b": "b", "c": "c"}
    one = write_run(tmp_path / "one", {"a1": 0.2, "a2": 0.4, "b": 0.5, "c": 0.6}, subjects=subjects)
    two = write_run(
        tmp_path / "two",
        {"a1": 0.4, "a2": 0.6, "b": 0.6, "c": None},
        subjects=subjects,
        threshold=0.3,
    )
    runs = read_runs([one, two / "evaluation"])
    dice, fpr = compare(runs, metrics=["dice", "lesion_fpr"])
    assert (dice.first, dice.second, dice.n_subjects, dice.n_undefined) == ("one", "two", 2, 1)
    assert (dice.mean_first, dice.mean_second, dice.mean) == pytest.approx((0.4, 0.55, 0.15))
    assert (dice.low, dice.high) == pytest.approx((0.1, 0.2))
    assert (dice.p, dice.p_holm, fpr.mean) == pytest.approx((0.5, 1, -0.15))
    assert compare(runs, metrics=["dice"]) == compare(runs, metrics=["dice"])
    text = comparison_markdown(runs, [dice, fpr])
    assert "| Dice ↑ | 0.400 | 0.550 | +0.150 | 0.500 | 1.000 | 2 |" in text
    assert "Lesion FPR ↓" in text
    assert "2 pairs of values" in text
    assert "two at threshold 0.3" in text
    assert "connectivity 26" in text


@pytest.mark.parametrize("n", [4, 5])
def test_tables_give_no_interval_for_fewer_than_five_subjects(tmp_path, n):
    first = write_run(tmp_path / "one", {f"c{k}": 0.4 + 0.01 * k for k in range(n)})
    second = write_run(tmp_path / "two", {f"c{k}": 0.5 for k in range(n)})
    runs = read_runs([first, second])
    differences = compare(runs, metrics=["dice"])
    assert differences[0].low < differences[0].mean < differences[0].high, "in the CSV file"
    for text in (comparison_markdown(runs, differences), comparison_latex(runs, differences)):
        assert ("[+0." in text) == (n == 5)
        assert ("fewer than 5 subjects" in text) == (n == 4)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"values": {"a": 0.5, "c": 0.5}}, ["case b", "two"]),
        ({"values": {"a": 0.5}}, ["case b", "two"]),
        ({"connectivity": 6}, ["connectivity=6", "26"]),
        ({"volume": 90.0}, ["case a", "90 mm³", "100 mm³"]),
        ({"classes": ("x", "y")}, ["x, y", "lesion"]),
        ({"subjects": {"a": "z"}}, ["case a", "subject z"]),
    ],
)
def test_runs_evaluated_otherwise_are_refused(tmp_path, settings, parts):
    one = write_run(tmp_path / "one", {"a": 0.5, "b": 0.5})
    values = settings.pop("values", {"a": 0.5, "b": 0.5})
    two = write_run(tmp_path / "two", values, **settings)
    with pytest.raises(DataError) as error:
        read_runs([one, two])
    for part in parts:
        assert part in str(error.value)


def test_the_operating_point_may_differ(tmp_path):
    one = write_run(tmp_path / "one", {"a": 0.5})
    two = write_run(tmp_path / "two", {"a": 0.5}, threshold=None, prediction_min_volume_mm3=3.0)
    runs = read_runs([one, two])
    text = comparison_markdown(runs, compare(runs, metrics=["dice", "pr_auc"]))
    assert "predicted lesions below 3 mm³" in text
    assert "| PR-AUC ↑ | – | – | – | – | – | 0 |" in text


def test_damaged_runs_are_named(tmp_path):
    one = write_run(tmp_path / "one", {"a": 0.5})
    with pytest.raises(DataError, match=r"none: no metrics\.json"):
        read_runs([one, tmp_path / "none"])
    with pytest.raises(DataError, match="one/evaluation"):
        read_runs([one, one / "evaluation"])
    two = write_run(tmp_path / "two", {"a": 0.5})
    for damage in ("{", "[]", '{"cases": [], "lesion_rule": {}}'):
        (two / "evaluation" / "metrics.json").write_text(damage)
        with pytest.raises(DataError, match=r"two/evaluation/metrics\.json: "):
            read_runs([one, two])


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [write_run(tmp_path / sweep / "seed0", {"a": 0.5}) for sweep in "xy"]
    assert [run.name for run in read_runs(folders)] == ["x/seed0", "y/seed0"]


def test_runs_of_a_sweep_are_named_by_the_settings_that_differ(tmp_path):
    folders = [write_run(tmp_path / f"loss.beta={beta},seed=0", {"a": 0.5}) for beta in (0.5, 0.8)]
    assert [run.name for run in read_runs(folders)] == ["loss.beta=0.5", "loss.beta=0.8"]
    runs = read_runs(folders)
    assert "1 case of 1 subject. Means" in comparison_markdown(
        runs, compare(runs, metrics=["dice"])
    )


def test_seeds_are_averaged_and_do_not_count_as_subjects(tmp_path):
    seeds = [
        write_run(tmp_path / f"one{n}", {"a": v, "b": 0.5}, threshold=n / 10)
        for n, v in ((2, 0.2), (4, 0.4))
    ]
    others = [write_run(tmp_path / f"two{n}", {"a": 0.5, "b": v}) for n, v in ((2, None), (4, 0.6))]
    runs = [average_runs(read_runs(seeds), name="one"), average_runs(read_runs(others), name="two")]
    (dice,) = compare(runs, metrics=["dice"])
    assert (dice.mean_first, dice.mean_second, dice.n_subjects) == (
        pytest.approx(0.4),
        pytest.approx(0.55),
        2,
    )
    assert dice.p == pytest.approx(0.5), "two subjects, not four pairs"
    text = comparison_markdown(runs, [dice])
    assert "mean of 2 seeds" in text
    assert "one at threshold 0.3" in text
    with pytest.raises(DataError, match="case b"):
        average_runs(
            [runs[0], *read_runs([write_run(tmp_path / "other", {"a": 0.5})])], name="none"
        )


def test_latex_escapes_names_and_has_equal_columns(tmp_path):
    runs = read_runs(
        [write_run(tmp_path / name, {"a": 0.5, "b": 0.7}) for name in ("run_1", "50%_&")]
    )
    text = comparison_latex(runs, compare(runs, metrics=["dice"]))
    assert r"run\_1 & 50\%\_\&" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len({line.replace(r"\&", "").count("&") for line in rows}) == 1
    assert "$" in text
    assert "↑" not in text


def run_script(*words):
    """Exit status, stdout and stderr of the script, run in this process."""
    said = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said[0]), redirect_stderr(said[1]):
        patch.setattr(sys, "argv", [str(SCRIPT), *map(str, words)])
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as end:
            return end.code, *(stream.getvalue() for stream in said)
    return 0, *(stream.getvalue() for stream in said)


def test_the_script_writes_tables_and_one_figure_of_curves(tmp_path):
    classes = ("core", "<rim>")
    runs = [
        write_run(tmp_path / name, {"a": v, "b": 0.7}, classes=classes)
        for name, v in (("r1", 0.5), ("r2", 0.6))
    ]
    met = tmp_path / "multirun.yaml"  # as sweep/* names it
    status, said, errors = run_script(
        met, *runs, "--output", tmp_path / "out", "--measures", "dice", "pr_auc"
    )
    assert (status, errors) == (0, "")
    assert "core: Dice" in said
    assert "2 cases of 2 subjects." in said
    files = {
        "comparison.md",
        "comparison.tex",
        "comparison.csv",
        "cases.csv",
        "pr_curves.png",
        "pr_curves.pdf",
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    with (tmp_path / "out" / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["class_name"], row["measure"]) for row in rows] == [
        (name, measure) for name in classes for measure in ("dice", "pr_auc")
    ]
    assert float(rows[0]["mean"]) == pytest.approx(0.05)
    assert rows[1]["mean"] == ""


def test_the_script_says_in_one_line_what_is_wrong(tmp_path):
    one, two = (write_run(tmp_path / name, {name: 0.5}) for name in ("r1", "r2"))
    for words in ((one,), (one, two), (one, tmp_path), (), (one, two, "--n-bootstrap", "0")):
        status, said, errors = run_script(*words, "--output", tmp_path / "out")
        assert (status, said) == (2, "")
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1
    other = write_run(tmp_path / "r3", {"r1": 0.5})
    assert "'nonsense' is not in" in run_script(one, other, "--measures", "nonsense")[2]
    assert not (tmp_path / "out").exists()
