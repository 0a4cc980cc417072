"""Optimizers: made for a device, skipped without a wait, restored from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

IMPLEMENTATION_FLAGS = ("foreach", "fused", "capturable", "differentiable")
"""Entries of torch's parameter groups that choose how an update is computed, not which update."""

FUSED_ON_GPUS = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
"""Optimizers that torch can apply to all weights at once, or skip, in one kernel."""


def make_optimizer(
    optimizer: Callable[..., torch.optim.Optimizer],
    parameters: Iterable[nn.Parameter],
    device: torch.device,
) -> torch.optim.Optimizer:
    """Make an optimizer, on a GPU by torch's fused kernels where its class has them.

    Args:
        optimizer: Class of an optimizer, or a partial of one. If it sets `fused`, `foreach` or
            another flag of the implementation, that is respected.
        parameters: Weights to update.
        device: Device that they are on.
    """
    if device.type != "cpu" and _can_be_fused(optimizer):
        return optimizer(parameters, fused=True)
    return optimizer(parameters)


def _can_be_fused(optimizer: Callable[..., torch.optim.Optimizer]) -> bool:
    settings: Mapping[str, Any] = {}
    if isinstance(optimizer, partial):
        settings = optimizer.keywords
        optimizer = optimizer.func
    is_left_open = all(settings.get(flag) is None for flag in IMPLEMENTATION_FLAGS)
    return optimizer in FUSED_ON_GPUS and is_left_open


def can_skip_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether to use `step_unless`: for a fused optimizer of weights on a GPU.

    Not for its first update: if that one is skipped, torch's fused SGD keeps momenta that were
    never set. Without momentum it never has a state.
    """
    weights = optimizer.param_groups[0]["params"]
    if weights[0].device.type == "cpu":
        return False
    has_momentum = any(group.get("momentum", 1) != 0 for group in optimizer.param_groups)
    if has_momentum and not optimizer.state:
        return False
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def step_unless(optimizer: torch.optim.Optimizer, is_skipped: Tensor) -> None:
    """Update the weights unless a condition holds, which the host does not read.

    Weights, moments and the count of steps stay as they are if it holds. This is the interface
    between a fused optimizer and `torch.amp.GradScaler`.

    Args:
        optimizer: A fused optimizer.
        is_skipped: Boolean scalar on the device of the weights.
    """
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.found_inf = is_skipped.float()  # type: ignore[attr-defined]
    optimizer.step()
    del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]


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
