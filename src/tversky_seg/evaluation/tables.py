"""Rows of the CSV files of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tversky_seg.evaluation.case_result import CaseResult, ClassResult, LesionRegions
from tversky_seg.evaluation.cohort import THRESHOLDS, ClassTotals, EvaluatedCohort
from tversky_seg.evaluation.summary import all_metrics
from tversky_seg.metrics.by_lesion import LESION_METRICS
from tversky_seg.metrics.case_metrics import FURTHER_METRICS, METRICS
from tversky_seg.metrics.froc import pool_lesion_scores
from tversky_seg.metrics.lesion_rule import LesionRule, detected_lesions, matched_lesions
from tversky_seg.metrics.score_histogram import level_of
from tversky_seg.report.figures import Curve

Row = Sequence[Any]

CASE_COLUMNS = ("case_id", "subject_id", "class", *METRICS, *FURTHER_METRICS, *LESION_METRICS)
LESION_COLUMNS = (
    "case_id",
    "class",
    "mask",
    "lesion",
    "volume_mm3",
    "x_mm",
    "y_mm",
    "z_mm",
    "overlap",
    "matched",
    "highest_probability",
    "region",
)
CURVE_COLUMNS = ("class", "threshold", "precision", "recall")
FROC_COLUMNS = (
    "class",
    "threshold",
    "recall",
    "false_lesions_per_case",
    "false_lesions_per_recorded_case",
)
THRESHOLD_COLUMNS = (
    "class",
    "threshold",
    "precision",
    "recall",
    "dice",
    "f2",
    "mean_dice",
    "mean_f2",
)


def case_rows(cohort: EvaluatedCohort) -> Iterator[Row]:
    """Yield a row of all metrics for each case and class; cells are empty where undefined."""
    for case, by_class in zip(cohort.cases, cohort.metrics, strict=True):
        for name, metrics in by_class.items():
            # An empty cell is a missing value to spreadsheets and pandas alike.
            row: list[Any] = [case.case_id, case.subject_id, name]
            for value in all_metrics(metrics).values():
                row.append("" if math.isnan(value) else value)
            yield row


def lesion_rows(result: CaseResult, *, rule: LesionRule) -> Iterator[Row]:
    """Yield a row for each predicted and each reference lesion of a case.

    `overlap` is the share of the lesion that the other mask covers; `matched` is 1 for a detected
    reference lesion and for a predicted lesion that is not false; `highest_probability` is empty
    for masks without probabilities.
    """
    for name, of_class in result.classes.items():
        yield from _lesion_rows_of_class(result, name, of_class, rule=rule)


def _lesion_rows_of_class(
    result: CaseResult, name: str, of_class: ClassResult, *, rule: LesionRule
) -> Iterator[Row]:
    match = of_class.match
    # Cells stay empty where a case is not in MNI space.
    regions = of_class.regions or LesionRegions(
        [""] * len(match.predicted), [""] * len(match.reference)
    )
    sides = (
        (
            "prediction",
            match.predicted,
            matched_lesions(match, rule),
            match.highest_score,
            regions.predicted,
        ),
        (
            "reference",
            match.reference,
            detected_lesions(match, rule),
            match.highest_reference_score,
            regions.reference,
        ),
    )
    for mask, lesions, is_matched, highest, region in sides:
        # Centres are in voxels; the affine takes them to scanner coordinates in mm.
        rotation = result.affine[:3, :3]
        centres_mm = lesions.centre @ rotation.T + result.affine[:3, 3]
        for k in range(len(lesions)):
            x_mm, y_mm, z_mm = centres_mm[k]
            yield (
                result.case.case_id,
                name,
                mask,
                # The number of the lesion, from 1: 0 is the background of a label map.
                k + 1,
                f"{lesions.volume_mm3[k]:.3f}",
                f"{x_mm:.2f}",
                f"{y_mm:.2f}",
                f"{z_mm:.2f}",
                f"{lesions.overlap[k]:.4f}",
                int(is_matched[k]),
                "" if highest is None else f"{highest[k]:.5f}",
                region[k],
            )


def curve_rows(curves: Sequence[Curve]) -> Iterator[Row]:
    """Yield the points of the pooled precision-recall curve of each class; none for masks."""
    for curve in curves:
        if curve.points is None:
            continue
        # The last point of precision and recall, (1, 0), belongs to no threshold.
        for k, threshold in enumerate(curve.points.thresholds):
            precision = curve.points.precision[k]
            recall = curve.points.recall[k]
            yield curve.name, f"{threshold:.7f}", f"{precision:.9g}", f"{recall:.9g}"


def froc_rows(cohort: EvaluatedCohort) -> Iterator[Row]:
    """Yield the points of the FROC curve of each class; none for masks without probabilities."""
    for name, totals in cohort.totals.items():
        if totals.histogram is None:
            continue
        scores = pool_lesion_scores(totals.scores)
        curve = scores.curve()
        # The same recall, with false lesions per case that has any lesion, as arXiv 2007.10033.
        recorded = scores.curve(only_cases_with_lesions=True)
        for k, threshold in enumerate(curve.thresholds):
            yield (
                name,
                f"{threshold:.7f}",
                _cell(curve.recall[k]),
                _cell(curve.false_lesions_per_case[k]),
                _cell(recorded.false_lesions_per_case[k]),
            )


def threshold_rows(cohort: EvaluatedCohort) -> Iterator[Row]:
    """Yield rates over thresholds for each class; none for masks without probabilities.

    `mean_dice` and `mean_f2` are means over the cases with a reference lesion; the other columns
    pool all voxels.
    """
    for name, totals in cohort.totals.items():
        if totals.histogram is not None:
            for threshold, rates in zip(THRESHOLDS, _rates_by_threshold(totals), strict=True):
                yield name, f"{threshold:g}", *(_cell(rate) for rate in rates)


def _rates_by_threshold(totals: ClassTotals) -> list[tuple[float, ...]]:
    histogram = totals.histogram
    assert histogram is not None
    n_true_positive, n_predicted = histogram.at_or_above(THRESHOLDS)
    # NaN in place of 0: a rate over nothing is undefined.
    n_positive = int(histogram.n_positive.sum()) or math.nan
    n_curves = totals.n_curves or math.nan
    # f(1) is the Dice, f(2) weighs recall higher; both at each of the 65,536 levels.
    levels = level_of(THRESHOLDS)
    with np.errstate(invalid="ignore"):
        precision = n_true_positive / n_predicted
    return list(
        zip(
            precision,
            n_true_positive / n_positive,
            histogram.f(1)[levels],
            histogram.f(2)[levels],
            totals.dice_sum / n_curves,
            totals.f2_sum / n_curves,
            strict=True,
        )
    )


def _cell(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.9g}"
