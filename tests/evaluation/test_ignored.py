"""Voxels that the evaluation leaves out."""

import json
from dataclasses import replace

import numpy as np
import pytest

from helpers.evaluated_cohort import SHAPE, Cohort, lesions_and_map, save
from tversky_seg.data.errors import DataError
from tversky_seg.metrics import compute_metrics

REGION = (slice(2, 12), slice(2, 14), slice(2, 9))


@pytest.fixture
def cohort(tmp_path):
    return Cohort(tmp_path)


def region():
    mask = np.zeros(SHAPE, bool)
    mask[REGION] = True
    return mask


def test_metrics_equal_those_without_the_ignored_voxels():
    reference, probability = lesions_and_map(3)
    ignored = region()
    settings = {"spacing_mm": (1, 1, 2), "threshold": 0.4, "further": True}
    metrics = compute_metrics(probability, reference, ignored=ignored, **settings)
    # An independent way: voxel counts of the rest, and lesions of masks that are 0 there.
    counted = ~ignored
    rest = compute_metrics(
        probability[counted][:, None, None], reference[counted][:, None, None], **settings
    )
    for name in ("dice", "sensitivity", "specificity", "pr_auc", "roc_auc", "calibration_error"):
        assert metrics[name] == pytest.approx(rest[name]), name
    zeroed = compute_metrics(
        (probability >= 0.4) & counted, reference & counted, **settings | {"threshold": 0.5}
    )
    for name in ("lesion_tpr", "lesion_fpr", "assd_mm", "hd95_mm", "n_predicted_lesions"):
        assert metrics[name] == pytest.approx(zeroed[name]), name


def test_a_predicted_lesion_in_an_ignored_region_is_no_false_positive():
    prediction = np.zeros((8, 8, 8), bool)
    prediction[1:3, 1:3, 1:3] = prediction[5:7, 5:7, 5:7] = True
    reference = np.zeros_like(prediction)
    reference[1:3, 1:3, 1:3] = True
    ignored = np.zeros_like(prediction)
    ignored[5:8, 5:8, 5:8] = True
    assert compute_metrics(prediction, reference, spacing_mm=(1, 1, 1))["lesion_fpr"] == 0.5
    metrics = compute_metrics(prediction, reference, spacing_mm=(1, 1, 1), ignored=ignored)
    assert (metrics["lesion_fpr"], metrics["dice"], metrics["n_predicted_lesions"]) == (0, 1, 1)


@pytest.mark.parametrize("by", ["value", "mask"])
def test_what_is_predicted_in_an_ignored_region_changes_no_number(cohort, by):
    reference, probability = lesions_and_map(3)
    ignored = region()
    if by == "value":
        label = np.where(ignored, 2, reference).astype(np.uint8)
        settings = {"ignore": (2,)}
    else:
        label = reference
        settings = {}
    results = []
    for shown in (probability, np.where(ignored, 0.97, probability)):
        cohort.cases = []
        cohort.add(3, reference=label, probability=shown)
        if by == "mask":
            mask = save(cohort.folder / "mask.nii", ignored)
            cohort.cases = [replace(cohort.cases[0], ignore_mask=mask)]
        results.append(cohort.evaluate(**settings, overwrite=True))
    assert results[0] == results[1]
    expected = {"label_values": [2] if by == "value" else [], "n_masks": int(by == "mask")}
    assert results[0]["ignored"] == expected
    rows = cohort.rows("lesions.csv")
    assert len(rows) > 1


def test_the_values_come_from_predictions_json(cohort):
    reference, _ = lesions_and_map(3)
    cohort.add(3, reference=np.where(region(), 2, reference).astype(np.uint8))
    with pytest.raises(DataError, match=r"label values \[2\].*evaluation.ignore"):
        cohort.evaluate()
    settings = {"classes": {"lesion": [1]}, "ignore": [2]}
    (cohort.predictions / "predictions.json").write_text(json.dumps(settings))
    assert cohort.evaluate()["ignored"] == {"label_values": [2], "n_masks": 0}
    with pytest.raises(DataError, match=r"evaluation with ignore \[2\], this one has \[2, 3\]"):
        cohort.evaluate(ignore=(2, 3))
    with pytest.raises(DataError, match="1 is a label value of class lesion"):
        cohort.evaluate(ignore=(1,))


def test_masks_of_another_tool_may_hold_the_ignored_value(cohort):
    reference, _ = lesions_and_map(3)
    label = np.where(region(), 2, reference).astype(np.uint8)
    cohort.add(3, reference=label, predicted=False)
    save(cohort.predictions / "case3.nii.gz", label)
    metrics = cohort.evaluate(pattern="{case_id}.nii.gz", ignore=(2,))
    assert metrics["mean"]["dice"] == 1
