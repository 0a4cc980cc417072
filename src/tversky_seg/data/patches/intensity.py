"""Intensity changes, as between scanners: of one channel (X, Y, Z), in place, on any device."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from tversky_seg.data.patches import fused
from tversky_seg.data.patches.spatial import (
    Matrices,
    Matrix,
    SeparableField,
    as_matrices,
    separable,
)

N_RANKS = 65536  # a rank of noise is 16 bits


@dataclass(frozen=True, eq=False)
class IntensityChange:
    """Drawn changes of one channel, in the order in which they are applied; None: not drawn.

    Attributes:
        bias_field: Logarithm of the bias field, see `log_bias_field`.
        blur: Matrices of the blur, see `gaussian_matrices`.
        low_resolution: Matrices of the change of resolution, see `low_resolution_matrices`.
        gamma: Exponent of the gamma curve.
        contrast: Strength of the S-curve.
        scale: Factor.
        shift: Offset.
        noise_ranks: (X, Y, Z) uint16, see `add_noise`.
        noise_sd: Standard deviation of the noise.
    """

    bias_field: SeparableField | None = None
    blur: Matrices | None = None
    low_resolution: Matrices | None = None
    gamma: float | None = None
    contrast: float | None = None
    scale: float | None = None
    shift: float | None = None
    noise_ranks: Tensor | None = None
    noise_sd: float = 0.0

    @property
    def is_any(self) -> bool:
        """Whether anything was drawn."""
        changes = (
            self.bias_field,
            self.blur,
            self.low_resolution,
            self.gamma,
            self.contrast,
            self.scale,
            self.shift,
            self.noise_ranks,
        )
        return any(change is not None for change in changes)

    def apply(self, channel: Tensor, brain: Tensor) -> None:
        """Change a channel in place, inside the brain.

        Args:
            channel: (X, Y, Z).
            brain: (X, Y, Z), 0 where the channel becomes 0, else 1.
        """
        if self.bias_field is not None:
            multiply_bias_field(channel, self.bias_field)
        if self.blur is not None:
            channel.copy_(separable(channel, self.blur))
        if self.low_resolution is not None:
            channel.copy_(separable(channel, self.low_resolution))
        if fused.can_fuse(channel):
            self._change_values_at_once(channel, brain)
        else:
            self._change_values(channel)
            channel *= brain

    def _change_values(self, channel: Tensor) -> None:
        """Apply what changes each voxel by itself."""
        if self.gamma is not None:
            apply_gamma(channel, self.gamma)
        if self.contrast is not None:
            apply_s_curve(channel, self.contrast)
        if self.scale is not None:
            channel *= self.scale
        if self.shift is not None:
            channel += self.shift
        if self.noise_ranks is not None:
            add_noise(channel, self.noise_ranks, sd=self.noise_sd)

    def _change_values_at_once(self, channel: Tensor, brain: Tensor) -> None:
        """Do the same in one pass, and put 0 outside the brain."""
        fused.change_values(
            channel,
            brain,
            gamma=self.gamma,
            contrast=self.contrast,
            scale=self.scale,
            shift=self.shift,
            noise_ranks=self.noise_ranks,
            noise_sd=self.noise_sd,
            quantiles=_normal_quantiles(channel.device),
        )


def log_bias_field(coefficients: NDArray[np.float64], size: Sequence[int]) -> SeparableField:
    """Prepare a sum of Legendre polynomials over [-1, 1]^3.

    Args:
        coefficients: (n, n, n) for the products of the polynomials of degree 0 to n - 1.
        size: Sides of the patch.
    """
    degree = len(coefficients) - 1
    bases = []
    for n_voxels in size:
        places = np.linspace(-1, 1, n_voxels)
        basis = np.polynomial.legendre.legvander(places, degree)
        bases.append(basis.astype(np.float32))
    return SeparableField(torch.from_numpy(coefficients.astype(np.float32)), as_matrices(bases))


def multiply_bias_field(channel: Tensor, log_field: SeparableField) -> None:
    """Multiply a channel by exp of a smooth field, so that its smallest value stays."""
    field = log_field.values().exp_()
    low = channel.amin()
    channel -= low
    channel *= field
    channel += low


def gaussian_matrices(sigma: Sequence[float], size: Sequence[int]) -> Matrices:
    """Compute the matrices of a Gaussian blur, with a standard deviation in voxels for each axis.

    No weight lies outside the patch.
    """
    return as_matrices(map(_gaussian, size, sigma))


def _gaussian(n: int, sigma: float) -> Matrix:
    """Compute the (n, n) matrix of a Gaussian smoothing along one axis."""
    distance = np.subtract.outer(np.arange(n), np.arange(n))
    is_near = np.abs(distance) <= np.ceil(4 * sigma)
    weights = np.exp(-0.5 * (distance / max(sigma, 1e-3)) ** 2) * is_near
    # Next to the border the remaining weights make up for those outside
    weights /= weights.sum(axis=1, keepdims=True)
    return np.asarray(weights, dtype=np.float32)


def low_resolution_matrices(factor: float | Sequence[float], size: Sequence[int]) -> Matrices:
    """Compute the matrices that average over voxels `factor` times as long along each axis.

    Then they interpolate linearly. The factor is one number, or one for each axis.
    """
    factors = [factor] * 3 if isinstance(factor, int | float) else factor
    return as_matrices(map(_coarse_and_back, size, factors))


def _coarse_and_back(n: int, factor: float) -> Matrix:
    """Compute the (n, n) matrix of `low_resolution_matrices` along one axis."""
    n_coarse = max(1, round(n / factor))
    edges = np.arange(n_coarse + 1) * n / n_coarse
    fine = np.arange(n)
    # Overlap of each coarse voxel with each fine one, in fine voxels
    first = np.maximum(edges[:-1, None], fine)
    end = np.minimum(edges[1:, None], fine + 1)
    overlap = np.maximum(end - first, 0)
    means = overlap * n_coarse / n
    # Centre of each fine voxel, counted in coarse voxels; constant beyond the outer centres
    places = np.clip((fine + 0.5) * n_coarse / n - 0.5, 0, n_coarse - 1)
    distance = np.abs(places[:, None] - np.arange(n_coarse))
    interpolation = np.maximum(1 - distance, 0)
    return np.asarray(interpolation @ means, dtype=np.float32)


def apply_gamma(channel: Tensor, exponent: float) -> None:
    """Map t to t^exponent, where t goes from 0 at the smallest to 1 at the largest value."""
    low, high = channel.aminmax()
    # A constant channel has no width: the smallest one avoids 0 / 0.
    width = (high - low).clamp_min(1e-20)
    # width (v / width)^g = exp(g log v + (1 - g) log width), in a third of the time of pow
    channel.sub_(low).log_()
    channel *= exponent
    channel += (1 - exponent) * width.log()
    channel.exp_().add_(low)


def apply_s_curve(channel: Tensor, strength: float) -> None:
    """Map t to t + c t (1 - t) (1 - 2 t), where c in [-1, 1] is the strength.

    t goes from 0 at the smallest to 1 at the largest value.
    """
    low, high = channel.aminmax()
    width = (high - low).clamp_min(1e-20)
    channel -= low
    channel *= 1 / width
    # t + c t (1 - t) (1 - 2 t) = t ((2 c t - 3 c) t + 1 + c), all of it times the width
    curve = channel * (2 * strength * width)
    curve -= 3 * strength * width
    curve *= channel
    curve += (1 + strength) * width
    channel *= curve
    channel += low


def add_noise(channel: Tensor, ranks: Tensor, *, sd: float) -> None:
    """Add Gaussian noise that was drawn on the host, so that every device adds the same.

    Args:
        channel: (X, Y, Z).
        ranks: (X, Y, Z) uint16, uniform in 0 to 65535: the place of each draw in the sorted normal
            distribution.
        sd: Standard deviation.
    """
    # A look-up is faster than the inverse of the distribution, and the same on every device
    table = _normal_quantiles(channel.device) * sd
    index = ranks.to(channel.device, non_blocking=True).to(torch.int32)
    channel += table.index_select(0, index.flatten()).view(channel.shape)


@cache
def _normal_quantiles(device: torch.device) -> Tensor:
    """Compute 65536 quantiles of the standard normal distribution, once for each device."""
    quantiles = ndtri((np.arange(N_RANKS) + 0.5) / N_RANKS).astype(np.float32)
    return torch.from_numpy(quantiles).to(device)
