"""Detection of lesions in metrics.json: FROC, recall by volume, and cases without lesions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tversky_seg.evaluation.cohort import EvaluatedCohort
from tversky_seg.metrics.agreement import (
    VOLUME_EDGES_MM3,
    VolumeBin,
    bin_volumes,
    quartile_edges,
    recall_by_volume,
)
from tversky_seg.metrics.averages import unwrap_single
from tversky_seg.metrics.detection_limit import bootstrap_recall80
from tversky_seg.metrics.froc import (
    LUNA_POINTS,
    LesionScores,
    average_recall,
    pool_lesion_scores,
    recall_at,
)

FALSE_LESIONS_PER_CASE = (1.0, 2.0, 5.0)
"""False lesions per case at which recall is given by size."""
PROBABILITY_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Quantiles of the highest probability inside reference lesions of one size."""
OUT_OF_REACH = 0.1
"""A reference lesion without a probability of this much is found at no usual threshold."""


def summarize_volumes(cohort: EvaluatedCohort, name: str) -> dict[str, Any]:
    """Summarize the recall by volume, in quartiles of the cohort and between fixed edges."""
    totals = cohort.totals[name]
    # The empty array first: a cohort may have no lesion.
    volumes = np.concatenate([np.zeros(0), *totals.volume_mm3])
    is_detected = np.concatenate([np.zeros(0, bool), *totals.is_detected])
    # Quartiles adapt to the cohort; fixed edges compare cohorts.
    quartiles = recall_by_volume(volumes, is_detected, quartile_edges(volumes))
    fixed = recall_by_volume(volumes, is_detected, VOLUME_EDGES_MM3)
    return {"quartiles": _volume_bins(quartiles), "fixed": _volume_bins(fixed)}


def _volume_bins(bins: Sequence[VolumeBin]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for one in bins:
        row = {
            "from_mm3": one.from_mm3,
            "to_mm3": one.to_mm3,
            "n_lesions": one.n_lesions,
            "n_detected": one.n_detected,
            "recall": one.recall,
        }
        rows.append(row)
    return rows


def summarize_froc(cohort: EvaluatedCohort, name: str) -> dict[str, Any] | None:
    """Summarize the FROC curve; None for masks without probabilities, NaN without lesions."""
    totals = cohort.totals[name]
    if totals.histogram is None:
        return None
    scores = pool_lesion_scores(totals.scores)
    curve = scores.curve()
    n_detected = len(scores.detected)

    # Without reference lesions there is no recall to speak of.
    average = average_over_recorded = highest = math.nan
    recall: NDArray[np.float64] = np.full(len(LUNA_POINTS), math.nan)
    if scores.n_reference:
        average = average_recall(curve)
        # The code of arXiv 2007.10033 divides by the cases that have lesions.
        average_over_recorded = average_recall(scores.curve(only_cases_with_lesions=True))
        highest = n_detected / scores.n_reference
        recall = recall_at(curve, LUNA_POINTS)

    # Object Dice is a mean over detected lesions (arXiv 2007.10033).
    object_dice = object_dice_sd = math.nan
    if n_detected:
        object_dice = float(scores.dice.mean())
        object_dice_sd = float(scores.dice.std())

    return {
        "average_recall": average,
        "recall_at": _by_rate(LUNA_POINTS, recall),
        "highest_recall": highest,
        "false_lesions_per_case": len(scores.false) / len(cohort.cases),
        "n_cases": len(cohort.cases),
        "recorded": {
            "n_cases": scores.n_cases_with_lesions,
            "average_recall": average_over_recorded,
        },
        "object_dice": object_dice,
        "object_dice_sd": object_dice_sd,
        "luna16": _luna16(pool_lesion_scores(totals.scores_by_centre)),
    }


def _luna16(scores: LesionScores) -> dict[str, Any]:
    """Summarize the FROC by the distance of centres; NaN without lesions."""
    cpm = highest = math.nan
    recall: NDArray[np.float64] = np.full(len(LUNA_POINTS), math.nan)
    if scores.n_reference:
        recall = recall_at(scores.curve(), LUNA_POINTS)
        cpm = float(recall.mean())
        highest = len(scores.detected) / scores.n_reference
    return {
        "cpm": cpm,
        "recall_at": _by_rate(LUNA_POINTS, recall),
        "highest_recall": highest,
        "false_lesions_per_case": len(scores.false) / scores.n_cases,
    }


def _by_rate(
    false_lesions_per_case: Sequence[float], recall: NDArray[np.float64]
) -> dict[str, float]:
    """Name each recall by its number of false lesions per case."""
    named: dict[str, float] = {}
    for rate, value in zip(false_lesions_per_case, recall.tolist(), strict=True):
        named[f"{rate:g}"] = value
    return named


def summarize_sizes(cohort: EvaluatedCohort, *, n_bootstrap: int, seed: int) -> Any:
    """Summarize the detection by lesion size, for each class."""
    by_size: dict[str, Any] = {}
    for name in cohort.totals:
        # Each class draws the same resamplings.
        rng = np.random.default_rng(seed)
        by_size[name] = _by_size(cohort, name, n_bootstrap=n_bootstrap, rng=rng)
    return unwrap_single(by_size)


def _by_size(
    cohort: EvaluatedCohort, name: str, *, n_bootstrap: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Summarize from which volume lesions are detected, and how each size fares."""
    totals = cohort.totals[name]
    limit = bootstrap_recall80(
        totals.volume_mm3,
        totals.is_detected,
        [case.subject_id for case in cohort.cases],
        n_bootstrap=n_bootstrap,
        rng=rng,
    )
    volumes = np.concatenate([np.zeros(0), *totals.volume_mm3])
    highest = np.concatenate([np.zeros(0), *totals.highest_probability])
    scores = None
    if totals.histogram is not None:
        scores = pool_lesion_scores(totals.scores)
    bins = bin_volumes(volumes, VOLUME_EDGES_MM3)
    rows: list[dict[str, Any]] = []
    for k in range(len(VOLUME_EDGES_MM3) - 1):
        is_inside = bins == k
        row: dict[str, Any] = {
            "from_mm3": VOLUME_EDGES_MM3[k],
            "to_mm3": VOLUME_EDGES_MM3[k + 1],
            "n_lesions": int(is_inside.sum()),
            "highest_probability": None,
            "recall_at": None,
        }
        # Masks without probabilities have neither.
        if scores is not None:
            row["highest_probability"] = _quantiles(highest[is_inside])
            row["recall_at"] = _recall_by_rate(scores.select(is_inside))
        rows.append(row)
    return {
        "recall80_mm3": limit.volume_mm3,
        "recall80_ci95_mm3": [limit.low_mm3, limit.high_mm3],
        "recall80_share_reached": limit.share_reached,
        "bins": rows,
    }


def _quantiles(highest_probability: NDArray[np.float64]) -> dict[str, Any]:
    """Describe the highest probabilities inside some lesions; NaN without lesions."""
    values: NDArray[np.float64] = np.full(len(PROBABILITY_QUANTILES), math.nan)
    share_below = math.nan
    if len(highest_probability):
        values = np.quantile(highest_probability, PROBABILITY_QUANTILES)
        share_below = float((highest_probability < OUT_OF_REACH).mean())
    quantiles: dict[str, float] = {}
    for share, value in zip(PROBABILITY_QUANTILES, values.tolist(), strict=True):
        quantiles[f"{share:g}"] = value
    return {"quantiles": quantiles, "share_below_0.1": share_below}


def _recall_by_rate(scores: LesionScores) -> dict[str, float]:
    """Compute the recall at 1, 2 and 5 false lesions per case; NaN without lesions."""
    recall: NDArray[np.float64] = np.full(len(FALSE_LESIONS_PER_CASE), math.nan)
    if scores.n_reference:
        recall = recall_at(scores.curve(), FALSE_LESIONS_PER_CASE)
    return _by_rate(FALSE_LESIONS_PER_CASE, recall)


def summarize_lesion_free(cohort: EvaluatedCohort, name: str) -> dict[str, Any]:
    """Summarize the cases without a reference voxel: all that is predicted there is false."""
    cases: list[dict[str, Any]] = []
    n_clean = 0
    n_false_lesions = 0
    for case, by_class in zip(cohort.cases, cohort.metrics, strict=True):
        metrics = by_class[name]
        if metrics.reference_volume_mm3:
            continue
        row = {
            "case_id": case.case_id,
            "n_false_lesions": metrics.lesions.n_predicted,
            "false_volume_mm3": metrics.predicted_volume_mm3,
        }
        cases.append(row)
        n_false_lesions += metrics.lesions.n_predicted
        # By volume, not by lesions: a minimum volume may drop lesions that are still predicted.
        if not metrics.predicted_volume_mm3:
            n_clean += 1
    return {
        "n_cases": len(cases),
        "n_clean": n_clean,
        "n_false_lesions": n_false_lesions,
        "false_volume_mm3": sum(row["false_volume_mm3"] for row in cases),
        "cases": cases,
    }
