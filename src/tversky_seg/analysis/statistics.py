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

    @property
    def means_of_runs(self) -> tuple[float, float]:
        """Means over the pairs, whose difference is the mean difference; NaN without pairs."""
        if not len(self.means):
            return math.nan, math.nan
        first, second = self.means.mean(axis=0).tolist()
        return first, second

    @property
    def differences(self) -> NDArray[np.float64]:
        """(n,) second run minus first, one for each subject."""
        differences: NDArray[np.float64] = self.means[:, 1] - self.means[:, 0]
        return differences


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
    if not np.size(differences):
        return math.nan
    ranks = _signed_ranks(differences)
    smaller = min(ranks.positive, ranks.negative)
    # Both tails hold the sum in the middle, so twice a tail may exceed 1.
    return min(1.0, 2 * _lower_tail(ranks.twice_ranks, smaller))


def wilcoxon_greater_p(differences: ArrayLike) -> float:
    """Test by signed ranks whether differences lie above 0, one-sided.

    Args:
        differences: (n,) one for each subject, without NaN.

    Returns:
        p in (0, 1] as of `wilcoxon_p`: small where positive differences prevail; 1 where all are 0,
        NaN without differences.
    """
    if not np.size(differences):
        return math.nan
    ranks = _signed_ranks(differences)
    return min(1.0, _lower_tail(ranks.twice_ranks, ranks.negative))


def noninferiority_p(
    differences: ArrayLike, *, margin: float, lower_is_better: bool = False
) -> float:
    """Test whether the second method is worse than the first by less than a margin, one-sided.

    The signed-rank test of the differences moved by the margin, as for a confidence limit that must
    lie above -margin (ICH E9, section 3.3.2, where the one-sided level is 0.025).

    Args:
        differences: (n,) second minus first, one for each subject, without NaN.
        margin: Largest loss that is taken as none, > 0, in the metric's unit.
        lower_is_better: Whether a loss is a rise, as of a distance.

    Returns:
        p in (0, 1]: small where the second method is not inferior; NaN without differences.

    Raises:
        ValueError: The margin is not above 0.
    """
    if not margin > 0:
        raise ValueError(f"margin must be above 0, got {margin}")
    gains = np.asarray(differences, dtype=np.float64)
    if lower_is_better:
        gains = -gains
    return wilcoxon_greater_p(gains + margin)


def rank_biserial(differences: ArrayLike) -> float:
    """Measure the effect that the signed-rank test tests: the matched-pairs rank-biserial r.

    Rank sum of the positive differences minus that of the negative ones, over both (Kerby 2014).

    Args:
        differences: (n,) one for each subject, without NaN.

    Returns:
        r in [-1, 1]: 1 where all differences are positive; NaN where none differs from 0.
    """
    ranks = _signed_ranks(differences)
    total = ranks.positive + ranks.negative
    return (ranks.positive - ranks.negative) / total if total else math.nan


def standardized_mean(differences: ArrayLike) -> float:
    """Divide the mean difference by the standard deviation of the differences: Cohen's d_z (1988).

    Args:
        differences: (n,) one for each subject, without NaN.

    Returns:
        d_z; NaN for fewer than two differences, or where they do not vary.
    """
    sample = np.asarray(differences, dtype=np.float64)
    if sample.size < 2 or np.ptp(sample) == 0:
        return math.nan
    return float(sample.mean() / sample.std(ddof=1))


@dataclass(frozen=True, eq=False)
class _SignedRanks:
    twice_ranks: NDArray[np.int64]
    """Twice the rank of the size of each difference that is not 0."""
    positive: int
    """Their sum over the positive differences."""
    negative: int


def _signed_ranks(differences: ArrayLike) -> _SignedRanks:
    values = np.asarray(differences, dtype=np.float64)
    values = values[values != 0]
    _, tie, n_tied = np.unique(np.abs(values), return_inverse=True, return_counts=True)
    # Sizes 1, 1, 3 have the ranks 1.5, 1.5, 3. Twice the ranks are whole numbers: 3, 3, 6.
    twice_ranks = (2 * n_tied.cumsum() - n_tied + 1)[tie]
    positive = int(twice_ranks[values > 0].sum())
    return _SignedRanks(twice_ranks, positive, int(twice_ranks.sum()) - positive)


def _lower_tail(twice_ranks: NDArray[np.int64], rank_sum: int) -> float:
    """Return the probability of a rank sum this small, if signs were tossed."""
    if twice_ranks.size > MOST_EXACT:
        # The rank sum is normal, with the variance of these ranks, ties included.
        spread = math.sqrt(float((twice_ranks.astype(np.float64) ** 2).sum()))
        below_middle = int(twice_ranks.sum()) - 2 * rank_sum
        return math.erfc(below_middle / spread / math.sqrt(2)) / 2
    return float(rank_sum_shares(twice_ranks)[: rank_sum + 1].sum())


def rank_sum_shares(twice_ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Count, of all ways to give ranks signs, those with each sum of the positive ranks.

    Args:
        twice_ranks: (n,) twice the ranks, whole numbers even with ties.

    Returns:
        (sum(twice_ranks) + 1,) share of the ways with a positive sum of 0, 1, 2, …
    """
    # One rank after another is added: half of the ways give it a plus and so shift the sum, half
    # leave the sum as it is.
    share = np.ones(1)
    for rank in twice_ranks:
        without_rank = np.pad(share, (0, rank))
        with_rank = np.pad(share, (rank, 0))
        share = (without_rank + with_rank) / 2
    return share


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
