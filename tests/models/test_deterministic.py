"""Deterministic training: what the networks compute has such an algorithm on a GPU."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.cuda import on_gpu
from helpers.kernels import run_alone
from tversky_seg.models import FCDenseNet3D, ResidualUNet3D, UNet3D, pooling, residual_unet
from tversky_seg.models.upsampling import _upsample_by_matrices
from tversky_seg.runtime.devices import (
    autocast,
    image_to_device,
    to_device,
    use_deterministic_algorithms,
)

# Operations of the documentation of torch.use_deterministic_algorithms (torch 2.11) that end with
# an error, as far as a network for volumes could run them.
WITHOUT_DETERMINISTIC_ALGORITHM = {
    "adaptive_avg_pool2d_backward",
    "adaptive_avg_pool3d_backward",
    "adaptive_max_pool3d_backward",
    "avg_pool3d_backward",
    "cumsum",
    "grid_sampler_3d_backward",
    "histc",
    "kthvalue",
    "max_pool3d_with_indices_backward",
    "max_unpool3d",
    "median",
    "reflection_pad3d_backward",
    "replication_pad3d_backward",
    "scatter_reduce",
    "upsample_linear1d_backward",
    "upsample_bilinear2d_backward",
    "upsample_trilinear3d_backward",
}


def unet():
    return UNet3D(in_channels=2, out_channels=1, n_levels=3, width=8, deep_supervision=1)


def fc_densenet():
    return FCDenseNet3D(in_channels=2, out_channels=1, growth_rate=4, n_layers=2, n_blocks=2)


def residual():
    return ResidualUNet3D(in_channels=2, out_channels=1, widths=(8, 8, 16))


NETWORKS = [unet, fc_densenet, residual]


class OperationNames(TorchDispatchMode):
    """Records the names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__.strip("_"))
        return function(*args, **(kwargs or {}))


def step(network: torch.nn.Module, image: torch.Tensor) -> None:
    logits = network(image)
    finest = logits[0] if isinstance(logits, tuple) else logits
    finest.float().square().mean().backward()


@pytest.mark.parametrize("build", NETWORKS)
def test_no_operation_lacks_a_deterministic_algorithm(build, monkeypatch) -> None:
    """As on a GPU, where pooling and upsampling are not torch's."""
    monkeypatch.setattr(pooling, "max_pool", pooling._without_triton)
    monkeypatch.setattr(residual_unet, "upsample", _upsample_by_matrices)
    with OperationNames() as operations:
        step(build(), torch.randn(2, 2, 9, 8, 10))
    assert {"convolution", "convolution_backward"} <= operations.names
    assert not operations.names & WITHOUT_DETERMINISTIC_ALGORITHM


@on_gpu
def test_networks_repeat_their_bits_on_a_gpu() -> None:
    """In a process of its own: cuBLAS looks at its settings once."""
    run_alone(__file__)


def gradients_on_a_gpu(build) -> list[torch.Tensor]:
    torch.manual_seed(0)
    device = torch.device("cuda")
    network = to_device(build(), device)
    image = image_to_device(torch.randn(2, 2, 33, 32, 40), device)
    with autocast(device, "bf16"):
        step(network, image)
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


def main() -> None:
    use_deterministic_algorithms()
    for build in NETWORKS:
        first, second = gradients_on_a_gpu(build), gradients_on_a_gpu(build)
        assert len(first) > 10
        assert all(map(torch.equal, first, second)), build
        assert all(gradient.isfinite().all() for gradient in first), build


if __name__ == "__main__":
    main()
