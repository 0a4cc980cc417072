"""Channels-last layout from the first convolution to the logits, on a GPU."""

import pytest
import torch
from torch import Tensor, nn

from helpers.cuda import on_gpu
from tversky_seg.models import FCDenseNet3D, ResidualUNet3D, UNet3D
from tversky_seg.runtime.devices import autocast, image_to_device, to_device

DEVICE = torch.device("cuda")
SETTINGS = {"in_channels": 1, "out_channels": 1}


def unet(norm):
    return UNet3D(**SETTINGS, n_levels=3, width=8, deep_supervision=1, norm=norm)


def fc_densenet(norm):
    return FCDenseNet3D(**SETTINGS, growth_rate=4, n_layers=2, n_blocks=2, width=8, norm=norm)


def residual(norm):
    return ResidualUNet3D(**SETTINGS, widths=(8, 8, 16), norm=norm)


@on_gpu
@pytest.mark.parametrize("build", [unet, fc_densenet, residual])
@pytest.mark.parametrize("norm", ["group", "batch", None])
def test_every_module_keeps_the_layout(build, norm) -> None:
    """Forward and backward: a module in another layout would copy all its features."""
    network = to_device(build(norm), DEVICE)
    others = []

    def note(module: nn.Module, tensor: Tensor, name: str) -> None:
        # With one channel both layouts are the same; parts of a wider gradient have gaps.
        if tensor.ndim == 5 and tensor.shape[1] > 1 and tensor.stride(1) > 1:
            others.append((module, name, tuple(tensor.shape), tensor.stride()))

    def note_both(module: nn.Module, given: object, result: Tensor) -> None:
        note(module, result, "result")
        if result.requires_grad:
            result.register_hook(lambda gradient: note(module, gradient, "gradient"))

    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(note_both)
    image = image_to_device(torch.randn(2, 1, 17, 16, 20), DEVICE)
    with autocast(DEVICE, "bf16"):
        logits = network(image)
    finest = logits[0] if isinstance(logits, tuple) else logits
    finest.float().square().mean().backward()
    assert others == []
