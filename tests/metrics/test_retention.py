"""Error retention by hand, against plain loops, and where there is nothing to retain."""

import math

import numpy as np
import pytest

from tversky_seg.metrics import overlap_counts
from tversky_seg.metrics.retention import (
    case_retention,
    lesion_doubts,
    lesion_retention,
    voxel_retention,
)


def test_lesions_by_hand() -> None:
    # Sorted by doubt: right, right, false, right. Retaining 3/4 or all leaves one of four false.
    curve = lesion_retention(np.array([0.1, 0.9, 0.5, 0.3]), np.array([False, False, True, False]))
    np.testing.assert_allclose(curve.retained, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(curve.quality, [1, 1, 1, 0.75, 0.75])
    assert curve.area == pytest.approx(0.5 + 0.25 * 0.875 + 0.25 * 0.75)


def test_doubting_what_is_wrong_is_better_than_doubting_what_is_right() -> None:
    is_false = np.arange(10) < 3
    doubt = np.linspace(1, 0, 10)
    assert lesion_retention(doubt, is_false).area > lesion_retention(-doubt, is_false).area
    # Without an order among the lesions the line is straight: the mean of 1 and of their share.
    assert lesion_retention(np.zeros(10), is_false).area == pytest.approx((1 + 0.7) / 2)


def test_cases_by_hand_and_an_empty_prediction_is_the_most_doubtful() -> None:
    curve = case_retention(np.array([0.2, math.nan, 0.1]), np.array([0.5, 0.0, 0.8]))
    np.testing.assert_allclose(curve.quality, [1, 1 - 0.2 / 3, 1 - 0.7 / 3, 1 - 1.7 / 3])
    assert case_retention(np.array([0.2, 0.1]), np.array([math.nan, 0.8])).quality[-1] == 0.8


@pytest.mark.parametrize("threshold", [0.5, 0.2])
def test_voxels_equal_plain_loops(threshold: float) -> None:
    rng = np.random.default_rng(0)
    levels = rng.choice(40, (6, 5, 4)).astype(np.uint16) * 1600
    reference = rng.random(levels.shape) < levels / 65535
    prediction = levels >= threshold * 65535
    curve = voxel_retention(levels, prediction, reference)
    doubt = np.minimum(levels, 65535 - levels)
    is_counted = (levels > 0) | reference
    expected, retained = [1.0], [0.0]
    for value in np.unique(doubt[is_counted]):
        put_right = np.where(doubt > value, reference, prediction)
        expected.append(overlap_counts(put_right, reference).dice)
        retained.append((doubt[is_counted] <= value).mean())
    np.testing.assert_allclose(curve.quality, expected)
    np.testing.assert_allclose(curve.retained, retained)
    assert curve.quality[-1] == pytest.approx(overlap_counts(prediction, reference).dice)


def test_a_perfect_prediction_has_an_area_of_1() -> None:
    reference = np.random.default_rng(1).random((5, 5, 5)) < 0.3
    levels = np.where(reference, 50_000, 9_000).astype(np.uint16)
    assert voxel_retention(levels, reference, reference).area == pytest.approx(1)


def test_lesions_are_listed_with_their_entropy_and_whether_they_are_false() -> None:
    levels = np.zeros((8, 3, 3), np.uint16)
    levels[1:3, 1, 1] = 65535
    levels[6, 1, 1] = 32768
    reference = np.zeros(levels.shape, bool)
    reference[2, 1, 1] = True
    lesions = lesion_doubts(levels, levels > 20_000, reference)
    np.testing.assert_allclose(lesions.doubt, [0, 1], atol=1e-6)
    np.testing.assert_array_equal(lesions.is_false, [False, True])
    np.testing.assert_array_equal(lesions.n_voxels, [2, 1])
    np.testing.assert_allclose(lesions.centre, [[1.5, 1, 1], [6, 1, 1]])


def test_without_reference_or_prediction_it_is_undefined() -> None:
    nothing = np.zeros((3, 3, 3), bool)
    levels = nothing.astype(np.uint16)
    assert math.isnan(voxel_retention(levels, nothing, nothing).area)
    assert math.isnan(lesion_retention(np.zeros(0), np.zeros(0, bool)).area)
    assert math.isnan(case_retention(np.zeros(1), np.array([math.nan])).area)
    assert len(lesion_doubts(levels, nothing, nothing).doubt) == 0
