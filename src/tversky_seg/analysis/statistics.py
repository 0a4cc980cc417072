"""Statistics over subjects: intervals, tests, and their correction for many tests."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

MOST_EXACT = 200  # differences; beyond, the rank sum is taken as normal


def bootstrap_interval(
    differences: ArrayLike, *, n_bootstrap: int = 10_000, rng: np.random.Generator
) -> tuple[float, float]:
    """95 % percentile interval of the mean, drawing with replacement (Efron & Tibshirani 1993).

    Args:
        differences: (n,) one per subject.
        n_bootstrap: resamplings.
        rng: draws them.

    Returns:
        Lower and upper limit; NaN for fewer than two differences, whose spread is not known.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.size < 2:
        return math.nan, math.nan
    draws = rng.multinomial(values.size, np.full(values.size, 1 / values.size), size=n_bootstrap)
    low, high = np.percentile(draws @ values / values.size, (2.5, 97.5))
    return float(low), float(high)


def wilcoxon_p(differences: ArrayLike) -> float:
    """Two-sided p of the Wilcoxon signed-rank test that differences are symmetric about 0.

    Differences of 0 are left out and tied sizes share their mean rank (Wilcoxon 1945). Up to 200 differences p is
    exact, with ties too: of all ways to give the ranks signs, the share whose rank sum lies as far out. Beyond, the
    rank sum is taken as normal with the variance of the ranks at hand.

    Args:
        differences: (n,) one per subject, without NaN.

    Returns:
        p in (0, 1]; 1 where all differences are 0, NaN for none at all.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not values.size:
        return math.nan
    values = values[values != 0]
    _, which, counts = np.unique(np.abs(values), return_inverse=True, return_counts=True)
    twice_ranks = (2 * counts.cumsum() - counts + 1)[which]  # whole numbers, ties or not
    positive, total = int(twice_ranks[values > 0].sum()), int(twice_ranks.sum())
    smaller = min(positive, total - positive)
    if values.size > MOST_EXACT:
        spread = math.sqrt(float((twice_ranks.astype(np.float64) ** 2).sum()))
        return math.erfc((total - 2 * smaller) / spread / math.sqrt(2))
    share = np.ones(1)
    for rank in twice_ranks:
        share = (np.pad(share, (0, rank)) + np.pad(share, (rank, 0))) / 2
    return min(1.0, 2 * float(share[: smaller + 1].sum()))


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """p-values corrected for their number by the step-down method of Holm (1979).

    Args:
        p: (n,) in [0, 1]; NaN is no test and stays NaN.

    Returns:
        (n,) the corrected values, at most 1, in the order given.
    """
    values = np.asarray(p, dtype=np.float64)
    tests = np.flatnonzero(~np.isnan(values))
    order = tests[np.argsort(values[tests], kind="stable")]
    corrected = values.copy()
    corrected[order] = np.maximum.accumulate(values[order] * np.arange(order.size, 0, -1)).clip(
        max=1
    )
    return corrected


def subject_means(
    first: Mapping[str, float], second: Mapping[str, float], *, subjects: Mapping[str, str]
) -> tuple[NDArray[np.float64], int]:
    """Pairs of one measure, a subject with several cases being one pair: the means of its cases.

    Args:
        first: case -> value, NaN where undefined.
        second: the same cases in the other run.
        subjects: case -> subject.

    Returns:
        (n, 2) by subject name, and how many pairs of cases were left out because either value is undefined.
    """
    pairs: dict[str, list[tuple[float, float]]] = {}
    for case, value in first.items():
        if not (math.isnan(value) or math.isnan(second[case])):
            pairs.setdefault(subjects[case], []).append((value, second[case]))
    means = [np.mean(pairs[subject], axis=0) for subject in sorted(pairs)]
    return np.array(means).reshape(-1, 2), len(first) - sum(map(len, pairs.values()))
