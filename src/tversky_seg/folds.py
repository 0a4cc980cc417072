"""Cross-validation: the predictions of all folds, each of subjects that its network never saw, judged as one cohort."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from tversky_seg.comparison import OPERATING_POINT
from tversky_seg.data.cases import Case, DataError, read_manifest, write_manifest
from tversky_seg.evaluation import LesionRule, evaluate
from tversky_seg.predictions import prediction_files
from tversky_seg.recording import read_json, write_json


def judge_folds(runs: Sequence[Path], output_dir: Path) -> dict[str, Any]:
    """Judge the held-out subjects of several runs together, as saved: each fold's masks at its own threshold.

    Args:
        runs: Finished run directories of one setting, fold by fold.
        output_dir: Gets manifest.csv, predictions/ (links to the runs' files) and evaluation/, as a run has them. Where
            all is there already and no older than the runs, nothing is done.

    Returns:
        What metrics.json holds: means and intervals over all subjects, and pooled measures with one ranking of all
        voxels.

    Raises:
        DataError: A run is not finished, two judge the same case, or they judge by different rules.
    """
    results = [run / "evaluation" / "metrics.json" for run in runs]
    for path in results:
        if not path.is_file():
            raise DataError(f"{path}: no such file; finish the run first")
    written = output_dir / "evaluation" / "metrics.json"
    if written.exists() and all(path.stat().st_mtime <= written.stat().st_mtime for path in results):
        return dict(read_json(written))
    judged = [read_json(path) for path in results]
    rules = [_rule_of(metrics) for metrics in judged]
    if any(rule != rules[0] for rule in rules):
        raise DataError(f"{results[0]}: has another lesion rule than other folds; evaluate all alike")
    said = [read_json(run / "predictions" / "predictions.json") for run in runs]
    cases = [case for run, metrics in zip(runs, judged, strict=True) for case in _cases_of(run, metrics)]
    _refuse_twice(cases, runs)
    write_manifest([replace(case, split=None, fold=None) for case in cases], _made(output_dir) / "manifest.csv")
    predictions = _made(output_dir / "predictions")
    for run, metrics in zip(runs, judged, strict=True):
        for case in metrics["cases"]:
            _link(run / "predictions", predictions, case["case_id"], classes=list(said[0]["classes"]))
    write_json(predictions / "predictions.json", _agreed(said))
    return evaluate(
        predictions,
        cases,
        output_dir=output_dir / "evaluation",
        rule=LesionRule(**rules[0]),
        tolerance_mm=judged[0].get("surface_tolerance_mm", 1.0),
    )


def _rule_of(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metrics["lesion_rule"].items() if key != OPERATING_POINT}


def _cases_of(run: Path, metrics: Mapping[str, Any]) -> list[Case]:
    judged = {case["case_id"] for case in metrics["cases"]}
    return [case for case in read_manifest(run / "manifest.csv") if case.case_id in judged]


def _refuse_twice(cases: Sequence[Case], runs: Sequence[Path]) -> None:
    names = [case.case_id for case in cases]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"{runs[0]}: case {twice[0]} is held out in two of {len(runs)} runs; expected one fold each")


def _link(source: Path, target: Path, case_id: str, *, classes: Sequence[str]) -> None:
    """A second name for each file of a case; a copy where the file system has none."""
    for pair in prediction_files(Path(), case_id, classes).values():
        for name in pair:
            (target / name).unlink(missing_ok=True)
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
