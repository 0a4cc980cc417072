"""Expected calibration error against scikit-learn's bins, brute force and cases worked by hand."""

import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from tversky_seg.metrics.calibration import (
    calibrate,
    calibrate_adaptively,
    expected_calibration_error,
)
from tversky_seg.metrics.score_histogram import score_histogram


def scores(seed, n=4000):
    rng = np.random.default_rng(seed)
    probability = np.rint(rng.beta(0.5, 1, n) * 65535) / 65535
    return probability, rng.random(n) < probability**1.5


@pytest.mark.parametrize("n_bins", [5, 10, 15])
def test_bins_equal_scikit_learn(n_bins):
    probability, reference = scores(0)
    calibration = calibrate(score_histogram(probability, reference), n_bins=n_bins)
    share, mean = calibration_curve(reference, probability, n_bins=n_bins)
    np.testing.assert_allclose(calibration.lesion_share, share)
    np.testing.assert_allclose(calibration.mean_probability, mean)


@pytest.mark.parametrize("n_bins", [1, 7, 10])
def test_error_equals_brute_force(n_bins):
    probability, reference = scores(1)
    expected = 0.0
    for k in range(n_bins):
        inside = (probability > k / n_bins) & (probability <= (k + 1) / n_bins)
        if k == 0:
            inside |= probability == 0
        if inside.any():
            expected += inside.mean() * abs(probability[inside].mean() - reference[inside].mean())
    error = expected_calibration_error(probability, reference, n_bins=n_bins)
    assert error == pytest.approx(expected, abs=1e-12)


def test_error_worked_by_hand():
    # (0.0, 0.1]: mean 0.1, none lesion; (0.7, 0.8]: mean 0.8, one of two.
    error = expected_calibration_error([0.1, 0.1, 0.8, 0.8], [0, 0, 1, 0])
    assert error == pytest.approx(0.5 * 0.1 + 0.5 * 0.3, abs=1e-5)


def test_probabilities_that_mean_what_they_say_have_no_error():
    probability = np.repeat([0.2, 0.6], 1000)
    reference = np.concatenate([np.arange(1000) < 200, np.arange(1000) < 600])
    assert expected_calibration_error(probability, reference) == pytest.approx(0, abs=1e-5)
    assert expected_calibration_error(reference, reference) == 0
    assert expected_calibration_error(1.0 - reference, reference) == 1


def test_only_voxels_inside_the_mask_count_and_none_have_no_error():
    probability, reference = scores(2)
    inside = np.arange(len(probability)) % 3 == 0
    expected = expected_calibration_error(probability[inside], reference[inside])
    assert expected_calibration_error(probability, reference, inside) == expected
    assert math.isnan(expected_calibration_error(probability, reference, np.zeros_like(inside)))


def test_empty_bins_are_nan_and_no_bins_an_error():
    histogram = score_histogram([0.95], [1])
    assert np.isnan(calibrate(histogram).lesion_share[:9]).all()
    with pytest.raises(ValueError, match="n_bins"):
        calibrate(histogram, n_bins=0)


@pytest.mark.parametrize("n_bins", [1, 4, 15])
def test_adaptive_bins_equal_brute_force_where_no_two_voxels_are_alike(n_bins):
    rng = np.random.default_rng(3)
    probability = rng.choice(65536, 600, replace=False) / 65535
    reference = rng.random(600) < probability
    order = np.argsort(probability)
    expected = 0.0
    for part in np.array_split(order, n_bins):
        gap = probability[part].mean() - reference[part].mean()
        expected += len(part) / 600 * abs(gap)
    calibration = calibrate_adaptively(score_histogram(probability, reference), n_bins=n_bins)
    assert (calibration.n_voxels == 600 // n_bins).all()
    assert calibration.error == pytest.approx(expected, abs=1e-12)
    assert calibration.edges[-1] == pytest.approx(probability.max())


def test_adaptive_bins_worked_by_hand():
    # Ranks 1-6 of 8 are 0.0, whose middle is at 3 of 8: the first of two bins. Then 0.4 and 0.8.
    probability = [0, 0, 0, 0, 0, 0, 0.4, 0.8]
    calibration = calibrate_adaptively(
        score_histogram(probability, [0, 0, 0, 0, 0, 1, 1, 0]), n_bins=2
    )
    np.testing.assert_array_equal(calibration.n_voxels, [6, 2])
    np.testing.assert_allclose(calibration.lesion_share, [1 / 6, 1 / 2])
    np.testing.assert_allclose(calibration.edges, [0, 0, 0.8], atol=1e-5)
    # 6/8 of |0 - 1/6| and 2/8 of |0.6 - 0.5|.
    assert calibration.error == pytest.approx(1 / 8 + 0.1 / 4, abs=1e-5)


def test_without_voxels_there_are_no_adaptive_bins():
    calibration = calibrate_adaptively(score_histogram([], []))
    assert len(calibration.n_voxels) == 0
    assert math.isnan(calibration.error)
    with pytest.raises(ValueError, match=r"n_bins.*got 0"):
        calibrate_adaptively(score_histogram([0.1], [0]), n_bins=0)
