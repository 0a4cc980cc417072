"""The ranges of a trainer's settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tversky_seg.training.compiling import check_compile
from tversky_seg.training.cuda_graph import check_cuda_graph
from tversky_seg.training.step import check_parts

if TYPE_CHECKING:
    from tversky_seg.training.trainer import Trainer

AT_LEAST_1 = (
    "max_steps",
    "batch_size",
    "validate_every",
    "checkpoint_every",
    "log_every",
    "max_skipped",
    "patience",
)


def check_ranges(trainer: Trainer) -> None:
    """Refuse settings out of range.

    Raises:
        ValueError: With the name and the value of the first.
    """
    for name in AT_LEAST_1:
        value = getattr(trainer, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    if trainer.seed < 0:
        raise ValueError(f"seed must be >= 0, got {trainer.seed}")
    if not trainer.clip_norm > 0:
        raise ValueError(f"clip_norm must be > 0, got {trainer.clip_norm}")
    if trainer.max_hours is not None and not trainer.max_hours > 0:
        raise ValueError(f"max_hours must be > 0, got {trainer.max_hours}")
    check_parts(trainer.accumulate, batch_size=trainer.batch_size)
    check_compile(trainer.compile)
    check_cuda_graph(trainer.cuda_graph)
