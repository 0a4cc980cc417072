"""Lesion fusion by hand, against plain loops, and in what it is for: lesions of few voxels."""

import numpy as np
import pytest
from scipy import ndimage

from tversky_seg.inference.lesion_fusion import fuse_lesions

SHAPE = (12, 10, 8)


def fused(masks: list[np.ndarray]) -> np.ndarray:
    return fuse_lesions([np.flatnonzero(mask) for mask in masks], masks[0].shape)


def empty() -> np.ndarray:
    return np.zeros(SHAPE, dtype=bool)


def test_two_of_three_masks_by_hand() -> None:
    masks = [empty(), empty(), empty()]
    masks[0][2:5, 2, 2] = True
    masks[1][3:6, 2, 2] = True
    masks[2][9, 8, 6] = True
    result = fused(masks)
    # Two of three have the first lesion: 2/3 at most; a voxel of one of the two gets 1/2.
    np.testing.assert_allclose(result[1:7, 2, 2], [0, 0.5, 2 / 3, 2 / 3, 0.5, 0])
    assert result[9, 8, 6] == pytest.approx(1 / 3)


def test_a_lesion_that_every_mask_has_elsewhere_stays() -> None:
    # Three of five masks have two voxels each, one farther from mask to mask.
    masks = [empty() for _ in range(5)]
    for x in range(3):
        masks[x][x : x + 2, 3, 3] = True
    assert not (np.mean(masks, axis=0) >= 0.5).any(), "no voxel has three of five votes"
    result = fused(masks)
    np.testing.assert_array_equal(np.flatnonzero(result[:, 3, 3] >= 0.5), [1, 2])
    assert result.max() == pytest.approx(3 / 5), "that is how many have the lesion"


@pytest.mark.parametrize("seed", range(4))
def test_it_equals_plain_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = [rng.random(SHAPE) < 0.03 for _ in range(5)]
    candidates, n = ndimage.label(np.any(masks, axis=0), np.ones((3, 3, 3)))
    expected = np.zeros(SHAPE)
    for number in range(1, n + 1):
        inside = candidates == number
        voters = [mask for mask in masks if (mask & inside).any()]
        share = np.mean(voters, axis=0)
        expected[inside] = np.minimum(len(voters) / 5, share)[inside]
    np.testing.assert_allclose(fused(masks), expected, atol=1e-6)


def test_one_mask_and_equal_masks_come_back_as_they_are() -> None:
    mask = np.random.default_rng(0).random(SHAPE) < 0.1
    np.testing.assert_array_equal(fused([mask]), mask)
    np.testing.assert_array_equal(fused([mask] * 3), mask)
    assert not fused([empty(), empty()]).any()
