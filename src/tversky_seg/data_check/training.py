"""The training that the dataset check plans, and its costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tversky_seg.data_check.duration import Timing
from tversky_seg.data_check.memory import free_memory
from tversky_seg.data_check.plan import Plan


@dataclass(frozen=True)
class Training:
    """The training whose costs are estimated."""

    network: nn.Module
    sampler: Any
    max_steps: int
    batch_size: int
    precision: str
    device: torch.device
    memory_bytes: int | None = None
    """Memory to plan with; None: what is free on the device."""
    validate_every: int = 1000
    overlap: float = 0.5
    """Overlap of the windows of a prediction."""
    time_plan: Callable[[Plan], Timing] | None = None
    """Times some steps with the settings of a plan; None: no step is timed."""

    @property
    def n_patches(self) -> int:
        """Patches that the run draws."""
        return self.max_steps * self.batch_size

    @property
    def free_bytes(self) -> int:
        """Memory to plan with."""
        if self.memory_bytes is None:
            return free_memory(self.device)
        return self.memory_bytes


@dataclass(frozen=True)
class Cost:
    """One thing that a training takes."""

    what: str
    amount: str
    basis: str
    """Basis of the estimate."""
