"""Compare settings over small volumes of one lesion each, in pairs of patients.

    python scripts/dev/compare_nodules.py MANIFEST FOLDER FIRST:SECOND [FIRST:SECOND …]

FOLDER holds a run for each setting, seed and fold, named <setting>_s<seed>_f<fold>, with
predictions/<case_id>_probability.nii.gz. MANIFEST lists the cases with their labels. A pair names
two settings; differences are the second minus the first.

Prints Markdown: each setting at threshold 0.5 and at a threshold chosen for it, and the difference
of each pair by size of the lesion. A case counts with its mean over the seeds, a patient with the
mean of its cases. Intervals are 95 % bootstrap intervals over patients, which know nothing of the
chance of a training: therefore the smallest and largest difference of a seed and fold follow. The
threshold of a fold is the one with the best mean Dice on the other folds, which other networks of
the setting predicted: one of 8, in equal steps of log-odds.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tversky_seg.analysis.statistics import bootstrap_interval, pair_subjects
from tversky_seg.data.errors import DataError
from tversky_seg.data.manifest import read_manifest
from tversky_seg.data.nifti import read_label, read_volume
from tversky_seg.inference.prediction_folder import PROBABILITY_ENDING
from tversky_seg.metrics.overlap import OverlapCounts, overlap_counts
from tversky_seg.runtime.cli import OneLineParser
from tversky_seg.runtime.progress import track

LOG_ODDS = np.arange(-2, 6)
"""The thresholds, as log-odds: from 0.12 to 0.993."""

HALF = 2
"""Place of the threshold 0.5 among them."""

MEASURES = ("Dice", "F2", "sensitivity", "precision", "detected")
DICE = 0
SIZES_MM3 = {
    "all": (0.0, math.inf),
    "below 100 mm3": (0.0, 100.0),
    "100 to 1000 mm3": (100.0, 1000.0),
    "from 1000 mm3": (1000.0, math.inf),
}

RUN_NAME = re.compile(r"(?P<setting>.+)_s(?P<seed>\d+)_f(?P<fold>\d+)")


@dataclass(frozen=True, eq=False)
class Reference:
    """What is known of a case: its patient, its mask (X, Y, Z) and the volume of that."""

    subject_id: str
    mask: NDArray[np.bool_]
    volume_mm3: float


@dataclass(frozen=True, eq=False)
class Fold:
    """The cases that one run predicted.

    Attributes:
        fold: Number of the fold.
        measures: Case -> MEASURES at each threshold, (n_thresholds, n_measures).
    """

    fold: int
    measures: Mapping[str, NDArray[np.float64]]


Runs = Mapping[str, Mapping[int, Sequence[Fold]]]
"""Setting -> seed -> folds."""

Values = Mapping[str, NDArray[np.float64]]
"""Case -> MEASURES, (n_measures,)."""


def main(words: Sequence[str] | None = None) -> None:
    """Read the arguments, measure, and print the tables."""
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest", type=Path, metavar="MANIFEST")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("pairs", nargs="+", metavar="FIRST:SECOND")
    options = parser.parse_args(words)
    try:
        references = read_references(options.manifest)
        runs = read_runs(options.folder, references)
        pairs = [settings_of(pair, runs) for pair in options.pairs]
        for is_chosen in (False, True):
            sys.stdout.write("\n".join(tables(runs, references, pairs, is_chosen=is_chosen)))
            sys.stdout.write("\n")
    except DataError as error:
        parser.error(str(error))


def read_references(manifest: Path) -> dict[str, Reference]:
    """Read the labels of all cases that have one, by case."""
    references = {}
    for case in read_manifest(manifest):
        if case.label is not None:
            label = read_label(case.label)
            mask = label.data == 1
            voxel_mm3 = float(np.prod(label.spacing_mm))
            volume_mm3 = np.count_nonzero(mask) * voxel_mm3
            references[case.case_id] = Reference(case.subject_id, mask, volume_mm3)
    return references


def read_runs(folder: Path, references: Mapping[str, Reference]) -> Runs:
    """Measure the predictions of all runs of a folder.

    A seed that did not predict every case is left out, and named on the standard error.

    Raises:
        DataError: No seed of any setting predicted every case.
    """
    runs: dict[str, dict[int, list[Fold]]] = defaultdict(lambda: defaultdict(list))
    named = [(path, RUN_NAME.fullmatch(path.name)) for path in sorted(folder.iterdir())]
    for path, match in track(named, "measure runs", total=len(named)):
        if match is not None:
            fold = Fold(int(match["fold"]), measure_run(path / "predictions", references))
            runs[match["setting"]][int(match["seed"])].append(fold)
    complete: dict[str, dict[int, list[Fold]]] = {}
    for setting, by_seed in runs.items():
        for seed, folds in sorted(by_seed.items()):
            n_cases = sum(len(fold.measures) for fold in folds)
            if n_cases == len(references):
                complete.setdefault(setting, {})[seed] = folds
            else:
                text = f"{setting}, seed {seed}: {n_cases} of {len(references)} cases; left out"
                sys.stderr.write(f"{text}\n")
    if not complete:
        found = "holds no setting and seed with predictions of all cases"
        raise DataError(folder, found, "expected runs named <setting>_s<seed>_f<fold>")
    return complete


def measure_run(
    predictions: Path, references: Mapping[str, Reference]
) -> dict[str, NDArray[np.float64]]:
    """Measure each predicted case of a run that has a reference."""
    measures = {}
    for path in sorted(predictions.glob(f"*{PROBABILITY_ENDING}")):
        case_id = path.name.removesuffix(PROBABILITY_ENDING)
        probability = read_volume(path).data
        measures[case_id] = measure(probability, references[case_id].mask)
    return measures


def measure(probability: NDArray[np.float32], reference: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Compute MEASURES at each threshold, (n_thresholds, n_measures).

    The precision of an empty mask is NaN. A lesion is detected if the mask meets one of its voxels.
    """
    rows = []
    for log_odds in LOG_ODDS:
        threshold = 1 / (1 + math.exp(-log_odds))
        rows.append(measures_of(overlap_counts(probability >= threshold, reference)))
    return np.array(rows)


def measures_of(counts: OverlapCounts) -> tuple[float, ...]:
    """Return MEASURES in their order."""
    is_detected = float(counts.tp > 0)
    return counts.dice, counts.f(2), counts.sensitivity, counts.precision, is_detected


def settings_of(pair: str, runs: Runs) -> tuple[str, str]:
    """Read FIRST:SECOND.

    Raises:
        DataError: A setting has no complete run.
    """
    first, _, second = pair.partition(":")
    for setting in (first, second):
        if setting not in runs:
            expected = f"expected two of {', '.join(runs)}, as first:second"
            raise DataError(pair, f"has no setting {setting!r}", expected)
    return first, second


def tables(
    runs: Runs,
    references: Mapping[str, Reference],
    pairs: Sequence[tuple[str, str]],
    *,
    is_chosen: bool,
) -> Iterator[str]:
    """Yield the lines of the tables, at 0.5 or at the chosen thresholds."""
    title = "threshold chosen on the other folds" if is_chosen else "threshold 0.5"
    heads = " | ".join(MEASURES)
    yield f"\n{title}\n"
    yield f"| setting | size | nodules | {heads} |"
    yield "|---" * (len(MEASURES) + 3) + "|"
    for setting, by_seed in runs.items():
        values = mean_over_seeds(by_seed, is_chosen=is_chosen)
        for size, cases in cases_by_size(references).items():
            cells = (f"{mean:.3f}" for mean in patient_means(values, cases, references))
            yield f"| `{setting}` | {size} | {len(cases)} | {' | '.join(cells)} |"
    yield f"\n| difference | size | patients | {heads} |"
    yield "|---" * (len(MEASURES) + 3) + "|"
    for first, second in pairs:
        for size, cases in cases_by_size(references).items():
            changes = difference_cells(
                runs[first], runs[second], cases, references, is_chosen=is_chosen
            )
            n_patients = len({references[case].subject_id for case in cases})
            names = f"`{second}` minus `{first}`"
            yield f"| {names} | {size} | {n_patients} | {' | '.join(changes)} |"


def mean_over_seeds(
    by_seed: Mapping[int, Sequence[Fold]], *, is_chosen: bool
) -> dict[str, NDArray[np.float64]]:
    """Average each case over the seeds; a precision that a seed lacks is left out of its mean."""
    of_seeds = [values_of_seed(folds, is_chosen=is_chosen) for folds in by_seed.values()]
    means = {}
    for case in of_seeds[0]:
        stacked = np.stack([values[case] for values in of_seeds])
        n_defined = np.count_nonzero(~np.isnan(stacked), axis=0)
        sums = np.nansum(stacked, axis=0)
        means[case] = np.where(n_defined > 0, sums / np.maximum(n_defined, 1), np.nan)
    return means


def values_of_seed(folds: Sequence[Fold], *, is_chosen: bool) -> dict[str, NDArray[np.float64]]:
    """Take the measures of each case at 0.5, or at the threshold that the other folds choose."""
    values = {}
    for fold in folds:
        place = best_threshold(folds, without=fold.fold) if is_chosen else HALF
        for case, measures in fold.measures.items():
            values[case] = measures[place]
    return values


def best_threshold(folds: Sequence[Fold], *, without: int) -> int:
    """Find the place of the threshold with the best mean Dice on all folds but one."""
    dice = []
    for fold in folds:
        if fold.fold != without:
            dice += [measures[:, DICE] for measures in fold.measures.values()]
    return int(np.argmax(np.mean(dice, axis=0)))


def cases_by_size(references: Mapping[str, Reference]) -> dict[str, list[str]]:
    """List the cases of each size that there are, from its lower limit to below its upper one."""
    cases = {}
    for size, (low, high) in SIZES_MM3.items():
        of_size = [case for case, known in references.items() if low <= known.volume_mm3 < high]
        if of_size:
            cases[size] = of_size
    return cases


def patient_means(
    values: Values, cases: Sequence[str], references: Mapping[str, Reference]
) -> NDArray[np.float64]:
    """Average MEASURES over the cases of each patient, then over patients, (n_measures,)."""
    means = []
    for k in range(len(MEASURES)):
        of_cases = {case: float(values[case][k]) for case in cases}
        pairs = pair_subjects(of_cases, of_cases, subjects=subjects_of(references))
        means.append(pairs.means[:, 0].mean() if len(pairs.means) else math.nan)
    return np.array(means)


def difference_cells(
    first: Mapping[int, Sequence[Fold]],
    second: Mapping[int, Sequence[Fold]],
    cases: Sequence[str],
    references: Mapping[str, Reference],
    *,
    is_chosen: bool,
) -> Iterator[str]:
    """Yield "+0.012 (+0.003 to +0.021); -0.010 to +0.030" for each measure.

    Only seeds that both settings have are compared.
    """
    seeds = sorted(set(first) & set(second))
    mean_of_first = mean_over_seeds({s: first[s] for s in seeds}, is_chosen=is_chosen)
    mean_of_second = mean_over_seeds({s: second[s] for s in seeds}, is_chosen=is_chosen)
    for k in range(len(MEASURES)):
        differences = patient_differences(mean_of_first, mean_of_second, k, cases, references)
        of_trainings = []
        for seed in seeds:
            of_first = values_of_seed(first[seed], is_chosen=is_chosen)
            of_second = values_of_seed(second[seed], is_chosen=is_chosen)
            for fold in first[seed]:
                of_fold = [case for case in cases if case in fold.measures]
                of_patients = patient_differences(of_first, of_second, k, of_fold, references)
                if of_patients.size:
                    of_trainings.append(float(of_patients.mean()))
        yield difference_cell(differences, of_trainings)


def difference_cell(differences: NDArray[np.float64], of_trainings: Sequence[float]) -> str:
    """Write a mean difference, its interval, and the smallest and largest of a training.

    "–" where no patient has both values.
    """
    if not differences.size:
        return "–"
    # The same patients are drawn for every measure and pair.
    low, high = bootstrap_interval(differences, rng=np.random.default_rng(0))
    interval = f"{differences.mean():+.3f} ({low:+.3f} to {high:+.3f})"
    return f"{interval}; {min(of_trainings):+.3f} to {max(of_trainings):+.3f}"


def patient_differences(
    first: Values,
    second: Values,
    k: int,
    cases: Sequence[str],
    references: Mapping[str, Reference],
) -> NDArray[np.float64]:
    """Compute second minus first of one measure, a number for each patient with the cases."""
    of_first = {case: float(first[case][k]) for case in cases}
    of_second = {case: float(second[case][k]) for case in cases}
    pairs = pair_subjects(of_first, of_second, subjects=subjects_of(references))
    return np.diff(pairs.means, axis=1)[:, 0]


def subjects_of(references: Mapping[str, Reference]) -> dict[str, str]:
    """Return the patient of each case."""
    return {case: known.subject_id for case, known in references.items()}


if __name__ == "__main__":
    main()
