"""What a sweep says: `python scripts/summarize.py runs/beta [runs/more …] [--goal f2] [--output DIR]`.

Runs (directories that hold evaluation/metrics.json and config.yaml; a directory of runs stands for all of them) are
grouped by what they set. Folds of a setting are joined: every subject is judged by the run that did not train on it.
Prints a Markdown table: mean over subjects ± standard deviation between seeds [95 % interval]; below it the setting
that validation recommends for a goal. Into --output (default: `summary` in the directory of runs, where one is given
that holds several) go summary.{md,csv,tex}, frontier.{png,pdf} (precision against recall, alpha and beta along it) and
beta.{png,pdf} (F2, Dice, sensitivity, lesion recall over beta). With --cohorts each setting and seed also gets a folder
there, cohorts/<setting>/seed<n>, with the held-out predictions of all folds and their evaluation as one cohort: one
metrics.json, one precision-recall curve, one report.html; and comparison/ holds each setting against the first, paired
by subject (of several seeds the means), with one figure of all precision-recall curves. Runs judged on different cases
or by different rules are refused; runs that are not finished are left out, and named.
"""

import argparse
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tversky_seg.analysis.comparison import compare, write_comparison
from tversky_seg.analysis.cross_validation import evaluate_folds
from tversky_seg.analysis.runs import average_runs, read_runs
from tversky_seg.analysis.sweep import (
    MEASURES,
    Setting,
    SweepRun,
    group_runs,
    markdown_table,
    read_sweep,
    reading,
    recommend,
    summarize_settings,
    unfinished,
    write_summary,
)
from tversky_seg.data.errors import DataError
from tversky_seg.inference.operating_point import check_goal
from tversky_seg.metrics.averages import mean_of_defined
from tversky_seg.runtime.cli import OneLineParser


def main() -> None:
    """Read the arguments, print the table, write the files."""
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, help="run directories, or directories of runs"
    )
    parser.add_argument("--measures", nargs="+", default=list(MEASURES), help="as in metrics.json")
    goals = (
        "what to recommend a setting for: dice, f2, lesion_f1, recall=0.9, lesion_recall=0.9 (f2)"
    )
    parser.add_argument("--goal", default="f2", help=goals)
    parser.add_argument("--output", type=Path, help="folder to write into")
    parser.add_argument(
        "--cohorts",
        action="store_true",
        help="judge the folds of a setting as one cohort, with a report",
    )
    words = parser.parse_args()
    left = unfinished(words.runs)
    try:
        check_goal(words.goal)
        runs = read_sweep(words.runs)
        settings = group_runs(runs)
        summaries = summarize_settings(settings, measures=words.measures)
        recommendation = recommend(settings, words.goal).text
        recommendation = " ".join(filter(None, [recommendation if len(settings) > 1 else "", left]))
        output = words.output or (
            words.runs[0] / "summary" if len(words.runs) == 1 and len(runs) > 1 else None
        )
        if output:
            write_summary(settings, summaries, recommendation, output_dir=output)
        if words.cohorts:
            write_cohorts(settings, output)
    except (DataError, ValueError) as fault:
        parser.error(f"{fault} ({left.rstrip('.')})" if left else str(fault))
    parts = [runs_table(runs, words.measures)] if len(settings) == 1 else []
    parts += [
        markdown_table(summaries),
        reading(settings),
        *filter(None, [recommendation, output and str(output)]),
    ]
    sys.stdout.write("\n\n".join(parts) + "\n")


def write_cohorts(settings: Sequence[Setting], output: Path | None) -> None:
    """Judge the folds of each setting and seed together, and the settings against the first; names each report."""
    if output is None:
        raise DataError("--cohorts", "no folder to write into", "give --output")
    compared = []
    for setting in settings:
        folders = [
            output / "cohorts" / re.sub(r"[^\w.=-]+", "_", setting.name) / f"seed{s}"
            for s in setting.cohorts
        ]
        for seed, folder in zip(setting.cohorts, folders, strict=True):
            evaluate_folds(
                [
                    run.judged.folder.parent
                    for run in setting.runs
                    if run.settings.get("seed") == seed
                ],
                folder,
            )
            print(folder / "evaluation" / "report.html")
        compared.append(average_runs(read_runs(folders), name=setting.name))
    if len(compared) > 1:
        write_comparison(compared, compare(compared), output_dir=output / "comparison")
        print(output / "comparison" / "comparison.md")


def runs_table(runs: Sequence[SweepRun], measures: Sequence[str]) -> str:
    """Markdown table of the means of each run (of each class, where there are several), and their medians."""
    names = _short_names([run.judged.folder.parent for run in runs])
    rows = {
        f"{name}, {class_name}" if len(run.judged.rows) > 1 else name: [
            mean_of_defined([row[m] for row in cases.values()]) for m in measures
        ]
        for name, run in zip(names, runs, strict=True)
        for class_name, cases in run.judged.rows.items()
    }
    lines = [f"| run | {' | '.join(measures)} |", "|---" * (len(measures) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(map(_text, values))} |" for name, values in rows.items()]
    columns = [
        [value for value in column if not math.isnan(value)]
        for column in zip(*rows.values(), strict=True)
    ]
    medians = (_text(median(column) if column else math.nan) for column in columns)
    return "\n".join([*lines, f"| median of {len(rows)} | {' | '.join(medians)} |"])


def _short_names(folders: Sequence[Path]) -> list[str]:
    names = [folder.name for folder in folders]
    return names if len(set(names)) == len(names) else [folder.as_posix() for folder in folders]


def _text(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


if __name__ == "__main__":
    main()
