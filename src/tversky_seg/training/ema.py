"""Which weights are judged: the last ones, or a running mean over the steps, smoother and often better."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class WeightAverage:
    """Exponential moving average of a network's weights; buffers are those of the last step.

    average <- d average + (1 - d) weights after each step, with d = min(decay, (1 + step) / (10 + step)), so that a
    short training is not an average of its beginning.

    Args:
        trained: The network in training.
        decay: In [0, 1); 0.999 averages about the last thousand steps. None: no average, the network itself is judged.
    """

    def __init__(self, trained: nn.Module, *, decay: float | None) -> None:
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {decay}")
        self.decay, self.trained = decay, trained
        self.network = trained if decay is None else copy.deepcopy(trained).requires_grad_(False)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, counted from 1."""
        if self.decay is None:
            return
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for mean, value in zip(self.network.parameters(), self.trained.parameters(), strict=True):
            mean.lerp_(value, share)
        for kept, buffer in zip(self.network.buffers(), self.trained.buffers(), strict=True):
            kept.copy_(buffer)

    def weights(self, *, is_judged: bool) -> dict[str, Any]:
        """Entries of a checkpoint: as `model` the weights that were judged or those in training, the others beside."""
        last = self.trained.state_dict()
        if self.decay is None:
            return {"model": last}
        mean = self.network.state_dict()
        return (
            {"model": mean, "model_last": last}
            if is_judged
            else {"model": last, "model_average": mean}
        )

    def load_state(self, kept: Mapping[str, Any]) -> None:
        """Take the weights of a checkpoint to go on from."""
        self.trained.load_state_dict(kept["model"])
        if self.decay is not None:
            self.network.load_state_dict(kept["model_average"])
