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
from pathlib import Path

from tversky_seg.data.errors import DataError
from tversky_seg.runtime.cli import OneLineParser


def main() -> None:
    """Read the arguments, print the table, write the files."""
    parser = _parser()
    arguments = parser.parse_args()

    # These import torch, which takes seconds; the help above needs none of it.
    from tversky_seg.analysis.sweep import describe_unfinished
    from tversky_seg.commands.sweep_summary import summarize
    from tversky_seg.inference.operating_point import check_goal

    unfinished = describe_unfinished(arguments.runs)
    try:
        check_goal(arguments.goal)
        print(summarize(arguments, unfinished))
    except (DataError, ValueError) as error:
        line = str(error)
        if unfinished:
            line += f" ({unfinished.rstrip('.')})"
        parser.error(line)


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
        help="names as in metrics.json, as dice f2 lesion_tpr (eight: docs/sweeps.md)",
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
