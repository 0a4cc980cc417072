"""All metrics of one case together, and the means over cases."""

import math

import numpy as np
import pytest

from helpers.lesions import draw
from tversky_seg.metrics.averages import mean_of_defined, unwrap_single
from tversky_seg.metrics.case_metrics import (
    FURTHER_METRICS,
    METRICS,
    compute_metrics,
    mean_metrics,
    measure_case,
)
from tversky_seg.metrics.lesion_rule import ANY_OVERLAP

UNIT = (1.0, 1.0, 1.0)
REFERENCE = draw(np.s_[1:4, 2, 2], np.s_[8, 8, 8])
PREDICTION = draw(np.s_[2:6, 2, 2])


def measure(prediction, reference):
    case, _ = measure_case(prediction, reference, spacing_mm=(1, 1, 2), rule=ANY_OVERLAP)
    return case


def test_metrics_come_by_their_names_and_in_their_order():
    case = measure(PREDICTION, REFERENCE)
    assert tuple(case.metrics()) == METRICS
    assert tuple(case.further_metrics()) == FURTHER_METRICS
    metrics = compute_metrics(PREDICTION, REFERENCE, spacing_mm=UNIT, further=True)
    assert tuple(metrics) == METRICS + FURTHER_METRICS


def test_metrics_worked_by_hand():
    # Two of four reference voxels are predicted, and two false ones; voxels of 2 mm3.
    case = measure(PREDICTION, REFERENCE)
    metrics = case.metrics() | case.further_metrics()
    assert metrics["dice"] == 4 / 8
    assert (metrics["lesion_tpr"], metrics["lesion_fpr"]) == (1 / 2, 0)
    assert (metrics["reference_volume_mm3"], metrics["volume_difference"]) == (8, 0)
    assert metrics["object_dice"] == 4 / 7
    assert math.isnan(metrics["pr_auc"])


def test_pooled_cases_have_the_metrics_of_their_counts_and_no_distances():
    first = measure(PREDICTION, REFERENCE)
    second = measure(REFERENCE, REFERENCE)
    pooled = (first + second).metrics()
    assert pooled["dice"] == (4 + 8) / (8 + 8)
    assert pooled["lesion_tpr"] == 3 / 4
    assert math.isnan(pooled["assd_mm"])


def test_small_predicted_lesions_are_removed_before_anything_is_measured():
    prediction = PREDICTION | draw(np.s_[11, 11, 11])
    metrics = compute_metrics(prediction, REFERENCE, spacing_mm=UNIT, min_volume_mm3=2)
    expected = compute_metrics(PREDICTION, REFERENCE, spacing_mm=UNIT)
    assert metrics == pytest.approx(expected, nan_ok=True)


def test_means_leave_undefined_values_out():
    rows = [{"dice": 0.5, "precision": math.nan}, {"dice": 1.0, "precision": math.nan}]
    means = mean_metrics(rows)
    assert means["dice"] == 0.75
    assert math.isnan(means["precision"])
    assert mean_of_defined([0.5, math.nan, 1.0]) == 0.75
    assert math.isnan(mean_of_defined([math.nan]))


def test_one_class_is_its_value_and_several_are_a_dict():
    assert unwrap_single({"lesion": 0.5}) == 0.5
    assert unwrap_single({"liver": 0.5, "tumour": 0.7}) == {"liver": 0.5, "tumour": 0.7}
