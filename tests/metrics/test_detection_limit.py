"""The volume from which recall reaches 0.8: by hand, by brute force, by isotonic regression."""

import math

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from tversky_seg.metrics.detection_limit import bootstrap_recall80, recall80_volume


def lesions(seed, n=40):
    rng = np.random.default_rng(seed)
    volumes = rng.integers(1, 30, n).astype(float)
    return volumes, rng.random(n) < 1 - np.exp(-volumes / 5)


def brute_force(volumes, detected):
    for low in np.unique(volumes):
        recalls = []
        for high in np.unique(volumes[volumes >= low]):
            is_between = (volumes >= low) & (volumes <= high)
            recalls.append(detected[is_between].mean())
        if min(recalls) >= 0.8:
            return low
    return math.nan


@pytest.mark.parametrize("seed", range(20))
def test_limit_equals_brute_force_and_isotonic_regression(seed):
    volumes, detected = lesions(seed)
    limit = recall80_volume(volumes, detected)
    assert limit == pytest.approx(brute_force(volumes, detected), nan_ok=True)
    recall = IsotonicRegression().fit_transform(volumes, detected.astype(float))
    reached = volumes[recall >= 0.8 - 1e-9]
    assert limit == pytest.approx(min(reached, default=math.nan), nan_ok=True)


@pytest.mark.parametrize(
    ("volumes", "detected", "limit"),
    [
        ([2, 3, 5, 9], [1, 0, 1, 1], 5),  # from 2 on, one of the first two is missed
        ([1, 2, 3, 4, 5], [1, 1, 1, 1, 0], 1),  # 4 of 5 are just enough
        ([1, 2, 3, 4, 5], [1, 1, 1, 0, 1], 5),  # 3 of 4 are not
        ([3, 3, 3, 3], [1, 1, 1, 0], math.nan),  # lesions of one volume are not parted
        ([7], [1], 7),
        ([7], [0], math.nan),
        ([], [], math.nan),
    ],
)
def test_limits_worked_by_hand(volumes, detected, limit):
    assert recall80_volume(volumes, detected) == pytest.approx(limit, nan_ok=True)


def test_interval_resamples_subjects_and_not_lesions():
    # Two subjects: one whose lesions are all found, one whose small ones are missed.
    volumes = [np.array([1.0, 2, 3]), np.array([1.0, 2, 3])]
    detected = [np.array([True, True, True]), np.array([False, False, True])]
    limit = bootstrap_recall80(
        volumes, detected, ["a", "b"], n_bootstrap=500, rng=np.random.default_rng(0)
    )
    # The draws are aa, ab, ba and bb, whose limits are 1, 3, 3 and 3.
    assert limit[:3] == (3, 1, 3)
    assert limit.share_reached == 1


def test_a_limit_that_is_not_reached_in_many_draws_has_no_upper_end():
    volumes = [np.array([4.0]), np.array([6.0])]
    detected = [np.array([True]), np.array([False])]
    limit = bootstrap_recall80(
        volumes, detected, ["a", "b"], n_bootstrap=400, rng=np.random.default_rng(0)
    )
    assert math.isnan(limit.volume_mm3)
    assert (limit.low_mm3, limit.high_mm3) == (4, math.inf)
    assert 0.1 < limit.share_reached < 0.4


def test_fewer_than_two_subjects_with_lesions_have_no_interval():
    cases = ([np.array([4.0]), np.zeros(0)], [np.array([True]), np.zeros(0, bool)])
    rng = np.random.default_rng(0)
    limit = bootstrap_recall80(*cases, ["a", "b"], n_bootstrap=10, rng=rng)
    assert limit.volume_mm3 == 4
    assert math.isnan(limit.low_mm3)
    nothing = bootstrap_recall80([], [], [], n_bootstrap=10, rng=rng)
    assert math.isnan(nothing.volume_mm3)
