"""Evaluation of one case: each class of its prediction against its label."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.case import Case
from tversky_seg.data.nifti import Volume, read_label
from tversky_seg.evaluation.brain_regions import is_mni, regions_of_lesions
from tversky_seg.evaluation.saved_predictions import (
    Prediction,
    Predictions,
    check_grid,
    check_values,
)
from tversky_seg.metrics.by_lesion import LesionSettings
from tversky_seg.metrics.case_metrics import CaseMetrics, measure_case, ranking_from_histogram
from tversky_seg.metrics.froc import LesionScores, centre_scores, lesion_scores
from tversky_seg.metrics.lesion_rule import LesionRule
from tversky_seg.metrics.lesions import LesionMatch
from tversky_seg.metrics.masks import Mask
from tversky_seg.metrics.retention import LesionDoubts, lesion_doubts, voxel_retention
from tversky_seg.metrics.score_histogram import ScoreHistogram, levels_histogram, to_levels
from tversky_seg.metrics.temperature import near_lesions


@dataclass(frozen=True, eq=False)
class LesionRegions:
    """Where the lesions of one case lie, as names of `REGIONS`."""

    predicted: list[str]
    """One for each row of the match's predicted lesions."""
    reference: list[str]
    """One for each row of its reference lesions."""


@dataclass(frozen=True, eq=False)
class ClassResult:
    """One class of one evaluated case."""

    metrics: CaseMetrics
    match: LesionMatch
    """Lesions of both masks, and which of them overlap."""
    histogram: ScoreHistogram | None
    """Voxels by saved probability; None for a mask without probabilities."""
    near_histogram: ScoreHistogram | None
    """Those of reference lesions and around them; see `near_lesions`."""
    shift_voxels: float
    """Distance between the grids of prediction and reference."""
    scores: LesionScores | None = None
    """Scores of the lesions, which detect each other by overlap; None without probabilities."""
    scores_by_centre: LesionScores | None = None
    """The same, where lesions detect each other by the distance of their centres (LUNA16)."""
    regions: LesionRegions | None = None
    """None where nothing says that the case lies in MNI space."""
    doubts: LesionDoubts | None = None
    """Predicted lesions and how doubtful they are; None without probabilities."""
    voxel_retention_area: float = math.nan
    """Area under the error-retention curve of the voxels; NaN without probabilities or lesion."""


@dataclass(frozen=True, eq=False)
class CaseResult:
    """One evaluated case."""

    case: Case
    affine: NDArray[np.float64]
    """(4, 4) voxels to mm, of the reference."""
    classes: dict[str, ClassResult]
    """Class name -> result."""
    raters: dict[int, dict[str, CaseMetrics]]
    """Number of a label column (1 for label, 2 for label_2, …) -> class name -> metrics against
    what that rater drew. Empty for a case with a single label; a consensus is not a rater."""

    @property
    def metrics(self) -> dict[str, CaseMetrics]:
        """Class name -> metrics."""
        return {name: of_class.metrics for name, of_class in self.classes.items()}

    @property
    def shift_voxels(self) -> float:
        """Largest distance between the grids of a prediction and the reference."""
        return max(of_class.shift_voxels for of_class in self.classes.values())


def evaluate_case(
    source: Predictions,
    case: Case,
    *,
    rule: LesionRule,
    tolerance_mm: float,
    by_lesion: LesionSettings,
) -> CaseResult:
    """Evaluate the saved prediction of one case on the grid of its label.

    Args:
        source: Folder of predictions.
        case: Case with a label.
        rule: Rule of what a lesion is and when it counts as detected.
        tolerance_mm: Distance up to which surfaces agree, for the surface Dice.
        by_lesion: Settings of the metrics by lesion, which raters do not get.

    Raises:
        DataError: The prediction or a label is missing, damaged or on another grid, or a label
            holds values that belong to no class.
    """
    assert case.label is not None
    # The first label is the reference; further ones belong to single raters.
    reference = read_reference(case.label, source)
    other_labels: dict[int, Volume] = {}
    for number, path in enumerate(case.labels[1:], start=2):
        other_labels[number] = _read_other_label(path, reference, source)

    classes: dict[str, ClassResult] = {}
    raters: dict[int, dict[str, CaseMetrics]] = {number: {} for number in other_labels}
    for name, values in source.classes.items():
        # Each class is a mask of its own, so that nested classes need no special case.
        prediction = source.read(case, name, reference=reference)
        target = np.isin(reference.data, values)
        classes[name] = evaluate_class(
            prediction,
            target,
            spacing_mm=reference.spacing_mm,
            rule=rule,
            tolerance_mm=tolerance_mm,
            by_lesion=by_lesion,
        )
        if is_mni(case.space):
            classes[name] = _with_regions(
                classes[name], prediction.mask, target, reference.affine, rule=rule
            )
        for number, label in other_labels.items():
            # The same mask is compared with each rater, as the challenges do.
            against_rater = evaluate_class(
                prediction,
                np.isin(label.data, values),
                spacing_mm=reference.spacing_mm,
                rule=rule,
                tolerance_mm=tolerance_mm,
            )
            raters[number][name] = against_rater.metrics

    result = CaseResult(case, reference.affine, classes, raters)
    if other_labels and not case.consensus:
        # The first label is one rater's too.
        raters[1] = result.metrics
    return result


def read_reference(path: Path, source: Predictions) -> Volume:
    """Read a label file.

    Raises:
        DataError: It cannot be read, or holds values that belong to no class.
    """
    reference = read_label(path)
    check_values(reference.data, path, source)
    return reference


def _read_other_label(path: Path, reference: Volume, source: Predictions) -> Volume:
    label = read_reference(path, source)
    check_grid(label, reference, path=path)
    return label


def evaluate_class(
    prediction: Prediction,
    target: Mask,
    *,
    spacing_mm: tuple[float, float, float],
    rule: LesionRule,
    tolerance_mm: float,
    by_lesion: LesionSettings | None = None,
) -> ClassResult:
    """Evaluate the prediction of one class.

    Args:
        prediction: Mask of the class, with its probability where there is one.
        target: Mask of the reference, of the same shape.
        spacing_mm: Size of a voxel per axis, in mm.
        rule: Rule of what a lesion is and when it counts as detected.
        tolerance_mm: Distance up to which surfaces agree, for the surface Dice.
        by_lesion: Settings of the metrics by lesion; None: they are NaN.
    """
    metrics, match = measure_case(
        prediction.mask,
        target,
        spacing_mm=spacing_mm,
        rule=rule,
        tolerance_mm=tolerance_mm,
        scores=prediction.probability,
        by_lesion=by_lesion,
    )
    histogram = near_histogram = scores = scores_by_centre = doubts = None
    voxel_retention_area = math.nan
    if prediction.probability is not None:
        # Probabilities are saved in 16 bits, so 65,536 bins rank the voxels exactly, and the
        # histograms of a thousand cases add up to one of the same size.
        levels = to_levels(prediction.probability)
        histogram = levels_histogram(levels, target)
        near = near_lesions(target, spacing_mm)
        near_histogram = levels_histogram(levels[near], target[near])
        metrics = replace(metrics, ranking=ranking_from_histogram(histogram))
        # FROC ranks lesions by their probabilities, which a bare mask does not have.
        scores = lesion_scores(match)
        scores_by_centre = centre_scores(match, spacing_mm=spacing_mm)
        doubts = lesion_doubts(levels, prediction.mask, target, connectivity=rule.connectivity)
        voxel_retention_area = voxel_retention(levels, prediction.mask, target).area
    return ClassResult(
        metrics,
        match,
        histogram,
        near_histogram,
        prediction.shift_voxels,
        scores=scores,
        scores_by_centre=scores_by_centre,
        doubts=doubts,
        voxel_retention_area=voxel_retention_area,
    )


def _with_regions(
    of_class: ClassResult,
    mask: Mask,
    target: Mask,
    affine: NDArray[np.float64],
    *,
    rule: LesionRule,
) -> ClassResult:
    """Add where the lesions lie."""
    match = of_class.match
    predicted = regions_of_lesions(match.predicted, mask, affine, connectivity=rule.connectivity)
    reference = regions_of_lesions(match.reference, target, affine, connectivity=rule.connectivity)
    return replace(of_class, regions=LesionRegions(predicted, reference))
