"""Lesions detected, missed and false: masks drawn by hand, and scipy as the independent oracle."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from helpers.lesions import draw
from tversky_seg.metrics.lesion_rule import lesion_counts
from tversky_seg.metrics.lesions import (
    LesionCounts,
    match_lesions,
    remove_small_lesions,
    remove_weak_lesions,
)

RANK = {6: 1, 18: 2, 26: 3}
UNIT = (1.0, 1.0, 1.0)


def lesions_of(mask, *, connectivity=26):
    """The table of lesions of one mask."""
    return match_lesions(mask, mask, spacing_mm=UNIT, connectivity=connectivity).reference


def random_masks(seed, shape=(20, 16, 12)):
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(2, *shape)), (0, 1, 1, 1))
    shared = ndimage.gaussian_filter(rng.normal(size=shape), 1)
    return [noise + shared > 0.25 for noise in smooth]


def brute_force(prediction, reference, *, connectivity=26, min_overlap=0.0):
    structure = ndimage.generate_binary_structure(3, RANK[connectivity])
    (predicted, n_predicted), (referred, n_reference) = (
        ndimage.label(m, structure) for m in (prediction, reference)
    )
    return LesionCounts(
        n_reference=n_reference,
        n_detected=sum(
            prediction[referred == i].mean() > min_overlap for i in range(1, n_reference + 1)
        ),
        n_predicted=n_predicted,
        n_unmatched=sum(not reference[predicted == i].any() for i in range(1, n_predicted + 1)),
    )


@pytest.mark.parametrize("connectivity", [6, 18, 26])
@pytest.mark.parametrize("min_overlap", [0.0, 0.3])
@pytest.mark.parametrize("order", ["C", "F"])
def test_counts_equal_brute_force(connectivity, min_overlap, order):
    prediction, reference = (np.asarray(mask, order=order) for mask in random_masks(1))
    rule = {"connectivity": connectivity, "min_overlap": min_overlap}
    counts = lesion_counts(prediction, reference, spacing_mm=UNIT, **rule)
    assert counts == brute_force(prediction, reference, **rule)
    assert 0 < counts.n_detected < counts.n_reference
    assert 0 < counts.n_unmatched < counts.n_predicted


def test_rates_worked_by_hand():
    reference = draw(np.s_[1:3, 1:3, 1], np.s_[5, 5, 5], np.s_[9:11, 9, 9])  # three lesions
    prediction = draw(
        np.s_[2, 2, 1], np.s_[5, 5, 5:8], np.s_[0, 10, 0], np.s_[0, 10, 6], np.s_[3, 10, 3]
    )
    counts = lesion_counts(prediction, reference, spacing_mm=UNIT)
    assert counts == LesionCounts(n_reference=3, n_detected=2, n_predicted=5, n_unmatched=3)
    assert (counts.tpr, counts.fpr) == (2 / 3, 3 / 5)
    assert counts.f1 == pytest.approx(2 * (2 / 3) * (2 / 5) / (2 / 3 + 2 / 5))


def test_prediction_and_reference_swapped_swap_misses_and_false_positives():
    prediction, reference = random_masks(2)
    counts = lesion_counts(prediction, reference, spacing_mm=UNIT)
    swapped = lesion_counts(reference, prediction, spacing_mm=UNIT)
    assert swapped.n_unmatched == counts.n_reference - counts.n_detected
    assert swapped.f1 == pytest.approx(counts.f1)


def test_diagonal_neighbours_are_one_lesion_or_several_by_connectivity():
    corner = draw(np.s_[2, 2, 2], np.s_[3, 3, 3])
    edge = draw(np.s_[2, 2, 2], np.s_[3, 3, 2])
    assert [len(lesions_of(corner, connectivity=n)) for n in (6, 18, 26)] == [2, 2, 1]
    assert [len(lesions_of(edge, connectivity=n)) for n in (6, 18, 26)] == [2, 1, 1]


def test_overlap_must_be_strictly_more_than_the_minimum():
    reference = draw(np.s_[2:6, 2, 2])
    prediction = draw(np.s_[2, 2, 2])  # one voxel of four
    quarter = lesion_counts(prediction, reference, spacing_mm=UNIT, min_overlap=0.25)
    less = lesion_counts(prediction, reference, spacing_mm=UNIT, min_overlap=0.24)
    assert (quarter.n_detected, less.n_detected) == (0, 1)
    assert quarter.n_unmatched == 0


def test_small_lesions_are_dropped_from_both_masks():
    reference = draw(np.s_[1, 1, 1], np.s_[5:8, 5, 5])
    prediction = draw(np.s_[1, 1, 1:4], np.s_[10, 10, 10])
    # 6 mm3 are three voxels.
    counts = lesion_counts(prediction, reference, spacing_mm=(1, 1, 2), min_volume_mm3=6.0)
    assert counts == LesionCounts(n_reference=1, n_detected=0, n_predicted=1, n_unmatched=1)


def test_a_lesion_of_just_the_minimum_volume_stays():
    mask = draw(np.s_[1, 1, 1:4], np.s_[8, 8, 1:3])
    spacing_mm = tuple(np.float32([0.1, 0.9, 0.7]))  # rounded, as an affine in float32 holds it
    remaining = remove_small_lesions(
        mask, spacing_mm=spacing_mm, min_volume_mm3=3 * 0.1 * 0.9 * 0.7
    )
    np.testing.assert_array_equal(remaining, draw(np.s_[1, 1, 1:4]))
    assert remove_small_lesions(mask, spacing_mm=spacing_mm, min_volume_mm3=0).sum() == 5
    assert not remove_small_lesions(mask, spacing_mm=spacing_mm, min_volume_mm3=math.inf).any()
    assert mask.sum() == 5


def test_a_lesion_that_never_reaches_the_score_is_removed_whole():
    mask = draw(np.s_[1, 1, 1:4], np.s_[8, 8, 1:3], np.s_[5, 5, 5])
    scores = np.where(mask, 0.6, 0.99)  # what lies outside does not count
    scores[1, 1, 2] = 0.9
    scores[5, 5, 5] = np.float32(52428 / 65535)  # a stored 0.8
    strong = draw(np.s_[1, 1, 1:4])
    np.testing.assert_array_equal(remove_weak_lesions(mask, scores, min_score=0.85), strong)
    assert remove_weak_lesions(mask, scores, min_score=0.8).sum() == 4
    assert remove_weak_lesions(mask, scores, min_score=0) is mask
    assert not remove_weak_lesions(mask, scores, min_score=1).any()
    assert not remove_weak_lesions(draw(), scores, min_score=0.5).any()
    assert mask.sum() == 6
    for wrong in (-0.1, math.nan):
        with pytest.raises(ValueError, match=f"min_score must be >= 0, got {wrong}"):
            remove_weak_lesions(mask, scores, min_score=wrong)


@pytest.mark.parametrize("order", ["C", "F"])
def test_lesions_that_stay_are_those_of_scipy(order):
    scores = ndimage.gaussian_filter(np.random.default_rng(3).random((20, 30, 25)), 1.2)
    scores = np.asarray(scores / scores.max(), order=order)
    lowest, low, high = np.quantile(scores, (0.97, 0.98, 0.995))
    mask = scores >= lowest
    numbers, n = ndimage.label(mask, np.ones((3, 3, 3)))
    peaks = ndimage.maximum(scores, numbers, np.arange(1, n + 1))
    for min_score in (low, high):
        expected = np.isin(numbers, 1 + np.flatnonzero(peaks >= min_score))
        assert 0 < expected.sum() < mask.sum()
        np.testing.assert_array_equal(
            remove_weak_lesions(mask, scores, min_score=min_score), expected
        )


def test_empty_masks_leave_rates_undefined_and_never_perfect():
    empty, lesion = draw(), draw(np.s_[3, 3, 3])
    nothing_predicted = lesion_counts(empty, lesion, spacing_mm=UNIT)
    assert (nothing_predicted.tpr, nothing_predicted.f1) == (0, 0)
    assert math.isnan(nothing_predicted.fpr)
    no_lesion = lesion_counts(lesion, empty, spacing_mm=UNIT)
    assert (no_lesion.fpr, no_lesion.f1) == (1, 0)
    assert math.isnan(no_lesion.tpr)
    both = lesion_counts(empty, empty, spacing_mm=UNIT)
    assert all(math.isnan(rate) for rate in (both.tpr, both.fpr, both.f1))


def test_nothing_in_common_is_an_f1_of_zero():
    assert lesion_counts(draw(np.s_[1, 1, 1]), draw(np.s_[9, 9, 9]), spacing_mm=UNIT).f1 == 0


def test_counts_of_cases_add_up():
    total = LesionCounts(3, 2, 5, 1) + LesionCounts(1, 1, 2, 2)
    assert total == LesionCounts(n_reference=4, n_detected=3, n_predicted=7, n_unmatched=3)


def test_table_gives_volume_centre_and_covered_share_of_each_lesion():
    reference = draw(np.s_[1:3, 4, 4], np.s_[8, 8, 7:11])
    prediction = draw(np.s_[8, 8, 7], np.s_[8, 8, 10])
    match = match_lesions(prediction, reference, spacing_mm=(1, 2, 3))
    order = np.argsort(match.reference.volume_mm3)
    np.testing.assert_allclose(match.reference.volume_mm3[order], [12, 24])
    np.testing.assert_allclose(match.reference.centre[order], [[1.5, 4, 4], [8, 8, 8.5]])
    np.testing.assert_allclose(match.reference.overlap[order], [0, 0.5])
    np.testing.assert_allclose(match.predicted.overlap, [1, 1])


def test_table_equals_scipy_centres_of_mass():
    mask = random_masks(3)[0]
    labels, n = ndimage.label(mask, np.ones((3, 3, 3)))
    expected = np.array(ndimage.center_of_mass(mask, labels, range(1, n + 1)))
    centres = lesions_of(mask).centre
    np.testing.assert_allclose(centres[np.lexsort(centres.T)], expected[np.lexsort(expected.T)])


def test_table_of_an_empty_mask_has_no_rows():
    table = lesions_of(draw())
    assert (len(table), table.centre.shape) == (0, (0, 3))
    assert len(lesions_of(np.zeros((0, 3, 3), bool))) == 0


def test_flat_images_and_tensors_are_taken():
    flat = np.zeros((6, 6), np.uint8)
    flat[[1, 2], [1, 2]] = 1
    counts = [
        lesion_counts(flat, flat, spacing_mm=(1, 1), connectivity=n).n_reference for n in (6, 26)
    ]
    assert counts == [2, 1]
    prediction, reference = random_masks(4)
    expected = lesion_counts(prediction, reference, spacing_mm=UNIT)
    tensors = (torch.from_numpy(mask).float() for mask in (prediction, reference))
    assert lesion_counts(*tensors, spacing_mm=UNIT) == expected


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"connectivity": 8}, "got 8"),
        ({"min_overlap": 1.0}, "got 1.0"),
        ({"min_overlap": -0.1}, "got -0.1"),
        ({"min_volume_mm3": -3}, "got -3"),
        ({"min_volume_mm3": math.nan}, "got nan"),
        ({"spacing_mm": (1, 1)}, r"got \(1, 1\)"),
        ({"spacing_mm": (1, 1, 0)}, r"got \(1, 1, 0\)"),
    ],
)
def test_settings_out_of_range_are_named(rule, message):
    with pytest.raises(ValueError, match=message):
        lesion_counts(draw(), draw(), **{"spacing_mm": UNIT, **rule})


def test_masks_of_other_values_or_shapes_are_errors():
    with pytest.raises(ValueError, match=r"prediction.*0\.5"):
        lesion_counts(np.full((2, 2, 2), 0.5), np.zeros((2, 2, 2)), spacing_mm=UNIT)
    with pytest.raises(ValueError, match=r"\(2, 2, 2\) and \(2, 2, 3\)"):
        lesion_counts(np.zeros((2, 2, 2)), np.zeros((2, 2, 3)), spacing_mm=UNIT)


@pytest.mark.parametrize("orders", ["CC", "FF", "CF"])
def test_pairs_equal_brute_force(orders):
    prediction, reference = (
        np.asarray(m, order=o) for m, o in zip(random_masks(5), orders, strict=True)
    )
    scores = np.random.default_rng(0).random(prediction.shape)
    match = match_lesions(prediction, reference, spacing_mm=UNIT, scores=scores)
    (predicted, n_predicted), (referred, n_reference) = (
        ndimage.label(m, np.ones((3, 3, 3))) for m in (prediction, reference)
    )
    ours = (match.predicted.centre, match.reference.centre)
    theirs = [
        np.array(ndimage.center_of_mass(m, labels, range(1, n + 1)))
        for m, labels, n in (
            (prediction, predicted, n_predicted),
            (reference, referred, n_reference),
        )
    ]
    to_theirs = [
        [int(np.abs(t - c).sum(1).argmin()) + 1 for c in o]
        for o, t in zip(ours, theirs, strict=True)
    ]
    found = {(to_theirs[0][i], to_theirs[1][j]): n for i, j, n in match.pairs}
    expected = {
        (i, j): ((predicted == i) & (referred == j)).sum()
        for i in range(1, n_predicted + 1)
        for j in range(1, n_reference + 1)
        if ((predicted == i) & (referred == j)).any()
    }
    assert found == expected
    highest = {to_theirs[0][i]: score for i, score in enumerate(match.highest_score)}
    assert highest == {i: scores[predicted == i].max() for i in range(1, n_predicted + 1)}
    assert match.n_split == sum(
        len(set(np.unique(predicted[referred == j])) - {0}) > 1 for j in range(1, n_reference + 1)
    )
    assert match.n_merged == sum(
        len(set(np.unique(referred[predicted == i])) - {0}) > 1 for i in range(1, n_predicted + 1)
    )
    _, dice = match.best_dice()
    for row, label in enumerate(to_theirs[1]):
        reference_lesion = referred == label
        rivals = set(np.unique(predicted[reference_lesion])) - {0}
        best = [
            2
            * (reference_lesion & (predicted == i)).sum()
            / (reference_lesion.sum() + (predicted == i).sum())
            for i in rivals
        ]
        assert dice[row] == pytest.approx(max(best, default=math.nan), nan_ok=True)


def test_split_and_merged_lesions_worked_by_hand():
    reference = draw(np.s_[1:9, 2, 2], np.s_[1, 8, 8], np.s_[4, 8, 8], np.s_[10, 10, 10])
    # Two parts of one lesion, and one lesion across two.
    prediction = draw(np.s_[1:3, 2, 2], np.s_[5:7, 2, 2], np.s_[1:5, 8, 8])
    match = match_lesions(prediction, reference, spacing_mm=UNIT)
    assert (match.n_split, match.n_merged) == (1, 1)
    swapped = match_lesions(reference, prediction, spacing_mm=UNIT)
    assert (swapped.n_split, swapped.n_merged) == (1, 1)
    _, dice = match.best_dice()
    np.testing.assert_allclose(sorted(dice), [2 / 5, 2 / 5, 4 / 10, math.nan])


def test_lesions_of_just_the_minimum_go_where_only_larger_ones_count():
    mask = draw(np.s_[1, 1, 1:4], np.s_[8, 8, 1:5])
    match = match_lesions(mask, mask, spacing_mm=UNIT, min_volume_mm3=3.0)
    assert len(match.reference) == 2
    match = match_lesions(mask, mask, spacing_mm=UNIT, min_volume_mm3=3.0, strictly_larger=True)
    np.testing.assert_array_equal(match.reference.volume_mm3, [4])
    np.testing.assert_array_equal(match.reference.centre, [[8, 8, 2.5]])
    np.testing.assert_array_equal(match.pairs, [[0, 0, 4]])


def test_lesions_of_empty_masks_have_no_pairs():
    for pair in ((draw(), draw(np.s_[1, 1, 1])), (draw(np.s_[1, 1, 1]), draw()), (draw(), draw())):
        match = match_lesions(*pair, spacing_mm=UNIT, scores=np.zeros((12, 12, 12)))
        assert (match.pairs.shape, match.n_split, match.n_merged) == ((0, 3), 0, 0)
        assert np.isnan(match.best_dice()[1]).all()
