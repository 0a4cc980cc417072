"""Judging a network while it trains: whole volumes, the published measures, threshold and smallest lesion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from tversky_seg.data.preprocessing.prepared_case import PreparedCase
from tversky_seg.inference.operating_point import OperatingPoint, ScoredCase, choose_operating_point
from tversky_seg.inference.settings import Inference
from tversky_seg.inference.sliding_window import predict_by_windows
from tversky_seg.metrics.case_metrics import mean_metrics, measure_case
from tversky_seg.metrics.lesion_rule import LesionRule
from tversky_seg.metrics.lesions import remove_small_lesions
from tversky_seg.metrics.masks import Mask
from tversky_seg.metrics.score_histogram import N_LEVELS, levels_histogram, to_levels
from tversky_seg.report.slices import slice_pictures
from tversky_seg.runtime.distributed import map_over_ranks

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


@dataclass(frozen=True)
class Validation:
    """Result of a validation on whole volumes."""

    measures: Mapping[str, float]
    threshold: float | dict[str, float] = 0.5
    pictures: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    min_volume_mm3: float | dict[str, float] = 0.0


def check_monitor(monitor: str, *, classes: Sequence[str]) -> None:
    """Refuse a measure that validation does not give, or of which more is worse.

    Raises:
        ValueError: naming those that can be monitored.
    """
    by_class = (
        [f"{name}/{measure}" for name in classes for measure in MONITORED]
        if len(classes) > 1
        else []
    )
    if monitor not in (*MONITORED, *by_class):
        raise ValueError(
            f"trainer.monitor: {monitor}; expected one of {', '.join((*MONITORED, *by_class))}"
        )


def validate(
    network: nn.Module,
    *,
    cases: Sequence[PreparedCase],
    classes: Sequence[str],
    inference: Inference,
    precision: str = "fp32",
) -> Validation:
    """Predict the validation cases, choose threshold and smallest lesion on them, and measure with these.

    Args:
        network: In training; it is put back as it was.
        cases: Prepared and labelled, at least one.
        classes: Names of the network's outputs.
        inference: Windows and views, as in the final prediction; its goal, and what it leaves to be chosen.
        precision: As in training.

    Returns:
        Mean measures (docs/metrics.md) on the grid that the network sees, threshold and smallest lesion, and a slice of
        the first case with reference and prediction outlined.
    """
    probabilities = map_over_ranks(
        cases, lambda case: _probability(network, case, inference, precision)
    )
    scored = [
        _score(case, probability) for case, probability in zip(cases, probabilities, strict=True)
    ]
    points = {
        name: _choose([of_case[k] for of_case in scored], name, inference)
        for k, name in enumerate(classes)
    }
    masks = [
        [_mask(of_class, point) for of_class, point in zip(case, points.values(), strict=True)]
        for case in scored
    ]
    by_class = {
        name: mean_metrics(
            [_measures(case[k], mask[k]) for case, mask in zip(scored, masks, strict=True)]
        )
        for k, name in enumerate(classes)
    }
    measures = mean_metrics(list(by_class.values()))
    if len(classes) > 1:
        measures |= {
            f"{name}/{measure}": value
            for name in classes
            for measure, value in by_class[name].items()
        }
    return Validation(
        measures,
        threshold=_one({name: point.threshold for name, point in points.items()}),
        min_volume_mm3=_one({name: point.min_volume_mm3 for name, point in points.items()}),
        pictures=_pictures(cases[0], np.stack(masks[0])),
    )


def _probability(
    network: nn.Module, case: PreparedCase, inference: Inference, precision: str
) -> Tensor:
    return predict_by_windows(
        network,
        case.image,
        inference.windows,
        foreground=case.foreground,
        image_scale=case.image_scale,
        precision=precision,
    )


def _score(case: PreparedCase, probability: Tensor) -> list[ScoredCase]:
    """The prediction of a case beside its reference, class by class: 3 bytes a voxel."""
    assert case.target is not None
    return [
        ScoredCase(to_levels(of_class), np.asarray(target) > 0, case.spacing_mm)
        for of_class, target in zip(probability.numpy(), case.target, strict=True)
    ]


def _choose(cases: Sequence[ScoredCase], name: str, inference: Inference) -> OperatingPoint:
    """What is set stays; the rest is chosen for the goal."""
    threshold = None if inference.threshold is None else inference.threshold_of(name)
    min_volume_mm3 = None if inference.min_volume_mm3 is None else inference.min_volume_of(name)
    return choose_operating_point(
        cases, goal=inference.goal, threshold=threshold, min_volume_mm3=min_volume_mm3
    )


def _mask(case: ScoredCase, point: OperatingPoint) -> Mask:
    mask: Mask = case.levels >= point.threshold * (N_LEVELS - 1)
    return remove_small_lesions(
        mask, spacing_mm=case.spacing_mm, min_volume_mm3=point.min_volume_mm3
    )


def _measures(case: ScoredCase, mask: Mask) -> dict[str, float]:
    """The published measures but the distances."""
    found, _ = measure_case(
        mask, case.reference, spacing_mm=case.spacing_mm, rule=LesionRule(), with_distances=False
    )
    histogram = levels_histogram(case.levels, case.reference)
    return found.metrics() | {"pr_auc": histogram.average_precision()}


def _pictures(case: PreparedCase, mask: Mask) -> dict[str, np.ndarray[Any, Any]]:
    slices = slice_pictures(
        case.image[0], mask, np.asarray(case.target) > 0, spacing_mm=case.spacing_mm
    )
    return {
        f"{case.case_id}/{caption.split(':')[-1].strip()}": picture
        for caption, picture in slices.items()
    }


def _one(by_class: dict[str, float]) -> float | dict[str, float]:
    """The value itself where there is one class."""
    return by_class if len(by_class) > 1 else next(iter(by_class.values()))
