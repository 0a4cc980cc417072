"""Doubt about lesions by hand, against plain loops, and without lesions or masks."""

import math

import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import entropy as scipy_entropy

from tversky_seg.metrics.lesion_doubt import doubt_ranks, mean_entropy, structural_uncertainty

TOUCHING = np.ones((3, 3, 3))


def test_mean_entropy_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    lesions = rng.integers(0, 4, (6, 5, 4)).astype(np.uint32)
    probability = rng.random(lesions.shape).astype(np.float32)
    probability[0] = 1
    expected = []
    for number in (1, 2, 3):
        p = probability[lesions == number]
        expected.append(scipy_entropy(np.stack([p, 1 - p]), base=2).mean())
    np.testing.assert_allclose(mean_entropy(lesions, probability), expected, rtol=1e-5)


def test_structural_uncertainty_by_hand() -> None:
    lesions = np.zeros((10, 4, 4), np.uint32)
    lesions[1:5, 1, 1] = 1
    lesions[7:9, 1, 1] = 2
    same = lesions > 0
    half = np.zeros_like(same)
    half[3:5, 1, 1] = True  # IoU 2/4 with the first lesion; nothing of the second
    # 1 - (1 + 1/2) / 2 and 1 - (1 + 0) / 2.
    np.testing.assert_allclose(structural_uncertainty(lesions, [same, half]), [0.25, 0.5])
    np.testing.assert_allclose(structural_uncertainty(lesions, [same, same]), [0, 0])
    np.testing.assert_allclose(structural_uncertainty(lesions, [np.zeros_like(same)]), [1, 1])


@pytest.mark.parametrize("seed", range(3))
def test_structural_uncertainty_equals_plain_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lesions, n = ndimage.label(rng.random((12, 10, 8)) < 0.05, TOUCHING)
    masks = [rng.random(lesions.shape) < 0.06 for _ in range(3)]
    expected = []
    for number in range(1, n + 1):
        inside = lesions == number
        best = []
        for mask in masks:
            others, n_others = ndimage.label(mask, TOUCHING)
            ious = [0.0]
            for other in range(1, n_others + 1):
                ious.append((inside & (others == other)).sum() / (inside | (others == other)).sum())
            best.append(max(ious))
        expected.append(1 - np.mean(best))
    np.testing.assert_allclose(structural_uncertainty(lesions, masks), expected, atol=1e-12)


def test_without_lesions_or_without_masks() -> None:
    nothing = np.zeros((3, 3, 3), np.uint32)
    assert len(structural_uncertainty(nothing, [nothing > 0])) == 0
    assert len(mean_entropy(nothing, nothing.astype(np.float32))) == 0
    one = nothing.copy()
    one[0, 0, 0] = 1
    assert math.isnan(structural_uncertainty(one, [])[0])


def test_the_most_doubtful_lesion_ranks_first_and_equal_ones_in_their_order() -> None:
    assert doubt_ranks(np.array([0.2, 0.9, 0.2])) == [2, 1, 3]
