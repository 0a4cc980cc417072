"""The networks: sizes, counts, gradients, and what torch can do with them."""

import pytest
import torch

from tversky_seg.models import UNet3D


def n_trainable(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def test_unet_has_the_parameter_count_of_the_paper_s_plain_form():
    widths = [16, 32, 64, 128]
    convs = sum(27 * a * b + b + 27 * b * b + b for a, b in zip([3, *widths], widths, strict=False))
    ups = sum(8 * 2 * w * w + w + 27 * 2 * w * w + w + 27 * w * w + w for w in widths[:-1])
    assert n_trainable(UNet3D(in_channels=3, out_channels=2, norm=None)) == convs + ups + 16 * 2 + 2


@pytest.mark.parametrize("size", [(16, 16, 16), (9, 17, 12), (1, 16, 33)])
def test_unet_gives_logits_of_the_image_s_own_size(size):
    network = UNet3D(in_channels=2, out_channels=3, width=4)
    assert network(torch.rand(1, 2, *size)).shape == (1, 3, *size)


def test_no_bias_stands_before_a_normalisation():
    for norm in ("instance", "batch", "group"):
        network = UNet3D(in_channels=1, out_channels=1, norm=norm, residual=True)
        biased = [n for n, m in network.named_modules() if isinstance(m, torch.nn.Conv3d) and m.bias is not None]
        assert biased == ["head"]


def test_prior_sets_the_untrained_probability():
    network = UNet3D(in_channels=1, out_channels=1, prior=0.01).eval()
    probability = network(torch.randn(1, 1, 16, 16, 16)).sigmoid()
    assert 0.003 < probability.mean() < 0.03
