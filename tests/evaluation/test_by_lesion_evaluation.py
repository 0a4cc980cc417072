"""Metrics by lesion of saved predictions: in metrics.json, in the tables, in the report."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from helpers.evaluated_cohort import SPACING, Cohort, save
from helpers.lesions import published_rule
from tversky_seg.analysis.runs import read_runs
from tversky_seg.analysis.summaries import pooled_rates
from tversky_seg.data.errors import DataError
from tversky_seg.evaluation import LesionRule, LesionSettings
from tversky_seg.metrics import LESION_METRICS, METRICS, compute_metrics
from tversky_seg.metrics.by_lesion import measure_by_lesion
from tversky_seg.metrics.detection_limit import recall80_volume
from tversky_seg.report.by_lesion import by_lesion_section

PARTS = ("mean", "ci95", "pooled", "undefined")


@pytest.fixture
def cohort(tmp_path, monkeypatch):
    """A cohort whose evaluation leaves out the figures and the report, which is faster."""
    monkeypatch.setattr("tversky_seg.evaluation.evaluation_folder.as_png", lambda figure: b"")
    monkeypatch.setattr(
        "tversky_seg.evaluation.evaluation_folder.choose_cases", lambda *_, **__: {}
    )
    monkeypatch.setattr(
        "tversky_seg.evaluation.evaluation_folder.write_report", lambda *_, **__: None
    )
    return Cohort(tmp_path)


def lesion_volumes(reference):
    numbers, n = ndimage.label(reference, np.ones((3, 3, 3)))
    return np.bincount(numbers.ravel(), minlength=n + 1)[1:] * np.prod(SPACING)


def test_saved_files_give_the_metrics_of_the_arrays(cohort):
    pairs = [cohort.add(seed) for seed in range(2)]
    metrics = cohort.evaluate(tolerance_mm=2.0)
    by_lesion = metrics["by_lesion"]
    for part in PARTS:
        assert tuple(by_lesion[part]) == LESION_METRICS
    for (reference, probability), case in zip(pairs, metrics["cases"], strict=True):
        expected = compute_metrics(
            probability,
            reference,
            spacing_mm=SPACING,
            tolerance_mm=2.0,
            by_lesion=LesionSettings(),
        )
        lesions = {name: case[name] for name in LESION_METRICS}
        assert lesions == pytest.approx({name: expected[name] for name in LESION_METRICS}, rel=1e-6)
    for name in LESION_METRICS:
        mean = np.mean([case[name] for case in metrics["cases"]])
        assert by_lesion["mean"][name] == pytest.approx(mean)
        low, high = by_lesion["ci95"][name]
        assert low <= by_lesion["mean"][name] <= high
    assert metrics["by_lesion_settings"]["brats_penalty_mm"] == 374
    assert {name for row in cohort.rows("cases.csv") for name in row} >= set(LESION_METRICS)


def test_the_published_metrics_have_no_other_names_and_come_first(cohort):
    cohort.add(0)
    metrics = cohort.evaluate()
    assert tuple(metrics["mean"]) == METRICS
    assert list(metrics["cases"][0])[2 : 2 + len(METRICS)] == list(METRICS)


def test_pooled_values_count_each_lesion_of_all_cases_once(cohort):
    pairs = [cohort.add(seed) for seed in range(3)]
    pooled = cohort.evaluate()["by_lesion"]["pooled"]
    each = [measure_by_lesion(p >= 0.5, r, spacing_mm=SPACING) for r, p in pairs]
    n_lesions = [one.cells.n_lesions for one in each]
    dice = [one.cells.dice for one in each]
    assert pooled["cc_dice"] == pytest.approx(np.average(dice, weights=n_lesions))
    tp, fp, fn = (sum(getattr(one.panoptic, n) for one in each) for n in ("tp", "fp", "fn"))
    assert pooled["rq"] == pytest.approx(tp / (tp + fp / 2 + fn / 2))


def test_recall80_of_all_lesions_has_an_interval_over_subjects(cohort):
    pairs = [cohort.add(seed) for seed in range(3)]
    metrics = cohort.evaluate()
    rows = [row for row in cohort.rows("lesions.csv") if row["mask"] == "reference"]
    limit = recall80_volume(
        [float(row["volume_mm3"]) for row in rows], [row["matched"] == "1" for row in rows]
    )
    by_size = metrics["by_size"]
    assert by_size["recall80_mm3"] == pytest.approx(limit, rel=1e-3)
    assert metrics["by_lesion"]["pooled"]["recall80_mm3"] == by_size["recall80_mm3"]
    low, high = by_size["recall80_ci95_mm3"]
    assert low <= by_size["recall80_mm3"] <= (high or math.inf)
    assert sum(row["n_lesions"] for row in by_size["bins"]) == sum(
        len(lesion_volumes(reference)) for reference, _ in pairs
    )


def test_lesions_csv_has_the_highest_probability_inside_each_lesion(cohort):
    reference, prediction = np.zeros((2, 24, 20, 14), bool)
    reference[4:6, 5, 5] = reference[15, 15, 8] = prediction[20, 3, 2] = True
    probability = np.where(reference, 0.25, 0.0) + np.where(prediction, 0.75, 0.0)
    probability[4, 5, 5] = 0.5
    cohort.add(0, reference=reference, probability=probability)
    cohort.evaluate()
    highest = {
        (row["mask"], float(row["highest_probability"])) for row in cohort.rows("lesions.csv")
    }
    expected = {("prediction", 0.5), ("prediction", 0.75), ("reference", 0.5), ("reference", 0.25)}
    assert {(mask, round(value, 3)) for mask, value in highest} == expected


def test_highest_probability_and_recall_by_size_worked_by_hand(cohort):
    # Voxels of 2.475 mm3. Lesions of 1 voxel: one found at .9, one never above .05; of 4: found.
    reference, probability = np.zeros((2, 24, 20, 14))
    reference[4, 5, 5] = reference[8, 5, 5] = reference[15, 15, 4:8] = 1
    probability[4, 5, 5], probability[8, 5, 5], probability[15, 15, 4] = 0.9, 0.05, 0.6
    probability[20, 3, 2], probability[2, 15, 2] = 0.8, 0.7  # false
    cohort.add(0, reference=reference > 0, probability=probability)
    small, large = cohort.evaluate()["by_size"]["bins"][:2]
    assert (small["n_lesions"], large["n_lesions"]) == (2, 1)
    assert small["highest_probability"]["quantiles"]["0.5"] == pytest.approx(0.475, abs=1e-4)
    assert small["highest_probability"]["share_below_0.1"] == 0.5
    # The false lesions of .8 and .7 come before .6: the large one is found from two on.
    assert small["recall_at"] == {"1": 0.5, "2": 0.5, "5": 0.5}
    assert large["recall_at"] == {"1": 0, "2": 1, "5": 1}


def test_masks_have_no_probabilities_and_the_other_metrics(cohort):
    reference, _ = cohort.add(0, predicted=False)
    save(cohort.predictions / "case0.nii.gz", reference.astype(np.uint8))
    metrics = cohort.evaluate(pattern="{case_id}.nii.gz")
    assert (metrics["by_lesion"]["mean"]["cc_dice"], metrics["by_lesion"]["mean"]["pq"]) == (1, 1)
    assert {str(row["highest_probability"]) for row in metrics["by_size"]["bins"]} == {"None"}
    assert {row["highest_probability"] for row in cohort.rows("lesions.csv")} == {""}
    section = by_lesion_section(metrics, "")
    assert section.rows
    assert not section.size_rows


def test_cases_without_lesions_are_undefined_and_counted(cohort):
    cohort.add(0)
    empty = np.zeros((24, 20, 14))
    cohort.add(1, reference=empty > 0, probability=empty)
    metrics = cohort.evaluate()
    assert metrics["by_lesion"]["undefined"] == dict.fromkeys(LESION_METRICS, 1)
    assert metrics["by_size"]["recall80_ci95_mm3"] == [None, None]
    json.dumps(metrics, allow_nan=False)


def test_other_settings_need_another_folder_and_are_not_compared(cohort, tmp_path):
    cohort.add(0)
    cohort.evaluate()
    settings = LesionSettings(min_iou=0.3)
    with pytest.raises(DataError, match=r"min_iou 0\.5, this one has 0\.3"):
        cohort.evaluate(by_lesion=settings)
    first = cohort.output_dir
    cohort.output_dir = tmp_path / "other"
    cohort.evaluate(by_lesion=settings)
    with pytest.raises(DataError, match=r"min_iou=0\.3"):
        read_runs([first, cohort.output_dir])


def test_an_evaluation_of_an_older_version_is_compared_and_reported(cohort, tmp_path):
    cohort.add(0)
    metrics = cohort.evaluate()
    for key in ("by_lesion", "by_lesion_settings", "by_size"):
        del metrics[key]
    older = tmp_path / "older"
    older.mkdir()
    (older / "metrics.json").write_text(json.dumps(metrics))
    assert len(read_runs([older, cohort.output_dir])) == 2
    assert by_lesion_section(metrics, "") is None


def test_several_classes_have_their_own_metrics(cohort):
    reference, _ = cohort.add(0, predicted=False)
    save(cohort.predictions / "case0.nii.gz", reference.astype(np.uint8))
    classes = {"whole": [1], "none": [2]}
    metrics = cohort.evaluate(pattern="{case_id}.nii.gz", classes=classes)
    assert metrics["by_lesion"]["mean"]["whole"]["cc_dice"] == 1
    assert metrics["by_lesion"]["mean"]["none"]["cc_dice"] is None
    assert metrics["by_size"]["none"]["recall80_mm3"] is None
    assert by_lesion_section(metrics, "none").limit == ""


def test_report_says_from_which_volume_recall_is_high(cohort):
    for seed in range(5):
        cohort.add(seed)
    metrics = cohort.evaluate()
    section = by_lesion_section(metrics, "")
    assert [row[0] for row in section.rows][:2] == ["CC-Dice", "CC-NSD"]
    limit = metrics["by_size"]["recall80_mm3"]
    assert section.limit.startswith(f"All lesions pooled, recall reaches 0.8 from {limit:,.0f} mm³")
    assert len(section.size_headers) == len(section.size_rows[0])
    metrics["by_size"]["recall80_mm3"] = None
    assert by_lesion_section(metrics, "").limit.startswith("Recall reaches 0.8 at no")


def test_pooled_rates_of_a_summary_leave_the_metrics_by_lesion_undefined(cohort):
    cohort.add(0)
    metrics = cohort.evaluate()
    (run,) = read_runs([cohort.output_dir])
    assert run.rows["lesion"]["case0"]["cc_dice"] == metrics["cases"][0]["cc_dice"]
    assert "cc_dice" not in pooled_rates(run.rows["lesion"].values())


def test_presets_follow_the_rules_of_their_publications():
    assert replace(published_rule("msseg2"), source="") == replace(
        published_rule("msseg2016"), source=""
    )
    for word in ("brats_mets", "panoptica_ms", "luna16"):
        assert replace(published_rule(word), source="") == LesionRule()
