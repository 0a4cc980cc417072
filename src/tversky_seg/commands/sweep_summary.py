"""The work of `tversky-seg summarize`: what it prints and writes."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from tversky_seg.analysis.comparison import compare, write_comparison
from tversky_seg.analysis.cross_validation import evaluate_folds
from tversky_seg.analysis.group_tables import group_tables
from tversky_seg.analysis.recommendation import recommend
from tversky_seg.analysis.runs import average_runs, read_runs
from tversky_seg.analysis.summaries import DEFAULT_METRICS, summarize_settings
from tversky_seg.analysis.sweep import Setting, SweepRun, group_runs, read_sweep
from tversky_seg.analysis.sweep_report import (
    reading_notes,
    runs_table,
    summary_markdown,
    write_summary,
)
from tversky_seg.data.errors import DataError


def summarize(arguments: argparse.Namespace, unfinished: str) -> str:
    """Write all files, and return the text to print.

    Raises:
        DataError: Runs cannot be read or summarized together, or files cannot be written.
    """
    metrics = arguments.metrics or DEFAULT_METRICS
    runs = read_sweep(arguments.runs)
    settings = group_runs(runs)
    summaries = summarize_settings(settings, metrics=metrics)
    sentences = []
    # One setting leaves nothing to recommend.
    if len(settings) > 1:
        sentences.append(recommend(settings, arguments.goal).text)
    if unfinished:
        sentences.append(unfinished)
    recommendation = " ".join(sentences)
    output = _output_folder(arguments, runs)
    if output:
        write_summary(settings, summaries, recommendation, output_dir=output)
    if arguments.cohorts:
        write_cohorts(settings, output)

    parts = []
    if len(settings) == 1:
        parts.append(runs_table(runs, metrics))
    parts += [summary_markdown(summaries), reading_notes(settings, summaries)]
    if recommendation:
        parts.append(recommendation)
    if output:
        parts.append(str(output))
    return "\n\n".join(parts)


def write_cohorts(settings: Sequence[Setting], output: Path | None) -> None:
    """Evaluate the folds of each setting and seed together, and compare the settings.

    The path of each report is printed, and the metrics by site where there are several.

    Raises:
        DataError: There is no folder to write into, or the folds do not fit together.
    """
    if output is None:
        raise DataError("--cohorts", "no folder to write into", "give --output")
    means = []
    for setting in settings:
        # Names of settings hold slashes and spaces, which a path cannot.
        folder = output / "cohorts" / re.sub(r"[^\w.=-]+", "_", setting.name)
        cohorts = []
        for seed in setting.cohorts:
            cohort = folder / f"seed{seed}"
            metrics = evaluate_folds([run.folder for run in setting.runs_of_seed(seed)], cohort)
            print(cohort / "evaluation" / "report.html")
            by_group = group_tables(metrics)
            if by_group:
                print(by_group)
            cohorts.append(cohort)
        # Seeds are averaged first, so that each setting counts once in a comparison.
        means.append(average_runs(read_runs(cohorts), name=setting.name))
    if len(means) > 1:
        write_comparison(means, compare(means), output_dir=output / "comparison")
        print(output / "comparison" / "comparison.md")


def _output_folder(arguments: argparse.Namespace, runs: Sequence[SweepRun]) -> Path | None:
    """Return the folder to write into; None where a single run is only printed."""
    output: Path | None = arguments.output
    if output is None and len(arguments.runs) == 1 and len(runs) > 1:
        return Path(arguments.runs[0]) / "summary"
    return output
