"""Recomputed blocks: the same numbers, and each batch counted once."""

import pytest
import torch
from torch import nn

from tversky_seg.models.recompute import frozen_statistics, recompute_blocks


def small_network(norm: nn.Module) -> nn.Module:
    """Two blocks, the first with a batch norm of four channels."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), norm, nn.ReLU())
    return nn.Sequential(first, nn.Sequential(nn.Conv3d(4, 1, 1)))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_recomputed_network_has_the_same_gradients_and_statistics(momentum) -> None:
    image = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    plain = small_network(nn.BatchNorm3d(4, momentum=momentum))
    recomputed = small_network(nn.BatchNorm3d(4, momentum=momentum))
    recompute_blocks(recomputed)
    for network in (plain, recomputed):
        for _ in range(2):
            network(image).square().sum().backward()
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter.grad, recomputed.get_parameter(name).grad), name
    for name, value in plain.state_dict().items():
        assert torch.equal(value, recomputed.state_dict()[name]), name


@pytest.mark.parametrize("norm", [nn.BatchNorm3d, nn.SyncBatchNorm])
def test_frozen_statistics_hold_for_every_batch_norm(norm) -> None:
    """SyncBatchNorm takes the place of BatchNorm3d in a training on several GPUs."""
    layer = norm(1)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    counter = layer.num_batches_tracked
    with frozen_statistics(layer):
        assert layer.momentum == 0
        layer.num_batches_tracked.add_(1)  # as the layer's forward does
    assert layer.momentum == 0.1
    assert layer.num_batches_tracked is counter
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name
