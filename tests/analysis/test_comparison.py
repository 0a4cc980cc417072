"""Comparisons: paired differences, their tables and files, and scripts/compare.py."""

import csv
import dataclasses
import math

import pytest

from helpers.evaluated_runs import write_run, write_sweep_run
from helpers.scripts import names_in, run_script
from tversky_seg.analysis.comparison import COLUMNS, compare
from tversky_seg.analysis.comparison_text import comparison_latex, comparison_markdown
from tversky_seg.analysis.differences import Difference
from tversky_seg.analysis.runs import average_runs, read_runs


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


def test_the_operating_point_may_differ(tmp_path):
    one = write_run(tmp_path / "one", {"a": 0.5})
    two = write_run(tmp_path / "two", {"a": 0.5}, threshold=None, prediction_min_volume_mm3=3.0)
    runs = read_runs([one, two])
    text = comparison_markdown(runs, compare(runs, metrics=["dice", "pr_auc"]))
    assert "predicted lesions below 3 mm³" in text
    assert "| PR-AUC ↑ | – | – | – | – | – | 0 |" in text


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


def test_the_script_writes_tables_and_one_figure_of_curves(tmp_path):
    classes = ("core", "<rim>")
    runs = []
    for name, value in (("r1", 0.5), ("r2", 0.6)):
        run = write_run(tmp_path / name, {"a": value, "b": 0.7}, classes=classes)
        runs.append(run)
    of_hydra = tmp_path / "multirun.yaml"  # as sweep/* names it
    words = ("--output", tmp_path / "out", "--metrics", "dice", "pr_auc")
    outcome = run_script("compare.py", of_hydra, *runs, *words)
    assert (outcome.status, outcome.stderr) == (0, "")
    assert "core: Dice" in outcome.stdout
    assert "2 cases of 2 subjects." in outcome.stdout
    assert names_in(tmp_path / "out") == {
        "comparison.md",
        "comparison.tex",
        "comparison.csv",
        "cases.csv",
        "pr_curves.png",
        "pr_curves.pdf",
    }
    with (tmp_path / "out" / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["class_name"], row["measure"]) for row in rows] == [
        ("core", "dice"),
        ("core", "pr_auc"),
        ("<rim>", "dice"),
        ("<rim>", "pr_auc"),
    ]
    assert float(rows[0]["mean"]) == pytest.approx(0.05)
    assert rows[1]["mean"] == ""


def test_columns_of_the_csv_file_are_the_fields_of_a_difference():
    fields = [field.name for field in dataclasses.fields(Difference)]
    assert [name.replace("measure", "metric") for name in COLUMNS] == fields


def test_the_script_writes_one_line_on_a_mistake(tmp_path):
    one = write_run(tmp_path / "r1", {"r1": 0.5})
    two = write_run(tmp_path / "r2", {"r2": 0.5})
    for words in ((one,), (one, two), (one, tmp_path), (), (one, two, "--n-bootstrap", "0")):
        outcome = run_script("compare.py", *words, "--output", tmp_path / "out")
        assert outcome.error
        assert outcome.stdout == ""
    other = write_run(tmp_path / "r3", {"r1": 0.5})
    # The old name of --metrics.
    outcome = run_script("compare.py", one, other, "--measures", "nonsense")
    assert "'nonsense' is not in" in outcome.error
    assert not (tmp_path / "out").exists()


def test_a_margin_tests_that_a_run_is_not_inferior(tmp_path):
    values = {f"c{k}": 0.4 + 0.01 * k for k in range(8)}
    one = write_run(tmp_path / "one", values)
    two = write_run(tmp_path / "two", {case: dice - 0.001 for case, dice in values.items()})
    runs = read_runs([one, two])
    dice, fpr = compare(runs, metrics=["dice", "lesion_fpr"], margins={"lesion_fpr": 0.02})
    assert math.isnan(dice.p_noninferior)
    # Lower is better: it rises by 0.001, within the margin in all 8 subjects.
    assert fpr.p_noninferior == pytest.approx(1 / 256)
    assert fpr.p_noninferior_holm == pytest.approx(1 / 256), "one such test"
    assert "| Margin | p not inferior |" in comparison_markdown(runs, [dice, fpr])
    assert "Margin" not in comparison_markdown(runs, compare(runs, metrics=["dice"]))


def test_a_difference_below_the_spread_of_seeds_is_marked(tmp_path):
    methods = []
    for name, shifts in (("one", (0.0, 0.1)), ("two", (0.01, 0.13))):
        seeds = []
        for seed, shift in enumerate(shifts):
            values = {f"c{k}": 0.4 + 0.02 * k * (1 + seed) + shift for k in range(6)}
            seeds.append(write_run(tmp_path / f"{name}{seed}", values))
        methods.append(average_runs(read_runs(seeds), name=name))
    (dice,) = compare(methods, metrics=["dice"])
    assert dice.is_within_seeds
    assert dice.p < 0.05 < dice.p_seeds, "subjects agree, but another seed changes more"
    text = comparison_markdown(methods, [dice])
    assert "Warning: smaller than the spread of seeds (!): Dice (two)" in text
    assert "| SD of seeds | p with seeds |" in text


def test_subjects_without_a_value_in_every_seed_are_counted(tmp_path):
    methods = []
    for name in ("one", "two"):
        seeds = []
        for seed in range(2):
            values = {f"c{k}": 0.4 + 0.02 * k * (1 + seed) for k in range(6)}
            if (name, seed) == ("two", 1):
                values["c0"] = None
            seeds.append(write_run(tmp_path / f"{name}{seed}", values))
        methods.append(average_runs(read_runs(seeds), name=name))
    (dice,) = compare(methods, metrics=["dice"])
    # The mean over seeds has all six subjects; the mixed model needs each in every seed.
    assert (dice.n_subjects, dice.n_seed_subjects) == (6, 5)
    assert "column n have: Dice (two) 5 of 6." in comparison_markdown(methods, [dice])
    # Without the gap nothing is said.
    (complete,) = compare([methods[0], methods[0]], metrics=["dice"])
    assert "in every seed" not in comparison_markdown([methods[0]] * 2, [complete])


def test_one_seed_each_is_said(tmp_path):
    runs = read_runs([write_run(tmp_path / name, {"a": 0.5, "b": 0.7}) for name in ("x", "y")])
    assert "One seed each" in comparison_markdown(runs, compare(runs, metrics=["dice"]))


def test_the_script_joins_seeds_and_takes_margins(tmp_path):
    folders = []
    for beta in (0.9, 0.5):
        for seed in (0, 1):
            values = {f"c{k}": 0.3 + beta / 10 + 0.05 * k + 0.01 * seed for k in range(6)}
            folder = tmp_path / f"beta={beta},seed={seed}"
            write_sweep_run(folder, values, seed=seed, loss={"beta": beta})
            (folder / "evaluation" / "pr_curve.csv").write_text(
                "class,threshold,precision,recall\n"
            )
            folders.append(folder)
    words = ("--join-seeds", "--metrics", "dice", "--output", tmp_path / "out")
    outcome = run_script("compare.py", *folders, *words, "--margin", "dice=0.1")
    assert (outcome.status, outcome.stderr) == (0, "")
    header = outcome.stdout.splitlines()[0]
    assert header.index("beta=0.9") < header.index("beta=0.5"), "the first is the baseline"
    assert "mean of 2 seeds" in outcome.stdout
    for margin in ("dice", "dice=-1", "f2=0.1"):
        outcome = run_script("compare.py", *folders, *words, "--margin", margin)
        assert outcome.status == 2
        assert "margin" in outcome.error
    outcome = run_script("compare.py", *folders[:2], *words)
    assert "all runs are seeds of" in outcome.error
