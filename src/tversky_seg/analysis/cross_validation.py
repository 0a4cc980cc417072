"""Cross-validation: the held-out predictions of all folds, evaluated as one cohort."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from tversky_seg.analysis.runs import lesion_rule
from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.manifest import read_manifest, write_manifest
from tversky_seg.evaluation.evaluator import evaluate
from tversky_seg.inference.prediction_folder import SETTINGS_FILE, prediction_files
from tversky_seg.metrics.averages import unwrap_single
from tversky_seg.metrics.by_lesion import LesionSettings
from tversky_seg.metrics.case_metrics import TOLERANCE_MM
from tversky_seg.metrics.lesion_rule import LesionRule
from tversky_seg.runtime.files import read_json, read_json_if_whole, write_json

SOURCES_FILE = "sources.json"
N_NAMED = 3
"""Cases that a warning names."""
logger = logging.getLogger("tversky_seg")


@dataclass(frozen=True)
class Fold:
    """A finished run, as far as its held-out cases are concerned."""

    folder: Path
    evaluation: Mapping[str, Any]
    """Content of evaluation/metrics.json."""
    prediction: Mapping[str, Any]
    """Content of predictions/predictions.json."""
    cases: Sequence[Case]
    """All cases of its manifest."""

    @property
    def held_out(self) -> list[Case]:
        """The cases that were evaluated."""
        evaluated = {row["case_id"] for row in self.evaluation["cases"]}
        return [case for case in self.cases if case.case_id in evaluated]

    @property
    def tolerance_mm(self) -> float:
        """Distance up to which surfaces agree."""
        tolerance_mm: float = self.evaluation.get("surface_tolerance_mm", TOLERANCE_MM)
        return tolerance_mm

    @property
    def by_lesion(self) -> LesionSettings:
        """Settings of the metrics by lesion; the default for an evaluation without them."""
        return LesionSettings(**self.evaluation.get("by_lesion_settings", {}))


def evaluate_folds(runs: Sequence[Path], output_dir: Path) -> dict[str, Any]:
    """Evaluate the held-out cases of several runs together, from their saved masks.

    Each fold's masks are at its own threshold. The cohort is not evaluated again if it was made
    from the same files of the same runs. A warning tells which labelled cases no run held out.

    Args:
        runs: Finished run directories of one setting, one for each fold.
        output_dir: Folder that gets manifest.csv, predictions/ (links to the files of the runs) and
            evaluation/, as a run has them, and sources.json: the files that it was made from.

    Returns:
        Content of metrics.json: means and intervals over all subjects, and pooled metrics with one
        ranking of all voxels.

    Raises:
        DataError: A run is not finished or lacks a prediction, two hold out the same case or
            subject, or they differ in classes or lesion rule.
    """
    return evaluate_cohort_of(read_folds(runs), output_dir, add_predictions=_link_predictions)


def read_folds(runs: Sequence[Path]) -> list[Fold]:
    """Read finished runs that are the folds of one setting; warn of cases that none held out.

    Raises:
        DataError: As `evaluate_folds`.
    """
    folds = [_read_fold(run) for run in runs]
    _check_same_setting(folds)
    _refuse_shared_cases(folds)
    _warn_of_remaining_cases(folds)
    return folds


def evaluate_cohort_of(
    folds: Sequence[Fold],
    output_dir: Path,
    *,
    add_predictions: Callable[[Fold, Path], None],
    made_with: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluate the held-out cases of folds as one cohort, unless that was done before.

    Args:
        folds: Folds of one setting; their `prediction` describes the masks of the cohort.
        output_dir: As in `evaluate_folds`.
        add_predictions: Function that puts the predictions of a fold into the cohort's folder.
        made_with: Settings of that function: with others, the cohort is evaluated again.

    Returns:
        Content of metrics.json.
    """
    metrics_file = output_dir / "evaluation" / "metrics.json"
    sources = {"files": [_hash_sources(fold.folder) for fold in folds], **(made_with or {})}
    if _is_complete(output_dir, sources):
        return dict(read_json(metrics_file))
    cases: list[Case] = []
    for fold in folds:
        # In the cohort every case is held out.
        cases += [replace(case, split=None, fold=None) for case in fold.held_out]
    predictions = output_dir / "predictions"
    predictions.mkdir(parents=True, exist_ok=True)
    # From here on, the old result no longer belongs to what lies next to it.
    metrics_file.unlink(missing_ok=True)
    write_json(output_dir / SOURCES_FILE, sources)
    write_manifest(cases, output_dir / "manifest.csv")
    for fold in folds:
        add_predictions(fold, predictions)
    write_json(predictions / SETTINGS_FILE, _common_settings(folds))
    return evaluate(
        predictions,
        cases,
        output_dir=output_dir / "evaluation",
        rule=LesionRule(**lesion_rule(folds[0].evaluation)),
        tolerance_mm=folds[0].tolerance_mm,
        by_lesion=folds[0].by_lesion,
        overwrite=True,  # the cohort follows its folds
    )


def _read_fold(run: Path) -> Fold:
    return Fold(
        folder=run,
        evaluation=_read_json(run / "evaluation" / "metrics.json"),
        prediction=_read_json(run / "predictions" / SETTINGS_FILE),
        cases=read_manifest(run / "manifest.csv", may_lack_modalities=True),
    )


def _read_json(path: Path) -> Any:
    try:
        return read_json(path)
    except OSError as error:
        raise DataError(path, "no such file", "finish the run first") from error
    except ValueError as error:
        raise DataError(path, "damaged", "delete it and repeat the run's command") from error


def _hash_sources(run: Path) -> dict[str, str]:
    """Hash the files that change whenever the held-out cases, their masks or metrics do.

    Content tells more than the time of a file, which copies and backups set back.
    """
    hashes: dict[str, str] = {}
    for name in ("manifest.csv", f"predictions/{SETTINGS_FILE}", "evaluation/metrics.json"):
        hashes[name] = hashlib.sha256((run / name).read_bytes()).hexdigest()
    return hashes


def _is_complete(output_dir: Path, sources: Mapping[str, Any]) -> bool:
    """Tell whether a cohort was evaluated before, of just these files."""
    if read_json_if_whole(output_dir / SOURCES_FILE) != sources:
        return False
    return read_json_if_whole(output_dir / "evaluation" / "metrics.json") is not None


def _check_same_setting(folds: Sequence[Fold]) -> None:
    first = folds[0]
    first_rule = lesion_rule(first.evaluation)
    for fold in folds[1:]:
        has_same_rule = lesion_rule(fold.evaluation) == first_rule
        has_same_settings = (fold.tolerance_mm, fold.by_lesion) == (
            first.tolerance_mm,
            first.by_lesion,
        )
        if not has_same_rule or not has_same_settings:
            raise DataError(
                fold.folder,
                f"was evaluated by another rule than {first.folder}",
                "evaluate all alike",
            )
        # The order of the classes counts as well.
        if list(fold.prediction["classes"].items()) != list(first.prediction["classes"].items()):
            raise DataError(
                fold.folder,
                f"has other classes than {first.folder}",
                "expected folds of one setting",
            )


def _refuse_shared_cases(folds: Sequence[Fold]) -> None:
    """Refuse runs that hold out the same case or subject: they are not folds of one split."""
    folder_of: dict[str, Path] = {}
    for fold in folds:
        names: set[str] = set()
        for case in fold.held_out:
            names |= {f"case {case.case_id}", f"subject {case.subject_id}"}
        for name in sorted(names):
            if name in folder_of:
                raise DataError(
                    fold.folder,
                    f"{name} is held out in two of {len(folds)} runs, also in {folder_of[name]}",
                    "expected one fold each",
                )
        folder_of |= dict.fromkeys(names, fold.folder)


def _warn_of_remaining_cases(folds: Sequence[Fold]) -> None:
    """Warn of labelled cases that no run held out, as where a fold was not trained."""
    if len(folds) == 1:
        return  # a fixed split
    labelled: set[str] = set()
    held_out: set[str] = set()
    for fold in folds:
        # A manifest lists all cases of the split, those of the other folds too.
        for case in fold.cases:
            if case.labels:
                labelled.add(case.case_id)
        for case in fold.held_out:
            held_out.add(case.case_id)
    remaining = sorted(labelled - held_out)
    if remaining:
        names = ", ".join(remaining[:N_NAMED])
        if len(remaining) > N_NAMED:
            names += ", …"
        logger.warning(
            "%d of %d labelled cases (%s) have no held-out prediction in these %d runs; "
            "finish the missing folds",
            len(remaining),
            len(labelled),
            names,
            len(folds),
        )


def _link_predictions(fold: Fold, target: Path) -> None:
    """Give each file of the held-out cases a second name in the cohort; copy where that fails."""
    source = fold.folder / "predictions"
    for case in fold.held_out:
        by_class = prediction_files(source, case.case_id, list(fold.prediction["classes"]))
        for files in by_class.values():
            for file in (files.probability, files.mask):
                if not file.is_file():
                    raise DataError(
                        file, "no such file", "expected all predictions of a finished run"
                    )
                link_file(file, target / file.name)


def link_file(file: Path, link: Path) -> None:
    """Give a file a second name; copy it where the file system cannot."""
    # An earlier cohort may have linked a file that the run has replaced since.
    link.unlink(missing_ok=True)
    try:
        os.link(file, link)
    except OSError:  # another disk, or a file system without links
        shutil.copy2(file, link)


def _common_settings(folds: Sequence[Fold]) -> dict[str, Any]:
    """Describe the predictions of all folds as one: settings that they share, the mean threshold.

    The masks of each fold already lack its small and weak lesions. The least of their sizes and
    peaks remove no more.
    """
    checkpoints: list[Any] = []
    temperatures: list[Any] = []
    for fold in folds:
        checkpoints.append(fold.prediction.get("checkpoint"))
        temperatures.append(fold.prediction.get("temperature"))
    settings = {**folds[0].prediction, "checkpoint": checkpoints, "temperature": None}
    if any(temperature is not None for temperature in temperatures):
        settings["temperature"] = temperatures
    for key, common in (("threshold", fmean), ("min_volume_mm3", min), ("min_peak", min)):
        # With several classes each has its own: {"liver": 0.4, "tumour": 0.7}
        by_class: dict[str, float] = {}
        for name in settings["classes"]:
            by_class[name] = common([_of_class(fold, key, name) for fold in folds])
        settings[key] = unwrap_single(by_class)
    return settings


def _of_class(fold: Fold, key: str, name: str) -> float:
    """Read a setting of one class; 0 where nothing is removed or folders of before lack it."""
    value = fold.prediction.get(key) or 0.0
    return float(value[name] if isinstance(value, Mapping) else value)
