"""Compare runs, with intervals and tests: `python scripts/compare.py RUN_A RUN_B …`.

Every run is compared with the first, in pairs of subjects. A run is a run directory or its
evaluation directory. The runs must have been evaluated on the same cases and references, and by the
same lesion rule. With --join-seeds runs that differ in their seed alone are one method.

Writes comparison.md, comparison.tex (for a paper), comparison.csv, cases.csv and the
precision-recall curves in one figure (pr_curves.png, .pdf); prints the table. docs/comparing.md
tells what is computed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tversky_seg.data.errors import DataError
from tversky_seg.runtime.cli import OneLineParser


def main() -> None:
    """Read the arguments, compare, write and print."""
    parser = _parser()
    arguments = parser.parse_args()
    # sweep/* also names the file that Hydra leaves in the folder of a sweep.
    folders = [run for run in arguments.runs if run.name != "multirun.yaml"]
    if len(folders) < 2:
        given = " ".join(str(folder) for folder in folders) or "none"
        parser.error(f"RUN: {given}; expected two or more runs to compare")
    if arguments.n_bootstrap < 1:
        parser.error(f"--n-bootstrap: {arguments.n_bootstrap}; expected 1 or more")
    if arguments.seed < 0:
        parser.error(f"--seed: {arguments.seed}; expected 0 or more")

    # These import torch, which takes seconds; the help above needs none of it.
    from tversky_seg.analysis.comparison import DEFAULT_METRICS, compare, write_comparison
    from tversky_seg.analysis.comparison_text import comparison_markdown
    from tversky_seg.analysis.runs import read_runs
    from tversky_seg.analysis.sweep import joined_seeds

    try:
        margins = read_margins(arguments.margin)
        runs = joined_seeds(folders) if arguments.join_seeds else read_runs(folders)
        # Only now is it known how many methods the runs are.
        if len(runs) < 2:
            parser.error(f"RUN: all runs are seeds of {runs[0].name}; expected another to compare")
        differences = compare(
            runs,
            metrics=arguments.metrics or DEFAULT_METRICS,
            n_bootstrap=arguments.n_bootstrap,
            seed=arguments.seed,
            margins=margins,
        )
        write_comparison(runs, differences, output_dir=arguments.output)
    except DataError as error:
        parser.error(str(error))
    sys.stdout.write(f"{comparison_markdown(runs, differences)}\n{arguments.output}\n")


def read_margins(words: Sequence[str]) -> dict[str, float]:
    """Read words such as dice=0.02.

    Raises:
        DataError: A word is no metric=number.
    """
    margins: dict[str, float] = {}
    for word in words:
        metric, _, number = word.partition("=")
        try:
            margins[metric] = float(number)
        except ValueError as error:
            raise DataError("--margin", word, "expected metric=number, as dice=0.02") from error
    return margins


def _parser() -> OneLineParser:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="run or evaluation directories; the first is the baseline",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("comparison"), help="folder to write into (comparison)"
    )
    parser.add_argument(
        "--metrics",
        "--measures",
        nargs="+",
        help="names as in metrics.json, as dice f2 lesion_tpr (eleven: docs/comparing.md)",
    )
    parser.add_argument(
        "--n-bootstrap",
        type=int,
        default=10_000,
        help="resamplings of the subjects behind the intervals (10000)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the resamplings (0)")
    parser.add_argument(
        "--margin",
        nargs="+",
        default=[],
        metavar="METRIC=NUMBER",
        help="test that a run is not worse than the first by this much: dice=0.02 hd95_mm=1",
    )
    parser.add_argument(
        "--join-seeds",
        action="store_true",
        help="take runs that differ in their seed alone as one method: seeds are a random effect",
    )
    return parser
