"""Which run is better, and is it chance? `python scripts/compare.py RUN_A RUN_B … --output comparison`.

Every run is held against the first, in pairs of subjects. A run is a run directory or its evaluation directory. Runs
must have been judged on the same cases, references and lesion rule. Writes comparison.md, comparison.tex (for a paper),
comparison.csv, cases.csv and the precision-recall curves in one figure (pr_curves.png, .pdf); prints the table.
docs/reports.md says what is computed.
"""

import argparse
import sys
from pathlib import Path

from tversky_seg.analysis.comparison import MEASURES, compare, markdown, write_comparison
from tversky_seg.analysis.runs import read_runs
from tversky_seg.data.errors import DataError
from tversky_seg.runtime.cli import OneLineParser


def main() -> None:
    """Read the arguments, compare, write and print."""
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="run or evaluation directories; first the baseline",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("comparison"), help="folder to write into (comparison)"
    )
    parser.add_argument(
        "--measures",
        nargs="+",
        default=list(MEASURES),
        help=f"as in metrics.json ({' '.join(MEASURES)})",
    )
    parser.add_argument(
        "--n-bootstrap", type=int, default=10_000, help="resamplings behind the intervals (10000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the resamplings (0)")
    words = parser.parse_args()
    words.runs = [
        run for run in words.runs if run.name != "multirun.yaml"
    ]  # Hydra's note, which sweep/* names too
    if len(words.runs) < 2:
        parser.error(
            f"RUN: {' '.join(map(str, words.runs)) or 'none'}; expected two or more runs to compare"
        )
    if words.n_bootstrap < 1 or words.seed < 0:
        parser.error(
            f"--n-bootstrap: {words.n_bootstrap}, --seed: {words.seed}; expected 1 or more, and 0 or more"
        )
    try:
        runs = read_runs(words.runs)
        differences = compare(
            runs, measures=words.measures, n_bootstrap=words.n_bootstrap, seed=words.seed
        )
        write_comparison(runs, differences, output_dir=words.output)
    except DataError as fault:
        parser.error(str(fault))
    sys.stdout.write(markdown(runs, differences) + f"\n{words.output}\n")


if __name__ == "__main__":
    main()
