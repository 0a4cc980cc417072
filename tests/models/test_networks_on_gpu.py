"""Networks on a GPU: the numbers of the CPU."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from helpers.cuda import on_gpu
from tversky_seg.models import FCDenseNet3D, ResidualUNet3D, UNet3D
from tversky_seg.runtime.devices import autocast, image_to_device, to_device

GPU = torch.device("cuda")
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "unet": lambda: UNet3D(in_channels=3, out_channels=2, width=8, n_levels=3),
    "unet, batch norm": lambda: UNet3D(in_channels=3, out_channels=2, width=8, norm="batch"),
    "residual unet": lambda: ResidualUNet3D(in_channels=3, out_channels=2, widths=(8, 16, 16)),
    "fc densenet": lambda: FCDenseNet3D(in_channels=3, out_channels=2, growth_rate=4, n_blocks=2),
}
each_network = pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS.keys())


def an_image(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, side, generator=torch.Generator().manual_seed(1))


def relative_error(value: Tensor, expected: Tensor) -> float:
    difference = value.double().cpu() - expected
    return float(difference.norm() / expected.norm())


def whole_gradient(network: nn.Module) -> Tensor:
    """The gradients of all parameters in one row."""
    gradients = []
    for parameter in network.parameters():
        assert parameter.grad is not None
        gradients.append(parameter.grad.flatten())
    return torch.cat(gradients).cpu()


def predicted(network: nn.Module, image: Tensor, precision: str) -> Tensor:
    """The logits of a copy of the network on the GPU."""
    network = to_device(deepcopy(network), GPU)
    with torch.no_grad(), autocast(GPU, precision):
        logits: Tensor = network(image_to_device(image, GPU))
    return logits


@on_gpu
@each_network
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("tf32", 2e-2), ("bf16", 6e-2)])
def test_logits_are_those_of_float64(
    build: Callable[[], nn.Module], precision: str, bound: float
) -> None:
    torch.manual_seed(0)
    network = build().eval()
    image = an_image(24)
    with torch.no_grad():
        expected = deepcopy(network).double()(image.double())
    assert relative_error(predicted(network, image, precision), expected) < bound


@on_gpu
@each_network
def test_gradients_are_those_of_float64(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = build().eval()  # without dropout
    image = an_image(24)
    expected = deepcopy(network).double()
    expected(image.double()).square().mean().backward()
    moved = to_device(network, GPU)
    with autocast(GPU, "fp32"):
        logits = moved(image_to_device(image, GPU))
    logits.square().mean().backward()
    # Not sharper: rounding moves values near 0 across a ReLU.
    assert relative_error(whole_gradient(moved), whole_gradient(expected)) < 0.02
