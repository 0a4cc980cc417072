"""Evaluation of one case: each class of its prediction against its label."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.case import Case
from tversky_seg.data.nifti import Volume, read_label, read_volume
from tversky_seg.data.preprocessing.rater_votes import majority, staple
from tversky_seg.evaluation.brain_regions import is_mni, regions_of_lesions
from tversky_seg.evaluation.criteria import Criteria
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
    between_raters: dict[int, dict[str, list[CaseMetrics]]] = field(default_factory=dict)
    """Number of a label column -> class name -> metrics of what that rater drew against each other
    rater, without surface distances."""
    consensus: dict[str, CaseMetrics] = field(default_factory=dict)
    """Class name -> metrics against the consensus of the raters; empty for a single rater."""

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
    criteria: Criteria,
) -> CaseResult:
    """Evaluate the saved prediction of one case on the grid of its label.

    Args:
        source: Folder of predictions.
        case: Case with a label.
        criteria: What it is measured by.

    Raises:
        DataError: The prediction or a label is missing, damaged or on another grid, or a label
            holds values that belong to no class.
    """
    reference, labels, ignored = _read_labels(case, source)
    rule = criteria.rule
    evaluate = partial(
        evaluate_class,
        spacing_mm=reference.spacing_mm,
        rule=rule,
        tolerance_mm=criteria.tolerance_mm,
    )
    result = CaseResult(case, reference.affine, classes={}, raters={})
    for name, values in source.classes.items():
        # Each class is a mask of its own, so that nested classes need no special case.
        prediction = source.read(case, name, reference=reference)
        drawn = {number: np.isin(label.data, values) for number, label in labels.items()}
        of_class = evaluate(prediction, drawn[1], ignored=ignored[1], by_lesion=criteria.by_lesion)
        if is_mni(case.space):
            mask, target = (_without(each, ignored[1]) for each in (prediction.mask, drawn[1]))
            of_class = _with_regions(of_class, mask, target, reference.affine, rule=rule)
        result.classes[name] = of_class
        if len(drawn) > 1:
            method = criteria.consensus
            _add_raters(result, name, prediction, drawn, ignored, evaluate, method=method)
        single = _single_raters(case, drawn)
        if len(single) > 1:
            pairs = _between_raters(single, ignored, spacing_mm=reference.spacing_mm, rule=rule)
            for number, metrics in pairs.items():
                result.between_raters.setdefault(number, {})[name] = metrics
    return result


def _read_labels(
    case: Case, source: Predictions
) -> tuple[Volume, dict[int, Volume], dict[int, Mask | None]]:
    """Read the labels of a case, and the voxels that count against none of them.

    Returns:
        The reference; number of a label column -> label, of which 1 is the reference; and number
        -> mask of voxels that do not count.
    """
    assert case.label is not None
    # The first label is the reference; further ones belong to single raters.
    reference = read_reference(case.label, source)
    labels = {1: reference}
    ignored = {1: find_ignored(case, reference, source)}
    for number, path in enumerate(case.labels[1:], start=2):
        labels[number] = _read_other_label(path, reference, source)
        # What the reference says does not count, counts against no rater.
        ignored[number] = _united([ignored[1], find_ignored(case, labels[number], source)])
    return reference, labels, ignored


def _add_raters(
    result: CaseResult,
    name: str,
    prediction: Prediction,
    drawn: Mapping[int, Mask],
    ignored: Mapping[int, Mask | None],
    evaluate: Callable[..., ClassResult],
    *,
    method: str,
) -> None:
    """Add the metrics of one class against each rater, and against their consensus."""
    against_reference = result.classes[name].metrics
    for number, mask in drawn.items():
        if number > 1:
            # The same mask is compared with each rater, as the challenges do.
            against_rater = evaluate(prediction, mask, ignored=ignored[number])
            result.raters.setdefault(number, {})[name] = against_rater.metrics
    if result.case.consensus:
        # A consensus of one rater is none.
        if len(drawn) > 2:
            result.consensus[name] = against_reference
        return
    # The first label is one rater's too.
    result.raters.setdefault(1, {})[name] = against_reference
    agreed = _consensus_of(list(drawn.values()), method)
    against_consensus = evaluate(prediction, agreed, ignored=_united(list(ignored.values())))
    result.consensus[name] = against_consensus.metrics


def _single_raters(case: Case, drawn: Mapping[int, Mask]) -> dict[int, Mask]:
    """Leave out the first label where it is the consensus of the others."""
    return {number: mask for number, mask in drawn.items() if number > 1 or not case.consensus}


def _between_raters(
    drawn: Mapping[int, Mask],
    ignored_by: Mapping[int, Mask | None],
    *,
    spacing_mm: tuple[float, float, float],
    rule: LesionRule,
) -> dict[int, list[CaseMetrics]]:
    """Compare what each rater drew, as a prediction, with what each other drew."""
    by_rater: dict[int, list[CaseMetrics]] = {}
    for number, mask in sorted(drawn.items()):
        by_rater[number] = []
        for other, reference in sorted(drawn.items()):
            if other == number:
                continue
            # n raters make n (n - 1) pairs: surface distances would take longest of all.
            metrics, _ = measure_case(
                mask,
                reference,
                spacing_mm=spacing_mm,
                rule=rule,
                with_distances=False,
                ignored=_united([ignored_by[number], ignored_by[other]]),
            )
            by_rater[number].append(metrics)
    return by_rater


def _consensus_of(masks: Sequence[Mask], method: str) -> Mask:
    if method == "staple":
        consensus: Mask = staple([mask[None] for mask in masks], key="evaluation.consensus")[0]
        return consensus
    return majority(masks)


def _without(mask: Mask, ignored: Mask | None) -> Mask:
    return mask if ignored is None else mask & ~ignored


def _united(masks: Sequence[Mask | None]) -> Mask | None:
    """Unite masks of which some may be missing; None where all are."""
    given = [mask for mask in masks if mask is not None]
    if not given:
        return None
    united: Mask = np.logical_or.reduce(given)
    return united


def find_ignored(case: Case, label: Volume, source: Predictions) -> Mask | None:
    """Find the voxels that do not count: those of the case's mask, and the label's own.

    Returns:
        (X, Y, Z) mask on the grid of the label; None where all voxels count.

    Raises:
        DataError: The mask cannot be read, or lies on another grid.
    """
    ignored = np.zeros(label.shape, dtype=bool)
    if source.ignore:
        ignored |= np.isin(label.data, source.ignore)
    if case.ignore_mask is not None:
        mask = read_volume(case.ignore_mask)
        check_grid(mask, label, path=case.ignore_mask)
        ignored |= mask.data > 0.5
    return ignored if ignored.any() else None


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
    ignored: Mask | None = None,
) -> ClassResult:
    """Evaluate the prediction of one class.

    Args:
        prediction: Mask of the class, with its probability where there is one.
        target: Mask of the reference, of the same shape.
        spacing_mm: Size of a voxel per axis, in mm.
        rule: Rule of what a lesion is and when it counts as detected.
        tolerance_mm: Distance up to which surfaces agree, for the surface Dice.
        by_lesion: Settings of the metrics by lesion; None: they are NaN.
        ignored: Voxels of the same shape that do not count; None: all count.
    """
    # Where nothing counts, nothing is drawn and nothing predicted.
    mask = _without(prediction.mask, ignored)
    target = _without(target, ignored)
    metrics, match = measure_case(
        mask,
        target,
        spacing_mm=spacing_mm,
        rule=rule,
        tolerance_mm=tolerance_mm,
        scores=prediction.probability,
        by_lesion=by_lesion,
        ignored=ignored,
    )
    result = ClassResult(metrics, match, None, None, prediction.shift_voxels)
    if prediction.probability is None:
        return result
    # Probabilities are saved in 16 bits, so 65,536 bins rank the voxels exactly, and the
    # histograms of a thousand cases add up to one of the same size.
    levels = to_levels(prediction.probability)
    result = _with_histograms(result, levels, target, spacing_mm=spacing_mm, ignored=ignored)
    if ignored is not None:
        levels = np.where(ignored, np.uint16(0), levels)
    # FROC ranks lesions by their probabilities, which a bare mask does not have.
    return replace(
        result,
        scores=lesion_scores(match),
        scores_by_centre=centre_scores(match, spacing_mm=spacing_mm),
        doubts=lesion_doubts(levels, mask, target, connectivity=rule.connectivity),
        voxel_retention_area=voxel_retention(levels, mask, target).area,
    )


def _with_histograms(
    result: ClassResult,
    levels: NDArray[np.uint16],
    target: Mask,
    *,
    spacing_mm: tuple[float, float, float],
    ignored: Mask | None,
) -> ClassResult:
    """Add the histograms of the voxels that count, and the ranking that follows from them."""
    near = near_lesions(target, spacing_mm)
    if ignored is None:
        histogram = levels_histogram(levels, target)
    else:
        near &= ~ignored
        histogram = levels_histogram(levels[~ignored], target[~ignored])
    return replace(
        result,
        metrics=replace(result.metrics, ranking=ranking_from_histogram(histogram)),
        histogram=histogram,
        near_histogram=levels_histogram(levels[near], target[near]),
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
