"""Statistics over subjects: against scipy, by hand and by enumeration."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from tversky_seg.analysis.power import N_SIMULATED, detectable_effect, signed_rank_power
from tversky_seg.analysis.seeds import seed_model, seed_table
from tversky_seg.analysis.statistics import (
    bootstrap_interval,
    holm,
    noninferiority_p,
    pair_subjects,
    rank_biserial,
    standardized_mean,
    wilcoxon_greater_p,
    wilcoxon_p,
)

# Dice of 8 subjects in 3 seeds of 2 methods, drawn with effects of subject, seed and their product.
TWO_METHODS = (
    [
        [0.788, 0.478, 0.659, 0.548, 0.592, 0.584, 0.371, 0.576],
        [0.833, 0.455, 0.66, 0.569, 0.545, 0.569, 0.4, 0.593],
        [0.794, 0.39, 0.672, 0.516, 0.516, 0.567, 0.383, 0.559],
    ],
    [
        [0.786, 0.359, 0.638, 0.572, 0.584, 0.537, 0.447, 0.583],
        [0.754, 0.307, 0.636, 0.526, 0.54, 0.579, 0.435, 0.508],
        [0.793, 0.348, 0.687, 0.577, 0.599, 0.578, 0.475, 0.585],
    ],
)


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


@pytest.mark.parametrize("n", [1, 3, 12, 60, 300])
def test_one_sided_signed_rank_test_equals_scipy(n):
    values = np.random.default_rng(n).normal(0.3, 1, n)
    method = "exact" if n <= 200 else "approx"
    expected = stats.wilcoxon(values, alternative="greater", method=method, correction=False).pvalue
    assert wilcoxon_greater_p(values) == pytest.approx(expected, rel=1e-9)
    assert min(1, 2 * min(wilcoxon_greater_p(values), wilcoxon_greater_p(-values))) == (
        pytest.approx(wilcoxon_p(values))
    )


def test_a_loss_within_the_margin_is_not_inferior():
    losses = -np.array([0.01, 0.012, 0.008, 0.011, 0.009, 0.013])
    assert noninferiority_p(losses, margin=0.02) == pytest.approx(1 / 64)
    assert noninferiority_p(losses, margin=0.005) == 1
    # A distance that rises by 0.01 mm loses as much as a Dice that falls by it.
    assert noninferiority_p(-losses, margin=0.02, lower_is_better=True) == pytest.approx(1 / 64)
    assert noninferiority_p(-losses, margin=0.02) == pytest.approx(1 / 64), "a gain of Dice"
    assert math.isnan(noninferiority_p([], margin=0.02))
    with pytest.raises(ValueError, match="margin"):
        noninferiority_p(losses, margin=0)


def test_effect_sizes_by_hand():
    # Ranks 1, 2, 3, 4 with signs + - + +: (8 - 2) / 10.
    assert rank_biserial([0.1, -0.2, 0.3, 0.4]) == pytest.approx(0.6)
    assert rank_biserial([1, 1, -1]) == pytest.approx(1 / 3), "ties share their rank"
    assert math.isnan(rank_biserial([0.0, 0.0]))
    assert standardized_mean([1, 2, 3]) == pytest.approx(2.0)
    assert math.isnan(standardized_mean([1.0]))
    assert math.isnan(standardized_mean([1.0, 1.0]))


def test_power_of_six_subjects_is_that_of_six_equal_signs():
    # Of 6 subjects only 6 equal signs are significant: 2/64 = 0.031, but 4/64 = 0.063.
    for effect in (0.5, 1.5):
        expected = stats.norm.cdf(effect) ** 6 + stats.norm.cdf(-effect) ** 6
        spread = math.sqrt(expected * (1 - expected) / N_SIMULATED)
        assert signed_rank_power(effect, 6) == pytest.approx(expected, abs=4 * spread)
    assert detectable_effect(6) == pytest.approx(stats.norm.ppf(0.8 ** (1 / 6)), rel=0.03)
    assert math.isnan(detectable_effect(5)), "p is at least 2/32"
    assert signed_rank_power(3, 5) == 0


def test_power_agrees_with_tests_of_simulated_studies():
    draws = np.random.default_rng(7).normal(0.5, 1, (150, 20))
    significant = np.mean([wilcoxon_p(study) <= 0.05 for study in draws])
    assert signed_rank_power(0.5, 20) == pytest.approx(significant, abs=0.12)


def test_level_of_the_test_is_kept_without_an_effect():
    for n in (6, 9, 25):
        assert signed_rank_power(0, n) <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / N_SIMULATED)


@pytest.mark.parametrize(("n", "t_test"), [(10, 0.9960), (30, 0.5292), (60, 0.3677)])
def test_detectable_effect_is_a_little_above_that_of_the_t_test(n, t_test):
    # t_test: TTestPower().solve_power(nobs=n, power=0.8, alpha=0.05) of statsmodels 0.14. The
    # signed-rank test needs pi / 3 as many subjects with normal differences (Pitman).
    assert 0.99 * t_test < detectable_effect(n) < 1.06 * t_test * math.sqrt(math.pi / 3)


def test_many_subjects_detect_by_the_root_of_their_number(monkeypatch):
    monkeypatch.setattr("tversky_seg.analysis.power.MOST_SIMULATED", 30)
    assert detectable_effect(120) == pytest.approx(detectable_effect(30) / 2)


def test_seeds_as_a_random_effect_agree_with_a_mixed_model():
    model = seed_model(*TWO_METHODS)
    # statsmodels 0.14, mixedlm("y ~ m") by REML (restarted until it no longer rises) with variance
    # components for subject, subject x method and seed: the coefficient of m, its standard error,
    # the component of the seeds and the residual variance.
    assert model.difference == pytest.approx(-0.007667, abs=1e-6)
    assert model.standard_error == pytest.approx(0.0225794, rel=1e-5)
    # The mean of a seed varies by the seed's component and an eighth of the rest.
    assert model.seed_sd**2 == pytest.approx(0.00031794 + 0.00044291 / 8, rel=1e-4)
    assert model.p == pytest.approx(
        2 * stats.t.sf(abs(model.difference) / model.standard_error, model.df)
    )


def test_without_an_effect_of_seeds_the_test_is_the_paired_t_test():
    # Both seeds have the same mean: their component is estimated below 0, hence 0.
    first = np.array([[0.5, 0.6, 0.7, 0.4], [0.6, 0.5, 0.6, 0.5]])
    second = first + np.array([0.1, 0.2, 0.05, 0.15])
    model = seed_model(first, second)
    assert model.p == pytest.approx(stats.ttest_rel(second.mean(0), first.mean(0)).pvalue)
    assert model.df == pytest.approx(3)


def test_more_spread_between_seeds_makes_a_difference_less_certain():
    first, second = np.array(TWO_METHODS)
    noisy = second + np.array([[0.1], [-0.1], [0.0]])
    assert seed_model(first, noisy).p > seed_model(first, second).p
    assert seed_model(first, noisy).seed_sd > 2 * seed_model(first, second).seed_sd


def test_seeds_are_found_significant_in_one_of_twenty_equal_methods():
    rng = np.random.default_rng(5)
    p = []
    for _ in range(400):
        subjects = rng.normal(0.6, 0.1, 12)
        methods = []
        for _ in range(2):
            seeds = rng.normal(0, 0.03, (3, 1))
            by_subject = rng.normal(0, 0.02, 12)
            methods.append(subjects + seeds + by_subject + rng.normal(0, 0.02, (3, 12)))
        p.append(seed_model(*methods).p)
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.09


def test_seeds_without_number_or_subjects_have_no_test():
    one_seed = seed_model([[0.5, 0.6]], [[0.6, 0.8]])
    assert one_seed.difference == pytest.approx(0.15)
    assert math.isnan(one_seed.p)
    assert math.isnan(one_seed.seed_sd)
    with_undefined = seed_model([[0.5, math.nan, 0.7]] * 2, [[0.6, 0.5, 0.7]] * 2)
    assert with_undefined.n_subjects == 2
    assert math.isnan(seed_model([[math.nan]], [[0.1]]).difference)


def test_seed_table_averages_the_cases_of_a_subject():
    rows = {"a1": {"dice": 0.2}, "a2": {"dice": 0.4}, "b": {"dice": math.nan}}
    table = seed_table([rows, rows], "dice", subjects={"a1": "a", "a2": "a", "b": "b"})
    assert table[:, 0].tolist() == pytest.approx([0.3, 0.3])
    assert np.isnan(table[:, 1]).all()
