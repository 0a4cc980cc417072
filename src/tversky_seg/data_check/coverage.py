"""Coverage: how many patches a sampler draws until it has aimed at every lesion once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tversky_seg.data.patches.paper_samplers import Shirokikh2020Sampler
from tversky_seg.data.patches.samplers import (
    ForegroundSampler,
    LesionSampler,
    SizeTemperedSampler,
)
from tversky_seg.data.preprocessing.prepared_case import PreparedCase

N_TIMES = 20_000
"""Points of the integration over time."""


def lesion_shares(sampler: Any, cases: Sequence[PreparedCase]) -> NDArray[np.float64] | None:
    """Compute the probability that one patch is drawn for each lesion, by the sampler's rule.

    Lesions that lie in a patch drawn for another lesion are not counted, so these are lower
    bounds of the chance that a lesion is seen.

    Args:
        sampler: Sampler of the training.
        cases: Training cases; of their arrays only `lesion_offsets` is read.

    Returns:
        (n,) probabilities, case by case. None where the sampler aims at no lesion (uniform,
        grid), or refuses patches by what they hold (hashemi2018).
    """
    sizes: list[NDArray[np.float64]] = []
    for case in cases:
        if any(case.n_lesions):
            sizes.append(np.diff(case.lesion_offsets).astype(np.float64))
    if not sizes:
        return np.zeros(0)
    shares: list[NDArray[np.float64]] = []
    match sampler:
        case LesionSampler():
            # First a case with lesions, then one of its lesions.
            for of_case in sizes:
                shares.append(np.full(len(of_case), 1 / len(of_case) / len(sizes)))
        case SizeTemperedSampler():
            # First a case, then a lesion by its tempered size.
            for of_case in sizes:
                weights = of_case**sampler.power
                shares.append(weights / weights.sum() / len(sizes))
        case ForegroundSampler():
            # First any case, then one of its lesion voxels.
            for of_case in sizes:
                shares.append(of_case / of_case.sum() / len(cases))
        case Shirokikh2020Sampler():
            # All lesions of the training set alike, whatever their case.
            n_lesions = sum(len(of_case) for of_case in sizes)
            shares.append(np.full(n_lesions, 1 / n_lesions))
        case _:
            return None
    return np.concatenate(shares) * float(sampler.lesion_probability)


def expected_draws(shares: ArrayLike) -> float:
    """Compute the mean number of draws until each item was drawn once.

    This is the coupon collector's problem with unequal shares: E = integral over t from 0 to
    infinity of 1 - prod_i (1 - exp(-p_i t)) (Flajolet, Gardy and Thimonier 1992,
    doi 10.1016/0166-218X(92)90177-C, eq. 14a).

    Args:
        shares: (n,) probability of each item in one draw; they may sum to less than 1.

    Returns:
        Mean number of draws; infinite where an item is never drawn, 0 without items.
    """
    # Thousands of lesions have a few distinct shares: one term for each.
    p, n_equal = np.unique(np.asarray(shares, dtype=np.float64), return_counts=True)
    if not p.size:
        return 0.0
    if p[0] <= 0:
        return math.inf
    # From long before the most frequent item comes to long after the rarest one has.
    t = np.concatenate([[0.0], np.geomspace(1e-6 / p[-1], 50 / p[0], N_TIMES)])
    return float(np.trapezoid(1 - _probability_of_all(p, n_equal, t), t))


def draws_for_all(shares: ArrayLike, *, probability: float = 0.95) -> float:
    """Compute the draws after which all items were drawn with this probability.

    Args:
        shares: (n,) probability of each item in one draw.
        probability: Probability in (0, 1).

    Returns:
        Number of draws; infinite where an item is never drawn, 0 without items.
    """
    p, n_equal = np.unique(np.asarray(shares, dtype=np.float64), return_counts=True)
    if not p.size:
        return 0.0
    if p[0] <= 0:
        return math.inf
    t = np.geomspace(1e-3 / p[-1], 50 / p[0], N_TIMES)
    return float(t[np.searchsorted(_probability_of_all(p, n_equal, t), probability)])


def _probability_of_all(
    p: NDArray[np.float64], n_equal: NDArray[np.int64], t: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Compute prod_i (1 - exp(-p_i t)), for `n_equal` items of each share p.

    Each item comes at its own exponential times, of rate p_i (Poissonisation).
    """
    logarithm = np.zeros_like(t)
    # In logarithms, because a product of thousands of small factors is 0.
    with np.errstate(divide="ignore"):
        for share, n in zip(p, n_equal, strict=True):
            logarithm += n * np.log1p(-np.exp(-share * t))
    return np.exp(logarithm)
