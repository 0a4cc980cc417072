"""The report of a sweep: tables, figures, files, and scripts/summarize.py."""

import csv
import dataclasses

import numpy as np
import pytest

from helpers.evaluated_runs import INVERSE_WEIGHTS, split_classes, write_beta_sweep, write_sweep_run
from helpers.scripts import names_in, run_script
from tversky_seg.analysis.curves import PooledCurve
from tversky_seg.analysis.figures import beta_figure, curves_figure, frontier_figure
from tversky_seg.analysis.summaries import Summary, summarize_settings
from tversky_seg.analysis.sweep import group_runs, read_sweep
from tversky_seg.analysis.sweep_report import (
    COLUMNS,
    reading_notes,
    summary_latex,
    summary_markdown,
    write_summary,
)
from tversky_seg.analysis.weight_lines import weight_lines
from tversky_seg.data.errors import DataError
from tversky_seg.report.figures import MARKERS


def test_table_and_figures_are_written(tmp_path):
    outcome = run_script("summarize.py", write_beta_sweep(tmp_path), "--goal", "f2")
    assert (outcome.status, outcome.stderr) == (0, "")
    assert "| loss.alpha=0.5, loss.beta=0.5 | 0.325 ± 0.035 |" in outcome.stdout
    assert "4 cases of 4 subjects; 4 runs (2 seeds) for each setting" in outcome.stdout
    assert "Recommended for f2" in outcome.stdout
    assert names_in(tmp_path / "summary") == {
        "summary.md",
        "summary.csv",
        "summary.tex",
        "frontier.png",
        "frontier.pdf",
        "beta.png",
        "beta.pdf",
    }
    rows = list(csv.DictReader((tmp_path / "summary" / "summary.csv").read_text().splitlines()))
    assert len(rows) == 3 * 8
    assert rows[0].keys() >= {"setting", "measure", "mean", "sd", "low", "high", "pooled"}
    # The folder of the summary is no run.
    assert run_script("summarize.py", tmp_path).status == 0


def test_columns_of_the_csv_file_are_the_fields_of_a_summary():
    fields = [field.name for field in dataclasses.fields(Summary)]
    assert [name.replace("measure", "metric") for name in COLUMNS] == fields


@pytest.mark.parametrize("n", [4, 5])
def test_tables_and_figures_give_no_interval_for_fewer_than_five_subjects(tmp_path, n):
    for beta in (0.6, 0.8):
        values = {f"c{k}": 0.5 + 0.05 * k for k in range(n)}
        write_sweep_run(tmp_path / str(beta), values, loss={"beta": beta})
    settings = group_runs(read_sweep([tmp_path]))
    summaries = summarize_settings(settings, metrics=["dice"])
    assert ("[0." in summary_markdown(summaries)) == (n == 5)
    assert ("fewer than 5 subjects" in reading_notes(settings, summaries)) == (n == 4)
    (axes,) = beta_figure(weight_lines(settings)).axes
    assert all(container.has_yerr == (n == 5) for container in axes.containers)


def test_lines_join_settings_that_differ_in_alpha_and_beta_alone(tmp_path):
    dice = {"_target_": "tversky_seg.losses.DiceLoss", "squared": False}
    for name, of in (("none", None), ("inverse", INVERSE_WEIGHTS)):
        write_sweep_run(tmp_path / f"{name}_dice", {"x": 0.5}, loss=dice, weighting=of)
        write_sweep_run(tmp_path / f"{name}_tversky", {"x": 0.6}, loss={"beta": 0.7}, weighting=of)
    write_sweep_run(tmp_path / "alone", {"x": 0.6}, loss={"beta": 0.7, "smooth": 0.0})
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


def test_lines_differ_in_marker_and_colour_and_axes_have_labels(tmp_path):
    for beta in (0.6, 0.8):
        for name, weighting in (("none", None), ("inverse", INVERSE_WEIGHTS)):
            folder = tmp_path / f"{name}_{beta}"
            write_sweep_run(folder, {"x": 0.5}, loss={"beta": beta}, weighting=weighting)
    lines = weight_lines(group_runs(read_sweep([tmp_path])))
    curve = PooledCurve(np.array([1.0, 0.25]), np.array([0.5, 0.8]))
    curves = {"one": {"lesion": curve}, "two": {"lesion": curve}, "masks only": {}}
    for figure in (frontier_figure(lines), beta_figure(lines), curves_figure(curves)):
        for axes in figure.axes:
            # The first of each curve; error bars have further lines, without a marker or name.
            drawn = [line for line in axes.lines if line.get_marker() in MARKERS]
            assert len(drawn) > 1
            assert len({line.get_marker() for line in drawn}) == len(drawn)
            assert len({line.get_color() for line in drawn}) == len(drawn)
            assert len(axes.get_legend().get_texts()) == len(drawn)
            assert axes.get_xlabel()
            assert axes.get_ylabel()


def test_one_setting_shows_its_runs_and_writes_no_figure(tmp_path):
    for seed, value in enumerate((0.2, 0.6, 0.4)):
        write_sweep_run(tmp_path / f"seed{seed}", {"x": value}, seed=seed)
    out = run_script("summarize.py", tmp_path, "--metrics", "dice").stdout
    assert "| seed1 | 0.600 |" in out
    assert "| median of 3 | 0.400 |" in out
    assert "| all runs | 0.400 ± 0.200 |" in out
    assert not (tmp_path / "summary" / "beta.png").exists()


def test_medians_are_of_runs_and_not_of_classes(tmp_path):
    for seed, value in enumerate((0.2, 0.6, 0.4)):
        run = write_sweep_run(tmp_path / f"seed{seed}", {"x": value}, seed=seed)
        split_classes(run, anterior=1, posterior=0.5)
    out = run_script("summarize.py", tmp_path, "--metrics", "dice").stdout
    assert "| seed1, posterior | 0.300 |" in out
    assert "| median of 3, anterior | 0.400 |" in out
    assert "| median of 3, posterior | 0.200 |" in out


def test_a_single_run_has_no_median(tmp_path):
    run = write_sweep_run(tmp_path / "run", {"x": 0.2})
    split_classes(run, anterior=1, posterior=0.5)
    out = run_script("summarize.py", run, "--metrics", "dice").stdout
    assert "| run, posterior | 0.100 |" in out
    assert "median" not in out
    assert "1 case of 1 subject; 1 run, " in out


def test_latex_escapes_and_balances(tmp_path):
    table = summary_latex(
        summarize_settings(group_runs(read_sweep([write_beta_sweep(tmp_path)])), metrics=["dice"])
    )
    assert table.count(r"\\") == 4
    assert r"0.325 $\pm$ 0.035" in table
    loss = {"_target_": "a_package.losses.Own", "form": "x^2~{y}"}
    write_sweep_run(tmp_path / "b" / "1", {"x": 0.5}, loss=loss)
    write_sweep_run(tmp_path / "b" / "2", {"x": 0.5}, loss=loss | {"form": "z"})
    table = summary_latex(
        summarize_settings(group_runs(read_sweep([tmp_path / "b"])), metrics=["dice"])
    )
    assert r"loss.form=x\textasciicircum{}2\textasciitilde{}\{y\}" in table


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    settings = group_runs(read_sweep([write_beta_sweep(tmp_path / "runs")]))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        write_summary(
            settings, summarize_settings(settings), "", output_dir=tmp_path / "file" / "out"
        )
