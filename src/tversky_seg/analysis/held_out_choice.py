"""Operating points from held-out predictions, for cohorts too small to validate on.

The cases of each fold were predicted by a network that never saw them. The masks of fold k are made
at the point that serves best on the held-out cases of all other folds, so its own cases have no say
in it; that is what an evaluation of new cases may expect. The ensemble of all folds gets the point
that serves best on all held-out cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tversky_seg.analysis.cross_validation import Fold, evaluate_cohort_of, link_file, read_folds
from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import read_volume, write_volume
from tversky_seg.evaluation.case_result import read_reference
from tversky_seg.evaluation.saved_predictions import open_predictions
from tversky_seg.inference.held_out_point import POINT_FILE
from tversky_seg.inference.operating_point import (
    OperatingPoint,
    ScoredCase,
    as_settings,
    choose_operating_point,
)
from tversky_seg.inference.prediction_folder import class_prediction, prediction_files
from tversky_seg.metrics.score_histogram import to_levels
from tversky_seg.runtime.files import write_json

HELD_OUT_FOLDER = "held_out"
Points = Mapping[str, OperatingPoint]
"""Class -> operating point."""
Scored = Mapping[str, Sequence[ScoredCase]]
"""Class -> its held-out cases."""


@dataclass(frozen=True)
class HeldOutChoice:
    """What was chosen for the folds and for their ensemble."""

    goal: str
    points: Points
    """Of the ensemble."""
    points_of_folds: Mapping[str, Points]
    """Name of the run -> its points."""
    metrics: Mapping[str, Any]
    """metrics.json of the held-out cases, each at the point of its fold."""


def choose_on_held_out(
    runs: Sequence[Path], output_dir: Path, *, goal: str | None = None
) -> HeldOutChoice:
    """Choose threshold, smallest lesion and lowest peak on the held-out predictions of all folds.

    Args:
        runs: Finished run directories of one setting, one for each fold, at least two.
        output_dir: Folder of the runs. It gets held_out/ (the predictions and their evaluation as
            one cohort) and, last, operating_point.json, which `predict checkpoint=<output_dir>`
            reads.
        goal: As `inference.goal`; None: that of the runs.

    Returns:
        The points and the evaluation at them.

    Raises:
        DataError: Fewer than two folds, or as `evaluate_folds`.
        ValueError: The goal is unknown.
    """
    folds = read_folds(runs)
    if len(folds) < 2:
        raise DataError(
            output_dir,
            f"{len(folds)} finished fold",
            "expected two or more, as of tversky-seg train -m data.fold=0,1,2",
        )
    goal = goal or _goal_of(folds[0])
    scored = [_score_held_out(fold) for fold in folds]
    points_of_folds: dict[str, Points] = {}
    for number, fold in enumerate(folds):
        of_others = scored[:number] + scored[number + 1 :]
        points_of_folds[fold.folder.name] = _choose(of_others, goal)
    metrics = evaluate_cohort_of(
        [_at_point(fold, points_of_folds[fold.folder.name]) for fold in folds],
        output_dir / HELD_OUT_FOLDER,
        add_predictions=partial(_write_predictions, points_of_folds=points_of_folds),
        made_with={"goal": goal},
    )
    choice = HeldOutChoice(goal, _choose(scored, goal), points_of_folds, metrics)
    write_json(output_dir / POINT_FILE, _as_json(choice, folds))
    return choice


def _goal_of(fold: Fold) -> str:
    """Read the goal of a run; "dice" where its settings name none."""
    path = fold.folder / "config.yaml"
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        return str(settings["inference"]["goal"])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        # A run of before there was a goal.
        return "dice"


def _score_held_out(fold: Fold) -> Scored:
    """Read probability and reference of the held-out cases of a fold."""
    source = open_predictions(fold.folder / "predictions")
    scored: dict[str, list[ScoredCase]] = {name: [] for name in source.classes}
    for case in fold.held_out:
        assert case.label is not None
        reference = read_reference(case.label, source)
        for name, values in source.classes.items():
            probability = source.read(case, name, reference=reference).probability
            if probability is None:
                expected = "expected the probabilities of a finished run"
                raise DataError(fold.folder, f"has no probability of {case.case_id}", expected)
            of_class = np.isin(reference.data, values)
            scored[name].append(ScoredCase(to_levels(probability), of_class, reference.spacing_mm))
    return scored


def _choose(scored: Sequence[Scored], goal: str) -> Points:
    """Choose the points of all classes on the cases of some folds."""
    points: dict[str, OperatingPoint] = {}
    for name in scored[0]:
        cases: list[ScoredCase] = []
        for of_fold in scored:
            cases += of_fold[name]
        points[name] = choose_operating_point(cases, goal=goal)
    return points


def _at_point(fold: Fold, points: Points) -> Fold:
    """Describe the predictions of a fold as made at other points."""
    return replace(fold, prediction={**fold.prediction, **as_settings(points)})


def _write_predictions(fold: Fold, target: Path, *, points_of_folds: Mapping[str, Points]) -> None:
    """Link the probabilities of the held-out cases, and write their masks at the fold's points."""
    points = points_of_folds[fold.folder.name]
    classes = list(fold.prediction["classes"])
    for case in fold.held_out:
        sources = prediction_files(fold.folder / "predictions", case.case_id, classes)
        targets = prediction_files(target, case.case_id, classes)
        for name, files in sources.items():
            # A link: the probabilities are the same, only the masks differ.
            link_file(files.probability, targets[name].probability)
            volume = read_volume(files.probability)
            mask = class_prediction(
                volume.data, volume.affine, point=points[name], case_id=case.case_id
            ).mask
            write_volume(targets[name].mask, mask, volume.affine, like=files.probability)


def _as_json(choice: HeldOutChoice, folds: Sequence[Fold]) -> dict[str, Any]:
    checkpoints = []
    for fold in folds:
        checkpoints.append(fold.prediction.get("checkpoint"))
    of_folds = {name: as_settings(points) for name, points in choice.points_of_folds.items()}
    return {
        **as_settings(choice.points),
        "goal": choice.goal,
        "n_cases": choice.metrics["n_cases"],
        "folds": of_folds,
        "checkpoints": checkpoints,
    }
