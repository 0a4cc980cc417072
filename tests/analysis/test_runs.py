"""Runs: their names, what makes two alike, and means over seeds."""

import pytest

from helpers.evaluated_runs import write_run
from tversky_seg.analysis.comparison import compare
from tversky_seg.analysis.comparison_text import comparison_markdown
from tversky_seg.analysis.runs import average_runs, read_runs
from tversky_seg.data.errors import DataError


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


def test_folders_may_be_given_as_text(tmp_path):
    folder = write_run(tmp_path / "one", {"a": 0.5})
    (run,) = read_runs([str(folder)])
    assert run.folder == folder / "evaluation"


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
