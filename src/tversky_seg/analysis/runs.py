"""Evaluated runs as they are read from disk, and what must be alike to compare them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tversky_seg.data.errors import DataError
from tversky_seg.metrics.averages import mean_of_defined
from tversky_seg.runtime.files import read_json

SMALLEST_LESION = "prediction_min_volume_mm3"
LOWEST_PEAK = "prediction_min_peak"
OPERATING_POINT = (SMALLEST_LESION, LOWEST_PEAK)
"""Entries of a lesion rule that are chosen with the threshold, so they belong to the method."""
RULE_NAME = "source"
"""Entry of a lesion rule that only tells which publication states it."""
TOLERANCE = "surface_tolerance_mm"
LESION_SETTINGS = "by_lesion_settings"
ONLY_CLASS = "lesion"
"""Name of the class where metrics.json has a single one, which it does not name."""
MetricRow = Mapping[str, float]
Rows = Mapping[str, Mapping[str, MetricRow]]


@dataclass(frozen=True, eq=False)
class Run:
    """One evaluated run."""

    name: str
    """Name in tables and figures."""
    folder: Path
    """Folder that holds metrics.json."""
    evaluation: Mapping[str, Any]
    """Content of metrics.json."""
    subjects: Mapping[str, str]
    """Case -> subject."""
    rows: Rows
    """Class -> case -> metric -> value, NaN where undefined."""
    n_averaged: int = 1
    """Runs of different seeds whose mean these values are."""
    rows_of_seeds: tuple[Rows, ...] = ()
    """The values of each of these runs; empty for a single run."""

    def of_each_seed(self, class_name: str) -> list[Mapping[str, MetricRow]]:
        """List the values of a class in each seed: case -> metric -> value."""
        if not self.rows_of_seeds:
            return [self.rows[class_name]]
        return [rows[class_name] for rows in self.rows_of_seeds]


def read_runs(folders: Sequence[Path | str]) -> list[Run]:
    """Read runs that were evaluated alike.

    Args:
        folders: Run directories, or their evaluation directories.

    Raises:
        DataError: A run is missing, damaged or a duplicate, or not evaluated as the first.
    """
    evaluations: list[Path] = []
    for folder in folders:
        evaluations.append(_evaluation_folder(Path(folder).expanduser()))
    # Resolved, since a run and a link to it are one run.
    n_times = Counter(map(Path.resolve, evaluations))
    for evaluation in evaluations:
        if n_times[evaluation.resolve()] > 1:
            raise DataError(evaluation, "duplicate run", "name each run once")
    runs: list[Run] = []
    for evaluation, name in zip(evaluations, _run_names(evaluations), strict=True):
        runs.append(_read_run(evaluation, name))
    for run in runs[1:]:
        check_alike(runs[0], run)
    return runs


def average_runs(runs: Sequence[Run], *, name: str) -> Run:
    """Average runs of one setting with different seeds, so that tests count subjects, not seeds.

    Args:
        runs: Runs that were evaluated alike.
        name: Name of the mean run.

    Returns:
        A run whose metrics and operating point are means over the runs that define them. Its folder
        and so its curves are those of the first run.

    Raises:
        DataError: A run was not evaluated as the first.
    """
    first = runs[0]
    for run in runs[1:]:
        check_alike(first, run)
    rows: dict[str, dict[str, MetricRow]] = {}
    for class_name, cases in first.rows.items():
        rows[class_name] = {}
        for case in cases:
            of_seeds = [run.rows[class_name][case] for run in runs]
            rows[class_name][case] = _average_rows(of_seeds)
    # Each seed chose its own operating point. The mean is shown in tables, nothing is cut by it.
    thresholds: list[Any] = []
    for run in runs:
        thresholds.append(run.evaluation.get("threshold"))
    rule = dict(first.evaluation["lesion_rule"])
    for entry in OPERATING_POINT:
        rule[entry] = _mean_setting([run.evaluation["lesion_rule"].get(entry) for run in runs])
    evaluation = {
        **first.evaluation,
        "threshold": _mean_setting(thresholds),
        "lesion_rule": rule,
    }
    return replace(
        first,
        name=name,
        evaluation=evaluation,
        rows=rows,
        n_averaged=len(runs),
        rows_of_seeds=tuple(run.rows for run in runs),
    )


def check_alike(first: Run, second: Run) -> None:
    """Refuse runs that differ in classes, cases, subjects, references or lesion rule.

    Threshold, smallest predicted lesion and lowest peak belong to the method, so they may differ.

    Raises:
        DataError: It names the difference.
    """
    if list(first.rows) != list(second.rows):
        raise _difference(second, f"classes {', '.join(second.rows)}", first, ", ".join(first.rows))
    _check_cases(first, second)
    _check_rule(first, second)
    _check_lesion_settings(first, second)
    _check_references(first, second)


def check_metric(run: Run, class_name: str, metric: str) -> None:
    """Refuse a metric that a case of the run does not have.

    Raises:
        DataError: It lists the metrics of the run.
    """
    rows = list(run.rows[class_name].values())
    for row in rows:
        if metric not in row:
            path = run.folder / "metrics.json"
            choices = ", ".join(rows[0])
            raise DataError(
                "metrics", f"{metric!r} is not in {path}", f"expected some of {choices}"
            )


def lesion_rule(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Take the lesion rule of a metrics.json, without the part that belongs to the method."""
    rule = dict(evaluation["lesion_rule"])
    for entry in OPERATING_POINT:
        rule.pop(entry, None)
    return rule


def _evaluation_folder(folder: Path) -> Path:
    # A run holds its evaluation; evaluate.py may also have written one elsewhere.
    for candidate in (folder / "evaluation", folder):
        if (candidate / "metrics.json").is_file():
            return candidate
    raise DataError(
        folder,
        "no metrics.json, nor evaluation/metrics.json",
        "expected a finished run or its evaluation",
    )


def _run_names(evaluations: Sequence[Path]) -> list[str]:
    """Name each run by the shortest end of its path that no other run has.

    For x/seed0 and y/seed0 these are the whole paths, for x/seed0 and x/seed1 the folders.
    """
    paths: list[Path] = []
    for evaluation in evaluations:
        path = evaluation.resolve()
        # A run is known by its own folder; that of its evaluation has the same name in all runs.
        if path.name == "evaluation":
            path = path.parent
        paths.append(path)
    # Of /home/ann/x/seed0 try "seed0", then "x/seed0", "ann/x/seed0" ...
    longest = max(len(path.parts) for path in paths)
    for n in range(1, longest + 1):
        names = ["/".join(path.parts[-n:]) for path in paths]
        if len(set(names)) == len(names):
            return _without_shared_settings(names)
    return list(map(str, evaluations))


def _without_shared_settings(names: Sequence[str]) -> list[str]:
    """Drop the settings that all names of a sweep share: `loss.beta=0.5` of `loss.beta=0.5,seed=0`.

    The names stay as they are where nothing would remain of one.
    """
    settings = [name.split(",") for name in names]
    shared = set(settings[0]).intersection(*settings[1:])
    short: list[str] = []
    for words in settings:
        # Filtered in place, not as a set: the order of the settings is that of the command.
        short.append(",".join(word for word in words if word not in shared))
    if all(short):
        return short
    return list(names)


def _read_run(folder: Path, name: str) -> Run:
    path = folder / "metrics.json"
    try:
        evaluation = read_json(path)
        subjects = {case["case_id"]: case["subject_id"] for case in evaluation["cases"]}
        rows = _rows_by_class(evaluation["cases"])
        _check_content(rows, subjects)
        # Read here for its errors, so that a damaged file is named before anything is compared.
        lesion_rule(evaluation)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(path, f"cannot be read ({error})", "evaluate again") from error
    return Run(name, folder, evaluation, subjects, rows)


def _check_content(rows: Rows, subjects: Mapping[str, str]) -> None:
    """Check what every comparison relies on.

    Raises:
        ValueError: There are no cases, classes have different ones, or a reference has no volume.
    """
    if not subjects:
        raise ValueError("no cases")
    for cases in rows.values():
        if cases.keys() != subjects.keys():
            raise ValueError("classes with different cases")
        for row in cases.values():
            if "reference_volume_mm3" not in row:
                raise ValueError("no reference volumes")


def _rows_by_class(cases: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, MetricRow]]:
    """Sort the metrics of all cases by class, then case.

    With several classes a case holds a row for each: {"case_id": …, "liver": {"dice": …}}. With
    one, the case is the row: {"case_id": …, "dice": …}.
    """
    rows: dict[str, dict[str, MetricRow]] = {}
    for case in cases:
        values = dict(case)
        del values["case_id"]
        del values["subject_id"]
        # Only the row of a class is a dict: a metric is a number or None.
        by_class = {key: value for key, value in values.items() if isinstance(value, dict)}
        if not by_class:
            by_class = {ONLY_CLASS: values}
        for class_name, row in by_class.items():
            rows.setdefault(class_name, {})[case["case_id"]] = _with_nan(row)
    return rows


def _with_nan(row: Mapping[str, Any]) -> MetricRow:
    """Write NaN for None, which stands for it in JSON."""
    values: dict[str, float] = {}
    for metric, value in row.items():
        values[metric] = math.nan if value is None else float(value)
    return values


def _average_rows(rows: Sequence[MetricRow]) -> MetricRow:
    """Average each metric of one case over runs."""
    means: dict[str, float] = {}
    for metric in rows[0]:
        # A seed without any predicted lesion has no precision, say; the others have.
        means[metric] = mean_of_defined(row.get(metric, math.nan) for row in rows)
    return means


def _mean_setting(values: Sequence[Any]) -> Any:
    """Average a number, or the number of each class; None where a run has none."""
    if any(value is None for value in values):
        return None
    if not isinstance(values[0], Mapping):
        return float(np.mean(values))
    # {"liver": 0.4} and {"liver": 0.6} give {"liver": 0.5}.
    means: dict[str, Any] = {}
    for class_name in values[0]:
        means[class_name] = _mean_setting([by_class[class_name] for by_class in values])
    return means


def _check_cases(first: Run, second: Run) -> None:
    # Sorted, so that the error names the same case whatever the order of the files.
    missing = sorted(first.subjects.keys() - second.subjects.keys())
    additional = sorted(second.subjects.keys() - first.subjects.keys())
    n_cases = len(missing) + len(additional)
    if missing:
        raise _missing_case(second, missing[0], first, n_cases)
    if additional:
        raise _missing_case(first, additional[0], second, n_cases)
    for case, subject in first.subjects.items():
        other = second.subjects[case]
        if other != subject:
            raise _difference(second, f"case {case} is of subject {other}", first, subject)


def _check_rule(first: Run, second: Run) -> None:
    expected = _whole_rule(first)
    rule = _whole_rule(second)
    # Both, since a key of one rule may be absent in the other.
    for key in dict.fromkeys([*expected, *rule]):
        if rule.get(key) != expected.get(key):
            raise _difference(second, f"{key}={rule.get(key)}", first, str(expected.get(key)))


def _whole_rule(run: Run) -> dict[str, Any]:
    """Collect all that decides how lesions and surfaces are evaluated."""
    rule = lesion_rule(run.evaluation)
    rule.pop(RULE_NAME, None)
    # The tolerance of surface metrics stands beside the rule. Older files do not have it.
    if TOLERANCE in run.evaluation:
        rule[TOLERANCE] = run.evaluation[TOLERANCE]
    return rule


def _check_lesion_settings(first: Run, second: Run) -> None:
    """Refuse other settings of the metrics by lesion, which older evaluations do not have."""
    expected = first.evaluation.get(LESION_SETTINGS, {})
    settings = second.evaluation.get(LESION_SETTINGS, {})
    for key in expected.keys() & settings.keys():
        if settings[key] != expected[key]:
            raise _difference(second, f"{key}={settings[key]}", first, str(expected[key]))


def _check_references(first: Run, second: Run) -> None:
    """Tell references apart by their volumes, since metrics.json holds no more of them."""
    for class_name, cases in first.rows.items():
        for case, row in cases.items():
            expected = row["reference_volume_mm3"]
            volume = second.rows[class_name][case]["reference_volume_mm3"]
            # The voxel's volume comes from the header, where its last digits may differ.
            if not math.isclose(expected, volume, rel_tol=1e-6):
                text = f"reference of case {case} has {volume:g} mm³"
                raise _difference(second, text, first, f"{expected:g} mm³")


def _missing_case(run: Run, case: str, other: Run, n_cases: int) -> DataError:
    return DataError(
        run.folder,
        f"case {case} was not evaluated ({n_cases} such in all)",
        f"expected the cases of {other.folder}",
    )


def _difference(second: Run, text: str, first: Run, expected: str) -> DataError:
    return DataError(second.folder, text, f"expected {expected} as in {first.folder}")
