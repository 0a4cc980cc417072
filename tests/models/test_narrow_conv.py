"""Convolutions of few channels: torch's numbers, whatever computes them."""

import pytest
import torch
from torch import nn

from helpers.cuda import on_gpu
from tversky_seg.models.narrow_conv import LogitConv, NarrowConv

NDHWC = torch.channels_last_3d
CONVOLUTIONS = [
    NarrowConv(1, 4, 3, padding=1),
    NarrowConv(3, 4, 3, padding=1, bias=False),
    NarrowConv(5, 2, 2, stride=2),
    NarrowConv(9, 2, 1),
]


@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=repr)
def test_padded_channels_change_nothing(conv) -> None:
    image = torch.randn(2, conv.in_channels, 4, 5, 6)
    plain = nn.Conv3d.forward(conv, image)
    assert torch.equal(conv(image), plain)
    assert torch.allclose(conv._padded(image, torch.float32), plain, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_a_product_of_matrices_gives_the_logits(bias) -> None:
    head = LogitConv(5, 2, bias=bias)
    features = torch.randn(2, 5, 3, 4, 6).to(memory_format=torch.channels_last_3d)
    plain = nn.Conv3d.forward(head, features)
    assert torch.equal(head(features), plain)
    assert torch.allclose(head._product(features), plain, atol=1e-6)


@on_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_prediction_in_half_precision_is_close(dtype) -> None:
    for conv in (NarrowConv(3, 16, 3, padding=1), LogitConv(16, 1), LogitConv(16, 2, bias=False)):
        conv = conv.cuda().to(memory_format=NDHWC)
        image = torch.randn(2, conv.in_channels, 20, 21, 22, device="cuda").to(memory_format=NDHWC)
        with torch.inference_mode(), torch.autocast("cuda", dtype=dtype):
            ours, torchs = conv(image), nn.Conv3d.forward(conv, image)
        assert ours.dtype == dtype
        assert ours.is_contiguous(memory_format=NDHWC)
        assert (ours.float() - torchs.float()).abs().max() <= 0.02 * torchs.float().abs().max()
