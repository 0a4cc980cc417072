"""Upsampling: torch's trilinear interpolation, whatever computes it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.cuda import on_gpu
from tversky_seg.models.upsampling import _upsample_by_matrices, upsample


def values_and_gradient(doubled, features: Tensor) -> tuple[Tensor, Tensor]:
    features = features.detach().requires_grad_()
    result = doubled(features)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(result.shape, generator=generator).to(result)
    (gradient,) = torch.autograd.grad(result, features, weights)
    return result.detach(), gradient


def under_autocast(doubled):
    """The forward pass alone, as in a training: products of a backward pass would be bf16, too."""

    def forward(features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, dtype=torch.bfloat16):
            return doubled(features)

    return forward


def torchs(features: Tensor) -> Tensor:
    return F.interpolate(features, scale_factor=2.0, mode="trilinear", align_corners=True)


@pytest.mark.parametrize("sides", [(3, 4, 5), (1, 2, 7), (1, 1, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_matrices_give_torch_s_values_and_gradient(sides, layout) -> None:
    features = torch.randn(2, 3, *sides, generator=torch.Generator().manual_seed(0)).double()
    features = features.contiguous(memory_format=layout)
    ours = values_and_gradient(_upsample_by_matrices, features)
    for mine, exact in zip(ours, values_and_gradient(torchs, features), strict=True):
        assert torch.allclose(mine, exact, atol=1e-12)
    assert ours[0].is_contiguous(memory_format=torch.channels_last_3d)


def test_autocast_leaves_values_and_gradient_in_float32() -> None:
    features = torch.randn(2, 3, 6, 7, 8, generator=torch.Generator().manual_seed(0))
    ours = values_and_gradient(under_autocast(_upsample_by_matrices), features)
    for mine, exact in zip(ours, values_and_gradient(torchs, features.double()), strict=True):
        assert mine.dtype == torch.float32
        assert torch.allclose(mine.double(), exact, atol=1e-5)


def test_two_voxels_by_hand() -> None:
    """Corner voxels keep their place: 0 and 3 become 0, 1, 2, 3."""
    features = torch.tensor([0.0, 3.0]).reshape(1, 1, 1, 1, 2)
    expected = torch.tensor([0.0, 1.0, 2.0, 3.0]).expand(1, 1, 2, 2, 4)
    assert torch.allclose(_upsample_by_matrices(features), expected)


def test_on_the_cpu_it_is_torch_s() -> None:
    features = torch.randn(1, 2, 3, 4, 5)
    assert torch.equal(upsample(features), torchs(features))


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_repeats_its_bits(dtype) -> None:
    features = torch.randn(2, 16, 16, 17, 18, device="cuda").to(dtype)
    features = features.to(memory_format=torch.channels_last_3d)
    both = [values_and_gradient(under_autocast(upsample), features) for _ in range(2)]
    assert all(map(torch.equal, *both))
    exact = values_and_gradient(torchs, features.double().cpu())
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    for mine, reference in zip(both[0], exact, strict=True):
        assert mine.dtype == dtype
        assert (mine.double().cpu() - reference).abs().max() < tolerance * reference.abs().max()
