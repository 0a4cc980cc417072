"""Validation on whole volumes: the operating point, and the published metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from operator import add
from typing import Any

import numpy as np
from torch import Tensor, nn

from tversky_seg.data.preprocessing.prepared_case import PreparedCase
from tversky_seg.inference.loaded_case import load_case
from tversky_seg.inference.operating_point import (
    DEFAULT_PEAK,
    OperatingPoint,
    ScoredCase,
    as_settings,
    choose_operating_point,
)
from tversky_seg.inference.settings import Inference
from tversky_seg.inference.sliding_window import device_of, predict_by_windows
from tversky_seg.metrics.averages import unwrap_single
from tversky_seg.metrics.case_metrics import mean_metrics, measure_case
from tversky_seg.metrics.lesion_rule import LesionRule
from tversky_seg.metrics.lesions import remove_small_lesions, remove_weak_lesions
from tversky_seg.metrics.masks import Mask
from tversky_seg.metrics.score_histogram import N_LEVELS, to_levels
from tversky_seg.metrics.temperature import (
    fit_temperature,
    logit_histogram,
    uncalibrated_threshold,
)
from tversky_seg.report.slices import slice_pictures
from tversky_seg.runtime.distributed import map_over_ranks, rank, world_size
from tversky_seg.runtime.overlap import OneBehind, map_in_threads, read_ahead

MONITORED = (
    "dice",
    "sensitivity",
    "specificity",
    "precision",
    "f2",
    "pr_auc",
    "lesion_tpr",
    "lesion_f1",
)
"""Metrics that can choose the best checkpoint: those of which more is better."""


@dataclass(frozen=True)
class Validation:
    """Result of a validation on whole volumes."""

    measures: Mapping[str, float]
    """Mean metrics by name, with several classes also as "liver/dice"."""

    threshold: float | dict[str, float] = 0.5
    """Chosen probability from which a voxel is lesion, or one for each class."""

    pictures: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    """Slices (height, width, 3) uint8, by caption."""

    min_volume_mm3: float | dict[str, float] = 0.0
    """Chosen minimum lesion size, or one for each class."""

    min_peak: float | dict[str, float] = DEFAULT_PEAK
    """Chosen probability that a lesion must reach, or one for each class."""

    temperature: float | dict[str, float] = 1.0
    """Fitted temperature, or one for each class; threshold and peak are those before it."""


def check_monitor(monitor: str, *, classes: Sequence[str]) -> None:
    """Check that validation measures `monitor`, and that more of it is better.

    Raises:
        ValueError: Otherwise, with the names that can be monitored.
    """
    choices = list(MONITORED)
    if len(classes) > 1:
        for name in classes:
            choices.extend(f"{name}/{measure}" for measure in MONITORED)
    if monitor not in choices:
        raise ValueError(f"trainer.monitor: {monitor}; expected one of {', '.join(choices)}")


def validate(
    network: nn.Module,
    *,
    cases: Sequence[PreparedCase],
    classes: Sequence[str],
    inference: Inference,
    precision: str = "fp32",
) -> Validation:
    """Predict the validation cases, choose the operating point on them, and measure.

    Args:
        network: Network in training; each module's mode is restored.
        cases: Prepared and labelled cases, at least one.
        classes: Names of the network's outputs.
        inference: Windows and views, as in the final prediction; the goal of the choice, and the
            values that are set and not chosen.
        precision: Precision of the forward pass, as in training.

    Returns:
        Mean metrics (docs/metrics.md) on the grid that the network sees, threshold, minimum lesion
        size and lowest peak, and a slice of the first case with reference and prediction outlined.
    """
    scored = _predict_and_score(network, cases, inference, precision)

    # One operating point for each class: a tumour's threshold is not that of the liver.
    points: dict[str, OperatingPoint] = {}
    temperatures: dict[str, float] = {}
    measures_of: dict[str, dict[str, float]] = {}
    masks_of_first_case = []
    for index, name in enumerate(classes):
        scored_class = [case[index] for case in scored]
        temperature = _fit_temperature(scored_class, name, inference)
        point = _choose_point(scored_class, name, inference, temperature=temperature)
        temperatures[name] = temperature
        points[name] = point
        measures = map_in_threads(partial(_measure, point=point), scored_class)
        masks_of_first_case.append(_mask(scored_class[0], point))
        measures_of[name] = mean_metrics(measures)

    return Validation(
        _with_class_names(measures_of),
        **as_settings(points),
        temperature=unwrap_single(temperatures),
        pictures=_pictures(cases[0], np.stack(masks_of_first_case)),
    )


def _predict_and_score(
    network: nn.Module, cases: Sequence[PreparedCase], inference: Inference, precision: str
) -> list[list[ScoredCase]]:
    """Predict all cases and put them next to their references, by case, then by class.

    While a GPU predicts a case, the next one is read and the last one scored.
    """
    device = device_of(network)
    in_thread = device.type != "cpu"
    own_cases = cases[rank() :: world_size()]
    reads = read_ahead(own_cases, partial(load_case, device=device), in_thread=in_thread)

    def predict(_: PreparedCase) -> Tensor:
        case = next(reads)()
        return predict_by_windows(
            network,
            case.image,
            inference.windows,
            foreground=case.foreground,
            image_scale=case.image_scale,
            precision=precision,
        )

    scored: list[list[ScoredCase]] = []

    def score(case: PreparedCase, probability: Tensor) -> None:
        scored.append(_score(case, probability))

    with OneBehind(in_thread=in_thread) as scoring:
        for case, probability in zip(cases, map_over_ranks(cases, predict), strict=True):
            scoring.start(partial(score, case, probability))
    return scored


def _score(case: PreparedCase, probability: Tensor) -> list[ScoredCase]:
    """Put each class's prediction next to its reference, in 3 bytes a voxel."""
    assert case.target is not None
    scored = []
    ignored = case.ignored
    for predicted, target in zip(probability.numpy(), case.target, strict=True):
        reference = np.asarray(target) > 0
        counted = case.foreground if ignored is None else case.foreground & ~ignored
        logits = logit_histogram(predicted, reference, counted)
        of_class = ScoredCase(to_levels(predicted), reference, case.spacing_mm, logits, ignored)
        _ = of_class.histogram  # counted here, while a GPU predicts the next case
        scored.append(of_class)
    return scored


def _fit_temperature(cases: Sequence[ScoredCase], name: str, inference: Inference) -> float:
    """Fit the temperature of a class to all brain voxels, unless it is set."""
    if inference.temperature is not None:
        return inference.temperature_of(name)
    # A threshold that is set keeps its meaning: that of the network's own probability.
    if inference.threshold is not None:
        return 1.0
    histograms = [case.logits for case in cases if case.logits is not None]
    return fit_temperature(reduce(add, histograms))


def _choose_point(
    cases: Sequence[ScoredCase], name: str, inference: Inference, *, temperature: float
) -> OperatingPoint:
    """Choose for the goal what `inference` leaves open; levels are those before the temperature."""
    threshold = None
    if inference.threshold is not None:
        threshold = uncalibrated_threshold(inference.threshold_of(name), temperature)
    min_volume_mm3 = None
    if inference.min_volume_mm3 is not None:
        min_volume_mm3 = inference.min_volume_of(name)
    min_peak = None
    if inference.min_peak is not None:
        min_peak = uncalibrated_threshold(inference.min_peak_of(name), temperature)
    return choose_operating_point(
        cases,
        goal=inference.goal,
        threshold=threshold,
        min_volume_mm3=min_volume_mm3,
        min_peak=min_peak,
    )


def _mask(case: ScoredCase, point: OperatingPoint) -> Mask:
    # Levels are 16-bit probabilities, as predictions are saved: 65535 means 1.
    mask: Mask = case.levels >= point.threshold * (N_LEVELS - 1)
    mask = remove_weak_lesions(mask, case.levels, min_score=point.min_peak * (N_LEVELS - 1))
    return remove_small_lesions(
        mask, spacing_mm=case.spacing_mm, min_volume_mm3=point.min_volume_mm3
    )


def _measure(case: ScoredCase, point: OperatingPoint) -> dict[str, float]:
    """Compute the published metrics, without surface distances, which take longest."""
    mask = _mask(case, point)
    case_metrics, _ = measure_case(
        mask,
        case.reference,
        spacing_mm=case.spacing_mm,
        rule=LesionRule(),
        with_distances=False,
        ignored=case.ignored,
    )
    # All thresholds at once, from counts at the 65,536 levels.
    return case_metrics.metrics() | {"pr_auc": case.histogram.average_precision()}


def _with_class_names(measures_of: Mapping[str, dict[str, float]]) -> dict[str, float]:
    """Average over classes, and add each of several classes' own metrics as "liver/dice"."""
    measures = mean_metrics(list(measures_of.values()))
    if len(measures_of) == 1:
        return measures
    for name, own_measures in measures_of.items():
        for measure, value in own_measures.items():
            measures[f"{name}/{measure}"] = value
    return measures


def _pictures(case: PreparedCase, mask: Mask) -> dict[str, np.ndarray[Any, Any]]:
    """Draw slices of a case, named "<case>/<reason>", as "c1/most missed"."""
    slices = slice_pictures(
        case.image[0], mask, np.asarray(case.target) > 0, spacing_mm=case.spacing_mm
    )
    pictures = {}
    for caption, picture in slices.items():
        # "slice 41: most missed" becomes "c1/most missed": one series of pictures in TensorBoard.
        reason = caption.split(":")[-1].strip()
        pictures[f"{case.case_id}/{reason}"] = picture
    return pictures
