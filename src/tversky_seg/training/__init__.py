"""Training: the trainer, its schedules, and validation on whole volumes."""

from tversky_seg.training.schedules import cosine, poly, steps
from tversky_seg.training.trainer import Trainer

__all__ = ["Trainer", "cosine", "poly", "steps"]
