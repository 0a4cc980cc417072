"""Masks drawn by hand, rules of published evaluations, and the scores of lesions."""

from pathlib import Path

import numpy as np
import yaml

from tversky_seg.metrics.froc import LesionScores, lesion_scores
from tversky_seg.metrics.lesion_rule import LesionRule
from tversky_seg.metrics.lesions import match_lesions

RULES = Path(__file__).parents[2] / "configs" / "evaluation"


def draw(*boxes, shape=(12, 12, 12)):
    """Draw a mask of boxes, each given as slices or indices."""
    mask = np.zeros(shape, bool)
    for box in boxes:
        mask[box] = True
    return mask


def published_rule(word) -> LesionRule:
    """Read the lesion rule of `evaluation=<word>`."""
    settings = yaml.safe_load((RULES / "default.yaml").read_text(encoding="utf-8"))["rule"]
    del settings["_target_"]
    preset = yaml.safe_load((RULES / f"{word}.yaml").read_text(encoding="utf-8"))
    settings |= preset["rule"]
    settings.pop("_target_", None)
    return LesionRule(**settings)


def score_lesions(probability, reference, *, spacing_mm=(1.0, 1.0, 1.0)) -> LesionScores:
    """Score the lesions of one case, those of `probability >= 0.5`."""
    prediction = probability >= 0.5
    return lesion_scores(
        match_lesions(prediction, reference, spacing_mm=spacing_mm, scores=probability)
    )
