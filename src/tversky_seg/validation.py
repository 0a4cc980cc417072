"""Judging a network while it trains: whole volumes, the published measures, the threshold that suits it best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import nn

from tversky_seg.data.prepared import PreparedCase
from tversky_seg.evaluation import validation_measures
from tversky_seg.inference import Inference, predict_volume
from tversky_seg.report import slice_pictures
from tversky_seg.training import Validation

MONITORED = ("dice", "sensitivity", "specificity", "precision", "f2", "pr_auc", "lesion_tpr", "lesion_f1")


def check_monitor(monitor: str, *, classes: Sequence[str]) -> None:
    """Refuse a measure that validation does not give, or of which more is worse.

    Raises:
        ValueError: naming those that can be monitored.
    """
    by_class = [f"{name}/{measure}" for name in classes for measure in MONITORED] if len(classes) > 1 else []
    if monitor not in (*MONITORED, *by_class):
        raise ValueError(f"trainer.monitor: {monitor}; expected one of {', '.join((*MONITORED, *by_class))}")


def validate(
    network: nn.Module,
    *,
    cases: Sequence[PreparedCase],
    classes: Sequence[str],
    inference: Inference,
    goal: str = "dice",
    precision: str = "fp32",
) -> Validation:
    """Predict the validation cases, choose the threshold that maximises `goal` on them, and measure at it.

    Args:
        network: In training; it is put back as it was.
        cases: Prepared and labelled, at least one.
        classes: Names of the network's outputs.
        inference: Windows, as in the final prediction.
        goal: `dice` or `f2`.
        precision: As in training.

    Returns:
        Mean measures (docs/metrics.md) on the grid that the network sees, the threshold, and a slice of the first
        case with reference and prediction outlined.
    """
    shown: list[np.ndarray[Any, Any]] = []

    def pairs() -> Iterator[tuple[Any, Any, Any]]:
        for case in cases:
            image = np.multiply(case.image, case.image_scale[:, None, None, None], dtype=np.float32)
            windows = {**inference.windows, "foreground": case.foreground, "precision": precision}
            probability = predict_volume(network, image, **windows).numpy()
            if not shown:
                shown.append(probability)
            yield probability, case.target, case.spacing_mm

    measures, threshold = validation_measures(pairs(), classes=classes, goal=goal)
    by_class = [threshold[name] if isinstance(threshold, dict) else threshold for name in classes]
    mask = shown[0] >= np.reshape(by_class, (-1, 1, 1, 1))
    first = cases[0]
    slices = slice_pictures(first.image[0], mask, np.asarray(first.target) > 0, spacing_mm=first.spacing_mm)
    pictures = {f"{first.case_id}/{caption.split(':')[-1].strip()}": picture for caption, picture in slices.items()}
    return Validation(measures, threshold, pictures)
