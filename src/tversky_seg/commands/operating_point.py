"""Choose how masks are made, on held-out predictions: `tversky-seg operating-point DIR`.

For cohorts too small to put patients aside for validation. DIR is the folder of a cross-validation,
one finished run for each fold of one setting, as `tversky-seg train -m data.folds=loso
data.fold=0,1,2 output_dir=DIR` writes it. Each fold's cases were predicted by a network that never
saw them.

DIR/operating_point.json gets threshold, smallest lesion and lowest peak that serve the goal best on
all held-out cases;
`tversky-seg predict checkpoint=DIR` (all networks of the folder as one) uses it. DIR/held_out gets
the held-out predictions and their evaluation as one cohort, with a report: there the masks of each
fold are made at the point chosen on the other folds, so that no case decides on its own mask. The
runs themselves stay as they are.
"""

import argparse
import sys
from pathlib import Path

from tversky_seg.data.errors import DataError
from tversky_seg.runtime.cli import OneLineParser


def main() -> None:
    """Read the arguments, choose, write and print."""
    parser = _parser()
    arguments = parser.parse_args()

    # These import torch, which takes seconds; the help above needs none of it.
    from rich.console import Console

    from tversky_seg.analysis.held_out_choice import (
        HELD_OUT_FOLDER,
        choose_on_held_out,
    )
    from tversky_seg.analysis.sweep import read_sweep
    from tversky_seg.commands.predict import describe_by_class
    from tversky_seg.inference.held_out_point import POINT_FILE
    from tversky_seg.inference.operating_point import as_settings, check_goal
    from tversky_seg.report.terminal import metrics_table

    folder: Path = arguments.folder.expanduser()
    try:
        if arguments.goal is not None:
            check_goal(arguments.goal)
        runs = [run.folder for run in read_sweep([folder])]
        choice = choose_on_held_out(runs, folder, goal=arguments.goal)
    except (DataError, ValueError) as error:
        parser.error(str(error))
    point = as_settings(choice.points)
    Console().print(metrics_table(choice.metrics))
    sys.stdout.write(
        f"goal {choice.goal}: threshold {describe_by_class(point['threshold'])}, minimum lesion "
        f"size {describe_by_class(point['min_volume_mm3'])} mm³, "
        f"minimum peak {describe_by_class(point['min_peak'])}\n"
        f"{folder / POINT_FILE}\n{folder / HELD_OUT_FOLDER / 'evaluation' / 'report.html'}\n"
    )


def _parser() -> OneLineParser:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder of the runs")
    parser.add_argument(
        "--goal",
        help="dice, f2, lesion_f1, recall=0.9 or lesion_recall=0.9 (inference.goal of the runs)",
    )
    return parser
