"""Predictions against several raters, and the raters against each other."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from helpers.evaluated_cohort import SPACING, Cohort, save
from tversky_seg.data.errors import DataError
from tversky_seg.metrics import lesion_counts, overlap_counts


@pytest.fixture
def drawn(tmp_path):
    """A cohort of two cases, and for each the predicted mask and what three raters drew."""
    cohort = Cohort(tmp_path)
    masks = []
    for seed in range(2):
        one, probability = cohort.add(seed)
        two = ndimage.binary_erosion(one)
        three = ndimage.binary_dilation(one)
        labels = list(cohort.cases[-1].labels)
        for number, mask in ((2, two), (3, three)):
            labels.append(save(tmp_path / f"case{seed}_label_{number}.nii.gz", mask))
        cohort.cases[-1] = replace(cohort.cases[-1], labels=tuple(labels))
        masks.append((probability >= 0.5, [one, two, three]))
    return cohort, masks


def dice(one, other):
    return overlap_counts(one, other).dice


def test_the_raters_are_compared_with_each_other(drawn):
    cohort, masks = drawn
    metrics = cohort.evaluate()
    of_pairs = {}
    for number in range(3):
        others = [other for other in range(3) if other != number]
        of_pairs[number] = [
            dice(raters[number], raters[other]) for _, raters in masks for other in others
        ]
        row = metrics["raters"][number]["against_others"]
        assert row["n_pairs"] == 4
        assert row["mean"]["dice"] == pytest.approx(np.mean(of_pairs[number]))
        assert row["mean"]["assd_mm"] is None
    between = metrics["between_raters"]
    assert between["n_pairs"] == 12
    assert between["mean"]["dice"] == pytest.approx(np.mean(list(of_pairs.values())))
    # A rater's lesions are counted as if predicted: rater 2 draws fewer than rater 3.
    tpr = [
        lesion_counts(raters[1], raters[other], spacing_mm=SPACING).tpr
        for _, raters in masks
        for other in (0, 2)
    ]
    row = metrics["raters"][1]["against_others"]["mean"]
    assert row["lesion_tpr"] == pytest.approx(np.mean(tpr))


def test_the_prediction_is_compared_with_the_majority(drawn):
    cohort, masks = drawn
    metrics = cohort.evaluate()
    expected = [dice(mask, np.sum(raters, axis=0) >= 2) for mask, raters in masks]
    assert metrics["consensus"]["n_cases"] == 2
    assert metrics["consensus"]["mean"]["dice"] == pytest.approx(np.mean(expected))
    page = (cohort.output_dir / "report.html").read_text()
    assert "a rater against another" in page


def test_a_label_that_is_the_consensus_is_taken(drawn):
    cohort, _ = drawn
    cohort.cases = [replace(case, consensus=True) for case in cohort.cases]
    metrics = cohort.evaluate()
    assert metrics["consensus"]["mean"]["dice"] == metrics["mean"]["dice"]
    # Two raters are left, each against the other.
    assert metrics["between_raters"]["n_pairs"] == 4


def test_a_single_label_has_neither(tmp_path):
    cohort = Cohort(tmp_path)
    cohort.add(0)
    metrics = cohort.evaluate()
    assert (metrics["consensus"], metrics["between_raters"]) == (None, None)


def test_staple_is_asked_for(drawn, monkeypatch):
    cohort, _ = drawn
    with pytest.raises(DataError, match=r"evaluation.consensus: 'union'.*majority or staple"):
        cohort.evaluate(consensus="union")
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(DataError, match=r"evaluation.consensus: staple needs SimpleITK"):
        cohort.evaluate(consensus="staple")
