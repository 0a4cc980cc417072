"""Precision-recall curves, the area under them, and the threshold chosen from histograms."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, fbeta_score, roc_auc_score
from sklearn.metrics import precision_recall_curve as sklearn_curve

from tversky_seg.metrics.overlap import overlap_counts
from tversky_seg.metrics.ranking import average_precision, precision_recall_curve, roc_auc
from tversky_seg.metrics.score_histogram import ScoreHistogram, choose_threshold, score_histogram


def make_scores(seed: int, *, levels: int | None = None, shape: tuple[int, ...] = (12, 9, 7)):
    """Scores that rank a rare class imperfectly; with few levels most are tied."""
    rng = np.random.default_rng(seed)
    reference = rng.random(shape) < 0.1
    probability = np.where(reference, rng.beta(2, 2, shape), rng.beta(1, 4, shape)).astype(
        np.float32
    )
    if levels:
        probability = np.rint(probability * levels).astype(np.float32) / np.float32(levels)
    return probability, reference


@pytest.mark.parametrize("levels", [None, 3, 20, 65535])
@pytest.mark.parametrize("seed", [0, 1])
def test_average_precision_equals_scikit_learn(seed, levels):
    probability, reference = make_scores(seed, levels=levels)
    expected = average_precision_score(reference.ravel(), probability.ravel())
    assert average_precision(probability, reference) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8, np.bool_])
def test_any_dtype_of_scores_ranks(dtype):
    probability, reference = make_scores(3)
    scores = (probability * 9).astype(dtype)
    expected = average_precision_score(reference.ravel(), scores.ravel().astype(float))
    assert average_precision(scores, reference) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("levels", [None, 10])
def test_curve_equals_scikit_learn(levels):
    probability, reference = make_scores(2, levels=levels)
    ours, theirs = (
        precision_recall_curve(probability, reference),
        sklearn_curve(reference.ravel(), probability.ravel()),
    )
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-12)


def test_average_precision_worked_by_hand():
    # By falling score: lesion (1/1), other, lesion (2/3), other, lesion (3/5).
    probability, reference = [0.9, 0.8, 0.7, 0.6, 0.5, 0.1], [1, 0, 1, 0, 1, 0]
    assert average_precision(probability, reference) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)


def test_tied_scores_are_one_threshold_whatever_their_order():
    assert average_precision([0.5, 0.5, 0.5, 0.1], [1, 0, 0, 0]) == pytest.approx(1 / 3)
    assert average_precision([0.5, 0.5, 0.5, 0.1], [0, 0, 1, 0]) == pytest.approx(1 / 3)


def test_perfect_ranking_gives_one_and_constant_scores_give_the_share_of_lesion():
    _, reference = make_scores(0)
    assert average_precision(reference.astype(np.float32), reference) == 1
    assert average_precision(np.full(reference.shape, 0.3), reference) == pytest.approx(
        reference.mean()
    )


def test_without_lesion_voxels_area_and_recall_are_nan():
    probability, empty = np.array([0.2, 0.7]), np.zeros(2, bool)
    assert math.isnan(average_precision(probability, empty))
    assert math.isnan(score_histogram(probability, empty).average_precision())
    curve = precision_recall_curve(probability, empty)
    assert np.isnan(curve.recall[:-1]).all()
    np.testing.assert_array_equal(curve.precision, [0, 0, 1])


def test_only_voxels_inside_the_mask_count():
    probability, reference = make_scores(4)
    inside = np.random.default_rng(0).random(reference.shape) < 0.5
    expected = average_precision(probability[inside], reference[inside])
    assert average_precision(probability, reference, inside) == expected
    assert average_precision(probability, reference, mask=torch.from_numpy(inside)) == expected
    assert math.isnan(average_precision(probability, reference, np.zeros_like(inside)))


def test_torch_tensors_and_memory_order_do_not_matter():
    probability, reference = make_scores(5)
    expected = average_precision(probability, reference)
    tensor = torch.from_numpy(probability).requires_grad_()
    assert average_precision(tensor, torch.from_numpy(reference)) == expected
    assert average_precision(np.asfortranarray(probability), reference) == expected
    assert (
        average_precision(np.asfortranarray(probability), np.asfortranarray(reference)) == expected
    )


@pytest.mark.parametrize(
    ("probability", "reference", "message"),
    [
        ([0.1, 0.2], [0, 1, 1], r"\(2,\) and \(3,\)"),
        ([0.1, math.nan], [0, 1], "NaN"),
        ([0.1, 0.2], [0, 2], r"reference.*2"),
    ],
)
def test_bad_input_is_named(probability, reference, message):
    with pytest.raises(ValueError, match=message):
        average_precision(probability, reference)
    with pytest.raises(ValueError, match=message):
        precision_recall_curve(probability, reference)


def test_histogram_is_exact_for_probabilities_saved_as_uint16():
    probability, reference = make_scores(6, shape=(40, 40, 40))
    saved = np.rint(probability * 65535).astype(np.uint16)
    read = saved * np.float32(1 / 65535)  # as a NIfTI reader scales it
    expected = average_precision_score(reference.ravel(), saved.ravel())
    histogram = score_histogram(read, reference)
    assert histogram.average_precision() == pytest.approx(expected, abs=1e-9)
    curve = histogram.curve()
    area = -np.sum(np.diff(curve.recall) * curve.precision[:-1])
    assert area == pytest.approx(expected, abs=1e-9)
    assert set(curve.thresholds) == set(saved[reference] / 65535)


def test_histograms_add_up_to_the_pooled_cohort():
    cases = [make_scores(seed, levels=65535) for seed in range(3)]
    pooled = sum((score_histogram(*case) for case in cases[1:]), score_histogram(*cases[0]))
    scores, reference = (np.concatenate([case[i].ravel() for case in cases]) for i in (0, 1))
    assert pooled.average_precision() == pytest.approx(
        average_precision_score(reference, scores), abs=1e-9
    )


@pytest.mark.parametrize("wrong", [-0.01, 1.01, math.inf])
def test_histogram_refuses_values_outside_0_and_1(wrong):
    with pytest.raises(ValueError, match=f"probability.*{wrong:g}"):
        score_histogram(np.array([0.2, wrong]), np.array([0, 1]))


@pytest.mark.parametrize(("goal", "b"), [("dice", 1), ("f2", 2)])
def test_chosen_threshold_is_the_best_over_cases_by_brute_force(goal, b):
    cases = [make_scores(seed, levels=50) for seed in (7, 8, 9)]
    threshold = choose_threshold([score_histogram(*case) for case in cases], goal)

    def mean_f(at):
        return np.mean(
            [overlap_counts(probability >= at, reference).f(b) for probability, reference in cases]
        )

    assert mean_f(threshold) == pytest.approx(
        max(mean_f(at) for at in np.arange(1, 51) / 50 - 0.01)
    )


def test_f2_chooses_a_lower_threshold_than_dice():
    histograms = [score_histogram(*make_scores(seed)) for seed in range(3)]
    assert choose_threshold(histograms, "f2") < choose_threshold(histograms, "dice")


def test_each_case_counts_once_whatever_its_lesion_load():
    rng = np.random.default_rng(0)

    def case(n_lesion, best):  # all lesion voxels above `best`, all others below
        return score_histogram(
            np.r_[best + 0.1 * rng.random(n_lesion), best * rng.random(4000)],
            np.arange(n_lesion + 4000) < n_lesion,
        )

    small, large = [case(20, 0.3) for _ in range(3)], case(3000, 0.8)
    assert choose_threshold([large]) > 0.6
    assert choose_threshold([*small, large]) < 0.5


def test_threshold_means_the_same_before_and_after_saving():
    probability, reference = make_scores(11)
    threshold = choose_threshold([score_histogram(probability, reference)])
    saved = np.rint(probability * 65535).astype(np.uint16) * np.float32(1 / 65535)
    np.testing.assert_array_equal(probability >= threshold, saved >= threshold)


def test_of_equally_good_thresholds_the_nearest_to_one_half_is_taken():
    histogram = score_histogram(np.array([0.0, 0.0, 1.0]), np.array([0, 0, 1]))
    assert choose_threshold([histogram]) == pytest.approx(0.5, abs=1e-4)


def test_without_lesions_the_threshold_is_one_half():
    empty = score_histogram(np.array([0.1, 0.9]), np.array([0, 0]))
    assert choose_threshold([]) == 0.5
    assert choose_threshold([empty]) == 0.5
    assert np.isnan(ScoreHistogram(0 * empty.n_voxels, empty.n_positive).f(1)).all()


def test_an_unknown_goal_is_an_error():
    with pytest.raises(ValueError, match="recall"):
        choose_threshold([], "recall")


@pytest.mark.parametrize("levels", [None, 3, 65535])
def test_roc_area_equals_scikit_learn(levels):
    probability, reference = make_scores(3, levels=levels)
    expected = roc_auc_score(reference.ravel(), probability.ravel())
    assert roc_auc(probability, reference) == pytest.approx(expected, abs=1e-9)
    saved = np.rint(probability * 65535) / 65535
    expected = roc_auc_score(reference.ravel(), saved.ravel())
    assert score_histogram(probability, reference).roc_auc() == pytest.approx(expected, abs=1e-9)


def test_roc_area_worked_by_hand():
    # Lesion voxels 0.9 and 0.4, others 0.8, 0.4 and 0.1: of six pairs, 0.9 is right in three, 0.4
    # in one, and one is a tie.
    assert roc_auc([0.9, 0.4, 0.8, 0.4, 0.1], [1, 1, 0, 0, 0]) == pytest.approx((3 + 1 + 0.5) / 6)


def test_roc_area_of_a_reversed_map_is_the_rest_to_one():
    probability, reference = make_scores(1)
    assert roc_auc(1 - probability, reference) == pytest.approx(1 - roc_auc(probability, reference))
    assert roc_auc(reference.astype(float), reference) == 1
    assert roc_auc(np.full(reference.shape, 0.3), reference) == 0.5


def test_roc_area_is_nan_without_lesion_or_without_other_voxels():
    for reference in (np.zeros(3), np.ones(3)):
        assert math.isnan(roc_auc([0.1, 0.2, 0.3], reference))
        assert math.isnan(score_histogram([0.1, 0.2, 0.3], reference).roc_auc())


@pytest.mark.parametrize("b", [0.5, 1, 2])
def test_f_of_each_level_equals_scikit_learn(b):
    probability, reference = make_scores(4, levels=15)  # multiples of 1/15 are levels, too
    scores = score_histogram(probability, reference).f(b)
    for threshold in np.unique(probability):
        expected = fbeta_score(reference.ravel(), (probability >= threshold).ravel(), beta=b)
        level = round(float(threshold) * 65535)
        assert scores[level] == pytest.approx(expected, abs=1e-12)


def test_f_is_zero_where_no_lesion_voxel_is_predicted_and_nan_where_there_is_nothing():
    missed = score_histogram([0.9, 0.1], [0, 1]).f(1)
    assert missed[[6553, 58981]].tolist() == pytest.approx([2 / 3, 0])
    no_lesion = score_histogram([0.9, 0.1], [0, 0]).f(1)
    assert no_lesion[58981] == 0
    assert np.isnan(no_lesion[-1])


def test_counts_at_thresholds_are_those_of_the_masks():
    probability, reference = make_scores(5)
    saved = np.rint(probability * 65535) / 65535
    thresholds = [0.0, 0.2, 0.5, 13107 / 65535, 1.0]
    tp, predicted = score_histogram(probability, reference).at_or_above(thresholds)
    for i, threshold in enumerate(thresholds):
        mask = saved >= threshold
        assert (tp[i], predicted[i]) == ((mask & reference).sum(), mask.sum())
