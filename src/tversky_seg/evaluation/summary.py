"""The content of metrics.json: an evaluated cohort in plain numbers (docs/metrics.md)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tversky_seg.evaluation.cohort import EvaluatedCohort
from tversky_seg.evaluation.doubt import doubt_summary
from tversky_seg.evaluation.groups import Groups, group_cases
from tversky_seg.evaluation.region_counts import summarize_regions
from tversky_seg.evaluation.scan_rescan import summarize_repeats
from tversky_seg.evaluation.volume_change import summarize_change
from tversky_seg.metrics.agreement import (
    VOLUME_EDGES_MM3,
    VolumeBin,
    bin_volumes,
    bland_altman,
    isbi_score,
    quartile_edges,
    recall_by_volume,
    volume_correlation,
)
from tversky_seg.metrics.averages import unwrap_single
from tversky_seg.metrics.calibration import Calibration, calibrate, calibrate_adaptively
from tversky_seg.metrics.case_metrics import CaseMetrics, mean_metrics
from tversky_seg.metrics.detection_limit import bootstrap_recall80
from tversky_seg.metrics.froc import (
    LUNA_POINTS,
    LesionScores,
    average_recall,
    pool_lesion_scores,
    recall_at,
)
from tversky_seg.metrics.lesions import LesionCounts
from tversky_seg.metrics.score_histogram import ScoreHistogram
from tversky_seg.metrics.temperature import at_temperature

MetricRow = dict[str, float]
FALSE_LESIONS_PER_CASE = (1.0, 2.0, 5.0)
"""False lesions per case at which recall is given by size."""
PROBABILITY_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Quantiles of the highest probability inside reference lesions of one size."""
OUT_OF_REACH = 0.1
"""A reference lesion without a probability of this much is found at no usual threshold."""

MOST_DRAWN = 2**22
"""Numbers of drawn subjects in memory at a time."""


def summarize(
    cohort: EvaluatedCohort,
    *,
    threshold: Any,
    lesion_rule: Mapping[str, Any],
    n_bootstrap: int,
    seed: int,
    by: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Summarize a cohort as plain values, with None for NaN.

    With several classes, each metric stands under the name of its class.

    Args:
        cohort: Cohort of at least one case.
        threshold: Threshold of the masks, as it shall be recorded.
        lesion_rule: Rule of the lesions, as it shall be recorded.
        n_bootstrap: Resamplings of the subjects for the intervals.
        seed: Seed of the resamplings.
        by: Columns by which the cases are grouped, each a section `by_<column>`; None: site,
            scanner and modalities where cases differ in them.
    """
    summary: dict[str, Any] = {
        "n_cases": len(cohort.cases),
        "threshold": threshold,
        "lesion_rule": lesion_rule,
    }
    summary |= _statistics(cohort, CaseMetrics.metrics, n_bootstrap=n_bootstrap, seed=seed)
    summary["cases"] = _cases(cohort)
    # The same resamplings as for the published metrics.
    summary["further"] = _statistics(
        cohort, CaseMetrics.further_metrics, n_bootstrap=n_bootstrap, seed=seed
    )

    summary["by_lesion"] = _statistics(
        cohort, CaseMetrics.lesion_metrics, n_bootstrap=n_bootstrap, seed=seed
    )

    # These sections of metrics.json have one summary for each class.
    sections = {
        "cohort": _agreement_with_all_raters,
        "recall_by_volume": _recall_by_volume,
        "froc": _froc,
        "calibration": _calibration,
        "retention": doubt_summary,
        "lesion_free": _lesion_free,
        "raters": _raters,
        "consensus": _consensus,
        "between_raters": _between_raters,
        "new_lesions": _new_lesions,
        "regions": _regions,
        "repeatability": _repeatability,
        "change": _change,
    }
    for title, section in sections.items():
        summary[title] = unwrap_single({name: section(cohort, name) for name in cohort.totals})
    by_size: dict[str, Any] = {}
    for name in cohort.totals:
        # Each class draws the same resamplings.
        rng = np.random.default_rng(seed)
        by_size[name] = _by_size(cohort, name, n_bootstrap=n_bootstrap, rng=rng)
    summary["by_size"] = unwrap_single(by_size)
    groups_by = group_cases(cohort.cases, by)
    summary["groups"] = list(groups_by)
    for column, groups in groups_by.items():
        by_class: dict[str, Any] = {}
        for name in cohort.totals:
            by_class[name] = _groups(cohort, name, groups, n_bootstrap=n_bootstrap, seed=seed)
        summary[f"by_{column}"] = unwrap_single(by_class)
    if cohort.faults:
        summary["faults"] = cohort.faults
    plain: dict[str, Any] = _without_nan(summary)
    return plain


def all_metrics(metrics: CaseMetrics) -> MetricRow:
    """Join all metrics of a case: the published ones, the further ones and those by lesion."""
    return metrics.metrics() | metrics.further_metrics() | metrics.lesion_metrics()


def _statistics(
    cohort: EvaluatedCohort,
    values_of: Callable[[CaseMetrics], MetricRow],
    *,
    n_bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """Summarize each metric over the cases: mean, interval, pooled value, undefined cases."""
    subjects = [case.subject_id for case in cohort.cases]
    mean: dict[str, MetricRow] = {}
    ci95: dict[str, dict[str, list[float]]] = {}
    pooled: dict[str, MetricRow] = {}
    undefined: dict[str, dict[str, int]] = {}
    for name in cohort.totals:
        rows = [values_of(metrics) for metrics in cohort.metrics_of_class(name)]
        mean[name] = mean_metrics(rows)
        # Each class draws the same resamplings, so that their intervals can be compared.
        rng = np.random.default_rng(seed)
        ci95[name] = _intervals(rows, subjects, n_bootstrap=n_bootstrap, rng=rng)
        pooled[name] = values_of(cohort.pooled(name))
        undefined[name] = _count_undefined(rows)
    return {
        "mean": unwrap_single(mean),
        "ci95": unwrap_single(ci95),
        "pooled": unwrap_single(pooled),
        "undefined": unwrap_single(undefined),
    }


def _groups(
    cohort: EvaluatedCohort, name: str, groups: Groups, *, n_bootstrap: int, seed: int
) -> list[dict[str, Any]]:
    """Summarize the cases of each group: means with intervals, as of the whole cohort."""
    summaries: list[dict[str, Any]] = []
    of_class = cohort.metrics_of_class(name)
    for value, places in groups.items():
        rows = [of_class[place].metrics() for place in places]
        subjects = [cohort.cases[place].subject_id for place in places]
        rng = np.random.default_rng(seed)
        summary = {
            "value": value,
            "n_cases": len(places),
            "n_subjects": len(set(subjects)),
            "mean": mean_metrics(rows),
            "ci95": _intervals(rows, subjects, n_bootstrap=n_bootstrap, rng=rng),
            "undefined": _count_undefined(rows),
        }
        summaries.append(summary)
    return summaries


def _count_undefined(rows: Sequence[MetricRow]) -> dict[str, int]:
    # All cases have the same metrics, so the first one names them.
    counts = dict.fromkeys(rows[0], 0)
    for row in rows:
        for metric, value in row.items():
            counts[metric] += math.isnan(value)
    return counts


def _intervals(
    rows: Sequence[MetricRow],
    subjects: Sequence[str],
    *,
    n_bootstrap: int,
    rng: np.random.Generator,
) -> dict[str, list[float]]:
    """Compute 95 % percentile intervals of the means.

    Whole subjects are drawn with replacement, since the cases of one subject are alike. An
    interval is NaN where fewer than two subjects define the metric.
    """
    values = np.array([list(row.values()) for row in rows], dtype=np.float64)
    subject_of_row = np.unique(subjects, return_inverse=True)[1]
    n_subjects = subject_of_row.max() + 1
    # A mean over drawn subjects is a ratio of two sums over subjects, so a draw needs to count
    # only how often it takes each subject.
    sums = np.zeros((n_subjects, values.shape[1]))
    counts = np.zeros_like(sums)
    np.add.at(sums, subject_of_row, np.nan_to_num(values))
    np.add.at(counts, subject_of_row, ~np.isnan(values))
    means = np.empty((n_bootstrap, values.shape[1]))
    # In blocks: 2,000 draws of 10,000 subjects at once would take 320 MB.
    block = max(1, MOST_DRAWN // n_subjects)
    for first in range(0, n_bootstrap, block):
        size = min(block, n_bootstrap - first)
        n_drawn = rng.multinomial(
            n_subjects, np.full(n_subjects, 1 / n_subjects), size=size
        )  # (size, n_subjects)
        with np.errstate(invalid="ignore"):
            means[first : first + size] = (n_drawn @ sums) / (n_drawn @ counts)
    n_defining = (counts > 0).sum(axis=0)
    intervals: dict[str, list[float]] = {}
    for column, metric in enumerate(rows[0]):
        intervals[metric] = [math.nan, math.nan]
        if n_defining[column] > 1:
            # A draw of subjects that do not define the metric has no mean.
            drawn = means[:, column]
            drawn = drawn[~np.isnan(drawn)]
            intervals[metric] = np.percentile(drawn, (2.5, 97.5)).tolist()
    return intervals


def _cases(cohort: EvaluatedCohort) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for case, by_class in zip(cohort.cases, cohort.metrics, strict=True):
        values = unwrap_single({name: all_metrics(metrics) for name, metrics in by_class.items()})
        rows.append({"case_id": case.case_id, "subject_id": case.subject_id, **values})
    return rows


def _agreement_with_all_raters(cohort: EvaluatedCohort, name: str) -> dict[str, Any]:
    """Summarize the agreement with the labels, and the mean ISBI score over the raters."""
    # The ISBI 2015 challenge ranks by this mean.
    scores = [rater["isbi_score"] for rater in _raters(cohort, name)]
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


def _recall_by_volume(cohort: EvaluatedCohort, name: str) -> dict[str, Any]:
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


def _froc(cohort: EvaluatedCohort, name: str) -> dict[str, Any] | None:
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


def _calibration(cohort: EvaluatedCohort, name: str) -> dict[str, Any] | None:
    totals = cohort.totals[name]
    if totals.histogram is None or totals.near_histogram is None:
        return None
    calibration = calibrate(totals.histogram)
    temperature = cohort.temperature.get(name)
    before = None
    if temperature not in (None, 1):
        # The saved probabilities, brought back to those that the network gave.
        raw = at_temperature(totals.histogram, 1 / temperature)
        raw_near = at_temperature(totals.near_histogram, 1 / temperature)
        before = {
            "expected_calibration_error": calibrate(raw).error,
            "near_lesions": _calibration_near_lesions(raw_near),
        }
    return {
        "expected_calibration_error": calibration.error,
        "bins": _calibration_bins(calibration),
        "near_lesions": _calibration_near_lesions(totals.near_histogram),
        "temperature": temperature,
        "before": before,
    }


def _calibration_near_lesions(histogram: ScoreHistogram) -> dict[str, Any]:
    adaptive = calibrate_adaptively(histogram)
    return {
        "n_voxels": int(histogram.n_voxels.sum()),
        "expected_calibration_error": calibrate(histogram).error,
        "adaptive_calibration_error": adaptive.error,
        "bins": _calibration_bins(adaptive),
    }


def _calibration_bins(calibration: Calibration) -> list[dict[str, Any]]:
    edges = calibration.edges.tolist()
    bins: list[dict[str, Any]] = []
    for k, n_voxels in enumerate(calibration.n_voxels.tolist()):
        one = {
            "from": edges[k],
            "to": edges[k + 1],
            "n_voxels": n_voxels,
            "mean_probability": float(calibration.mean_probability[k]),
            "lesion_share": float(calibration.lesion_share[k]),
        }
        bins.append(one)
    return bins


def _lesion_free(cohort: EvaluatedCohort, name: str) -> dict[str, Any]:
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


def _raters(cohort: EvaluatedCohort, name: str) -> list[dict[str, Any]]:
    summaries: list[dict[str, Any]] = []
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


def _consensus(cohort: EvaluatedCohort, name: str) -> dict[str, Any] | None:
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


def _between_raters(cohort: EvaluatedCohort, name: str) -> dict[str, Any] | None:
    """Summarize the raters against each other, a human rater's score; None without several."""
    everyone: list[dict[str, list[CaseMetrics]]] = []
    for by_case in cohort.between_raters.values():
        everyone.extend(by_case)
    return _mean_of_pairs(everyone, name)


def _mean_of_pairs(
    by_case: Sequence[Mapping[str, Sequence[CaseMetrics]]], name: str
) -> dict[str, Any] | None:
    rows: list[MetricRow] = []
    for by_class in by_case:
        rows.extend(metrics.metrics() for metrics in by_class[name])
    if not rows:
        return None
    return {"n_pairs": len(rows), "mean": mean_metrics(rows)}


def _regions(cohort: EvaluatedCohort, name: str) -> dict[str, Any] | None:
    case_ids = [case.case_id for case in cohort.cases]
    subject_ids = [case.subject_id for case in cohort.cases]
    return summarize_regions(case_ids, subject_ids, cohort.regions[name])


def _repeatability(cohort: EvaluatedCohort, name: str) -> dict[str, Any] | None:
    return summarize_repeats(cohort.repeats.get(name, []))


def _new_lesions(cohort: EvaluatedCohort, name: str) -> dict[str, Any] | None:
    if not cohort.session_pairs:
        return None
    # Rates are made of the counts of all pairs: many pairs have no new lesion, hence no rate.
    total = reduce(add, (pair.counts[name] for pair in cohort.session_pairs))
    pairs: list[dict[str, Any]] = []
    for pair in cohort.session_pairs:
        row = {
            "subject_id": pair.after.subject_id,
            "from_case": pair.before.case_id,
            "to_case": pair.after.case_id,
            **_lesion_counts(pair.counts[name]),
        }
        pairs.append(row)
    return {
        "n_pairs": len(pairs),
        **_lesion_counts(total),
        "tpr": total.tpr,
        "fpr": total.fpr,
        "f1": total.f1,
        "pairs": pairs,
    }


def _change(cohort: EvaluatedCohort, name: str) -> dict[str, Any] | None:
    return summarize_change(cohort.session_pairs, name)


def _lesion_counts(counts: LesionCounts) -> dict[str, int]:
    return {
        "n_reference": counts.n_reference,
        "n_detected": counts.n_detected,
        "n_predicted": counts.n_predicted,
        "n_unmatched": counts.n_unmatched,
    }


def _without_nan(value: Any) -> Any:
    """Replace NaN and infinity by None, which JSON knows, at every depth."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
