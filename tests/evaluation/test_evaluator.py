"""Evaluation of saved predictions: metrics, files, and files that cannot be evaluated."""

import io
import json
import math
import pickle
import re
from dataclasses import replace
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pytest
import yaml
from hydra.utils import instantiate
from rich.console import Console
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from helpers.evaluated_cohort import SHAPE, SPACING, Cohort, lesions_and_map, oblique_affine, save
from helpers.lesions import published_rule, score_lesions
from helpers.runs import contents
from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.evaluation import METRICS, LesionRule, evaluate
from tversky_seg.evaluation.criteria import Criteria
from tversky_seg.evaluation.evaluator import evaluate_cohort
from tversky_seg.evaluation.saved_predictions import open_predictions
from tversky_seg.metrics import compute_metrics, lesion_counts
from tversky_seg.metrics.calibration import expected_calibration_error
from tversky_seg.metrics.case_metrics import FURTHER_METRICS
from tversky_seg.metrics.froc import average_recall
from tversky_seg.metrics.new_lesions import new_lesion_counts
from tversky_seg.metrics.overlap import overlap_counts
from tversky_seg.metrics.retention import voxel_retention
from tversky_seg.metrics.score_histogram import to_levels
from tversky_seg.metrics.surface import surface_distances
from tversky_seg.metrics.temperature import near_lesions
from tversky_seg.report.slices import outline, slice_pictures
from tversky_seg.report.terminal import metrics_table

OUTPUTS = {
    "metrics.json",
    "cases.csv",
    "lesions.csv",
    "pr_curve.csv",
    "froc.csv",
    "threshold_curve.csv",
} | {
    "pr_curve.png",
    "report.html",
}
PUBLISHED = ["n_cases", "threshold", "lesion_rule", "mean", "ci95", "pooled", "undefined", "cases"]


@pytest.fixture
def drawing_cohort(tmp_path):
    """A cohort whose evaluation draws its figures."""
    return Cohort(tmp_path)


@pytest.fixture
def cohort(drawing_cohort, monkeypatch):
    """A cohort whose evaluation leaves out the figures and the report, which is faster."""
    monkeypatch.setattr("tversky_seg.evaluation.evaluation_folder.as_png", lambda figure: b"")
    monkeypatch.setattr(
        "tversky_seg.evaluation.evaluation_folder.choose_cases", lambda *_, **__: {}
    )
    monkeypatch.setattr(
        "tversky_seg.evaluation.evaluation_folder.write_report", lambda *_, **__: None
    )
    return drawing_cohort


def read(path):
    return json.loads(path.read_text())


def test_metrics_json_has_the_published_structure(drawing_cohort):
    cohort = drawing_cohort
    for seed in range(3):
        cohort.add(seed)
    metrics = cohort.evaluate()
    assert read(cohort.output_dir / "metrics.json") == metrics
    assert list(metrics)[: len(PUBLISHED)] == PUBLISHED
    assert (metrics["n_cases"], metrics["threshold"]) == (3, 0.5)
    assert metrics["lesion_rule"]["connectivity"] == 26
    for part in ("mean", "ci95", "pooled", "undefined"):
        assert tuple(metrics[part]) == METRICS
    assert [case["case_id"] for case in metrics["cases"]] == ["case0", "case1", "case2"]
    assert set(METRICS) < set(metrics["cases"][0])
    assert {path.name for path in cohort.output_dir.iterdir()} == OUTPUTS


def test_saved_files_give_the_numbers_of_the_arrays(cohort):
    pairs = [cohort.add(seed) for seed in range(2)]
    metrics = cohort.evaluate(threshold=0.3, rule=LesionRule(connectivity=6, min_overlap=0.2))
    for (reference, probability), found in zip(pairs, metrics["cases"], strict=True):
        mask = probability >= 0.3
        overlap, voxel_mm3 = overlap_counts(mask, reference), np.prod(SPACING)
        lesions = lesion_counts(
            mask, reference, spacing_mm=SPACING, connectivity=6, min_overlap=0.2
        )
        distances = surface_distances(mask, reference, spacing_mm=SPACING)
        expected = {
            "dice": overlap.dice,
            "sensitivity": overlap.sensitivity,
            "specificity": overlap.specificity,
            "precision": overlap.precision,
            "f2": overlap.f(2),
            "pr_auc": average_precision_score(reference.ravel(), probability.ravel()),
            "lesion_tpr": lesions.tpr,
            "lesion_fpr": lesions.fpr,
            "lesion_f1": lesions.f1,
            "assd_mm": distances.assd_mm,
            "hd95_mm": distances.hd95_mm,
            "volume_difference": abs(mask.sum() - reference.sum()) / reference.sum(),
            "reference_volume_mm3": reference.sum() * voxel_mm3,
            "predicted_volume_mm3": mask.sum() * voxel_mm3,
            "n_reference_lesions": lesions.n_reference,
            "n_predicted_lesions": lesions.n_predicted,
        }
        assert {name: found[name] for name in METRICS} == pytest.approx(expected, rel=1e-6)
    for name in METRICS:
        assert metrics["mean"][name] == pytest.approx(
            np.mean([case[name] for case in metrics["cases"]])
        )


def test_pooled_values_are_those_of_all_voxels_and_lesions_together(cohort):
    pairs = [cohort.add(seed) for seed in range(3)]
    pooled = cohort.evaluate()["pooled"]
    reference, probability = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
    overlap = overlap_counts(probability >= 0.5, reference)
    assert pooled["pr_auc"] == pytest.approx(
        average_precision_score(reference.ravel(), probability.ravel()), abs=1e-9
    )
    assert (pooled["dice"], pooled["f2"], pooled["specificity"]) == (
        overlap.dice,
        overlap.f(2),
        overlap.specificity,
    )
    counts = [lesion_counts(p >= 0.5, r, spacing_mm=SPACING) for r, p in pairs]
    assert pooled["lesion_tpr"] == sum(c.n_detected for c in counts) / sum(
        c.n_reference for c in counts
    )
    assert (pooled["assd_mm"], pooled["hd95_mm"]) == (None, None)


def test_pr_curve_file_has_the_pooled_area(cohort):
    for seed in range(2):
        cohort.add(seed)
    metrics = cohort.evaluate()
    rows = cohort.rows("pr_curve.csv")
    precision, recall = (
        np.array([float(row[name]) for row in rows]) for name in ("precision", "recall")
    )
    assert -np.sum(np.diff(np.append(recall, 0)) * precision) == pytest.approx(
        metrics["pooled"]["pr_auc"], abs=1e-7
    )


def test_cases_without_a_reference_lesion_are_counted_as_undefined_not_as_zero_or_one(cohort):
    cohort.add(0)
    cohort.add(1, reference=np.zeros(SHAPE, bool))
    metrics = cohort.evaluate()
    empty = metrics["cases"][1]
    undefined = ("sensitivity", "pr_auc", "lesion_tpr", "assd_mm", "hd95_mm", "volume_difference")
    assert all(empty[name] is None and metrics["undefined"][name] == 1 for name in undefined)
    assert all(metrics["mean"][name] == metrics["cases"][0][name] for name in undefined)
    assert (empty["dice"], empty["lesion_fpr"], metrics["undefined"]["dice"]) == (0, 1, 0)
    assert cohort.rows("cases.csv")[1]["sensitivity"] == ""


def test_an_all_empty_prediction_is_evaluated(drawing_cohort):
    cohort = drawing_cohort
    for seed in range(2):
        cohort.add(seed, probability=np.zeros(SHAPE))
    metrics = cohort.evaluate()
    assert (
        metrics["mean"]["dice"],
        metrics["mean"]["lesion_tpr"],
        metrics["mean"]["volume_difference"],
    ) == (0, 0, 1)
    assert (metrics["mean"]["precision"], metrics["ci95"]["precision"]) == (None, [None, None])
    assert metrics["undefined"]["precision"] == 2
    assert {path.name for path in cohort.output_dir.iterdir()} == OUTPUTS


def test_empty_references_and_predictions_everywhere_are_evaluated(drawing_cohort):
    cohort = drawing_cohort
    cohort.add(0, reference=np.zeros(SHAPE, bool), probability=np.zeros(SHAPE))
    metrics = cohort.evaluate()
    defined = {name for name, value in metrics["mean"].items() if value is not None}
    volumes = {
        "reference_volume_mm3",
        "predicted_volume_mm3",
        "n_reference_lesions",
        "n_predicted_lesions",
    }
    assert defined == {"specificity", *volumes}
    assert (cohort.output_dir / "report.html").exists()


def test_threshold_and_minimum_volume_come_from_predictions_json_unless_given(cohort):
    reference, probability = cohort.add(0)
    cohort.settings(threshold=0.7, min_volume_mm3=30.0)
    metrics = cohort.evaluate()
    assert (metrics["threshold"], metrics["lesion_rule"]["prediction_min_volume_mm3"]) == (0.7, 30)
    expected = compute_metrics(
        probability, reference, spacing_mm=SPACING, threshold=0.7, min_volume_mm3=30
    )
    assert {name: metrics["cases"][0][name] for name in METRICS} == pytest.approx(
        expected, rel=1e-6
    )
    assert metrics["mean"]["predicted_volume_mm3"] < (probability >= 0.7).sum() * np.prod(SPACING)
    given = cohort.evaluate(threshold=0.2, min_volume_mm3=0)
    assert given["threshold"] == 0.2
    assert given["mean"]["sensitivity"] == overlap_counts(probability >= 0.2, reference).sensitivity


def test_the_lowest_peak_comes_from_predictions_json_unless_given(cohort):
    reference, probability = cohort.add(0)
    cohort.settings(threshold=0.5, min_volume_mm3=0.0)
    of_before = cohort.evaluate()
    assert of_before["lesion_rule"]["prediction_min_peak"] == 0, "none in older folders"
    numbers, n = ndimage.label(probability >= 0.5, np.ones((3, 3, 3)))
    peaks = ndimage.maximum(probability, numbers, np.arange(1, n + 1))
    peak = float(np.sort(peaks)[n // 2])
    mask = np.isin(numbers, 1 + np.flatnonzero(peaks >= peak * (1 - 1e-6)))
    assert 0 < mask.sum() < (numbers > 0).sum()
    cohort.settings(threshold=0.5, min_volume_mm3=0.0, min_peak=peak)
    for metrics in (cohort.evaluate(), cohort.evaluate(min_peak=peak)):
        assert metrics["lesion_rule"]["prediction_min_peak"] == peak
        assert metrics["mean"]["dice"] == overlap_counts(mask, reference).dice
    expected = compute_metrics(probability, reference, spacing_mm=SPACING, min_peak=peak)
    assert {name: metrics["cases"][0][name] for name in METRICS} == pytest.approx(
        expected, rel=1e-6
    )
    assert cohort.evaluate(min_peak=0)["mean"] == of_before["mean"]
    # A lesion drawn by hand stays, however improbable.
    edited = probability >= 0.5
    edited[0, 0, 0] = True
    save(cohort.predictions / "case0_mask.nii.gz", edited)
    assert cohort.evaluate()["mean"]["dice"] == overlap_counts(edited, reference).dice


def test_the_saved_mask_is_evaluated_unless_another_threshold_is_asked_for(cohort):
    reference, probability = cohort.add(0)
    edited = reference.copy()
    edited[:12] = False
    save(cohort.predictions / "case0_mask.nii.gz", edited)
    cohort.settings(threshold=0.5, min_volume_mm3=0.0)
    metrics = cohort.evaluate()
    assert metrics["mean"]["precision"] == 1
    assert metrics["mean"]["pr_auc"] == pytest.approx(
        average_precision_score(reference.ravel(), probability.ravel())
    )
    assert (
        cohort.evaluate(threshold=0.5)["mean"]["dice"]
        == overlap_counts(probability >= 0.5, reference).dice
    )


def test_masks_of_another_tool_are_evaluated_without_ranking(drawing_cohort):
    cohort = drawing_cohort
    reference, _ = cohort.add(0, predicted=False)
    save(cohort.predictions / "tool" / "case0_seg.nii.gz", reference.astype(np.float32))
    metrics = cohort.evaluate(pattern="tool/{case_id}_seg.nii.gz")
    assert (metrics["mean"]["dice"], metrics["mean"]["hd95_mm"]) == (1, 0)
    assert (metrics["mean"]["pr_auc"], metrics["pooled"]["pr_auc"], metrics["threshold"]) == (
        None,
        None,
        None,
    )
    assert {path.name for path in cohort.output_dir.iterdir()} == OUTPUTS
    assert cohort.rows("pr_curve.csv") == []


def test_a_folder_of_own_masks_without_probabilities_is_evaluated_as_it_is(cohort):
    reference, _ = cohort.add(0, predicted=False)
    save(cohort.predictions / "case0_mask.nii.gz", reference)
    assert (cohort.evaluate()["mean"]["dice"], cohort.evaluate()["threshold"]) == (1, None)
    with pytest.raises(DataError, match=r"threshold: 0\.3"):
        cohort.evaluate(threshold=0.3)
    with pytest.raises(DataError, match=r"min_peak: 0\.9, but .* holds masks only"):
        cohort.evaluate(min_peak=0.9)


def test_several_classes_are_evaluated_each_under_its_name(drawing_cohort):
    cohort = drawing_cohort
    reference, probability = cohort.add(0)
    nested = reference & (probability > 0.8)
    save(cohort.cases[0].label, reference.astype(np.uint8) + nested)
    for name, data in {"organ": probability, "tumour": nested.astype(float)}.items():
        save(cohort.predictions / f"case0_{name}_probability.nii.gz", data, scale=1 / 65535)
    cohort.settings(
        threshold={"organ": 0.4, "tumour": 0.5}, classes={"organ": [1, 2], "tumour": [2]}
    )
    metrics = cohort.evaluate()
    assert metrics["threshold"] == {"organ": 0.4, "tumour": 0.5}
    for part in (
        metrics["mean"],
        metrics["ci95"],
        metrics["pooled"],
        metrics["undefined"],
        metrics["cases"][0],
    ):
        assert set(part) - {"case_id", "subject_id"} == {"organ", "tumour"}
    assert metrics["mean"]["tumour"]["dice"] == 1
    assert (
        metrics["cases"][0]["organ"]["dice"] == overlap_counts(probability >= 0.4, reference).dice
    )
    assert [row["class"] for row in cohort.rows("cases.csv")] == ["organ", "tumour"]
    metrics_table(metrics)


def test_a_foreign_label_map_is_split_into_classes(cohort):
    reference, _ = cohort.add(0, predicted=False)
    labels = reference.astype(np.uint8)
    labels[:12] *= 2
    save(cohort.cases[0].label, labels)
    save(cohort.predictions / "case0.nii.gz", labels.astype(np.float64))
    metrics = cohort.evaluate(pattern="{case_id}.nii.gz", classes={"left": [2], "right": [1]})
    assert [metrics["mean"][name]["dice"] for name in ("left", "right")] == [1, 1]


def test_a_foreign_map_of_one_class_has_its_label_value(cohort):
    reference, _ = cohort.add(0, predicted=False)
    save(cohort.cases[0].label, reference.astype(np.uint8) * 3)
    save(cohort.predictions / "case0.nii.gz", reference.astype(np.uint8) * 3)
    metrics = cohort.evaluate(pattern="{case_id}.nii.gz", classes={"lesion": [3]})
    assert metrics["mean"]["dice"] == 1


@pytest.mark.parametrize("classes", [{"left": [2], "right": [1]}, {"lesion": [2]}])
def test_foreign_label_values_of_no_class_are_a_fault(cohort, classes):
    reference, _ = cohort.add(0, predicted=False)
    save(cohort.cases[0].label, reference.astype(np.uint8) * 2)
    labels = reference.astype(np.uint8) * 2
    labels[0, 0, 0] = 7
    save(cohort.predictions / "case0.nii.gz", labels)
    with pytest.raises(DataError, match=r"case0\.nii\.gz: label values \[7\] belong to no class"):
        cohort.evaluate(pattern="{case_id}.nii.gz", classes=classes)
    metrics = cohort.evaluate(pattern="{case_id}.nii.gz", classes=classes, background_values=[7])
    assert metrics["n_cases"] == 1


def test_masks_of_another_tool_need_a_pattern_and_the_line_says_so(cohort):
    reference, _ = cohort.add(0, predicted=False)
    save(cohort.predictions / "case0.nii.gz", reference.astype(np.uint8))
    with pytest.raises(DataError, match=r"another tool by evaluation\.pattern='{case_id}\.nii"):
        cohort.evaluate()


def test_every_lesion_has_a_row_with_its_place_in_mm(cohort):
    reference, prediction = np.zeros((2, *SHAPE), bool)
    reference[4:6, 5, 5] = reference[15, 15, 8] = True
    prediction[4, 5, 5] = prediction[20, 3, 2] = True
    cohort.add(0, reference=reference, probability=prediction.astype(float))
    cohort.evaluate()
    rows = cohort.rows("lesions.csv")
    lesions = {(row["mask"], row["matched"], round(float(row["overlap"]), 2)) for row in rows}
    assert lesions == {
        ("reference", "1", 0.5),
        ("reference", "0", 0),
        ("prediction", "1", 1),
        ("prediction", "0", 0),
    }
    (row,) = (row for row in rows if row["mask"] == "reference" and row["matched"] == "1")
    centre_mm = [float(row[axis]) for axis in ("x_mm", "y_mm", "z_mm")]
    np.testing.assert_allclose(centre_mm, (oblique_affine() @ (4.5, 5, 5, 1))[:3], atol=0.01)
    assert float(row["volume_mm3"]) == pytest.approx(2 * np.prod(SPACING), abs=0.001)


def test_missing_predictions_are_listed_and_the_rest_is_evaluated(drawing_cohort):
    cohort = drawing_cohort
    cohort.add(0)
    cohort.add(1, predicted=False)
    metrics = cohort.evaluate()
    assert metrics["n_cases"] == 1
    (fault,) = metrics["faults"]
    assert "case1_probability.nii.gz: no such file" in fault
    assert "case1_probability.nii.gz" in (cohort.output_dir / "report.html").read_text()


def test_nothing_to_evaluate_is_an_error(cohort):
    with pytest.raises(DataError) as unlabelled:
        cohort.evaluate()
    assert unlabelled.value.where == str(cohort.predictions)
    cohort.add(0, predicted=False)
    cohort.add(1, predicted=False)
    with pytest.raises(DataError, match=r"case0_probability.nii.gz.*1 more"):
        cohort.evaluate()
    assert not (cohort.output_dir / "metrics.json").exists()
    assert list(cohort.output_dir.iterdir()) == []


def test_unlabelled_cases_are_not_evaluated(cohort):
    cohort.add(0)
    cohort.cases.append(Case("other", "other", {}))
    assert [case["case_id"] for case in cohort.evaluate()["cases"]] == ["case0"]


def spoil_shape(path):
    save(path, np.zeros((3, 4, 5)), scale=1 / 65535)


def spoil_affine(path):
    save(path, np.zeros(SHAPE), affine=np.diag([1, 1, 1, 1]))


def spoil_range(path):
    save(path, np.full(SHAPE, 1.5, np.float32))


def spoil_sign(path):
    save(path, np.full(SHAPE, -0.25, np.float32))


def spoil_bytes(path):
    path.write_bytes(path.read_bytes()[:-200])


def spoil_numbers(path):
    save(path, np.full(SHAPE, np.nan, np.float32))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_shape, r"\(3, 4, 5\).*\(24, 20, 14\)"),
        (spoil_affine, r"\[\[1.0, 0.0.*\[\[-0.9"),
        (spoil_range, "1.5"),
        (spoil_sign, "-0.25"),
        (spoil_bytes, "damaged|read"),
        (spoil_numbers, "NaN"),
    ],
)
def test_a_spoilt_prediction_is_a_fault_of_its_case_alone(cohort, spoil, message):
    for seed in range(2):
        cohort.add(seed)
    spoil(cohort.predictions / "case0_probability.nii.gz")
    metrics = cohort.evaluate()
    assert [case["case_id"] for case in metrics["cases"]] == ["case1"]
    (fault,) = metrics["faults"]
    assert fault.startswith(str(cohort.predictions / "case0_probability.nii.gz"))
    assert re.search(message, fault)


def test_a_probability_that_is_a_link_to_nothing_is_a_fault_though_its_mask_is_there(cohort):
    reference, _ = cohort.add(0)
    save(cohort.predictions / "case0_mask.nii.gz", reference)
    (cohort.predictions / "case0_probability.nii.gz").unlink()
    (cohort.predictions / "case0_probability.nii.gz").symlink_to("nowhere.nii.gz")
    with pytest.raises(DataError, match=r"case0_probability.nii.gz.*link"):
        cohort.evaluate()


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ('{"classes": 3}', r"predictions.json: data.classes: 3"),
        (
            '{"classes": {"lesion": ["a"]}}',
            r"predictions.json: data.classes.lesion: \['a'\]",
        ),
        ('{"background_values": 7}', r"predictions.json: background_values: 7"),
        ('{"threshold": "a"}', r"predictions.json: threshold: a for class lesion"),
        ('{"min_volume_mm3": -1}', r"predictions.json: min_volume_mm3: -1 for class lesion"),
        ('{"min_peak": 1.5}', r"predictions.json: min_peak: 1.5 for class lesion"),
    ],
)
def test_odd_settings_of_a_folder_are_named(cohort, saved, message):
    cohort.add(0)
    (cohort.predictions / "predictions.json").write_text(saved)
    with pytest.raises(DataError, match=message):
        cohort.evaluate()


def test_background_values_are_no_class_and_no_fault(cohort):
    cohort.add(0, reference=np.where(np.indices(SHAPE)[0] < 4, 3, 0).astype(np.uint8))
    metrics = cohort.evaluate(background_values=[3])
    assert metrics["cases"][0]["reference_volume_mm3"] == 0


def test_a_mask_of_other_values_is_a_fault(cohort):
    reference, _ = cohort.add(0, predicted=False)
    save(cohort.predictions / "case0.nii.gz", reference.astype(np.uint8) * 255)
    with pytest.raises(DataError, match=r"case0.nii.gz.*255"):
        cohort.evaluate(pattern="{case_id}.nii.gz")


def test_label_values_that_no_class_names_are_a_fault(cohort):
    cohort.add(0, reference=np.full(SHAPE, 3, np.uint8))
    with pytest.raises(DataError, match=r"case0_label.nii.gz.*\[3\].*lesion: \[1\]"):
        cohort.evaluate()


def test_half_a_voxel_off_is_evaluated_with_one_warning(cohort, caplog):
    for seed in range(2):
        _, probability = cohort.add(seed)
        off = oblique_affine()
        off[:3, 3] += off[:3, :3] @ (0.5, 0.5, 0)
        save(
            cohort.predictions / f"case{seed}_probability.nii.gz",
            probability,
            affine=off,
            scale=1 / 65535,
        )
    cohort.evaluate()
    warnings = [record.message for record in caplog.records if "case0" in record.message]
    assert len(warnings) == 1
    assert "case0, case1" in warnings[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 1.5}, "threshold: 1.5 for class lesion"),
        ({"threshold": {"tumour": 0.5}}, "threshold: None for class lesion"),
        ({"min_volume_mm3": -1}, "min_volume_mm3: -1"),
        ({"min_peak": -1}, "min_peak: -1"),
        ({"pattern": "{case}.nii.gz"}, r"pattern: '{case}\.nii\.gz'"),
        ({"pattern": "mask.nii.gz"}, r"pattern: 'mask\.nii\.gz'"),
        ({"n_bootstrap": 0}, "n_bootstrap: 0"),
    ],
)
def test_settings_that_cannot_be_used_are_named(cohort, settings, message):
    cohort.add(0)
    with pytest.raises(DataError, match=message):
        cohort.evaluate(**settings)


def test_folders_that_cannot_be_used_are_named(cohort):
    cohort.add(0)
    with pytest.raises(DataError, match="nowhere"):
        evaluate(cohort.folder / "nowhere", cohort.cases, output_dir=cohort.output_dir)
    with pytest.raises(DataError, match=r"output_dir: .*predictions"):
        evaluate(cohort.predictions, cohort.cases, output_dir=cohort.predictions)
    (cohort.folder / "file").write_text("")
    with pytest.raises(DataError, match=r"output_dir: .*evaluation"):
        evaluate(cohort.predictions, cohort.cases, output_dir=cohort.folder / "file" / "evaluation")
    (cohort.predictions / "predictions.json").write_text("{")
    with pytest.raises(DataError, match=r"predictions.json"):
        cohort.evaluate()


def test_a_case_given_twice_is_an_error(cohort):
    cohort.add(0)
    cohort.cases *= 2
    with pytest.raises(DataError, match=r"case_id.*case0"):
        cohort.evaluate()


def test_an_evaluation_by_another_rule_is_not_replaced(cohort):
    cohort.add(0)
    cohort.evaluate()
    before = contents(cohort.output_dir)
    line = r"output_dir: .*evaluation with lesion_rule\.connectivity 26, this one has 6; choose"
    with pytest.raises(DataError, match=line):
        cohort.evaluate(rule=LesionRule(connectivity=6))
    with pytest.raises(DataError, match=r"surface_tolerance_mm 1\.0, this one has 3"):
        cohort.evaluate(tolerance_mm=3)
    assert contents(cohort.output_dir) == before
    cohort.evaluate(rule=LesionRule(source="a paper"))
    replaced = cohort.evaluate(rule=LesionRule(connectivity=6), overwrite=True)
    assert replaced["lesion_rule"]["connectivity"] == 6


def test_an_interrupted_evaluation_leaves_the_earlier_files(cohort, monkeypatch):
    cohort.add(0)
    cohort.evaluate()
    before = {path.name: path.read_bytes() for path in cohort.output_dir.iterdir()}
    monkeypatch.setattr(
        "tversky_seg.evaluation.evaluation_folder.write_report", lambda *_, **__: 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        cohort.evaluate(threshold=0.1)
    assert {path.name: path.read_bytes() for path in cohort.output_dir.iterdir()} == before


def test_the_same_predictions_give_the_same_files(drawing_cohort, monkeypatch):
    cohort = drawing_cohort
    # The page alone carries a date, to the minute.
    at_noon = Mock(wraps=datetime, now=lambda: datetime(2026, 1, 1, 12))
    monkeypatch.setattr("tversky_seg.evaluation.provenance.datetime", at_noon)
    for seed in range(3):
        cohort.add(seed)
    cohort.evaluate()
    before = {path.name: path.read_bytes() for path in cohort.output_dir.iterdir()}
    cohort.evaluate()
    assert {path.name: path.read_bytes() for path in cohort.output_dir.iterdir()} == before


def test_intervals_resample_subjects_not_cases(cohort):
    for seed in range(4):
        cohort.add(seed, subject="a" if seed < 3 else "b")
    metrics = cohort.evaluate(n_bootstrap=2000)
    dice = [case["dice"] for case in metrics["cases"]]
    # Both draws take the same subject, a quarter of the time each.
    extremes = sorted([np.mean(dice[:3]), dice[3]])
    assert metrics["ci95"]["dice"] == pytest.approx(extremes)
    assert metrics["mean"]["dice"] == pytest.approx(np.mean(dice))


def test_one_subject_has_no_interval(cohort):
    for seed in range(2):
        cohort.add(seed, subject="a")
    assert cohort.evaluate()["ci95"]["dice"] == [None, None]


def test_report_is_one_page_without_references_to_elsewhere(drawing_cohort):
    cohort = drawing_cohort
    cohort.add(0)
    cohort.add(1)
    cohort.evaluate()
    page = (cohort.output_dir / "report.html").read_text()
    sources: list[str] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag, attrs):
            sources.extend(value for name, value in attrs if name in ("src", "href"))

    Links().feed(page)
    assert len(sources) >= 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "Highest Dice" in page
    assert "26-connected" in page


def test_terminal_table_shows_mean_interval_and_pooled_value(cohort):
    for seed in range(5):
        cohort.add(seed)
    metrics = cohort.evaluate()
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(metrics_table(metrics))
    text = console.export_text()
    (line,) = (line for line in text.splitlines() if "│ Dice " in line)
    low, high = metrics["ci95"]["dice"]
    for value in (metrics["mean"]["dice"], low, high, metrics["pooled"]["dice"]):
        assert f"{value:.3f}" in line
    # What the presets are about is printed too, not only saved.
    (line,) = (line for line in text.splitlines() if "│ Panoptic quality " in line)
    assert f"{metrics['by_lesion']['mean']['pq']:.3f}" in line
    (line,) = (line for line in text.splitlines() if "│ CPM (LUNA16) " in line)
    assert f"{metrics['froc']['luna16']['cpm']:.3f}" in line


def test_pictures_show_slices_of_misses_and_false_positives():
    image = np.random.default_rng(0).random((20, 16, 9))
    prediction, reference = np.zeros((2, 1, 20, 16, 9), bool)
    reference[0, 3:8, 3:8, 2] = prediction[0, 10:13, 10:13, 6] = True
    pictures = slice_pictures(image, prediction, reference, spacing_mm=(1, 1, 3))
    assert list(pictures) == [
        "slice 2: largest lesion area, largest missed area",
        "slice 6: largest false-positive area",
    ]
    assert all(picture.dtype == np.uint8 and picture.shape[2] == 3 for picture in pictures.values())


def test_outlines_lie_where_the_masks_are_with_y_upwards():
    prediction, reference = np.zeros((2, 1, 10, 20), bool)
    reference[0, 2, 17] = True
    picture = outline(np.zeros((10, 20)), prediction, reference)
    height, width = picture.shape[:2]
    rows, columns = np.nonzero(picture.any(axis=2))
    assert (rows.max() < height / 4, columns.max() < width / 3) == (True, True)


def test_metrics_of_one_case_take_probabilities_or_masks():
    reference, probability = lesions_and_map(0)
    scored = compute_metrics(probability, reference, spacing_mm=SPACING)
    masked = compute_metrics(probability >= 0.5, reference, spacing_mm=SPACING)
    assert tuple(scored) == METRICS
    assert math.isnan(masked["pr_auc"])
    assert scored["pr_auc"] == pytest.approx(
        average_precision_score(reference.ravel(), probability.ravel()), abs=1e-9
    )
    assert {**scored, "pr_auc": 0} == {**masked, "pr_auc": 0}
    with pytest.raises(ValueError, match="probability"):
        compute_metrics(probability + 1, reference, spacing_mm=SPACING)


@pytest.mark.parametrize("wrong", [{"connectivity": 8}, {"min_overlap": 1}, {"min_volume_mm3": -1}])
def test_a_lesion_rule_out_of_range_is_an_error(wrong):
    with pytest.raises(ValueError, match=str(*wrong.values())):
        LesionRule(**wrong)


def test_the_config_file_builds_the_default_evaluation(cohort):
    cohort.add(0)
    settings = yaml.safe_load(
        (Path(__file__).parents[2] / "configs/evaluation/default.yaml").read_text()
    )
    evaluate_by_config = instantiate(settings, _convert_="all")
    expected = evaluate(cohort.predictions, cohort.cases, output_dir=cohort.folder / "plain")
    assert (
        evaluate_by_config(cohort.predictions, cohort.cases, output_dir=cohort.output_dir)
        == expected
    )


def test_settings_of_predictions_are_settled_without_reading_volumes(cohort):
    cohort.settings(threshold=0.3, min_volume_mm3=5)
    (cohort.predictions / "x_probability.nii.gz").write_bytes(b"")
    assert open_predictions(cohort.predictions).threshold == {"lesion": 0.3}
    assert open_predictions(cohort.predictions).uses_masks
    assert not open_predictions(cohort.predictions, threshold=0.4).uses_masks


def test_real_lesions_are_evaluated_on_their_own_grid(real_data, tmp_path):
    (label,) = (real_data / "open_ms_data/cross_sectional/MNI/patient07").glob(
        "GOLD_STANDARD*.nii.gz"
    )
    file = nib.load(label)
    reference = np.asarray(file.dataobj) > 0.5
    probability = np.clip(ndimage.gaussian_filter(reference.astype(np.float32), 0.7), 0, 1)
    save(
        tmp_path / "in" / "p07_probability.nii.gz", probability, affine=file.affine, scale=1 / 65535
    )
    metrics = evaluate(
        tmp_path / "in",
        [Case("p07", "p07", {}, labels=(label,))],
        output_dir=tmp_path / "out",
        n_bootstrap=10,
        viewer="none",
    )
    case = metrics["cases"][0]
    assert case["n_reference_lesions"] == 37
    assert case["reference_volume_mm3"] == pytest.approx(1300, abs=1)
    saved = np.rint(probability * 65535) / 65535
    assert case["pr_auc"] == pytest.approx(
        average_precision_score(reference.ravel(), saved.ravel()), abs=1e-9
    )


NAN = math.nan


@pytest.mark.parametrize(
    ("is_predicted", "is_lesion", "expected"),
    # dice, sensitivity, specificity, precision, f2, pr_auc,
    # lesion tpr, fpr, f1, assd, hd95, volume difference
    [
        (False, True, (0, 0, 1, NAN, 0, 0.001, 0, NAN, 0, NAN, NAN, 1)),
        (True, False, (0, NAN, 0.999, 0, 0, NAN, NAN, 1, 0, NAN, NAN, NAN)),
        (False, False, (NAN, NAN, 1, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN)),
    ],
)
def test_empty_masks_give_what_the_documentation_says(is_predicted, is_lesion, expected):
    probability, reference = np.zeros((2, 10, 10, 10))
    probability[5, 5, 5] = is_predicted
    reference[2, 2, 2] = is_lesion
    metrics = compute_metrics(probability, reference, spacing_mm=(1, 1, 1))
    # Volumes and numbers of lesions come last: of the reference, then of the prediction.
    counts = [float(is_lesion), float(is_predicted), float(is_lesion), float(is_predicted)]
    assert list(metrics.values()) == pytest.approx([*expected, *counts], nan_ok=True)


def test_further_metrics_are_those_of_the_arrays(cohort):
    reference, probability = cohort.add(0)
    metrics = cohort.evaluate()
    further, mask = metrics["further"]["mean"], probability >= 0.5
    assert tuple(further) == FURTHER_METRICS
    overlap, voxel_mm3 = overlap_counts(mask, reference), np.prod(SPACING)
    distances = surface_distances(mask, reference, spacing_mm=SPACING)
    lesions = lesion_counts(mask, reference, spacing_mm=SPACING)
    expected = {
        "jaccard": overlap.jaccard,
        "mcc": overlap.mcc,
        "signed_volume_difference_mm3": (overlap.fp - overlap.fn) * voxel_mm3,
        "absolute_volume_difference_mm3": abs(overlap.fp - overlap.fn) * voxel_mm3,
        "signed_volume_difference": overlap.volume_difference,
        "roc_auc": roc_auc_score(reference.ravel(), probability.ravel()),
        "calibration_error": expected_calibration_error(probability, reference),
        "hd_mm": distances.hd_mm,
        "surface_dice": distances.surface_dice,
        "n_detected_lesions": lesions.n_detected,
        "n_false_lesions": lesions.n_unmatched,
    }
    assert {name: further[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert {name: metrics["cases"][0][name] for name in FURTHER_METRICS} == further
    measures = compute_metrics(probability, reference, spacing_mm=SPACING, further=True)
    assert measures == pytest.approx(
        {name: metrics["cases"][0][name] for name in measures}, rel=1e-6
    )
    assert (metrics["further"]["pooled"]["hd_mm"], metrics["surface_tolerance_mm"]) == (None, 1.0)


def test_froc_and_threshold_curves_are_those_of_the_cohort(cohort):
    reference, probability = cohort.add(0)
    metrics = cohort.evaluate()
    curve = score_lesions(probability, reference, spacing_mm=SPACING).curve()
    assert metrics["froc"]["average_recall"] == pytest.approx(average_recall(curve))
    assert metrics["froc"]["highest_recall"] == pytest.approx(metrics["mean"]["lesion_tpr"])
    assert metrics["froc"]["recorded"] == {
        "n_cases": 1,
        "average_recall": metrics["froc"]["average_recall"],
    }
    rows = cohort.rows("froc.csv")
    np.testing.assert_allclose([float(row["recall"]) for row in rows], curve.recall)
    np.testing.assert_allclose(
        [float(row["false_lesions_per_case"]) for row in rows], curve.false_lesions_per_case
    )
    for row in cohort.rows("threshold_curve.csv")[::40]:
        overlap = overlap_counts(probability >= float(row["threshold"]), reference)
        found = [float(row[name]) for name in ("precision", "recall", "dice", "f2", "mean_dice")]
        expected = [
            overlap.precision,
            overlap.sensitivity,
            overlap.dice,
            overlap.f(2),
            overlap.dice,
        ]
        assert found == pytest.approx(expected)


def test_recall_by_volume_counts_every_reference_lesion_once(cohort):
    for seed in range(3):
        cohort.add(seed)
    metrics = cohort.evaluate()
    n, found = (
        metrics["mean"]["n_reference_lesions"] * 3,
        metrics["further"]["mean"]["n_detected_lesions"] * 3,
    )
    for bins in metrics["recall_by_volume"].values():
        assert sum(one["n_lesions"] for one in bins) == pytest.approx(n)
        assert sum(one["n_detected"] for one in bins) == pytest.approx(found)
    assert metrics["recall_by_volume"]["fixed"][-1]["to_mm3"] is None
    assert (
        metrics["calibration"]["expected_calibration_error"]
        == metrics["further"]["pooled"]["calibration_error"]
    )
    assert sum(one["n_voxels"] for one in metrics["calibration"]["bins"]) == 3 * np.prod(SHAPE)


def test_reliability_near_lesions_before_and_after_the_temperature(cohort):
    pairs = [cohort.add(seed) for seed in range(2)]
    assert cohort.evaluate()["calibration"]["before"] is None
    (cohort.predictions / "predictions.json").write_text('{"temperature": 2.0}')
    calibration = cohort.evaluate(overwrite=True)["calibration"]
    inside = [near_lesions(reference, SPACING) for reference, _ in pairs]
    reference = np.concatenate([pair[0][near] for pair, near in zip(pairs, inside, strict=True)])
    saved = np.concatenate([pair[1][near] for pair, near in zip(pairs, inside, strict=True)])
    near = calibration["near_lesions"]
    assert near["n_voxels"] == len(reference)
    assert near["expected_calibration_error"] == pytest.approx(
        expected_calibration_error(saved, reference)
    )
    assert sum(one["n_voxels"] for one in near["bins"]) == len(reference)
    # logit(p) = 2 logit(p'), as p' was made by halving it.
    odds = saved.clip(0, 1 - 1e-9) / (1 - saved.clip(0, 1 - 1e-9))
    raw = odds**2 / (1 + odds**2)
    before = calibration["before"]["near_lesions"]
    assert before["expected_calibration_error"] == pytest.approx(
        expected_calibration_error(raw, reference), abs=1e-3
    )
    assert calibration["temperature"] == 2.0


def test_error_retention_and_the_most_doubtful_lesions(cohort):
    pairs = [cohort.add(seed) for seed in range(3)]
    metrics = cohort.evaluate()
    retention = metrics["retention"]
    areas = []
    for reference, probability in pairs:
        mask = probability >= 0.5
        areas.append(voxel_retention(to_levels(probability), mask, reference).area)
    assert retention["voxel_dice_area"] == pytest.approx(np.mean(areas))
    assert retention["n_lesions"] == 3 * metrics["mean"]["n_predicted_lesions"]
    assert retention["n_false_lesions"] == 3 * metrics["further"]["mean"]["n_false_lesions"]
    listed = [row["mean_entropy"] for row in retention["doubtful_lesions"]]
    assert listed == sorted(listed, reverse=True)
    assert 0.5 < retention["lesion_precision_area"] <= 1
    assert metrics["mean"]["dice"] < retention["case_dice_area"] <= 1


def test_cases_without_lesion_are_reported_apart(cohort):
    cohort.add(0)
    _, probability = cohort.add(1, reference=np.zeros(SHAPE, bool))
    cohort.add(2, reference=np.zeros(SHAPE, bool), probability=np.zeros(SHAPE))
    apart = cohort.evaluate()["lesion_free"]
    n_false = lesion_counts(probability >= 0.5, np.zeros(SHAPE), spacing_mm=SPACING).n_predicted
    assert (apart["n_cases"], apart["n_clean"], apart["n_false_lesions"]) == (2, 1, n_false)
    assert apart["false_volume_mm3"] == pytest.approx((probability >= 0.5).sum() * np.prod(SPACING))
    assert [case["case_id"] for case in apart["cases"]] == ["case1", "case2"]


def add_rater(cohort, seed, mask):
    path = save(cohort.folder / f"case{seed}_label_2.nii.gz", mask)
    case = cohort.cases[-1]
    cohort.cases[-1] = replace(case, labels=(*case.labels, path))


def test_each_rater_is_a_reference_of_its_own(cohort):
    masks = []
    for seed in range(2):
        reference, probability = cohort.add(seed)
        other = ndimage.binary_erosion(reference)
        add_rater(cohort, seed, other)
        masks.append((probability >= 0.5, other))
    cohort.add(2)  # drawn by one rater only
    metrics = cohort.evaluate()
    first, second = metrics["raters"]
    assert [(rater["label"], rater["n_cases"]) for rater in (first, second)] == [(1, 2), (2, 2)]
    assert second["mean"]["dice"] == pytest.approx(
        np.mean([overlap_counts(*pair).dice for pair in masks])
    )
    assert first["mean"]["dice"] == pytest.approx(
        np.mean([case["dice"] for case in metrics["cases"][:2]])
    )
    mean = second["mean"]
    score = (
        mean["dice"] / 8
        + mean["precision"] / 8
        + (1 - mean["lesion_fpr"]) / 4
        + mean["lesion_tpr"] / 4
    )
    assert second["isbi_score"] == pytest.approx(score + second["volume_correlation"] / 4)
    over_raters = np.mean([first["isbi_score"], second["isbi_score"]])
    assert metrics["cohort"]["isbi_score_over_raters"] == pytest.approx(over_raters)


def test_a_consensus_is_no_rater(cohort):
    reference, _ = cohort.add(0)
    add_rater(cohort, 0, reference)
    cohort.cases[-1] = replace(cohort.cases[-1], consensus=True)
    assert [rater["label"] for rater in cohort.evaluate()["raters"]] == [2]


def test_a_raters_label_on_another_grid_is_a_fault(cohort):
    cohort.add(0)
    cohort.add(1)
    add_rater(cohort, 1, np.zeros((3, 4, 5), np.uint8))
    metrics = cohort.evaluate()
    (fault,) = metrics["faults"]
    assert fault.startswith(str(cohort.folder / "case1_label_2.nii.gz"))
    assert metrics["n_cases"] == 1


def test_new_lesions_between_sessions_are_counted_pair_by_pair(cohort):
    masks = {}
    for seed, session in ((0, "10"), (1, "2"), (2, "2")):
        reference, probability = cohort.add(seed, subject="a" if seed < 2 else "b")
        cohort.cases[-1] = replace(cohort.cases[-1], session=session)
        masks[seed] = (probability >= 0.5, reference)
    summary = cohort.evaluate()["new_lesions"]
    expected = new_lesion_counts(
        (masks[1][0], masks[0][0]), (masks[1][1], masks[0][1]), spacing_mm=SPACING
    )
    (pair,) = summary["pairs"]
    assert pair["subject_id"] == "a"
    # Session 2 comes before session 10.
    assert (pair["from_case"], pair["to_case"]) == ("case1", "case0")
    assert (summary["n_reference"], summary["n_detected"]) == (
        expected.n_reference,
        expected.n_detected,
    )
    assert (summary["tpr"], summary["fpr"]) == (expected.tpr, expected.fpr)


def test_change_between_sessions_is_that_of_volumes_and_of_changed_voxels(cohort):
    masks = []
    for seed in range(6):
        reference, probability = cohort.add(seed, subject=f"s{seed // 2}")
        case = replace(cohort.cases[-1], baseline=f"case{seed - 1}" if seed % 2 else None)
        cohort.cases[-1] = case
        masks.append((probability >= 0.5, reference > 0))
    summary = cohort.evaluate()["change"]
    assert [pair["from_case"] for pair in summary["pairs"]] == ["case0", "case2", "case4"]
    voxel_mm3 = float(np.prod(SPACING))
    changes = []
    n_both, n_any = 0, 0
    for before, after in zip(masks[::2], masks[1::2], strict=True):
        change = [voxel_mm3 * (int(after[k].sum()) - int(before[k].sum())) for k in (0, 1)]
        changes.append(change)
        predicted, reference = before[0] != after[0], before[1] != after[1]
        n_both += int((predicted & reference).sum())
        n_any += int(predicted.sum()) + int(reference.sum())
    predicted_mm3, reference_mm3 = np.array(changes).T
    pairs = summary["pairs"]
    assert [pair["predicted_change_mm3"] for pair in pairs] == pytest.approx(predicted_mm3)
    assert [pair["reference_change_mm3"] for pair in pairs] == pytest.approx(reference_mm3)
    correlation = np.corrcoef(predicted_mm3, reference_mm3)[0, 1]
    assert summary["volume_change_correlation"] == pytest.approx(correlation)
    assert summary["changed_dice"] == pytest.approx(2 * n_both / n_any)


def test_sessions_on_other_grids_are_resampled_and_warned_of(cohort, caplog):
    cohort.add(0, subject="a")
    cohort.add(1, subject="a")
    for i in (0, 1):
        cohort.cases[i] = replace(cohort.cases[i], session=str(i))
    for name in ("case1_label.nii.gz", "predictions/case1_probability.nii.gz"):
        data = np.asarray(nib.load(cohort.folder / name).dataobj)
        scale = None if "label" in name else 1 / 65535
        save(
            cohort.folder / name,
            data if scale else data.astype(np.uint8),
            affine=np.diag([2, 2, 2, 1]),
            scale=scale,
        )
    metrics = cohort.evaluate()
    assert metrics["new_lesions"]["n_pairs"] == 1
    assert "1 of 1 earlier sessions lie on another grid" in caplog.text
    assert "case0" in caplog.text
    # Volumes are those of each session's own grid.
    volumes = [case["reference_volume_mm3"] for case in metrics["cases"]]
    (pair,) = metrics["change"]["pairs"]
    assert pair["reference_change_mm3"] == pytest.approx(volumes[1] - volumes[0])


def test_masks_have_no_ranking_froc_or_calibration(cohort):
    reference, _ = cohort.add(0, predicted=False)
    save(cohort.predictions / "case0.nii.gz", reference)
    metrics = cohort.evaluate(pattern="{case_id}.nii.gz")
    assert (metrics["froc"], metrics["calibration"], metrics["new_lesions"], metrics["raters"]) == (
        None,
        None,
        None,
        [],
    )
    assert metrics["further"]["mean"]["roc_auc"] is None
    assert metrics["further"]["mean"]["surface_dice"] == 1
    assert cohort.rows("froc.csv") == cohort.rows("threshold_curve.csv") == []


def test_what_is_kept_does_not_grow_with_the_voxels_of_the_cases(cohort):
    for seed in range(3):
        cohort.add(seed)
    source = open_predictions(cohort.predictions)
    lesion_file = cohort.folder / "lesions.csv"
    sizes = []
    for n in (1, 2, 3):
        kept = evaluate_cohort(source, cohort.cases[:n], Criteria(), lesion_file=lesion_file)
        sizes.append(len(pickle.dumps(kept)))
    # Less than a byte for each voxel of a case, and no array of levels.
    assert max(np.diff(sizes)) < np.prod(SHAPE)


def test_the_rule_of_msseg_2016_reaches_the_files(cohort):
    reference, probability = cohort.add(0)
    metrics = cohort.evaluate(rule=published_rule("msseg2016"))
    counts = metrics["cases"][0]
    assert metrics["lesion_rule"]["source"].startswith("MSSEG 2016")
    assert (
        counts["n_reference_lesions"]
        < lesion_counts(probability >= 0.5, reference, spacing_mm=SPACING).n_reference
    )
    rows = [row for row in cohort.rows("lesions.csv") if row["mask"] == "reference"]
    assert sum(int(row["matched"]) for row in rows) == counts["n_detected_lesions"]
