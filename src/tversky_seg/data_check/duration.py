"""How long a training takes: a few of its steps are timed, the others follow."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tversky_seg.data.patches.batch import Batch

if TYPE_CHECKING:
    from tversky_seg.training import Trainer

SECONDS_FOR_STEPS = 10.0
"""Time after which no further step is begun."""
HOURS_OF_A_NIGHT = 8.0
"""Longest training that is suggested on a CPU."""
FEWEST_STEPS = 100
PASSES_OF_A_STEP = 3
"""A step takes as long as three forward passes: the backward pass is two."""


@dataclass(frozen=True)
class Timing:
    """Measured time of a training step."""

    step_s: float
    """Median, in seconds."""
    n_steps: int
    """Steps that were timed, after one to warm up."""


@dataclass(frozen=True)
class Evaluation:
    """What a training predicts besides its steps: validations, then the test cases."""

    n_validation: int
    """Cases of one validation."""
    n_test: int
    validate_every: int
    """Steps between validations."""
    n_windows: int
    """Windows that cover a typical volume."""


@dataclass(frozen=True)
class Duration:
    """Estimated time of a training."""

    max_steps: int
    timing: Timing
    steps_h: float
    evaluation_h: float
    """Hours of validations and of the test cases."""

    @property
    def hours(self) -> float:
        """Hours in all."""
        return self.steps_h + self.evaluation_h


def time_steps(
    trainer: Trainer,
    shape: Sequence[int],
    *,
    n_classes: int,
    n_steps: int = 3,
    seconds: float = SECONDS_FOR_STEPS,
) -> Timing:
    """Time optimiser updates on random patches, as the trainer makes them.

    The first step, which fills caches and chooses algorithms, is not counted. At least one is.

    Args:
        trainer: Trainer on its device. Its network learns noise, and is of no use afterwards.
        shape: (B, C, X, Y, Z) of a batch.
        n_classes: Number of classes.
        n_steps: Steps to time, 1 or more.
        seconds: Time after which no further step is begun.
    """
    batch = _random_batch(shape, n_classes, with_components=trainer.needs_components)
    times: list[float] = []
    start = time.perf_counter()
    for step in range(1, n_steps + 2):
        before = time.perf_counter()
        # Reading the loss waits for a GPU.
        _ = trainer.train_step(step, batch).loss
        now = time.perf_counter()
        if step > 1:
            times.append(now - before)
        if times and now - start > seconds:
            break
    # A median, since another program may hold up one step.
    return Timing(statistics.median(times), len(times))


def _random_batch(shape: Sequence[int], n_classes: int, *, with_components: bool) -> Batch:
    """Make noise with one lesion, a box in the middle, in each patch."""
    # One of its own, so that the weights and patches of the training stay as they are.
    generator = torch.Generator().manual_seed(0)
    n_patches, _, *sides = shape
    target = torch.zeros(n_patches, n_classes, *sides)
    box = tuple(slice(side // 2, side // 2 + 2) for side in sides)
    # Some lesion, since a loss may do less without.
    target[(slice(None), slice(None), *box)] = 1
    return Batch(
        image=torch.randn(*shape, generator=generator),
        target=target,
        components=target.int() if with_components else None,
        case_ids=["noise"] * n_patches,
        starts=[[0, 0, 0]] * n_patches,
        n_labels=1 if with_components else None,
    )


def count_windows(shape: Sequence[int], sides: Sequence[int], *, overlap: float) -> int:
    """Count the windows that cover a volume.

    Args:
        shape: Sides of the volume in voxels.
        sides: Sides of a window.
        overlap: Share of a side that the next window covers again.
    """
    n_windows = 1
    for n, side in zip(shape, sides, strict=True):
        stride = max(side * (1 - overlap), 1)
        n_windows *= 1 + math.ceil(max(n - side, 0) / stride)
    return n_windows


def estimate_duration(
    timing: Timing, max_steps: int, evaluation: Evaluation, *, batch_size: int
) -> Duration:
    """Estimate the time of a training from that of a step."""
    case_s = evaluation.n_windows * timing.step_s / batch_size / PASSES_OF_A_STEP
    # The last step validates as well.
    n_validations = math.ceil(max_steps / evaluation.validate_every)
    n_predicted = n_validations * evaluation.n_validation + evaluation.n_test
    return Duration(
        max_steps=max_steps,
        timing=timing,
        steps_h=max_steps * timing.step_s / 3600,
        evaluation_h=n_predicted * case_s / 3600,
    )


def fit_into_hours(
    timing: Timing,
    max_steps: int,
    evaluation: Evaluation,
    *,
    batch_size: int,
    hours: float = HOURS_OF_A_NIGHT,
) -> Duration:
    """Shorten a training until it fits into a night, to a round number of steps.

    Args:
        timing: Time of a step.
        max_steps: Steps that are wanted; fewer are taken if they take too long, at least 100.
        evaluation: Cases that are predicted besides.
        batch_size: Patches in a batch.
        hours: Hours that it may take.
    """
    duration = estimate_duration(timing, max_steps, evaluation, batch_size=batch_size)
    steps = max_steps
    while duration.hours > hours and steps > FEWEST_STEPS:
        # In proportion, and by one step of the last digit at least.
        fitting = round_down(int(steps * hours / duration.hours))
        steps = max(min(fitting, round_down(steps - 1)), FEWEST_STEPS)
        duration = estimate_duration(timing, steps, evaluation, batch_size=batch_size)
    return duration


def round_down(n: int) -> int:
    """Round down to two digits: 9,637 -> 9,600."""
    if n < 100:
        return n
    unit = int("1" + "0" * (len(str(n)) - 2))
    return n // unit * unit


def format_hours(hours: float) -> str:
    """Write hours as "12 min", "7.8 h" or "3.1 days"."""
    if hours < 1:
        return f"{max(60 * hours, 1):.0f} min"
    if hours < 48:
        return f"{hours:.1f} h"
    return f"{hours / 24:.1f} days"
