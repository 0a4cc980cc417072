"""Prediction: a network over whole volumes by overlapping windows, and what becomes of its output."""

from tversky_seg.inference.predict import Inference, predict_case, predict_cases
from tversky_seg.inference.sliding_window import gaussian_window, predict_volume, spline_window

__all__ = [
    "Inference",
    "gaussian_window",
    "predict_case",
    "predict_cases",
    "predict_volume",
    "spline_window",
]
