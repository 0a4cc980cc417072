"""Learning-rate schedules: pure functions of the step, so that a resumed run needs no state."""

from __future__ import annotations

import math


def constant(step: int, max_steps: int) -> float:
    """Return the factor 1 on the learning rate of every step."""
    return 1.0


def cosine(step: int, max_steps: int, *, warmup_steps: int = 50, final: float = 0.0) -> float:
    """Return the factor on the learning rate: a linear warm-up, then half a cosine to `final`.

    Args:
        step: Steps done, 0 <= step < max_steps.
        max_steps: Steps in all; a longer warm-up is cut to it.
        warmup_steps: Steps of the linear rise.
        final: Factor at the end, in [0, 1].
    """
    factor = _warmup(step, max_steps, warmup_steps)
    progress = _progress(step, max_steps, warmup_steps)
    return factor * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))


def poly(step: int, max_steps: int, *, warmup_steps: int = 0, power: float = 0.9) -> float:
    """Return the factor on the learning rate: a linear warm-up, then (1 - progress)^power.

    nnU-Net uses power 0.9.
    """
    remaining = 1 - _progress(step, max_steps, warmup_steps)
    return _warmup(step, max_steps, warmup_steps) * math.pow(remaining, power)


def steps(step: int, max_steps: int, *, every: int = 1000, factor: float = 0.9) -> float:
    """Return the factor on the learning rate: multiplied by `factor` every `every` steps.

    Salehi 2017 (arXiv:1706.05721, section 2.3) uses 0.9 every 1000 steps.
    """
    if every < 1:
        raise ValueError(f"every must be >= 1, got {every}")
    return math.pow(factor, step // every)


def _warmup(step: int, max_steps: int, warmup_steps: int) -> float:
    """Rise linearly to 1: with 4 warm-up steps 0.25, 0.5, 0.75, 1."""
    # A warm-up without steps must not divide by zero.
    return min(1.0, (step + 1) / max(1, min(warmup_steps, max_steps)))


def _progress(step: int, max_steps: int, warmup_steps: int) -> float:
    """Share of the steps after the warm-up that are done, in [0, 1]."""
    start = min(warmup_steps, max_steps)
    return min(1.0, max(0.0, (step - start) / max(1, max_steps - start)))
