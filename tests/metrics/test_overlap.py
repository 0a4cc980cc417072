"""Overlap counts and the rates made of them."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    fbeta_score,
    jaccard_score,
    matthews_corrcoef,
    precision_score,
    recall_score,
)

from tversky_seg.metrics.overlap import OverlapCounts, f_weights, overlap_counts, tversky_index


@pytest.fixture
def masks() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.random((7, 6, 5)) < 0.3, rng.random((7, 6, 5)) < 0.2


def test_counts_of_a_case_worked_by_hand():
    counts = overlap_counts(np.array([1, 1, 1, 0, 0, 0]), np.array([1, 0, 0, 1, 0, 0]))
    assert counts == OverlapCounts(tp=1, fp=2, fn=1, tn=2)
    assert counts.dice == pytest.approx(2 / 5)
    assert counts.sensitivity == pytest.approx(1 / 2)
    assert counts.specificity == pytest.approx(2 / 4)
    assert counts.precision == pytest.approx(1 / 3)
    assert counts.f(2) == pytest.approx(5 / (5 + 4 * 1 + 2))


def test_rates_equal_scikit_learn(masks):
    prediction, reference = masks
    counts = overlap_counts(prediction, reference)
    flat = reference.ravel(), prediction.ravel()
    assert counts.precision == pytest.approx(precision_score(*flat))
    assert counts.sensitivity == pytest.approx(recall_score(*flat))
    assert counts.specificity == pytest.approx(recall_score(~flat[0], ~flat[1]))
    assert counts.dice == pytest.approx(fbeta_score(*flat, beta=1))
    assert counts.f(2) == pytest.approx(fbeta_score(*flat, beta=2))
    index = tversky_index(float(counts.tp), float(counts.fp), float(counts.fn), alpha=1, beta=1)
    assert index == pytest.approx(jaccard_score(*flat))


def test_rates_with_an_empty_denominator_are_nan():
    nothing, something = np.zeros((2, 2, 2)), np.ones((2, 2, 2))
    both_empty = overlap_counts(nothing, nothing)
    assert all(
        math.isnan(rate) for rate in (both_empty.dice, both_empty.sensitivity, both_empty.precision)
    )
    assert both_empty.specificity == 1
    missed = overlap_counts(nothing, something)
    assert (missed.dice, missed.sensitivity) == (0, 0)
    assert math.isnan(missed.precision)
    assert math.isnan(missed.specificity)
    false_positive = overlap_counts(something, nothing)
    assert (false_positive.dice, false_positive.precision, false_positive.specificity) == (0, 0, 0)
    assert math.isnan(false_positive.sensitivity)


def test_counts_take_bool_integer_float_and_torch(masks):
    expected = overlap_counts(*masks)
    for convert in (
        lambda mask: mask.astype(np.uint8),
        lambda mask: mask.astype(np.float32),
        torch.from_numpy,
    ):
        assert overlap_counts(*map(convert, masks)) == expected


def test_counts_add_up_over_cases_and_to_the_number_of_voxels(masks):
    whole = overlap_counts(*masks)
    halves = [
        overlap_counts(*(mask[half] for mask in masks)) for half in (slice(3), slice(3, None))
    ]
    assert halves[0] + halves[1] == whole
    assert whole.tp + whole.fp + whole.fn + whole.tn == masks[0].size


def test_tversky_index_takes_tensors_of_any_shape_and_is_nan_where_undefined():
    tp, fp, fn = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]]), torch.tensor([[4.0, 0.0]])
    index = tversky_index(tp, fp, fn, alpha=0.25, beta=0.5)
    assert index[0, 0] == pytest.approx(1 / 3.5)
    assert index[0, 1].isnan()
    assert tversky_index(tp, fp, fn, alpha=0.25, beta=0.5, smooth=1.0)[0, 1] == 1


def test_f_weights_are_those_of_the_paper():
    assert f_weights(1) == (0.5, 0.5)
    assert f_weights(2) == pytest.approx((0.2, 0.8))
    assert f_weights(1.5) == pytest.approx((0.3077, 0.6923), abs=1e-4)
    assert f_weights(3) == pytest.approx((0.1, 0.9))


@pytest.mark.parametrize("b", [-1.0, math.nan, math.inf])
def test_f_refuses_a_b_that_is_negative_or_not_finite(b):
    with pytest.raises(ValueError, match="b="):
        f_weights(b)


def test_masks_of_different_shape_and_probabilities_are_refused():
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        overlap_counts(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match=r"prediction.*0\.4"):
        overlap_counts(np.array([0.4, 1.0]), np.zeros(2))
    with pytest.raises(ValueError, match=r"reference.*2"):
        overlap_counts(np.zeros(2), np.array([2, 1]))


def test_jaccard_mcc_and_any_f_equal_scikit_learn(masks):
    prediction, reference = masks
    counts, flat = overlap_counts(prediction, reference), (reference.ravel(), prediction.ravel())
    assert counts.jaccard == pytest.approx(jaccard_score(*flat))
    assert counts.mcc == pytest.approx(matthews_corrcoef(*flat))
    for b in (0.5, 1.5, 3):
        assert counts.f(b) == pytest.approx(fbeta_score(*flat, beta=b))
    assert counts.jaccard == pytest.approx(counts.dice / (2 - counts.dice))


def test_jaccard_mcc_and_volume_difference_worked_by_hand():
    counts = OverlapCounts(tp=1, fp=2, fn=1, tn=2)
    assert counts.jaccard == 1 / 4
    assert counts.mcc == pytest.approx((1 * 2 - 2 * 1) / math.sqrt(3 * 2 * 4 * 3))
    assert counts.volume_difference == 1 / 2  # three voxels where two are
    assert OverlapCounts(tp=1, fp=0, fn=3, tn=9).volume_difference == -3 / 4


def test_mcc_of_a_whole_brain_does_not_overflow():
    counts = OverlapCounts(tp=10_000_000, fp=10_000_000, fn=10_000_000, tn=10_000_000)
    assert counts.mcc == 0
    assert OverlapCounts(tp=10_000_000, fp=0, fn=0, tn=700_000_000).mcc == pytest.approx(1)


def test_jaccard_mcc_and_volume_difference_of_empty_masks():
    nothing, something = np.zeros(4), np.array([0, 1, 0, 0])
    both_empty = overlap_counts(nothing, nothing)
    missed = overlap_counts(nothing, something)
    false_positive = overlap_counts(something, nothing)
    assert (missed.jaccard, false_positive.jaccard, missed.volume_difference) == (0, 0, -1)
    assert math.isnan(both_empty.jaccard)
    assert math.isnan(both_empty.mcc)
    assert math.isnan(missed.mcc)
    assert math.isnan(false_positive.mcc)
    assert math.isnan(false_positive.volume_difference)
