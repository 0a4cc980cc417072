"""How scans of one anatomy differ: changes of one channel (X, Y, Z), in place, on any device."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from tversky_seg.data.patches.spatial import Matrix, separable


def bias_field(channel: Tensor, coefficients: NDArray[np.float64]) -> None:
    """Multiply what exceeds the smallest value by exp of a sum of Legendre polynomials over [-1, 1]^3.

    Args:
        channel: (X, Y, Z).
        coefficients: (n, n, n) for the products of the polynomials of degree 0 to n - 1.
    """
    n = len(coefficients)
    bases = [
        np.polynomial.legendre.legvander(np.linspace(-1, 1, side), n - 1) for side in channel.shape
    ]
    field = torch.as_tensor(coefficients.astype(np.float32), device=channel.device)
    low = channel.amin()
    channel.sub_(low).mul_(
        separable(field, [basis.astype(np.float32) for basis in bases]).exp_()
    ).add_(low)


def blur(channel: Tensor, sigma: Sequence[float]) -> None:
    """Gaussian smoothing with a standard deviation in voxels along each axis; no weight lies outside the patch."""
    channel.copy_(
        separable(channel, [_gaussian(n, s) for n, s in zip(channel.shape, sigma, strict=True)])
    )


def _gaussian(n: int, sigma: float) -> Matrix:
    distance = np.subtract.outer(np.arange(n), np.arange(n))
    weights = np.exp(-0.5 * (distance / max(sigma, 1e-3)) ** 2) * (
        np.abs(distance) <= np.ceil(4 * sigma)
    )
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


def low_resolution(channel: Tensor, factor: float) -> None:
    """Voxels `factor` times as long along each axis (means over their extent), then linearly back to the patch's."""
    channel.copy_(separable(channel, [_coarse_and_back(n, factor) for n in channel.shape]))


def _coarse_and_back(n: int, factor: float) -> Matrix:
    n_coarse = max(1, round(n / factor))
    edges = np.arange(n_coarse + 1) * n / n_coarse
    fine = np.arange(n)
    shares = np.minimum(edges[1:, None], fine + 1) - np.maximum(edges[:-1, None], fine)
    means = np.maximum(shares, 0) * n_coarse / n
    places = np.clip((fine + 0.5) * n_coarse / n - 0.5, 0, n_coarse - 1)
    between = np.maximum(1 - np.abs(places[:, None] - np.arange(n_coarse)), 0)
    return np.asarray(between @ means, dtype=np.float32)


def gamma(channel: Tensor, exponent: float) -> None:
    """Send t to t^exponent on [smallest, largest] value."""
    low, high = channel.aminmax()
    width = (high - low).clamp_min(1e-20)
    channel.sub_(low).log_().mul_(exponent).add_((1 - exponent) * width.log()).exp_().add_(
        low
    )  # a third of pow's time


def s_curve(channel: Tensor, strength: float) -> None:
    """Send t to t + c t (1 - t) (1 - 2 t) on [smallest, largest] value, c = strength in [-1, 1]."""
    low, high = channel.aminmax()
    width = (high - low).clamp_min(1e-20)
    channel.sub_(low).mul_(1 / width)
    curve = (
        (channel * (2 * strength * width))
        .sub_(3 * strength * width)
        .mul_(channel)
        .add_((1 + strength) * width)
    )
    channel.mul_(curve).add_(low)


def scale(channel: Tensor, factor: float) -> None:
    """Multiply all values."""
    channel *= factor


def shift(channel: Tensor, offset: float) -> None:
    """Add to all values."""
    channel += offset


def noise(channel: Tensor, values: tuple[NDArray[np.uint16], float]) -> None:
    """Add Gaussian noise drawn on the host: ranks (X, Y, Z), uniform in 0 to 65535, and a standard deviation."""
    ranks, sd = values
    table = torch.from_numpy(_quantiles()).to(channel.device) * sd
    rank = torch.from_numpy(ranks.astype(np.int32)).to(channel.device)
    channel += table.index_select(0, rank.flatten()).view(channel.shape)


@cache
def _quantiles() -> NDArray[np.float32]:
    """(65536,) of the standard normal distribution, each for an equal share of it: a draw is a look-up."""
    quantiles: NDArray[np.float32] = ndtri((np.arange(65536) + 0.5) / 65536).astype(np.float32)
    return quantiles
