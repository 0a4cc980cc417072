"""Exponential moving average (EMA) of a network's weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """Average a network's weights over the steps; the average is smoother and often better.

    average <- d average + (1 - d) weights after each step, with d = min(decay, (1 + step) / (10 +
    step)), so that a short training is not an average of its beginning. Buffers, such as the
    statistics of batch norm, are those of the last step.

    Args:
        model: Network in training.
        decay: Decay in [0, 1); 0.999 averages about the last thousand steps. None: no average.

    Attributes:
        network: The average, to validate and predict with. Without a decay the model itself.
    """

    def __init__(self, model: nn.Module, *, decay: float | None) -> None:
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {decay}")
        self.decay = decay
        self.model = model
        self.network = model
        if decay is not None:
            self.network = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, step: int, *, is_skipped: Tensor | None = None) -> None:
        """Add the weights after a step.

        Args:
            step: Number of the step, from 1.
            is_skipped: Whether the step was skipped and must not count, a boolean scalar on the
                device of the network, which the host does not read. None: it was not.
        """
        if self.decay is None:
            return
        # After step 1 the weights count 9/11, after step 90 they count 9/100.
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        averages: list[Tensor] = list(self.network.parameters())
        weights: list[Tensor] = list(self.model.parameters())
        if is_skipped is None:
            for average, weight in zip(averages, weights, strict=True):
                average.lerp_(weight, share)
        else:
            _move_towards(averages, weights, share * is_skipped.logical_not())
        # A mean of running variances would describe no network.
        buffers = list(self.network.buffers())
        if buffers:
            torch._foreach_copy_(buffers, list(self.model.buffers()))

    def entries_to_predict(self) -> dict[str, Any]:
        """Return the entries of best.pt: `model` is the network that was validated."""
        if self.decay is None:
            return {"model": self.model.state_dict()}
        return {"model": self.network.state_dict(), "model_last": self.model.state_dict()}

    def entries_to_resume(self) -> dict[str, Any]:
        """Return the entries of last.pt: `model` is the network in training."""
        if self.decay is None:
            return {"model": self.model.state_dict()}
        return {"model": self.model.state_dict(), "model_average": self.network.state_dict()}

    def load_state(self, checkpoint: Mapping[str, Any]) -> None:
        """Load the weights of last.pt."""
        self.model.load_state_dict(checkpoint["model"])
        if self.decay is not None:
            self.network.load_state_dict(checkpoint["model_average"])


def _move_towards(averages: list[Tensor], weights: list[Tensor], share: Tensor) -> None:
    """Move each tensor by a share of the way, a scalar on their device, in three calls."""
    steps = torch._foreach_sub(weights, averages)
    torch._foreach_mul_(steps, share)
    torch._foreach_add_(averages, steps)
