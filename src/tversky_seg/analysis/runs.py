"""Evaluated runs as they are read from disk, and what must be alike to compare them."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.errors import DataError
from tversky_seg.metrics.averages import mean_of_defined

SAME_BY_ANY_NAME = "source"  # where a rule comes from
OPERATING_POINT = "prediction_min_volume_mm3"  # chosen with the threshold, so part of a method and not of the rule
Rows = Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True, eq=False)
class Run:
    """One judged run.

    Attributes:
        name: How tables and figures call it.
        folder: Holds metrics.json.
        metrics: What it says.
        subjects: Case -> subject.
        rows: Class -> case -> measure -> value, NaN where undefined.
        n_averaged: Runs of other seeds that these values are the means of.
    """

    name: str
    folder: Path
    metrics: Mapping[str, Any]
    subjects: Mapping[str, str]
    rows: Rows
    n_averaged: int = 1


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs, or evaluation directories, that were judged alike.

    Raises:
        DataError: One is missing or damaged, stands twice, or was judged otherwise than the first.
    """
    places = [_evaluation_of(folder) for folder in folders]
    for place in places:
        if sum(place.resolve() == other.resolve() for other in places) > 1:
            raise DataError(place, "stands twice", "expected different runs")
    runs = [_read_run(place, name) for place, name in zip(places, _names(places), strict=True)]
    for run in runs[1:]:
        check_alike(runs[0], run)
    return runs


def average_runs(runs: Sequence[Run], *, name: str) -> Run:
    """Runs of one setting with other seeds as one run, so that subjects and not seeds are what a test counts.

    Args:
        runs: Judged alike; their folders' curves are not averaged, those of the first stay.
        name: Of the mean run.

    Returns:
        Each case's measures, and the operating point, as means over the runs that define them.

    Raises:
        DataError: They were judged otherwise than the first.
    """
    for run in runs[1:]:
        check_alike(runs[0], run)
    rows = {
        class_name: {
            case: {
                measure: mean_of_defined(
                    [run.rows[class_name][case].get(measure, math.nan) for run in runs]
                )
                for measure in row
            }
            for case, row in cases.items()
        }
        for class_name, cases in runs[0].rows.items()
    }
    sizes = [run.metrics["lesion_rule"].get(OPERATING_POINT) for run in runs]
    rule = {**runs[0].metrics["lesion_rule"], OPERATING_POINT: _mean_setting(sizes)}
    threshold = _mean_setting([run.metrics.get("threshold") for run in runs])
    metrics = {**runs[0].metrics, "threshold": threshold, "lesion_rule": rule}
    return replace(runs[0], name=name, metrics=metrics, rows=rows, n_averaged=len(runs))


def _mean_setting(values: Sequence[Any]) -> Any:
    """Of numbers, or by class; None where one is None."""
    if any(value is None for value in values):
        return None
    if isinstance(values[0], Mapping):
        return {name: _mean_setting([value[name] for value in values]) for name in values[0]}
    return float(np.mean(values))


def check_alike(first: Run, second: Run) -> None:
    """Refuse runs judged on other classes, cases, subjects or references, or by another rule.

    Thresholds and the smallest predicted lesion are part of a method and may differ.

    Raises:
        DataError: Says what differs.
    """
    if list(first.rows) != list(second.rows):
        raise _unlike(second, f"classes {', '.join(second.rows)}", first, ", ".join(first.rows))
    lacking, more = (
        sorted(a.keys() - b.keys())
        for a, b in ((first.subjects, second.subjects), (second.subjects, first.subjects))
    )
    if lacking or more:
        case, where = (lacking[0], second) if lacking else (more[0], first)
        raise DataError(
            where.folder,
            f"case {case} was not judged there ({len(lacking) + len(more)} such in all)",
            f"expected the cases of {(first if lacking else second).folder}",
        )
    for case, subject in first.subjects.items():
        if second.subjects[case] != subject:
            raise _unlike(
                second, f"case {case} is of subject {second.subjects[case]}", first, subject
            )
    rules = [
        {
            **run.metrics["lesion_rule"],
            **{key: run.metrics[key] for key in ("surface_tolerance_mm",) if key in run.metrics},
        }
        for run in (first, second)
    ]
    for key in dict.fromkeys([*rules[0], *rules[1]]):
        ours, theirs = (rule.get(key) for rule in rules)
        if key not in (OPERATING_POINT, SAME_BY_ANY_NAME) and ours != theirs:
            raise _unlike(second, f"{key}={theirs}", first, ours)
    for name, rows in first.rows.items():
        for case, row in rows.items():
            ours, theirs = (
                row["reference_volume_mm3"],
                second.rows[name][case]["reference_volume_mm3"],
            )
            if not math.isclose(ours, theirs, rel_tol=1e-6):
                raise _unlike(
                    second, f"reference of case {case} has {theirs:g} mm³", first, f"{ours:g} mm³"
                )


def _unlike(second: Run, found: str, first: Run, expected: Any) -> DataError:
    return DataError(second.folder, f"{found}", f"expected {expected} as in {first.folder}")


def _evaluation_of(folder: Path) -> Path:
    for place in (folder / "evaluation", folder):
        if (place / "metrics.json").is_file():
            return place
    raise DataError(
        folder,
        "no metrics.json, nor evaluation/metrics.json",
        "expected a finished run or its evaluation",
    )


def _names(places: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart; of a sweep's settings those that differ."""
    parts = [
        (path.parts[:-1] if path.name == "evaluation" else path.parts)
        for path in (place.resolve() for place in places)
    ]
    for n in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-n:]) for part in parts]
        if len(set(names)) == len(names):
            settings = [name.split(",") for name in names]
            shared = set.intersection(*map(set, settings))
            short = [",".join(word for word in words if word not in shared) for words in settings]
            return short if all(short) else names
    return [str(place) for place in places]


def _read_run(folder: Path, name: str) -> Run:
    path = folder / "metrics.json"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        subjects = {case["case_id"]: case["subject_id"] for case in metrics["cases"]}
        rows: dict[str, dict[str, dict[str, float]]] = {}
        for case in metrics["cases"]:
            values = {
                key: value for key, value in case.items() if key not in ("case_id", "subject_id")
            }
            by_class = {key: value for key, value in values.items() if isinstance(value, dict)} or {
                "lesion": values
            }
            for class_name, row in by_class.items():
                rows.setdefault(class_name, {})[case["case_id"]] = {
                    measure: math.nan if value is None else float(value)
                    for measure, value in row.items()
                }
        if not subjects or any(len(cases) != len(subjects) for cases in rows.values()):
            raise ValueError("no cases, or classes with other cases")
        if not all(
            "reference_volume_mm3" in row for cases in rows.values() for row in cases.values()
        ):
            raise ValueError("no reference volumes")
        dict(metrics["lesion_rule"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        raise DataError(path, f"cannot be read ({fault})", "evaluate again") from fault
    return Run(name, folder, metrics, subjects, rows)


def read_curve(run: Run) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Class -> recall and precision of pr_curve.csv, by falling recall; {} where there were masks only."""
    path = run.folder / "pr_curve.csv"
    points: dict[str, list[tuple[float, float]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                points.setdefault(row["class"], []).append(
                    (float(row["recall"]), float(row["precision"]))
                )
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise DataError(path, f"cannot be read ({fault})", "evaluate again") from fault
    curves = {name: np.array(rows) for name, rows in points.items()}
    return {name: (curve[:, 0], curve[:, 1]) for name, curve in curves.items()}
