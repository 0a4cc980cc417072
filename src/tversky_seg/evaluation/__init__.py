"""Evaluation: saved predictions against the labels of a manifest."""

from tversky_seg.evaluation.evaluator import evaluate
from tversky_seg.metrics.by_lesion import LesionSettings
from tversky_seg.metrics.case_metrics import METRICS
from tversky_seg.metrics.lesion_rule import LesionRule

__all__ = ["METRICS", "LesionRule", "LesionSettings", "evaluate"]
