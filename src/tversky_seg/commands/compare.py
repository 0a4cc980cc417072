"""Compare runs, with intervals and tests: `python scripts/compare.py RUN_A RUN_B …`.

Every run is compared with the first, in pairs of subjects. A run is a run directory or its
evaluation directory. The runs must have been evaluated on the same cases and references, and by the
same lesion rule. Writes comparison.md, comparison.tex (for a paper), comparison.csv, cases.csv and
the precision-recall curves in one figure (pr_curves.png, .pdf); prints the table. docs/reports.md
tells what is computed.
"""

import argparse
import sys
from pathlib import Path

from tversky_seg.analysis.comparison import DEFAULT_METRICS, compare, write_comparison
from tversky_seg.analysis.comparison_text import comparison_markdown
from tversky_seg.analysis.runs import read_runs
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
    try:
        runs = read_runs(folders)
        differences = compare(
            runs,
            metrics=arguments.metrics,
            n_bootstrap=arguments.n_bootstrap,
            seed=arguments.seed,
        )
        write_comparison(runs, differences, output_dir=arguments.output)
    except DataError as error:
        parser.error(str(error))
    sys.stdout.write(f"{comparison_markdown(runs, differences)}\n{arguments.output}\n")


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
        default=list(DEFAULT_METRICS),
        help=f"names as in metrics.json ({' '.join(DEFAULT_METRICS)})",
    )
    parser.add_argument(
        "--n-bootstrap",
        type=int,
        default=10_000,
        help="resamplings of the subjects behind the intervals (10000)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the resamplings (0)")
    return parser
