"""Statistics over subjects: intervals, paired tests, and their correction for many tests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

MOST_EXACT = 200
"""Differences up to which the signed-rank test is exact; beyond, the rank sum is normal."""
LIMITS_95 = (2.5, 97.5)


@dataclass(frozen=True, eq=False)
class SubjectPairs:
    """One metric of the same subjects in two runs."""

    means: NDArray[np.float64]
    """(n, 2) means over the cases of each subject in both runs, sorted by name of the subject."""
    n_undefined: int
    """Cases left out, because the metric is undefined in either run."""


def pair_subjects(
    first: Mapping[str, float], second: Mapping[str, float], *, subjects: Mapping[str, str]
) -> SubjectPairs:
    """Pair two runs by subject; a subject with several cases is one pair, the means of its cases.

    Args:
        first: Case -> value, NaN where undefined.
        second: The same cases in the second run.
        subjects: Case -> subject.
    """
    values: dict[str, list[tuple[float, float]]] = {}
    n_undefined = 0
    for case, value in first.items():
        if math.isnan(value) or math.isnan(second[case]):
            n_undefined += 1
        else:
            values.setdefault(subjects[case], []).append((value, second[case]))
    means = np.empty((len(values), 2))
    for k, subject in enumerate(sorted(values)):
        means[k] = np.mean(values[subject], axis=0)
    return SubjectPairs(means, n_undefined)


def bootstrap_interval(
    values: ArrayLike, *, n_bootstrap: int = 10_000, rng: np.random.Generator
) -> tuple[float, float]:
    """Compute the 95 % percentile interval of a mean (Efron & Tibshirani 1993).

    Args:
        values: (n,) one for each subject. Subjects are drawn with replacement.
        n_bootstrap: Resamplings.
        rng: Generator that draws them.

    Returns:
        Lower and upper limit; NaN for fewer than two values, whose spread is unknown.
    """
    sample = np.asarray(values, dtype=np.float64)
    n = sample.size
    if n < 2:
        return math.nan, math.nan
    # How often each resampling takes each subject, (n_bootstrap, n).
    n_drawn = rng.multinomial(n, np.full(n, 1 / n), size=n_bootstrap)
    low, high = np.percentile(n_drawn @ sample / n, LIMITS_95)
    return float(low), float(high)


def wilcoxon_p(differences: ArrayLike) -> float:
    """Test by signed ranks whether differences are symmetric about 0 (Wilcoxon 1945), two-sided.

    Differences of 0 are left out, and differences of equal size share their mean rank. The exact
    distribution of scipy is of ranks without ties, but metrics such as Dice of few voxels tie.

    Args:
        differences: (n,) one for each subject, without NaN.

    Returns:
        p in (0, 1], exact up to 200 differences, also with ties; 1 where all differences are 0, NaN
        without differences.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not values.size:
        return math.nan
    values = values[values != 0]
    _, tie, n_tied = np.unique(np.abs(values), return_inverse=True, return_counts=True)
    # Sizes 1, 1, 3 have the ranks 1.5, 1.5, 3. Twice the ranks are whole numbers: 3, 3, 6.
    twice_ranks = (2 * n_tied.cumsum() - n_tied + 1)[tie]
    total = int(twice_ranks.sum())
    positive = int(twice_ranks[values > 0].sum())
    smaller = min(positive, total - positive)
    if values.size > MOST_EXACT:
        return _normal_p(twice_ranks, smaller, total)
    return _exact_p(twice_ranks, smaller)


def _exact_p(twice_ranks: NDArray[np.int64], smaller: int) -> float:
    """Count, of all ways to give the ranks signs, those whose rank sum lies as far out."""
    # share[s]: share of these ways with a positive rank sum of s. One rank after another is added:
    # half of the ways give it a plus and so shift the sum, half leave the sum as it is.
    share = np.ones(1)
    for rank in twice_ranks:
        without_rank = np.pad(share, (0, rank))
        with_rank = np.pad(share, (rank, 0))
        share = (without_rank + with_rank) / 2
    one_sided = float(share[: smaller + 1].sum())
    # Both tails hold the sum in the middle, so twice a tail may exceed 1.
    return min(1.0, 2 * one_sided)


def _normal_p(twice_ranks: NDArray[np.int64], smaller: int, total: int) -> float:
    """Take the rank sum as normal, with the variance of these ranks, ties included."""
    spread = math.sqrt(float((twice_ranks.astype(np.float64) ** 2).sum()))
    return math.erfc((total - 2 * smaller) / spread / math.sqrt(2))


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Correct p-values for their number by the step-down method of Holm (1979).

        holm([0.01, 0.04, 0.03]) == [0.03, 0.06, 0.06]

    Args:
        p: (n,) in [0, 1]; NaN is no test and stays NaN.

    Returns:
        (n,) corrected values, at most 1, in the same order.
    """
    values = np.asarray(p, dtype=np.float64)
    tests = np.flatnonzero(~np.isnan(values))
    rising = tests[np.argsort(values[tests], kind="stable")]
    # The smallest p is multiplied by the number of tests, the next by one less, and so on. A larger
    # p may not become smaller than its predecessor.
    factors = np.arange(rising.size, 0, -1)
    corrected = values.copy()
    corrected[rising] = np.maximum.accumulate(values[rising] * factors).clip(max=1)
    return corrected
