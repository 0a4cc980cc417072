"""Power of the signed-rank test: the smallest difference that this many subjects can show."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tversky_seg.analysis.statistics import MOST_EXACT, rank_sum_shares

LEVEL = 0.05
"""Two-sided level of the test."""
POWER = 0.8
"""Probability of a significant test that a study is planned for (Cohen 1988)."""
N_SIMULATED = 4000
MOST_SIMULATED = 100
"""Subjects up to which the power is simulated; beyond, the effect falls with their root."""
LARGEST_EFFECT = 8.0
"""Standard deviations beyond which no search goes."""


def signed_rank_power(effect: float, n: int, *, level: float = LEVEL) -> float:
    """Estimate how often the signed-rank test finds a true difference, by simulation.

    Differences are drawn from a normal distribution. The same draws serve every effect, so that
    power rises with it without noise. A power of 0.8 has a standard error of 0.006.

    Args:
        effect: True mean difference, in standard deviations of the differences (d_z).
        n: Subjects, 1 to 200: as many as the test is exact for.
        level: Two-sided level of the test.

    Returns:
        Share of significant tests, in [0, 1]; 0 where so few subjects can never reach the level.

    Raises:
        ValueError: n is not in 1 to 200.
    """
    if not 1 <= n <= MOST_EXACT:
        raise ValueError(f"n must be in 1 to {MOST_EXACT}, got {n}")
    largest = _largest_significant_sum(n, level)
    draws = _draws(n) + effect
    # (n_simulated, n): rank 1 for the smallest size. Normal draws have no ties.
    ranks = np.abs(draws).argsort(axis=1).argsort(axis=1) + 1
    positive = np.where(draws > 0, ranks, 0).sum(axis=1)
    total = n * (n + 1) // 2
    smaller = np.minimum(positive, total - positive)
    return float(np.mean(smaller <= largest))


@lru_cache(maxsize=256)
def detectable_effect(n: int, *, power: float = POWER, level: float = LEVEL) -> float:
    """Find the smallest true difference that the signed-rank test detects with a given power.

    Args:
        n: Subjects.
        power: Probability of a significant test.
        level: Two-sided level of the test.

    Returns:
        Mean difference in standard deviations of the differences (d_z): 1.02 for 10 subjects,
        0.55 for 30 (by the paired t-test 1.00 and 0.53). NaN where so few subjects can never reach
        the level: fewer than 6 at 0.05.
    """
    if n > MOST_SIMULATED:
        at_most = detectable_effect(MOST_SIMULATED, power=power, level=level)
        return at_most * math.sqrt(MOST_SIMULATED / n)
    if n < 1 or _largest_significant_sum(n, level) < 0:
        return math.nan
    low, high = 0.0, LARGEST_EFFECT
    while high - low > 1e-3:
        middle = (low + high) / 2
        if signed_rank_power(middle, n, level=level) < power:
            low = middle
        else:
            high = middle
    return high


def _largest_significant_sum(n: int, level: float) -> int:
    """Return the largest sum of the rarer sign's ranks that is significant; -1 without such."""
    # Twice the ranks, as `rank_sum_shares` takes them: every second sum has no way at all.
    shares = rank_sum_shares(2 * np.arange(1, n + 1))[::2]
    two_sided = 2 * np.cumsum(shares)
    # A hair of rounding must not exclude a sum whose p is the level itself.
    return int(np.searchsorted(two_sided, level * (1 + 1e-12), side="right")) - 1


@lru_cache(maxsize=4)
def _draws(n: int) -> NDArray[np.float64]:
    draws = np.random.default_rng(0).normal(size=(N_SIMULATED, n))
    draws.flags.writeable = False  # it is shared by all calls
    return draws
