"""Rules of published evaluations: masks drawn by hand, and each rule written out in plain loops."""

from functools import partial

import numpy as np
import pytest
from scipy import ndimage

from helpers.lesions import draw as draw_boxes
from helpers.lesions import published_rule
from tversky_seg.metrics.lesion_rule import (
    ANY_OVERLAP,
    LesionRule,
    count_lesions,
    detected_lesions,
    match_by_rule,
    matched_lesions,
)
from tversky_seg.metrics.lesions import LesionCounts

UNIT = (1.0, 1.0, 1.0)
MSSEG_2016 = published_rule("msseg2016")

draw = partial(draw_boxes, shape=(30, 12, 8))
match = partial(match_by_rule, spacing_mm=UNIT)


def count(prediction, reference, rule=MSSEG_2016):
    return count_lesions(match(prediction, reference, rule=rule), rule)


def anima(prediction, reference, *, alpha=0.1, beta=0.7, gamma=0.65, more_than_mm3=3):
    """animaSegPerfAnalyzer as Commowick et al. 2018 describe it, one lesion after the other."""

    def components(mask):
        labels, n = ndimage.label(mask, ndimage.generate_binary_structure(3, 1))
        large = [i for i in range(1, n + 1) if (labels == i).sum() > more_than_mm3]
        return [labels == i for i in large]

    def found(tested, others):
        n_found, outside_of_all = 0, ~np.any([np.zeros(prediction.shape, bool), *tested], axis=0)
        for lesion in tested:
            overlaps = sorted(
                ((lesion & other).sum(), k)
                for k, other in enumerate(others)
                if (lesion & other).any()
            )
            covered = sum(n for n, _ in overlaps)
            if not covered / lesion.sum() > alpha:
                continue
            share, fine = 0.0, True
            for n, k in reversed(overlaps):
                if share >= gamma:
                    break
                if (others[k] & outside_of_all).sum() / others[k].sum() > beta:
                    fine = False
                    break
                share += n / covered
            n_found += fine
        return n_found

    predicted, referred = components(prediction), components(reference)
    return LesionCounts(
        n_reference=len(referred),
        n_detected=found(referred, predicted),
        n_predicted=len(predicted),
        n_unmatched=len(predicted) - found(predicted, referred),
    )


@pytest.mark.parametrize("seed", range(8))
def test_msseg_2016_equals_the_rule_written_out(seed):
    rng = np.random.default_rng(seed)
    shape = (22, 18, 12)
    shared, *own = ndimage.gaussian_filter(rng.normal(size=(3, *shape)), (0, 1.1, 1.1, 1.1))
    prediction, reference = shared + own[0] > 0.22, shared + own[1] > 0.3
    counts = count(prediction, reference)
    assert counts == anima(prediction, reference)
    assert 0 < counts.n_detected < counts.n_reference


def test_msseg_2016_wants_more_than_a_tenth_covered():
    reference = draw(np.s_[0:20, 2, 2])
    assert count(draw(np.s_[0:2, 2, 2:5]), reference).n_detected == 0  # 2 of 20
    assert count(draw(np.s_[0:3, 2, 2:4]), reference).n_detected == 1


def test_msseg_2016_counts_no_lesion_detected_by_one_that_lies_mostly_outside():
    reference = draw(np.s_[0:5, 2, 2])
    inside, outside = (
        draw(np.s_[2:12, 2, 2]),
        draw(np.s_[3:13, 2, 2]),
    )  # 3 and 2 of 10 voxels inside
    assert count(inside, reference).n_detected == 1
    assert count(outside, reference).n_detected == 0
    assert count(outside, reference, LesionRule(connectivity=6, min_overlap=0.1)).n_detected == 1


def test_msseg_2016_looks_no_further_once_enough_of_the_overlap_is_explained():
    reference = draw(np.s_[0:20, 2, 2])
    large, sprawling = np.s_[0:9, 2, 2], np.s_[12, 2, 2:8]  # 9 voxels inside; 1 of 6 inside
    assert count(draw(large, sprawling), reference).n_detected == 1  # 9 of 10 come first
    first = draw(np.s_[0:4, 2, 2], np.s_[12, 2, 2:8], np.s_[14, 2, 2:8], np.s_[16, 2, 2:8])
    assert (
        count(first, reference).n_detected == 0
    )  # 4 of 7 are not enough: the next one lies outside


def test_msseg_2016_drops_lesions_of_three_cubic_millimetres():
    three, four = draw(np.s_[0:3, 2, 2]), draw(np.s_[0:4, 2, 2])
    assert count(three, three) == LesionCounts(0, 0, 0, 0)
    assert count(four, four) == LesionCounts(1, 1, 1, 0)


def test_msseg_2016_judges_predicted_lesions_by_the_same_test_exchanged():
    reference, prediction = (
        draw(np.s_[0:4, 2, 2]),
        draw(np.s_[3:30, 2, 2]),
    )  # one voxel of 27 is covered
    assert count(prediction, reference).n_unmatched == 1
    assert count(prediction, reference, LesionRule(connectivity=6)).n_unmatched == 0
    wide = match(prediction, reference, rule=MSSEG_2016)
    swapped = match(reference, prediction, rule=MSSEG_2016)
    np.testing.assert_array_equal(
        matched_lesions(wide, MSSEG_2016), detected_lesions(swapped, MSSEG_2016)
    )


@pytest.mark.parametrize("word", ["isbi2015", "wmh2017", "shirokikh2020"])
def test_the_other_published_rules_take_any_overlap_of_26_neighbours(word):
    rule = published_rule(word)
    reference = draw(np.s_[0:20, 2, 2], np.s_[25, 8, 6])
    prediction = draw(np.s_[19:29, 2, 2], np.s_[5, 9, 3])
    assert count(prediction, reference, rule) == LesionCounts(2, 1, 2, 1)
    diagonal = draw(np.s_[1, 1, 1], np.s_[2, 2, 2])
    assert count(diagonal, diagonal, rule).n_reference == 1


@pytest.mark.parametrize("word", ["isbi2015", "msseg2016", "wmh2017", "shirokikh2020"])
def test_a_published_rule_names_its_source(word):
    assert published_rule(word).source


def test_msseg_2016_has_the_thresholds_of_its_tool():
    assert (MSSEG_2016.min_overlap, MSSEG_2016.max_outside) == (0.1, 0.7)  # alpha and beta
    assert MSSEG_2016.enough_overlap == 0.65  # gamma
    assert (MSSEG_2016.connectivity, MSSEG_2016.min_volume_mm3) == (6, 3)


def test_the_default_rule_is_that_of_the_default_config():
    assert published_rule("default") == ANY_OVERLAP


@pytest.mark.parametrize(
    "wrong", [{"max_outside": 1.5}, {"max_outside": -0.1}, {"enough_overlap": 0.0}]
)
def test_a_rule_out_of_range_is_an_error(wrong):
    with pytest.raises(ValueError, match=str(*wrong.values())):
        LesionRule(**wrong)
