"""Optimizers of a device, skipped updates, and state of another machine."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from tversky_seg.training.optimizer_state import (
    can_skip_on_device,
    load_optimizer_state,
    make_optimizer,
    step_unless,
)


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


GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")


def test_on_a_gpu_an_optimizer_is_fused_unless_the_user_decides() -> None:
    weights = [nn.Parameter(torch.zeros(2))]
    for kind in (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD):
        assert make_optimizer(kind, weights, GPU).defaults["fused"] is True
        assert not make_optimizer(kind, weights, CPU).defaults["fused"]
        for flags in ({"fused": False}, {"foreach": True}):
            made = make_optimizer(partial(kind, lr=0.5, **flags), weights, GPU)
            assert made.defaults["fused"] is not True
            assert made.defaults["lr"] == 0.5
    left_open = partial(torch.optim.AdamW, foreach=None)
    assert make_optimizer(left_open, weights, GPU).defaults["fused"] is True
    assert "fused" not in make_optimizer(torch.optim.RMSprop, weights, GPU).defaults


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(torch.optim.AdamW, lr=0.1, fused=True),
        partial(torch.optim.SGD, lr=0.1, momentum=0.9, dampening=0.5, fused=True),
        partial(torch.optim.Adagrad, lr=0.1, fused=True),
    ],
)
def test_a_skipped_update_changes_neither_weights_nor_moments(optimizer: Any) -> None:
    weight = nn.Parameter(torch.randn(5))
    made = optimizer([weight])
    weight.grad = torch.randn(5)
    made.step()
    before = copy.deepcopy([weight.detach(), made.state_dict()["state"]])
    weight.grad = torch.full((5,), torch.nan)
    step_unless(made, torch.tensor(True))
    assert torch.equal(weight, before[0])
    for name, value in made.state_dict()["state"][0].items():
        assert torch.equal(value, before[1][0][name]), name
    weight.grad = torch.randn(5)
    step_unless(made, torch.tensor(False))
    assert not torch.equal(weight, before[0])
    assert not hasattr(made, "found_inf")


def test_the_first_update_and_a_cpu_are_looked_at() -> None:
    weight = nn.Parameter(torch.zeros(2))
    made = torch.optim.SGD([weight], momentum=0.9, fused=True)
    assert not can_skip_on_device(made)
    weight.grad = torch.ones(2)
    made.step()
    assert not can_skip_on_device(made)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_without_momentum_has_no_first_update(momentum: float) -> None:
    """It has no state, not even later, for which the host would wait at each step."""
    made = torch.optim.SGD([nn.Parameter(torch.zeros(2))], momentum=momentum, fused=True)
    made.param_groups[0]["params"] = [torch.zeros(2, device="meta")]  # not on the CPU
    assert can_skip_on_device(made) is (momentum == 0)
