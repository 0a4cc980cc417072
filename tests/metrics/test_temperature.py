"""Temperature: the fit against scikit-learn, the map worked by hand, masks that stay the same."""

import math

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from tversky_seg.metrics.score_histogram import score_histogram, to_levels
from tversky_seg.metrics.temperature import (
    at_temperature,
    calibrated,
    calibrated_threshold,
    fit_temperature,
    logit_histogram,
    near_lesions,
    uncalibrated_threshold,
)


def too_sure(*, temperature: float, n: int = 20_000, seed: int = 0):
    """Draw probabilities whose logits are `temperature` times too large, and the truth."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 2, n)
    reference = rng.random(n) < expit(logits)
    return expit(logits * temperature).astype(np.float32), reference


def test_dividing_the_logit_by_two_worked_by_hand() -> None:
    # logit(0.9) = log 9; half of it is log 3, whose sigmoid is 3/4.
    probability = np.array([0.0, 0.1, 0.5, 0.9], np.float32)
    np.testing.assert_allclose(calibrated(probability, 2), [0, 0.25, 0.5, 0.75], atol=1e-6)
    # And back: 3/4 at a temperature of 1/2.
    np.testing.assert_allclose(calibrated(calibrated(probability, 2), 0.5), probability, atol=1e-6)


def test_temperature_1_changes_nothing() -> None:
    probability, _ = too_sure(temperature=2)
    assert calibrated(probability, 1) is probability
    assert calibrated_threshold(0.3, 1) == 0.3


def test_a_network_that_says_1_can_be_doubted() -> None:
    assert calibrated(np.ones(1, np.float32), 5)[0] == pytest.approx(expit(25 * math.log(2) / 5))


@pytest.mark.parametrize("temperature", [1.2, 1.7, 6.0])
def test_the_fit_equals_logistic_regression_without_intercept(temperature: float) -> None:
    probability, reference = too_sure(temperature=temperature)
    fitted = fit_temperature(logit_histogram(probability, reference))
    values = probability.astype(np.float64)
    # A probability of 1 counts as the nearest below it that float32 does not hold.
    logits = np.log(values) - np.log(np.maximum(1 - values, 2**-25))
    model = LogisticRegression(C=math.inf, fit_intercept=False, tol=1e-8)
    model.fit(logits[:, None], reference)
    assert fitted == pytest.approx(1 / model.coef_[0, 0], rel=1e-3)
    # The temperature that the truth was drawn with, as far as 20,000 voxels tell.
    assert fitted == pytest.approx(temperature, rel=0.05)


def test_the_likelihood_equals_brute_force_and_is_best_at_the_fit() -> None:
    probability, reference = too_sure(temperature=3, n=2000)
    histogram = logit_histogram(probability, reference)
    given = np.where(reference, calibrated(probability, 2), 1 - calibrated(probability, 2))
    expected = -np.log(given.astype(np.float64)).mean()
    assert histogram.negative_log_likelihood(2) == pytest.approx(expected, rel=1e-3)
    best = fit_temperature(histogram)
    for other in (best * 0.9, best * 1.1):
        assert histogram.negative_log_likelihood(other) > histogram.negative_log_likelihood(best)


def test_voxels_that_16_bits_call_certain_are_told_apart() -> None:
    # Sure voxels between 1 - 1e-6 and 1 - 1e-7 are one level of a saved probability.
    probability, reference = too_sure(temperature=8)
    fitted = fit_temperature(logit_histogram(probability, reference))
    saved = to_levels(probability).clip(1, 65534) / np.float32(65535)
    of_saved = fit_temperature(logit_histogram(saved, reference))
    assert fitted == pytest.approx(8, rel=0.05)
    assert abs(of_saved - 8) > 2 * abs(fitted - 8)


def test_histograms_of_cases_add_up_and_a_mask_chooses_voxels() -> None:
    probability, reference = too_sure(temperature=2)
    inside = np.arange(len(reference)) % 2 == 0
    whole = logit_histogram(probability, reference)
    both = logit_histogram(probability, reference, inside) + logit_histogram(
        probability, reference, ~inside
    )
    np.testing.assert_array_equal(whole.n_voxels, both.n_voxels)
    np.testing.assert_array_equal(whole.n_positive, both.n_positive)


@pytest.mark.parametrize("reference", [[0, 0, 0], [1, 1, 1]])
def test_without_lesion_or_without_anything_else_the_temperature_is_1(reference) -> None:
    assert fit_temperature(logit_histogram([0.2, 0.5, 0.9], reference)) == 1


def test_without_voxels_there_is_nothing_to_fit() -> None:
    histogram = logit_histogram(np.zeros(4), np.zeros(4))
    assert fit_temperature(histogram) == 1
    assert math.isnan(histogram.negative_log_likelihood())


def test_the_temperature_is_bounded() -> None:
    assert fit_temperature(logit_histogram([0.1, 0.9], [0, 1])) == 1
    assert fit_temperature(logit_histogram([0.1, 0.9], [1, 0])) == 100


def test_a_network_that_is_not_sure_enough_is_left_as_it_is() -> None:
    # Made surer at 0.5, its highest levels would merge: 180 of 65,536 become the last one.
    probability, reference = too_sure(temperature=0.5)
    temperature = fit_temperature(logit_histogram(probability, reference))
    assert temperature == 1
    assert calibrated(probability, temperature) is probability
    levels = (np.arange(1, 65536) / 65535).astype(np.float32)
    assert (to_levels(calibrated(levels, 0.5)) == 65535).sum() == 180


@pytest.mark.parametrize("temperature", [1.3, 2.0, 7.0])
@pytest.mark.parametrize("level", [100, 20_000, 40_000, 65_300])
def test_the_mask_stays_the_same(temperature: float, level: int) -> None:
    threshold = (level - 0.5) / 65535
    probability = np.random.default_rng(level).random(100_000).astype(np.float32)
    moved = calibrated_threshold(threshold, temperature)
    result = calibrated(probability, temperature)
    before = probability >= threshold
    # Rounding moves voxels within half a level of the threshold, which is T/2 levels before.
    assert ((result >= moved) != before).sum() <= 12
    # What is saved makes the mask of what is computed.
    np.testing.assert_array_equal(to_levels(result) >= moved * 65535, result >= moved)


def test_a_threshold_and_back() -> None:
    assert uncalibrated_threshold(calibrated_threshold(0.9, 2), 2) == pytest.approx(0.9, abs=1e-4)
    assert calibrated_threshold(0.5, 3) == pytest.approx(0.5, abs=1e-5)
    assert calibrated_threshold(0.0, 3) == 0
    assert 0 < calibrated_threshold(0.99999, 0.3) < 1


def test_a_saved_histogram_goes_back_to_the_probability_before() -> None:
    probability, reference = too_sure(temperature=1.5)
    saved = score_histogram(calibrated(probability, 2.5), reference)
    back = at_temperature(saved, 1 / 2.5)
    expected = score_histogram(probability, reference)
    assert back.n_voxels.sum() == expected.n_voxels.sum()
    assert back.average_precision() == pytest.approx(expected.average_precision(), abs=1e-3)
    shares = [each.n_voxels.cumsum() / len(reference) for each in (back, expected)]
    np.testing.assert_allclose(*shares, atol=1e-3)


def test_near_lesions_by_distances_along_the_axes() -> None:
    rng = np.random.default_rng(0)
    reference = rng.random((9, 10, 7)) < 0.01
    spacing_mm = (1.0, 0.7, 3.0)
    voxels = np.argwhere(reference)
    expected = np.zeros_like(reference)
    for position in np.ndindex(reference.shape):
        gaps_mm = np.abs(voxels - position) * spacing_mm
        expected[position] = (gaps_mm <= 3.0).all(axis=1).any()
    np.testing.assert_array_equal(near_lesions(reference, spacing_mm), expected)
    assert not near_lesions(np.zeros((3, 3, 3), bool), (1, 1, 1)).any()
