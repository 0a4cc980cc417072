"""Statistics over subjects: against scipy, by hand and by enumeration."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from tversky_seg.analysis.statistics import bootstrap_interval, holm, pair_subjects, wilcoxon_p


@pytest.mark.parametrize("n", [1, 2, 5, 12, 60])
def test_signed_rank_test_equals_scipy_without_ties(n):
    values = np.random.default_rng(n).normal(0.3, 1, n)
    assert wilcoxon_p(values) == pytest.approx(
        stats.wilcoxon(values, method="exact").pvalue, rel=1e-9
    )


def test_signed_rank_test_with_ties_counts_all_signs():
    values = np.array([1, 1, -1, 2, 2, 3, -4, 0, 5.0])
    nonzero = values[values != 0]
    ranks = stats.rankdata(np.abs(nonzero))
    middle = ranks.sum() / 2
    found = abs(ranks[nonzero > 0].sum() - middle)
    sums = [
        ranks[list(signs)].sum() for signs in itertools.product((False, True), repeat=len(ranks))
    ]
    assert wilcoxon_p(values) == pytest.approx(
        np.mean([abs(total - middle) >= found for total in sums]), rel=1e-12
    )


def test_signed_rank_test_of_many_equals_scipys_normal_form():
    values = np.round(np.random.default_rng(0).normal(0.15, 1, 500), 1)
    expected = stats.wilcoxon(values, method="approx", correction=False).pvalue
    assert wilcoxon_p(values) == pytest.approx(expected, rel=1e-9)


def test_signed_rank_test_at_its_borders():
    assert wilcoxon_p([0.0, 0.0]) == 1
    assert math.isnan(wilcoxon_p([]))
    assert wilcoxon_p([1, 2, 3, 4]) == pytest.approx(0.125)  # 2 of 16 ways


def test_holm_by_hand_and_as_closed_testing():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, math.nan, 0.9]).tolist() == pytest.approx([1, math.nan, 1], nan_ok=True)
    assert holm([]).size == 0
    p = np.random.default_rng(1).random(5) ** 3
    subsets = [s for k in range(1, 6) for s in itertools.combinations(range(5), k)]
    closed = [max(min(1, len(s) * min(p[list(s)])) for s in subsets if i in s) for i in range(5)]
    assert holm(p) == pytest.approx(closed)


def test_interval_agrees_with_scipys_bootstrap():
    values = np.random.default_rng(0).normal(0.1, 0.3, 25)
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    found = bootstrap_interval(values, n_bootstrap=20_000, rng=np.random.default_rng(2))
    assert found == pytest.approx(expected, abs=0.006)
    assert all(map(math.isnan, bootstrap_interval([0.3], rng=np.random.default_rng(0))))


def test_cases_of_a_subject_are_one_pair_and_undefined_ones_are_counted():
    first = {"a1": 0.2, "a2": 0.4, "b1": 0.5, "c1": math.nan, "d1": 0.1}
    second = {"a1": 0.4, "a2": 0.8, "b1": 0.4, "c1": 0.9, "d1": math.nan}
    pairs = pair_subjects(first, second, subjects={case: case[0] for case in first})
    assert pairs.means.ravel().tolist() == pytest.approx([0.3, 0.6, 0.5, 0.4])
    assert pairs.n_undefined == 2
