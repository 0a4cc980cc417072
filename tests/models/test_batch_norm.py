"""Batch norm and ReLU as one operation: torch's values, gradients and running statistics."""

import copy

import pytest
import torch
from torch import Tensor, nn

from helpers.cuda import on_gpu
from helpers.kernels import run_interpreted
from tversky_seg.models import batch_norm
from tversky_seg.models.batch_norm import Layers, fused_batch_norm_relu

NDHWC = torch.channels_last_3d


def drawn(shape: tuple[int, ...]) -> tuple[nn.BatchNorm3d, Tensor, Tensor]:
    """A norm with weights and a past, features and the gradient of the result."""
    generator = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm3d(shape[1], eps=1e-3)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor, generator=generator)
    nn.init.uniform_(norm.running_var, 1, 2, generator=generator)
    features = torch.randn(shape, generator=generator) + 2
    return norm, features, torch.randn(shape, generator=generator)


def check_training(device: str) -> None:
    for shape in [(2, 12, 3, 4, 5), (3, 72, 1, 2, 3), (1, 2, 17, 13, 11)]:
        norm, features, gradient = drawn(shape)
        exact = copy.deepcopy(norm).double()
        x = features.double().requires_grad_()
        expected = exact(x).relu()
        expected.backward(gradient.double())
        ours = norm.to(device)
        features = features.to(device).contiguous(memory_format=NDHWC).requires_grad_()
        result = fused_batch_norm_relu(ours, features)
        result.backward(gradient.to(device))
        assert result.is_contiguous(memory_format=NDHWC)
        assert features.grad is not None
        pairs = [(result, expected), (features.grad, x.grad)]
        for mine, reference in zip(ours.parameters(), exact.parameters(), strict=True):
            pairs.append((mine.grad, reference.grad))
        pairs += zip(ours.buffers(), exact.buffers(), strict=True)
        for mine, reference in pairs:
            assert torch.allclose(mine.cpu().double(), reference.double(), atol=2e-5), shape
        assert ours.num_batches_tracked == 1


def check_prediction(device: str) -> None:
    norm, features, _ = drawn((2, 12, 3, 4, 5))
    expected = norm.eval()(features).relu()
    ours = copy.deepcopy(norm).to(device)
    with torch.inference_mode():
        result = fused_batch_norm_relu(ours, features.to(device).contiguous(memory_format=NDHWC))
    assert torch.allclose(result.cpu(), expected, atol=1e-5)
    assert all(map(torch.equal, ours.cpu().buffers(), norm.buffers()))


CHECKS = [check_training, check_prediction]


def test_kernels_equal_torch() -> None:
    pytest.importorskip("triton", reason="kernels are written in Triton: test extra, Linux")
    run_interpreted(__file__)


@on_gpu
@pytest.mark.parametrize("check", CHECKS)
def test_kernels_equal_torch_on_a_gpu(check) -> None:
    check("cuda")


def layers(channels: int) -> list[nn.Module]:
    conv = nn.Conv3d(channels, channels, 1)
    return [conv, nn.BatchNorm3d(channels), nn.ReLU(inplace=True), nn.Dropout(0.0)]


def test_a_norm_is_fused_with_its_relu_alone(monkeypatch) -> None:
    """Where a GPU would fuse, each batch norm takes its ReLU with it, and nothing else."""
    network = Layers(*layers(3), *layers(3))
    plain = nn.Sequential(*network)
    seen = []

    def fused(norm, features):
        seen.append(norm)
        return norm(features).relu()

    features = torch.randn(2, 3, 4, 5, 6)
    expected = plain(features)
    monkeypatch.setattr(batch_norm, "_is_fusable", lambda norm, features: True)
    monkeypatch.setattr(batch_norm, "fused_batch_norm_relu", fused)
    assert torch.equal(network(features), expected)
    assert seen == [network[1], network[5]]
    assert list(network.state_dict()) == list(plain.state_dict())


def test_a_synchronised_norm_keeps_its_relu() -> None:
    network = nn.SyncBatchNorm.convert_sync_batchnorm(Layers(*layers(2)))
    assert isinstance(network[1], nn.SyncBatchNorm)
    assert (network.eval()(torch.randn(2, 2, 3, 3, 3)) >= 0).all()


@on_gpu
def test_half_precision_is_close_to_torch() -> None:
    network = Layers(*layers(48)).cuda().to(memory_format=NDHWC)
    plain = nn.Sequential(*copy.deepcopy(network))
    features = torch.randn(2, 48, 20, 21, 22, device="cuda").to(memory_format=NDHWC)
    both = []
    for module in (network, plain):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            result = module(features)
        result.float().square().sum().backward()
        norm = module[1]
        gradients = [module[0].weight.grad, norm.weight.grad, norm.bias.grad]
        both.append([result.float(), *gradients, norm.running_mean, norm.running_var])
    assert result.dtype == torch.bfloat16
    for mine, torchs in zip(*both, strict=True):
        assert (mine - torchs).abs().max() <= 0.02 * torchs.abs().max()


if __name__ == "__main__":
    for check in CHECKS:
        check("cpu")
