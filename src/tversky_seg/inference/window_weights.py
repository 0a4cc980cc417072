"""Weights of a window's voxels: high in the middle, where a network sees most around a voxel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Window = str | Callable[[int], ArrayLike] | NDArray[Any] | Tensor
"""A name, a function from a side of n voxels to n weights, or the weights (x, y, z) themselves."""


def spline_window(n: int, *, order: int = 2) -> NDArray[np.float64]:
    """Compute spline weights along one side of n voxels, in (0, 1].

    With n even and 50 % overlap, the weights of neighbouring windows add up to 1.

    Order 2 is the window of Hashemi et al. (arXiv:1803.11078, released code). That code divides the
    fused map by 4 where 8 windows meet, so its probabilities are twice too large and its threshold
    of 0.5 is one of 0.25; here the map is divided by the weights that were in fact added up.

    Args:
        n: Side of the window in voxels.
        order: Order of the spline, at least 1.
    """
    centres = np.arange(n, dtype=np.float64) + 0.5
    # A triangle: nearly 0 at both ends, 1 in the middle.
    ramp = np.minimum(centres, n - centres) * 2 / n
    return np.where(ramp <= 0.5, (2 * ramp) ** order / 2, 1 - (2 - 2 * ramp) ** order / 2)


def gaussian_window(n: int, *, sigma: float = 0.125) -> NDArray[np.float64]:
    """Compute Gaussian weights along one side of n voxels, in (0, 1].

    Args:
        n: Side of the window in voxels.
        sigma: Standard deviation as a share of the side; MONAI and nnU-Net take 1/8.
    """
    offset = np.arange(n, dtype=np.float64) - (n - 1) / 2
    weights: NDArray[np.float64] = np.exp(-0.5 * (offset / (sigma * n)) ** 2)
    return weights


WINDOWS: Mapping[str, Callable[[int], ArrayLike]] = {
    "bspline": spline_window,
    "gaussian": gaussian_window,
    "uniform": np.ones,
}


def window_weights(window: Window, sides: Sequence[int], *, spline_order: int = 2) -> Tensor:
    """Compute the weight of each voxel of a window, (x, y, z) float32; not to be changed in place.

    Args:
        window: Name, function or array; see `Window`.
        sides: Three sides of the window in voxels.
        spline_order: Order of the window "bspline"; other windows have none.

    Raises:
        ValueError: A weight is not positive, or an array has another shape than the window.
    """
    if isinstance(window, str):
        return _named_weights(window, tuple(sides), spline_order)
    return _checked_weights(window, sides)


@lru_cache(maxsize=2)  # the cases of a cohort have the same windows; of whole volumes, few
def _named_weights(name: str, sides: tuple[int, ...], spline_order: int) -> Tensor:
    return _checked_weights(_function_named(name, spline_order), sides)


def _checked_weights(window: Window, sides: Sequence[int]) -> Tensor:
    weights = torch.as_tensor(_weights_of(window, sides), dtype=torch.float32)
    if weights.shape != tuple(sides) or not (weights > 0).all():
        raise ValueError(
            f"window must give positive weights of shape {tuple(sides)}, "
            f"got shape {tuple(weights.shape)}"
        )
    return weights


def _weights_of(window: Window, sides: Sequence[int]) -> Any:
    if not callable(window):
        return window
    along = [np.asarray(window(side), dtype=np.float64) for side in sides]
    # The weight of a voxel is the product of its weights along the three axes.
    x, y, z = along
    return x[:, None, None] * y[:, None] * z


def _function_named(name: str, spline_order: int) -> Callable[[int], ArrayLike]:
    if name == "bspline":
        return partial(spline_window, order=spline_order)
    return WINDOWS[name]
