"""Agreement with the raters in metrics.json: with the label, each rater, and their consensus."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tversky_seg.evaluation.cohort import EvaluatedCohort
from tversky_seg.metrics.agreement import bland_altman, isbi_score, volume_correlation
from tversky_seg.metrics.case_metrics import CaseMetrics, mean_metrics


def summarize_agreement(cohort: EvaluatedCohort, name: str) -> dict[str, Any]:
    """Summarize the agreement with the labels, and the mean ISBI score over the raters."""
    # The ISBI 2015 challenge ranks by this mean.
    scores = [rater["isbi_score"] for rater in summarize_raters(cohort, name)]
    mean_score = math.nan
    if scores:
        mean_score = float(np.mean(scores))
    return _agreement(cohort.metrics_of_class(name)) | {"isbi_score_over_raters": mean_score}


def _agreement(cases: Sequence[CaseMetrics]) -> dict[str, Any]:
    predicted = [case.predicted_volume_mm3 for case in cases]
    reference = [case.reference_volume_mm3 for case in cases]
    difference = bland_altman(predicted, reference)
    lowest, highest = difference.limits
    correlation = volume_correlation(predicted, reference)
    mean = mean_metrics([case.metrics() for case in cases])
    score = isbi_score(
        dice=mean["dice"],
        precision=mean["precision"],
        lesion_fpr=mean["lesion_fpr"],
        lesion_tpr=mean["lesion_tpr"],
        correlation=correlation,
    )
    return {
        "n_cases": len(cases),
        "volume_correlation": correlation,
        "bland_altman": {
            "bias_mm3": difference.bias,
            "sd_mm3": difference.sd,
            "lowest_mm3": lowest,
            "highest_mm3": highest,
        },
        "isbi_score": score,
    }


def summarize_raters(cohort: EvaluatedCohort, name: str) -> list[dict[str, Any]]:
    """Summarize the agreement with each rater; empty for a single one."""
    summaries: list[dict[str, Any]] = []
    # A first case with few raters must not decide the order.
    for number, by_case in sorted(cohort.raters.items()):
        cases = [by_class[name] for by_class in by_case]
        agreement = _agreement(cases)
        summary = {
            "label": number,
            "n_cases": len(cases),
            "mean": mean_metrics([case.metrics() for case in cases]),
            "volume_correlation": agreement["volume_correlation"],
            "isbi_score": agreement["isbi_score"],
            "against_others": _mean_of_pairs(cohort.between_raters.get(number, ()), name),
        }
        summaries.append(summary)
    return summaries


def summarize_consensus(cohort: EvaluatedCohort, name: str) -> dict[str, Any] | None:
    """Summarize the agreement with the raters' consensus; None without several raters."""
    cases = [by_class[name] for by_class in cohort.consensus]
    if not cases:
        return None
    agreement = _agreement(cases)
    return {
        "n_cases": len(cases),
        "mean": mean_metrics([case.metrics() for case in cases]),
        "volume_correlation": agreement["volume_correlation"],
        "isbi_score": agreement["isbi_score"],
    }


def compare_raters(cohort: EvaluatedCohort, name: str) -> dict[str, Any] | None:
    """Summarize the raters against each other, a human rater's score; None without several."""
    # Each pair counts in both directions: precision of one is sensitivity of the other.
    everyone: list[dict[str, list[CaseMetrics]]] = []
    for by_case in cohort.between_raters.values():
        everyone.extend(by_case)
    return _mean_of_pairs(everyone, name)


def _mean_of_pairs(
    by_case: Sequence[Mapping[str, Sequence[CaseMetrics]]], name: str
) -> dict[str, Any] | None:
    rows: list[dict[str, float]] = []
    for by_class in by_case:
        rows.extend(metrics.metrics() for metrics in by_class[name])
    if not rows:
        return None
    return {"n_pairs": len(rows), "mean": mean_metrics(rows)}
