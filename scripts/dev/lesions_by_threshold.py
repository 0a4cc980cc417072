"""What is found at equal false lesions? `python scripts/dev/lesions_by_threshold.py FOLDER [FOLDER …] [--false 5 20]`.

A FOLDER is a run or a cohort: it holds manifest.csv and predictions/ with probabilities. The FROC of metrics.json cuts
lesions out at one threshold and ranks them by the highest probability inside, so a network that claims much cuts out
few large ones that touch much. Here the threshold itself moves, and lesions are cut out anew at each of 73, from 0.0025
to 0.999994 in equal steps of log-odds. Prints a Markdown table: for each folder the threshold of the best mean Dice,
and those that give so many false lesions per case (interpolated, from the strictest threshold down), each with the
recall of all lesions and of the smallest quarter (as in metrics.json: ties stay together) and the mean Dice.
"""

import argparse
import math
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.manifest import read_manifest
from tversky_seg.data.nifti import read_label
from tversky_seg.evaluation.saved_predictions import Predictions, open_predictions
from tversky_seg.metrics.agreement import quartile_edges, recall_by_volume
from tversky_seg.metrics.components import label_lesions
from tversky_seg.metrics.overlap import overlap_counts
from tversky_seg.runtime.cli import OneLineParser
from tversky_seg.runtime.progress import track

LOG_ODDS = np.linspace(-6, 12, 73)
COLUMNS = ("false per case", "recall", "recall of the smallest quarter", "Dice")


def main() -> None:
    """Read the arguments and print the table."""
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="runs or cohorts")
    parser.add_argument(
        "--false", nargs="+", type=float, default=[5.0, 20.0], help="false lesions per case (5 20)"
    )
    words = parser.parse_args()
    if not all(0 <= number < math.inf for number in words.false):
        parser.error(
            f"--false: {' '.join(f'{n:g}' for n in words.false)}; expected numbers of 0 or more"
        )
    lines = [f"| | at | threshold | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 3) + "|"]
    try:
        for folder in words.folders:
            source, cases = judged_cases(folder)
            for name in source.classes:
                points = points_by_threshold(source, cases, name)
                label = folder.name if len(source.classes) == 1 else f"{folder.name}, {name}"
                best = (
                    len(points) - 1 - int(np.nanargmax(points[::-1, 3]))
                )  # of equal ones the strictest
                lines.append(row(label, "best Dice", LOG_ODDS[best], points[best]))
                lines += [
                    row(label, f"{n:g} false", *at_false(points, n)) for n in sorted(words.false)
                ]
    except DataError as fault:
        parser.error(str(fault))
    sys.stdout.write("\n".join(lines) + "\n")


def judged_cases(folder: Path) -> tuple[Predictions, list[Case]]:
    """The predictions of a run or cohort, and the cases that have both one and a label."""
    source = open_predictions(folder / "predictions")
    saved = {path.name for path in source.folder.glob("*_probability.nii.gz")}
    cases = [
        case
        for case in read_manifest(folder / "manifest.csv")
        if case.label and any(name.startswith(f"{case.case_id}_") for name in saved)
    ]
    if not cases:
        raise DataError(
            folder,
            "holds no probability of a case with a label",
            "expected a finished run or a cohort",
        )
    return source, cases


def points_by_threshold(source: Predictions, cases: list[Case], name: str) -> NDArray[np.float64]:
    """COLUMNS at each of LOG_ODDS, (73, 4); Dice is the mean over cases, recall is of all lesions together.

    Raises:
        DataError: A prediction or label cannot be read, or no case has a lesion.
    """
    volumes, false, dice = [], np.zeros(len(LOG_ODDS)), np.zeros((len(LOG_ODDS), len(cases)))
    found: list[list[NDArray[np.bool_]]] = [[] for _ in LOG_ODDS]
    for number, case in enumerate(track(cases, "match", total=len(cases))):
        assert case.label is not None
        reference = read_label(case.label)
        target = np.isin(reference.data, source.classes[name])
        probability = source.read(case, name, reference=reference).probability
        if probability is None:
            raise DataError(
                source.folder, f"case {case.case_id} has a mask only", "expected its probability"
            )
        lesions, n_lesions = label_lesions(target)
        volumes.append(
            np.bincount(lesions.ravel(order="K"))[1:] * float(np.prod(reference.spacing_mm))
        )
        for k, odds in enumerate(LOG_ODDS):
            mask = probability >= 1 / (1 + math.exp(-odds))
            predicted, n_predicted = label_lesions(mask)
            true = mask & target
            found[k].append(np.bincount(lesions[true], minlength=n_lesions + 1)[1:] > 0)
            false[k] += (n_predicted - len(np.unique(predicted[true]))) / len(cases)
            dice[k, number] = overlap_counts(mask, target).dice
    sizes = np.concatenate(volumes)
    if not sizes.size:
        raise DataError(
            source.folder, f"no case has a lesion of class {name}", "expected one at least"
        )
    edges = quartile_edges(sizes)
    recall, smallest = np.empty((2, len(LOG_ODDS)))
    for k, of_cases in enumerate(found):
        detected = np.concatenate(of_cases)
        recall[k], smallest[k] = detected.mean(), recall_by_volume(sizes, detected, edges)[0].recall
    return np.stack([false, recall, smallest, np.nanmean(dice, axis=1)], axis=1)


def at_false(points: NDArray[np.float64], number: float) -> tuple[float, NDArray[np.float64]]:
    """Log-odds and COLUMNS where so many false lesions per case are first exceeded, coming from the highest threshold.

    Interpolated between thresholds; (NaN, NaN) where even the highest has more.
    """
    more = np.flatnonzero(points[:, 0] > number)
    if not len(more):
        return float(LOG_ODDS[0]), points[0]
    last = int(more.max())
    if last == len(points) - 1:
        return math.nan, np.full(len(COLUMNS), math.nan)
    share = (number - points[last + 1, 0]) / (points[last, 0] - points[last + 1, 0])
    mixed = [(1 - share) * values[last + 1] + share * values[last] for values in (LOG_ODDS, points)]
    return float(mixed[0]), np.asarray(mixed[1])


def row(label: str, where: str, odds: float, values: NDArray[np.float64]) -> str:
    """A line of the table."""
    threshold = "–" if math.isnan(odds) else f"{1 / (1 + math.exp(-odds)):.4f}"
    digits = (1, 3, 3, 3)
    texts = (
        "–" if math.isnan(value) else f"{value:.{n}f}"
        for value, n in zip(values, digits, strict=True)
    )
    return f"| {label} | {where} | {threshold} | {' | '.join(texts)} |"


if __name__ == "__main__":
    main()
