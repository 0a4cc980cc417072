"""Summarize a sweep or a cross-validation: `python scripts/summarize.py runs/beta [--goal f2]`.

Runs (directories that hold evaluation/metrics.json and config.yaml; a directory of runs stands for
all of them) are grouped by their settings. The folds of a setting are joined: every subject is
evaluated by the run that did not train on it. Prints a Markdown table: mean over subjects ±
standard deviation between seeds [95 % interval]; below it the setting that validation recommends
for a goal.

Into --output (default: `summary` in the directory of runs, if a single one is given that holds
several) go summary.{md,csv,tex}, frontier.{png,pdf} (precision against recall, with alpha and beta
along it) and beta.{png,pdf} (F2, Dice, sensitivity, lesion recall over beta).

With --cohorts each setting and seed also gets a folder there, cohorts/<setting>/seed<n>, with the
held-out predictions of all folds and their evaluation as one cohort: one metrics.json, one
precision-recall curve, one report.html. comparison/ then compares each setting with the first,
paired by subject (of several seeds the means), with all precision-recall curves in one figure.

Runs evaluated on different cases or by different rules are refused. Runs that are not finished are
left out, and named.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from tversky_seg.analysis.comparison import compare, write_comparison
from tversky_seg.analysis.cross_validation import evaluate_folds
from tversky_seg.analysis.recommendation import recommend
from tversky_seg.analysis.runs import average_runs, read_runs
from tversky_seg.analysis.summaries import DEFAULT_METRICS, summarize_settings
from tversky_seg.analysis.sweep import (
    Setting,
    SweepRun,
    describe_unfinished,
    group_runs,
    read_sweep,
)
from tversky_seg.analysis.sweep_report import (
    reading_notes,
    runs_table,
    summary_markdown,
    write_summary,
)
from tversky_seg.data.errors import DataError
from tversky_seg.inference.operating_point import check_goal
from tversky_seg.runtime.cli import OneLineParser


def main() -> None:
    """Read the arguments, print the table, write the files."""
    parser = _parser()
    arguments = parser.parse_args()
    unfinished = describe_unfinished(arguments.runs)
    try:
        check_goal(arguments.goal)
        print(summarize(arguments, unfinished))
    except (DataError, ValueError) as error:
        line = str(error)
        if unfinished:
            line += f" ({unfinished.rstrip('.')})"
        parser.error(line)


def summarize(arguments: argparse.Namespace, unfinished: str) -> str:
    """Write all files, and return the text to print.

    Raises:
        DataError: Runs cannot be read or summarized together, or files cannot be written.
    """
    runs = read_sweep(arguments.runs)
    settings = group_runs(runs)
    summaries = summarize_settings(settings, metrics=arguments.metrics)
    sentences = []
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
        parts.append(runs_table(runs, arguments.metrics))
    parts += [summary_markdown(summaries), reading_notes(settings, summaries)]
    if recommendation:
        parts.append(recommendation)
    if output:
        parts.append(str(output))
    return "\n\n".join(parts)


def write_cohorts(settings: Sequence[Setting], output: Path | None) -> None:
    """Evaluate the folds of each setting and seed together, and compare the settings.

    The path of each report is printed.

    Raises:
        DataError: There is no folder to write into, or the folds do not fit together.
    """
    if output is None:
        raise DataError("--cohorts", "no folder to write into", "give --output")
    means = []
    for setting in settings:
        folder = output / "cohorts" / re.sub(r"[^\w.=-]+", "_", setting.name)
        cohorts = []
        for seed in setting.cohorts:
            cohort = folder / f"seed{seed}"
            evaluate_folds([run.folder for run in setting.runs_of_seed(seed)], cohort)
            print(cohort / "evaluation" / "report.html")
            cohorts.append(cohort)
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


def _parser() -> OneLineParser:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, help="run directories, or directories of runs"
    )
    parser.add_argument(
        "--metrics",
        "--measures",
        nargs="+",
        default=list(DEFAULT_METRICS),
        help=f"names as in metrics.json ({' '.join(DEFAULT_METRICS)})",
    )
    parser.add_argument(
        "--goal",
        default="f2",
        help="goal of the recommendation: dice, f2, lesion_f1, recall=0.9, lesion_recall=0.9 (f2)",
    )
    parser.add_argument("--output", type=Path, help="folder to write into")
    parser.add_argument(
        "--cohorts",
        action="store_true",
        help="evaluate the folds of each setting as one cohort, with a report",
    )
    return parser
