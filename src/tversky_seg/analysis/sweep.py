"""Finished runs of a sweep, grouped into settings: folds joined, seeds apart."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tversky_seg.analysis.runs import (
    MetricRow,
    Run,
    average_runs,
    check_alike,
    lesion_rule,
    read_runs,
)
from tversky_seg.analysis.setting_names import (
    LossWeights,
    Settings,
    loss_weights,
    name_settings,
)
from tversky_seg.data.errors import DataError
from tversky_seg.report.labels import count
from tversky_seg.runtime.run_settings import flatten, is_free

VALIDATION_PREFIX = "val_"
"""Start of the names of validation metrics in metrics.csv."""
logger = logging.getLogger("tversky_seg")


@dataclass(frozen=True, eq=False)
class SweepRun:
    """One finished run of a sweep."""

    evaluated: Run
    """Its held-out cases."""
    settings: Settings
    """Its config.yaml, by dotted keys."""
    validation: MetricRow
    """Metrics on the validation cases, of the checkpoint that was kept; empty without such."""

    @property
    def folder(self) -> Path:
        """Run directory."""
        return self.evaluated.folder.parent


@dataclass(frozen=True, eq=False)
class Setting:
    """All runs of one setting: folds joined, seeds apart."""

    name: str
    """Settings that tell it from the others."""
    runs: Sequence[SweepRun]
    cohorts: Mapping[Any, Run]
    """Seed -> the held-out cases of all folds, as one run."""

    @property
    def weights(self) -> LossWeights | None:
        """Alpha and beta of the loss, where it has them."""
        return loss_weights(self.runs[0].settings)

    def runs_of_seed(self, seed: Any) -> list[SweepRun]:
        """List the folds that were trained with a seed."""
        return [run for run in self.runs if run.settings.get("seed") == seed]


def read_sweep(folders: Sequence[Path | str]) -> list[SweepRun]:
    """Read every finished run in some folders.

    A run that repeats the settings and cases of another is left out with a warning.

    Args:
        folders: Run directories, or folders that hold such at any depth.

    Raises:
        DataError: A folder is missing, no run is finished, or one is damaged.
    """
    for folder in folders:
        if not Path(folder).expanduser().exists():
            raise DataError(folder, "no such folder", "expected runs, or folders of runs")
    finished = [folder for folder in _run_folders(folders) if _is_finished(folder)]
    if not finished:
        raise DataError(
            folders[0],
            "no finished run",
            "expected <run>/evaluation/metrics.json and <run>/config.yaml",
        )
    runs: dict[Any, SweepRun] = {}
    for folder in finished:
        run = _read_sweep_run(folder)
        # One run may lie in the sweep twice, under the names "beta=0.7" and "beta=0.7,seed=0".
        first = runs.setdefault(_identity(run), run)
        if first is not run:
            logger.warning("%s: has the settings of %s; left out", run.folder, first.folder)
    return list(runs.values())


def describe_unfinished(folders: Sequence[Path | str]) -> str:
    """Write a sentence on the runs that were begun and not evaluated; "" without such."""
    unfinished: list[Path] = []
    for folder in _run_folders(folders):
        # Trackers write a config.yaml as well, but only a run has a log of its training.
        if (folder / "train.log").exists() and not _is_finished(folder):
            unfinished.append(folder)
    if not unfinished:
        return ""
    return f"{count(len(unfinished), 'run')} not finished and left out, as {unfinished[0]}."


def group_runs(runs: Sequence[SweepRun]) -> list[Setting]:
    """Group runs by setting.

    Returns:
        Settings in the order of beta; those whose loss has none at the end.

    Raises:
        DataError: Settings were evaluated on different cases or by different rules, or a case
            twice with one seed.
    """
    names = name_settings([run.settings for run in runs])
    by_name: dict[str, list[SweepRun]] = {}
    for name, run in zip(names, runs, strict=True):
        by_name.setdefault(name, []).append(run)
    settings: list[Setting] = []
    for name, members in by_name.items():
        settings.append(Setting(name, members, _join_by_seed(members, name)))
    # Settings are compared on the same cases, by the same rule, or not at all.
    cohorts: list[Run] = []
    for setting in settings:
        cohorts += setting.cohorts.values()
    for cohort in cohorts[1:]:
        check_alike(cohorts[0], cohort)
    return sorted(settings, key=_beta)


def joined_seeds(folders: Sequence[Path]) -> list[Run]:
    """Read runs, and join those that differ in their seed alone; the first stays the baseline.

    Raises:
        DataError: Runs cannot be read or compared, or are folds of one setting.
    """
    settings = group_runs(read_sweep(folders))
    first = read_sweep(folders[:1])[0].folder.resolve()
    runs: list[Run] = []
    for setting in settings:
        if len(setting.runs) > len(setting.cohorts):
            raise DataError(
                setting.runs[0].folder,
                f"{setting.name} has several folds with one seed",
                "join folds by tversky-seg summarize --cohorts",
            )
        run = average_runs(list(setting.cohorts.values()), name=setting.name)
        if first in [member.folder.resolve() for member in setting.runs]:
            runs.insert(0, run)
        else:
            runs.append(run)
    return runs


def _beta(setting: Setting) -> float:
    if setting.weights is None:
        return math.inf
    return setting.weights.beta


def _run_folders(folders: Sequence[Path | str]) -> list[Path]:
    """List the folders with a config.yaml, each once."""
    # A dict, as a set would lose the order: the first run is the one that others repeat.
    runs: dict[Path, None] = {}
    for folder in folders:
        for file in sorted(Path(folder).expanduser().glob("**/config.yaml")):
            runs[file.parent] = None
    return list(runs)


def _is_finished(folder: Path) -> bool:
    return (folder / "evaluation" / "metrics.json").exists()


def _identity(run: SweepRun) -> Any:
    """Collect what tells a run from others: the settings that decide its numbers, and its cases."""
    # The cases too: the folds of one setting differ in nothing else that decides.
    deciding: set[tuple[str, str]] = set()
    for key, value in run.settings.items():
        if not is_free(key):
            deciding.add((key, repr(value)))
    return frozenset(deciding), frozenset(run.evaluated.subjects)


def _read_sweep_run(folder: Path) -> SweepRun:
    (evaluated,) = read_runs([folder])
    # A run of another version may lack any of these entries.
    try:
        settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        monitor = settings["trainer"]["monitor"]
        validation = _best_validation(folder / "metrics.csv", monitor)
        return SweepRun(evaluated, dict(flatten(settings)), validation)
    except (OSError, yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(folder, f"cannot be read ({error})", "run it again") from error


def _best_validation(path: Path, monitor: str) -> MetricRow:
    """Read the validation metrics of the step that was kept: the best by the monitored metric."""
    # Rows such as step 1000, name "val_dice", value 0.61, among those of the training.
    by_step: dict[int, dict[str, float]] = {}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["name"].startswith(VALIDATION_PREFIX):
                    metric = row["name"].removeprefix(VALIDATION_PREFIX)
                    by_step.setdefault(int(row["step"]), {})[metric] = float(row["value"])
    # Of equal steps training keeps the first, and a step with NaN only if there is no other.
    return max(by_step.values(), key=lambda metrics: _nan_last(metrics[monitor]), default={})


def _nan_last(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _join_by_seed(runs: Sequence[SweepRun], name: str) -> dict[Any, Run]:
    # Seeds are not joined: each is a repeat of the whole cross-validation.
    by_seed: dict[Any, list[Run]] = {}
    for run in runs:
        by_seed.setdefault(run.settings.get("seed"), []).append(run.evaluated)
    cohorts: dict[Any, Run] = {}
    for seed in sorted(by_seed, key=str):
        cohorts[seed] = _join_folds(by_seed[seed], name)
    return cohorts


def _join_folds(folds: Sequence[Run], name: str) -> Run:
    """Join the held-out cases of all folds into one run.

    Raises:
        DataError: Folds share a case, or differ in classes or rule.
    """
    first = folds[0]
    rule = lesion_rule(first.evaluation)
    subjects: dict[str, str] = {}
    rows: dict[str, dict[str, MetricRow]] = {class_name: {} for class_name in first.rows}
    for fold in folds:
        if fold.rows.keys() != rows.keys() or lesion_rule(fold.evaluation) != rule:
            raise DataError(
                fold.folder,
                "evaluated on other classes or by another rule",
                f"expected those of {first.folder}",
            )
        # Two results of one case would count its subject twice.
        duplicates = sorted(subjects.keys() & fold.subjects.keys())
        if duplicates:
            raise DataError(
                fold.folder,
                f"case {duplicates[0]} was evaluated by another run of the same setting and seed "
                f"({name})",
                "expected each case in one fold",
            )
        subjects |= fold.subjects
        for class_name, cases in fold.rows.items():
            rows[class_name] |= cases
    return replace(first, name=name, subjects=subjects, rows=rows)
