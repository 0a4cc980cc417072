"""Checks of what a loss is built with and called with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NEVER_ZERO = 1e-20
"""Voxels in place of smooth=0: without it, the index of nothing predicted in nothing is 0/0."""


def tversky_weights(alpha: float | None, beta: float | None) -> tuple[float, float]:
    """Fill in the weights of false positives and false negatives, and check them.

    Args:
        alpha: Weight of false positives, >= 0, or None.
        beta: Weight of false negatives, >= 0, or None.

    Returns:
        Alpha and beta. Both None: 0.3 and 0.7; one None: 1 - the other.

    Raises:
        ValueError: A weight is negative or not finite, or both are 0.
    """
    if alpha is None and beta is None:
        alpha = 0.3  # the paper's best
    # One alone is enough: beta=0.8 means alpha=0.2.
    if alpha is None:
        assert beta is not None
        alpha = 1 - beta
    if beta is None:
        beta = 1 - alpha
    if not (alpha >= 0 and beta >= 0 and 0 < alpha + beta < math.inf):
        raise ValueError(
            "alpha and beta must be >= 0, finite and not both 0, "
            f"got alpha={alpha:g}, beta={beta:g}"
        )
    return alpha, beta


def checked_smooth(smooth: float) -> float:
    """Return the number of voxels to add to numerator and denominator of a ratio.

    Raises:
        ValueError: It is negative or not finite.
    """
    if not 0 <= smooth < math.inf:
        raise ValueError(f"smooth must be >= 0 and finite, got smooth={smooth}")
    return smooth or NEVER_ZERO


def check_arguments(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
    """Refuse what no loss is defined for.

    Raises:
        ValueError: See `check_shapes` and `check_range`.
    """
    check_shapes(logits, target, weight)
    if target.dtype != torch.bool:
        check_range(target.detach())


def check_shapes(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
    """Refuse tensors that do not go together.

    Raises:
        ValueError: Logits are not floating point (B, C, X, ...) or hold no voxel, the target has
            another shape, or the weight does not broadcast to the logits.
    """
    shape = tuple(logits.shape)
    if not logits.is_floating_point() or logits.ndim < 3 or not logits.numel():
        raise ValueError(
            f"logits must be floating point (B, C, X, Y, Z), got {logits.dtype} {shape}"
        )
    if target.shape != logits.shape:
        raise ValueError(f"target must have the logits' shape {shape}, got {tuple(target.shape)}")
    if weight is not None and not _broadcasts(weight, logits.shape):
        raise ValueError(f"weight must broadcast to {shape}, got {tuple(weight.shape)}")


def check_range(target: Tensor) -> None:
    """Refuse target values outside [0, 1], NaN among them.

    Only on the CPU: on another device the check would wait for it in every step.

    Raises:
        ValueError: With the smallest and the largest value.
    """
    if target.device.type != "cpu":
        return
    low, high = torch.aminmax(target)
    smallest = float(low)
    largest = float(high)
    # Written so that NaN, which compares false, is refused as well.
    if not (smallest >= 0 and largest <= 1):
        raise ValueError(f"target must lie in [0, 1], got values from {smallest:g} to {largest:g}")


def _broadcasts(weight: Tensor, shape: torch.Size) -> bool:
    # torch has no function that asks; expand makes a view, so no memory is used.
    try:
        weight.expand(shape)
    except RuntimeError:
        return False
    return True
