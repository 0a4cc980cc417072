"""FROC, average recall and object Dice: by hand and by thresholding lesion after lesion."""

import math

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_curve

from helpers.lesions import score_lesions
from tversky_seg.metrics.froc import (
    LUNA_POINTS,
    FrocCurve,
    average_recall,
    centre_scores,
    pool_lesion_scores,
    recall_at,
)
from tversky_seg.metrics.lesions import match_lesions


def case(seed, shape=(24, 20, 10)):
    rng = np.random.default_rng(seed)
    shared, own = ndimage.gaussian_filter(rng.normal(size=(2, *shape)), (0, 1.2, 1.2, 1.2)) * 6
    return 1 / (1 + np.exp(2 - shared - own)), shared > 2


def brute_force(cases, at):
    """Lesions found and false lesions at one score, from masks of whole lesions."""
    n_found = n_false = n_reference = 0
    for probability, reference in cases:
        predicted, n_predicted = ndimage.label(probability >= 0.5, np.ones((3, 3, 3)))
        referred, n = ndimage.label(reference, np.ones((3, 3, 3)))
        n_reference += n
        highest = {i: probability[predicted == i].max() for i in range(1, n_predicted + 1)}
        n_false += sum(not reference[predicted == i].any() and highest[i] >= at for i in highest)
        for j in range(1, n + 1):
            dice = {
                i: 2
                * ((predicted == i) & (referred == j)).sum()
                / ((predicted == i).sum() + (referred == j).sum())
                for i in set(np.unique(predicted[referred == j])) - {0}
            }
            n_found += bool(dice) and highest[max(dice, key=dice.get)] >= at
    return n_found / n_reference, n_false / len(cases)


def test_curve_of_several_cases_equals_brute_force():
    cases = [case(seed) for seed in range(3)]
    curve = pool_lesion_scores([score_lesions(*one) for one in cases]).curve()
    assert len(curve.thresholds) > 5
    for threshold, recall, false in zip(*curve, strict=True):
        assert (recall, false) == pytest.approx(brute_force(cases, threshold))


def test_curve_worked_by_hand():
    probability, reference = np.zeros((2, 12, 4, 4))
    reference[[1, 5, 9], 1, 1] = 1  # three lesions: found at 0.9, found at 0.6, missed
    probability[1, 1, 1], probability[5, 1, 1], probability[5, 1, 2] = 0.9, 0.55, 0.6
    probability[3, 3, 3], probability[7, 3, 3] = 0.7, 0.5  # false
    curve = score_lesions(probability, reference > 0).curve()
    assert curve.thresholds.tolist() == [0.5, 0.6, 0.7, 0.9]
    np.testing.assert_allclose(curve.recall, [2 / 3, 2 / 3, 1 / 3, 1 / 3])
    assert curve.false_lesions_per_case.tolist() == [2, 1, 1, 0]
    np.testing.assert_allclose(
        recall_at(curve, [0, 0.5, 1, 2, 8]), [1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3]
    )
    np.testing.assert_allclose(sorted(score_lesions(probability, reference > 0).dice), [2 / 3, 1])


def test_average_recall_is_the_mean_of_501_points_that_holds_its_last_value():
    curve = FrocCurve(np.array([0.4, 0.8]), np.array([0.9, 0.3]), np.array([2.0, 0.5]))
    x = np.linspace(0, 5, 501)
    by_hand = np.where(x < 0.5, 0.6 * x, np.where(x < 2, 0.3 + 0.4 * (x - 0.5), 0.9))
    assert average_recall(curve) == pytest.approx(by_hand.mean())


def test_all_lesions_detected_and_none_false_is_an_average_recall_of_one():
    _, reference = case(0)
    assert average_recall(score_lesions(reference.astype(float), reference).curve()) == 1


def test_cases_without_any_lesion_count_in_one_denominator_and_not_in_the_other():
    probability, reference = case(1)
    empty = np.zeros_like(probability)
    scores = pool_lesion_scores(
        [score_lesions(probability, reference), score_lesions(empty, empty > 1)]
    )
    assert (scores.n_cases, scores.n_cases_with_lesions) == (2, 1)
    np.testing.assert_allclose(
        2 * scores.curve().false_lesions_per_case,
        scores.curve(only_cases_with_lesions=True).false_lesions_per_case,
    )
    assert average_recall(scores.curve()) >= average_recall(
        scores.curve(only_cases_with_lesions=True)
    )


def test_nothing_predicted_has_a_recall_of_zero_and_no_lesion_has_none():
    probability, reference = case(2)
    nothing = score_lesions(np.zeros_like(probability), reference).curve()
    assert (len(nothing.thresholds), average_recall(nothing)) == (0, 0)
    no_lesion = score_lesions(probability, np.zeros_like(reference)).curve()
    assert np.isnan(no_lesion.recall).all()
    assert no_lesion.false_lesions_per_case[0] > 0
    assert math.isnan(average_recall(no_lesion))


def test_no_case_at_all_is_no_curve():
    assert len(pool_lesion_scores([]).curve().thresholds) == 0


def score_by_centre(probability, reference, *, spacing_mm):
    match = match_lesions(probability >= 0.5, reference, spacing_mm=spacing_mm, scores=probability)
    return centre_scores(match, spacing_mm=spacing_mm)


def luna16(cases, spacing_mm):
    """Hits and false candidates as the challenge's script lists them, and its mean recall."""
    hits, false, n_nodules = [], [], 0
    for probability, reference in cases:
        predicted, n_predicted = ndimage.label(probability >= 0.5, np.ones((3, 3, 3)))
        true, n_true = ndimage.label(reference, np.ones((3, 3, 3)))
        candidates = dict.fromkeys(range(1, n_predicted + 1))
        for i in candidates:
            centre = np.array(ndimage.center_of_mass(predicted == i)) * spacing_mm
            candidates[i] = (centre, probability[predicted == i].max())
        remaining = dict(candidates)
        for j in range(1, n_true + 1):
            n_nodules += 1
            centre = np.array(ndimage.center_of_mass(true == j)) * spacing_mm
            volume = (true == j).sum() * np.prod(spacing_mm)
            radius = (3 * volume / (4 * math.pi)) ** (1 / 3)
            near = [
                i for i, (at, _) in candidates.items() if ((at - centre) ** 2).sum() < radius**2
            ]
            if near:
                hits.append(max(candidates[i][1] for i in near))
            for i in near:
                remaining.pop(i, None)
        false += [score for _, score in remaining.values()]
    false_rate, recall, _ = roc_curve([1] * len(hits) + [0] * len(false), hits + false)
    return np.interp(
        LUNA_POINTS,
        false_rate * len(false) / len(cases),
        recall * len(hits) / n_nodules,
    ).mean()


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.7, 0.7, 2.5)])
def test_recall_by_centres_is_that_of_luna16(spacing_mm):
    cases = [case(seed) for seed in range(4)]
    scores = pool_lesion_scores([score_by_centre(*one, spacing_mm=spacing_mm) for one in cases])
    assert len(scores.detected) > 5
    cpm = recall_at(scores.curve(), LUNA_POINTS).mean()
    assert cpm == pytest.approx(luna16(cases, spacing_mm))


def test_a_lesion_that_overlaps_with_a_far_centre_is_no_hit():
    probability, reference = np.zeros((2, 20, 8, 8))
    reference[2:5, 2:5, 2:5] = 1  # centre 3, radius 1.86
    probability[4:14, 3, 3] = 0.9  # overlaps, centre 8.5
    scores = score_by_centre(probability, reference > 0, spacing_mm=(1, 1, 1))
    assert (len(scores.detected), len(scores.false), scores.n_reference) == (0, 1, 1)
    probability[:] = 0
    probability[3, 3, 3], probability[2, 3, 3] = 0.6, 0.7
    scores = score_by_centre(probability, reference > 0, spacing_mm=(1, 1, 1))
    assert scores.detected == pytest.approx([0.7])


def test_selected_lesions_keep_their_scores_and_all_false_ones():
    probability, reference = case(0)
    scores = score_lesions(probability, reference)
    is_even = np.arange(scores.n_reference) % 2 == 0
    even, odd = scores.select(is_even), scores.select(~is_even)
    assert even.n_reference + odd.n_reference == scores.n_reference
    assert len(even.false) == len(scores.false)
    both = np.concatenate([even.detected, odd.detected])
    assert sorted(both) == sorted(scores.detected)
