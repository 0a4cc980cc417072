"""Inference: a network over whole volumes by sliding windows, and masks of many cases."""

from tversky_seg.inference.predict import predict_case, predict_cases
from tversky_seg.inference.settings import Inference
from tversky_seg.inference.sliding_window import SlidingWindow, predict_volume
from tversky_seg.inference.window_weights import gaussian_window, spline_window

__all__ = [
    "Inference",
    "SlidingWindow",
    "gaussian_window",
    "predict_case",
    "predict_cases",
    "predict_volume",
    "spline_window",
]
