"""Agreement over a cohort: volumes, the ISBI score, recall by lesion volume, new lesions."""

import math

import numpy as np
import pytest
from scipy.stats import pearsonr

from helpers.lesions import draw
from tversky_seg.metrics.agreement import (
    bland_altman,
    isbi_score,
    quartile_edges,
    recall_by_volume,
    volume_correlation,
)
from tversky_seg.metrics.lesion_rule import LesionRule
from tversky_seg.metrics.lesions import LesionCounts
from tversky_seg.metrics.new_lesions import new_lesion_counts, new_lesions

UNIT = (1.0, 1.0, 1.0)


def test_volume_correlation_equals_scipy():
    x, y = np.random.default_rng(0).gamma(2, 5000, (2, 30))
    assert volume_correlation(x + y, y) == pytest.approx(pearsonr(x + y, y)[0])


def test_volume_correlation_does_not_see_a_constant_factor_and_bland_altman_does():
    volumes = np.array([100.0, 400.0, 900.0])
    assert volume_correlation(2 * volumes, volumes) == pytest.approx(1)
    assert volume_correlation(-volumes, volumes) == pytest.approx(-1)
    assert bland_altman(2 * volumes, volumes).bias == pytest.approx(volumes.mean())


def test_bland_altman_worked_by_hand():
    agreement = bland_altman([12, 20, 31], [10, 20, 30])  # differences 2, 0, 1
    assert (agreement.bias, agreement.sd) == (1, 1)
    assert agreement.limits == pytest.approx((1 - 1.96, 1 + 1.96))


def test_agreement_of_too_few_or_equal_cases_is_nan():
    assert math.isnan(volume_correlation([5], [5]))
    assert math.isnan(volume_correlation([5, 5], [5, 7]))
    assert math.isnan(volume_correlation([], []))
    one, none = bland_altman([3], [1]), bland_altman([], [])
    assert one.bias == 2
    assert all(math.isnan(value) for value in (one.sd, *one.limits, none.bias, none.sd))
    with pytest.raises(ValueError, match=r"\(2,\) and \(1,\)"):
        bland_altman([1, 2], [1])


def test_isbi_score_worked_by_hand():
    terms = {
        "dice": 0.8,
        "precision": 0.4,
        "lesion_fpr": 0.2,
        "lesion_tpr": 0.6,
        "correlation": 0.9,
    }
    assert isbi_score(**terms) == pytest.approx(0.1 + 0.05 + 0.2 + 0.15 + 0.225)
    assert isbi_score(dice=1, precision=1, lesion_fpr=0, lesion_tpr=1, correlation=1) == 1
    assert math.isnan(isbi_score(**{**terms, "lesion_fpr": math.nan}))


def test_recall_by_volume_worked_by_hand():
    bins = recall_by_volume([1, 3, 9.9, 10, 5000], [0, 1, 0, 1, 1])
    assert [one.n_lesions for one in bins] == [1, 2, 1, 0, 0, 0, 1]
    assert [one.n_detected for one in bins] == [0, 1, 1, 0, 0, 0, 1]
    assert (bins[1].from_mm3, bins[1].to_mm3, bins[1].recall) == (3, 10, 0.5)
    assert math.isnan(bins[3].recall)


def test_a_lesion_on_an_edge_belongs_above_it_whatever_its_spacing_was_rounded_to():
    volume_mm3 = float(np.float32(0.1)) * 100 * (1 - 1e-8)
    _, above = recall_by_volume([volume_mm3], [1], (0, 10, 20))
    assert above.n_lesions == 1


def test_quartiles_hold_a_quarter_of_the_lesions_each():
    volumes = np.random.default_rng(0).permutation(np.arange(1.0, 41.0))
    bins = recall_by_volume(volumes, volumes > 20, quartile_edges(volumes))
    assert [one.n_lesions for one in bins] == [10, 10, 10, 10]
    assert [one.recall for one in bins] == [0, 0, 1, 1]
    assert quartile_edges([]) == []
    assert recall_by_volume([], [], quartile_edges([])) == []
    (only,) = recall_by_volume([2, 2, 2], [1, 0, 0], quartile_edges([2, 2, 2]))
    assert only.recall == pytest.approx(1 / 3)


def test_edges_that_do_not_rise_are_an_error():
    with pytest.raises(ValueError, match=r"edges_mm3.*5, 5"):
        recall_by_volume([1], [1], (0, 5, 5))


def test_a_lesion_is_new_where_none_was_and_not_where_one_grew():
    before, after = draw(np.s_[1, 1, 1]), draw(np.s_[1:5, 1, 1], np.s_[8, 8, 3])
    np.testing.assert_array_equal(new_lesions(before, after), draw(np.s_[8, 8, 3]))
    assert not new_lesions(after, before).any()
    touching = draw(np.s_[2, 2, 2], np.s_[3, 3, 3])
    assert new_lesions(draw(np.s_[2, 2, 2]), touching, rule=LesionRule(connectivity=6)).sum() == 1
    assert new_lesions(draw(np.s_[2, 2, 2]), touching).sum() == 0


def test_new_lesions_detected_missed_and_false_worked_by_hand():
    old, a, b, c = np.s_[1, 1, 1], np.s_[4, 4, 1:3], np.s_[8, 8, 1:3], np.s_[10, 1, 4]
    references = draw(old), draw(old, a, b)  # two new ones
    # b was predicted before, so it is not new; c is a false positive.
    predictions = draw(old, b), draw(old, a, b, c)
    counts = new_lesion_counts(predictions, references, spacing_mm=UNIT)
    assert counts == LesionCounts(n_reference=2, n_detected=1, n_predicted=2, n_unmatched=1)
    assert (counts.tpr, counts.fpr) == (0.5, 0.5)


def test_without_new_lesions_the_rates_are_undefined():
    same = draw(np.s_[1, 1, 1])
    counts = new_lesion_counts((same, same), (same, same), spacing_mm=UNIT)
    assert counts == LesionCounts(0, 0, 0, 0)
    assert math.isnan(counts.tpr)
    assert math.isnan(counts.fpr)
