from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import AdjustContrast, GaussianSmooth, RandBiasField
from scipy import ndimage, stats
from torch.nn import functional

from tversky_seg.data.patches.intensity import (
    IntensityChange,
    gaussian_matrices,
    log_bias_field,
    low_resolution_matrices,
)


def a_channel(shape: tuple[int, int, int] = (24, 20, 22)) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(1).standard_normal(shape, dtype=np.float32))


def change(channel: torch.Tensor, **drawn: Any) -> None:
    """Change a channel that is brain throughout."""
    IntensityChange(**drawn).apply(channel, torch.ones_like(channel))


def blur(channel: torch.Tensor, sigma: tuple[float, float, float]) -> None:
    change(channel, blur=gaussian_matrices(sigma, channel.shape))


def lower_resolution(channel: torch.Tensor, factor: float) -> None:
    matrices = low_resolution_matrices(factor, channel.shape)
    change(channel, low_resolution=matrices)


def test_blur_is_monais_gaussian_away_from_the_border() -> None:
    channel = a_channel()
    expected = GaussianSmooth((0.8, 0.8, 0.8), approx="sampled")(channel[None])[0]
    blur(channel, (0.8, 0.8, 0.8))
    inside = (slice(5, -5),) * 3
    torch.testing.assert_close(
        channel[inside], torch.as_tensor(expected)[inside], atol=5e-3, rtol=0
    )
    constant = torch.full((9, 9, 9), 3.0)
    blur(constant, (2.0, 1.0, 0.0))
    torch.testing.assert_close(constant, torch.full((9, 9, 9), 3.0))


def test_blur_is_scipys_gaussian_away_from_the_border() -> None:
    channel = a_channel()
    expected = ndimage.gaussian_filter(channel.numpy(), (1.0, 0.5, 0.0), truncate=4)
    blur(channel, (1.0, 0.5, 0.0))
    inside = (slice(5, -5),) * 3
    np.testing.assert_allclose(channel[inside], expected[inside], atol=1e-5)


def test_the_bias_field_is_monais() -> None:
    monai = RandBiasField(degree=3, coeff_range=(-0.3, 0.3), prob=1.0).set_random_state(0)
    image = a_channel()[None].abs()
    image[0, 0, 0, 0] = 0  # the smallest value is what MONAI takes for it: 0
    expected = monai(image)[0]
    coefficients = np.zeros((4, 4, 4))
    coefficients[np.add.outer(np.add.outer(range(4), range(4)), range(4)) <= 3] = monai._coeff
    channel = image[0].clone()
    log_field = log_bias_field(coefficients, channel.shape)
    change(channel, bias_field=log_field)
    torch.testing.assert_close(channel, torch.as_tensor(expected), atol=1e-4, rtol=1e-4)


def test_gamma_is_monais() -> None:
    channel = a_channel()
    expected = AdjustContrast(1.7)(channel[None])[0]
    change(channel, gamma=1.7)
    torch.testing.assert_close(channel, torch.as_tensor(expected), atol=1e-4, rtol=1e-4)


def test_low_resolution_is_torchs_area_mean_and_trilinear_interpolation() -> None:
    channel = a_channel()
    coarse = functional.interpolate(channel[None, None], size=(12, 10, 11), mode="area")
    expected = functional.interpolate(coarse, size=channel.shape, mode="trilinear")[0, 0]
    lower_resolution(channel, 2.0)
    torch.testing.assert_close(channel, expected, atol=1e-5, rtol=1e-5)
    same = a_channel()
    lower_resolution(same, 1.0)
    torch.testing.assert_close(same, a_channel())


def test_noise_is_normally_distributed() -> None:
    channel = torch.zeros(64, 64, 64)
    ranks = np.random.default_rng(0).integers(0, 65536, channel.shape, dtype=np.uint16)
    change(channel, noise_ranks=torch.from_numpy(ranks), noise_sd=2.0)
    values = channel.flatten().double().numpy()
    assert stats.kstest(values / 2, "norm").statistic < 0.005
    assert values.std() == pytest.approx(2, rel=0.01)
    assert np.abs(values).max() < 2 * 4.4
