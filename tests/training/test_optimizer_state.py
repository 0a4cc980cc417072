"""Optimizer state that comes back from a checkpoint of another machine."""

import copy

import torch
from torch import nn

from tversky_seg.training.optimizer_state import load_optimizer_state


def stepped(network: nn.Module, **settings: bool) -> torch.optim.Optimizer:
    """An AdamW that has taken one step."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, **settings)
    network(torch.ones(1, 2, 4, 4, 4)).sum().backward()
    optimizer.step()
    return optimizer


def test_the_implementation_is_the_one_asked_for_now() -> None:
    network = nn.Conv3d(2, 4, 3)
    state = stepped(network, foreach=True).state_dict()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.5, fused=True)
    load_optimizer_state(optimizer, state)
    assert optimizer.param_groups[0]["fused"] is True
    assert optimizer.param_groups[0]["foreach"] is None
    assert optimizer.param_groups[0]["lr"] == 0.01


def test_moments_take_the_memory_layout_of_the_weights() -> None:
    network = nn.Conv3d(2, 4, 3)
    state = copy.deepcopy(stepped(network).state_dict())
    moved = copy.deepcopy(network).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(moved.parameters())
    load_optimizer_state(optimizer, state)
    for number, weight in enumerate(moved.parameters()):
        moment = optimizer.state[weight]["exp_avg"]
        assert moment.stride() == weight.stride()
        assert torch.equal(moment, state["state"][number]["exp_avg"])
