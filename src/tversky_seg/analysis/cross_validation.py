"""Cross-validation: the predictions of all folds, each of subjects that its network never saw, judged as one cohort."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from tversky_seg.analysis.runs import OPERATING_POINT
from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.manifest import read_manifest, write_manifest
from tversky_seg.evaluation.evaluator import evaluate
from tversky_seg.inference.prediction_folder import prediction_files
from tversky_seg.metrics.case_metrics import TOLERANCE_MM
from tversky_seg.metrics.lesion_rule import LesionRule
from tversky_seg.runtime.files import read_json, write_json

logger = logging.getLogger("tversky_seg")
WANTED = "expected all predictions of a finished run, which the cohort is judged from"


def evaluate_folds(runs: Sequence[Path], output_dir: Path) -> dict[str, Any]:
    """Judge the held-out subjects of several runs together, as saved: each fold's masks at its own threshold.

    Args:
        runs: Finished run directories of one setting, fold by fold; a warning says which labelled cases they leave out.
        output_dir: Gets manifest.csv, predictions/ (links to the runs' files) and evaluation/, as a run has them. Where
            that of just these runs is there already and no older than they are, nothing is done.

    Returns:
        What metrics.json holds: means and intervals over all subjects, and pooled measures with one ranking of all
        voxels.

    Raises:
        DataError: A run is not finished or lacks a prediction, two judge the same case or subject, or they differ in
            classes or in how they judge.
    """
    judged = [
        _read(run / "evaluation" / "metrics.json", otherwise="finish the run first") for run in runs
    ]
    said = [_read(run / "predictions" / "predictions.json", otherwise=WANTED) for run in runs]
    _require_alike(
        [_rule_of(metrics) for metrics in judged],
        runs,
        found="was judged by another rule",
        wanted="evaluate all alike",
    )
    _require_alike(
        [list(each["classes"].items()) for each in said],
        runs,
        found="has other classes",
        wanted="expected folds of one setting",
    )
    written, agreed = output_dir / "evaluation" / "metrics.json", _agreed(said)
    if _is_of(written, agreed, runs):
        return dict(read_json(written))
    listed = [read_manifest(run / "manifest.csv") for run in runs]
    by_run = [_judged(cases, metrics) for cases, metrics in zip(listed, judged, strict=True)]
    _refuse_twice(by_run, runs)
    _say_what_is_left(listed, by_run)
    cases = [case for of_run in by_run for case in of_run]
    classes, predictions = list(said[0]["classes"]), _made(output_dir / "predictions")
    written.unlink(missing_ok=True)  # so that a stop leaves nothing that looks whole
    write_manifest(
        [replace(case, split=None, fold=None) for case in cases], output_dir / "manifest.csv"
    )
    for run, of_run in zip(runs, by_run, strict=True):
        for case in of_run:
            _link(run / "predictions", predictions, case.case_id, classes=classes)
    write_json(predictions / "predictions.json", agreed)
    rule, tolerance_mm = _rule_of(judged[0])
    return evaluate(
        predictions,
        cases,
        output_dir=output_dir / "evaluation",
        rule=LesionRule(**rule),
        tolerance_mm=tolerance_mm,
    )


def _read(path: Path, *, otherwise: str) -> Any:
    """The content of a JSON file of a run."""
    try:
        return read_json(path)
    except OSError as fault:
        raise DataError(path, "no such file", f"{otherwise}") from fault
    except ValueError as fault:
        raise DataError(path, "damaged", "delete it and repeat the run's command") from fault


def _is_of(written: Path, agreed: Mapping[str, Any], runs: Sequence[Path]) -> bool:
    """Whether a cohort was judged before, of just these runs as they are."""
    try:
        since = written.stat().st_mtime
        earlier = read_json(written.parents[1] / "predictions" / "predictions.json")
    except (OSError, ValueError):
        return False
    return earlier == agreed and all(
        (run / "evaluation" / "metrics.json").stat().st_mtime <= since for run in runs
    )


def _rule_of(metrics: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """The lesion rule, and how far apart surfaces may lie."""
    rule = {key: value for key, value in metrics["lesion_rule"].items() if key != OPERATING_POINT}
    return rule, metrics.get("surface_tolerance_mm", TOLERANCE_MM)


def _require_alike(values: Sequence[Any], runs: Sequence[Path], *, found: str, wanted: str) -> None:
    for value, run in zip(values, runs, strict=True):
        if value != values[0]:
            raise DataError(run, f"{found} than {runs[0]}", f"{wanted}")


def _judged(cases: Sequence[Case], metrics: Mapping[str, Any]) -> list[Case]:
    judged = {case["case_id"] for case in metrics["cases"]}
    return [case for case in cases if case.case_id in judged]


def _say_what_is_left(listed: Sequence[Sequence[Case]], by_run: Sequence[Sequence[Case]]) -> None:
    """Warn of labelled cases that several runs leave out, as where a fold was not trained."""
    labelled = {case.case_id for cases in listed for case in cases if case.labels}
    left = sorted(labelled - {case.case_id for cases in by_run for case in cases})
    if left and len(by_run) > 1:
        logger.warning(
            "%d of %d labelled cases were judged by none of %d runs, as %s; finish all folds, or do without them",
            len(left),
            len(labelled),
            len(by_run),
            left[0],
        )


def _refuse_twice(by_run: Sequence[Sequence[Case]], runs: Sequence[Path]) -> None:
    """A case or subject of two runs is no fold of either, or they are folds of other splits."""
    seen: dict[tuple[str, str], Path] = {}
    for cases, run in zip(by_run, runs, strict=True):
        names = {("case", case.case_id) for case in cases} | {
            ("subject", case.subject_id) for case in cases
        }
        for kind, name in sorted(names):
            if (kind, name) in seen:
                raise DataError(
                    run,
                    f"{kind} {name} is held out in two of {len(runs)} runs, also in {seen[kind, name]}",
                    "expected one fold each",
                )
        seen |= dict.fromkeys(names, run)


def _link(source: Path, target: Path, case_id: str, *, classes: Sequence[str]) -> None:
    """A second name for each file of a case; a copy where the file system has none."""
    for files in prediction_files(Path(), case_id, classes).values():
        for name in (files.probability, files.mask):
            (target / name).unlink(missing_ok=True)
            if not (source / name).is_file():
                raise DataError(source / name, "no such file", f"{WANTED}")
            try:
                os.link(source / name, target / name)
            except OSError:
                shutil.copy2(source / name, target / name)


def _agreed(said: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What predictions.json says of all folds: values that they share; of thresholds the mean.

    Each fold's masks are without the lesions that were too small there; the least of these sizes takes no more out.
    """
    found = dict(said[0]) | {"checkpoint": [each.get("checkpoint") for each in said]}
    for key, joined in (("threshold", fmean), ("min_volume_mm3", min)):
        values = [each[key] for each in said]
        found[key] = (
            {name: joined([value[name] for value in values]) for name in values[0]}
            if isinstance(values[0], Mapping)
            else joined(values)
        )
    return found


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
