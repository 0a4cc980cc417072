"""The state of an optimizer that comes back from a checkpoint, maybe of another device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

IMPLEMENTATION_FLAGS = ("foreach", "fused", "capturable", "differentiable")
"""Entries of torch's parameter groups that choose how an update is computed, not which update."""


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load the state of an optimizer, but compute as this optimizer was asked to.

    torch also loads the flags and the memory layout of the checkpoint. A run that began on a CPU
    would then update the weights on a GPU by the slow path, parameter by parameter.

    Args:
        optimizer: Optimizer to change in place.
        state: State dict of an optimizer of the same parameters.
    """
    groups = []
    for own, loaded in zip(optimizer.param_groups, state["param_groups"], strict=True):
        flags = {name: own[name] for name in IMPLEMENTATION_FLAGS if name in own}
        groups.append({**loaded, **flags})
    optimizer.load_state_dict({**state, "param_groups": groups})
    for weight, entries in optimizer.state.items():
        for name, value in entries.items():
            # Every moment has the shape of its weight; the count of steps is a scalar.
            if isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape == weight.shape:
                entries[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)
