"""Compare networks at equal numbers of false positive lesions, with the threshold itself moved.

    python scripts/dev/lesions_by_threshold.py FOLDER [FOLDER …] [--false 5 20]

A FOLDER is a run or a cohort: it holds manifest.csv, and predictions/ with probabilities.

The FROC of metrics.json segments lesions at one threshold and ranks them by their highest
probability, so a network that predicts too much gets few large lesions that overlap many reference
lesions. Here lesions are segmented again at each of 73 thresholds, from 0.0025 to 0.999994 in equal
steps of log-odds.

Prints a Markdown table. For each folder: the threshold of the best mean Dice, and the thresholds
that give the numbers of --false (interpolated, coming from the highest threshold), each with the
recall of all lesions, that of the smallest quarter of lesions, and the mean Dice.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
"""The thresholds, as log-odds."""

COLUMNS = ("false per case", "recall", "recall of the smallest quarter", "Dice")
"""What is measured at each threshold, in this order."""

FALSE_PER_CASE = 0
DICE = 3


@dataclass(frozen=True)
class CaseCurve:
    """The lesions of one case at each threshold.

    Attributes:
        volumes_mm3: Volumes of the reference lesions, (n_lesions,).
        is_detected: Whether a lesion overlaps the mask, (n_thresholds, n_lesions).
        n_false: Number of predicted lesions without overlap, (n_thresholds,).
        dice: Voxel-wise Dice, (n_thresholds,); NaN if mask and reference are empty.
    """

    volumes_mm3: NDArray[np.float64]
    is_detected: NDArray[np.bool_]
    n_false: NDArray[np.int64]
    dice: NDArray[np.float64]


def main() -> None:
    """Read the arguments and print the table."""
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="runs or cohorts")
    parser.add_argument(
        "--false",
        nargs="+",
        type=float,
        default=[5.0, 20.0],
        help="numbers of false positive lesions per case (5 20)",
    )
    options = parser.parse_args()
    for number in options.false:
        if not 0 <= number < math.inf:
            parser.error(f"--false: {number:g}; expected numbers from 0")
    lines = [f"| | at | threshold | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 3) + "|"]
    try:
        for folder in options.folders:
            lines += table_rows(folder, false_per_case=sorted(options.false))
    except DataError as error:
        parser.error(str(error))
    sys.stdout.write("\n".join(lines) + "\n")


def table_rows(folder: Path, *, false_per_case: Sequence[float]) -> Iterator[str]:
    """Measure a run or cohort; yield the rows of each of its classes."""
    source, cases = cases_with_probability(folder)
    for name in source.classes:
        points = points_by_threshold(source, cases, name)
        label = folder.name
        if len(source.classes) > 1:
            label = f"{folder.name}, {name}"
        # Of equal values of Dice, that of the highest threshold.
        steps_from_highest = int(np.nanargmax(points[::-1, DICE]))
        best = len(points) - 1 - steps_from_highest
        yield table_row(label, "best Dice", LOG_ODDS[best], points[best])
        for number in false_per_case:
            log_odds, values = at_false_per_case(points, number)
            yield table_row(label, f"{number:g} false", log_odds, values)


def cases_with_probability(folder: Path) -> tuple[Predictions, list[Case]]:
    """List the cases of a run or cohort that have a label and a saved probability.

    Raises:
        DataError: There is none.
    """
    source = open_predictions(folder / "predictions")
    files = [path.name for path in source.folder.glob("*_probability.nii.gz")]
    cases = []
    for case in read_manifest(folder / "manifest.csv"):
        # With several classes the name goes on: <case_id>_<class>_probability.nii.gz.
        is_saved = any(name.startswith(f"{case.case_id}_") for name in files)
        if case.label and is_saved:
            cases.append(case)
    if not cases:
        found = "holds no probability of a case with a label"
        raise DataError(folder, found, "expected a finished run or a cohort")
    return source, cases


def points_by_threshold(
    source: Predictions, cases: Sequence[Case], name: str
) -> NDArray[np.float64]:
    """Measure one class of all cases at each threshold.

    Returns:
        The values of COLUMNS, (n_thresholds, 4): recall of all lesions together, Dice as the mean
        over cases.

    Raises:
        DataError: A prediction or label cannot be read, or no case has a lesion.
    """
    curves = []
    for case in track(cases, "match lesions", total=len(cases)):
        curves.append(read_case_curve(source, case, name))
    volumes = np.concatenate([curve.volumes_mm3 for curve in curves])
    if not volumes.size:
        found = f"no case has a lesion of class {name}"
        raise DataError(source.folder, found, "expected at least one")
    is_detected = np.concatenate([curve.is_detected for curve in curves], axis=1)
    edges = quartile_edges(volumes)
    smallest_recall = []
    for detected in is_detected:
        smallest, *_ = recall_by_volume(volumes, detected, edges)
        smallest_recall.append(smallest.recall)
    false_per_case = np.zeros(len(LOG_ODDS))
    for curve in curves:
        false_per_case += curve.n_false / len(curves)
    mean_dice = np.nanmean(np.stack([curve.dice for curve in curves], axis=1), axis=1)
    columns = [false_per_case, is_detected.mean(axis=1), np.array(smallest_recall), mean_dice]
    return np.stack(columns, axis=1)


def read_case_curve(source: Predictions, case: Case, name: str) -> CaseCurve:
    """Read reference and probability of a case, and measure it at each threshold."""
    assert case.label is not None
    reference = read_label(case.label)
    probability = source.read(case, name, reference=reference).probability
    if probability is None:
        found = f"case {case.case_id} has only a mask"
        raise DataError(source.folder, found, "expected its probability")
    target = np.isin(reference.data, source.classes[name])
    return case_curve(probability, target, voxel_mm3=float(np.prod(reference.spacing_mm)))


def case_curve(
    probability: NDArray[np.float32], target: NDArray[np.bool_], *, voxel_mm3: float
) -> CaseCurve:
    """Segment the lesions of a case at each threshold, and match them with the reference."""
    lesions, n_lesions = label_lesions(target)
    n_voxels = np.bincount(lesions.ravel(order="K"))[1:]
    is_detected = np.zeros((len(LOG_ODDS), n_lesions), dtype=bool)
    n_false = np.zeros(len(LOG_ODDS), dtype=np.int64)
    dice = np.zeros(len(LOG_ODDS))
    for k, log_odds in enumerate(LOG_ODDS):
        mask = probability >= probability_of(log_odds)
        overlap = mask & target
        is_detected[k] = np.bincount(lesions[overlap], minlength=n_lesions + 1)[1:] > 0
        predicted, n_predicted = label_lesions(mask)
        n_true = len(np.unique(predicted[overlap]))
        n_false[k] = n_predicted - n_true
        dice[k] = overlap_counts(mask, target).dice
    return CaseCurve(n_voxels * voxel_mm3, is_detected, n_false, dice)


def at_false_per_case(
    points: NDArray[np.float64], number: float
) -> tuple[float, NDArray[np.float64]]:
    """Find where a number of false positive lesions is first exceeded, from the highest threshold.

    Args:
        points: Result of `points_by_threshold`.
        number: False positive lesions per case.

    Returns:
        Log-odds of the threshold and COLUMNS there, interpolated between two thresholds; NaN if
        even the highest threshold has more, the lowest threshold if none has more.
    """
    (exceeding,) = np.nonzero(points[:, FALSE_PER_CASE] > number)
    if not exceeding.size:
        return float(LOG_ODDS[0]), points[0]
    lower = int(exceeding.max())
    upper = lower + 1
    if upper == len(points):
        return math.nan, np.full(len(COLUMNS), math.nan)
    more = points[lower, FALSE_PER_CASE]
    fewer = points[upper, FALSE_PER_CASE]
    share = (number - fewer) / (more - fewer)
    log_odds = (1 - share) * LOG_ODDS[upper] + share * LOG_ODDS[lower]
    values = (1 - share) * points[upper] + share * points[lower]
    return float(log_odds), values


def table_row(label: str, place: str, log_odds: float, values: NDArray[np.float64]) -> str:
    """Format a row of the table."""
    threshold = "–"
    if not math.isnan(log_odds):
        threshold = f"{probability_of(log_odds):.4f}"
    cells = [label, place, threshold]
    for value, n_decimals in zip(values, (1, 3, 3, 3), strict=True):
        cells.append("–" if math.isnan(value) else f"{value:.{n_decimals}f}")
    return f"| {' | '.join(cells)} |"


def probability_of(log_odds: float) -> float:
    """Convert log-odds to a probability."""
    return 1 / (1 + math.exp(-log_odds))


if __name__ == "__main__":
    main()
