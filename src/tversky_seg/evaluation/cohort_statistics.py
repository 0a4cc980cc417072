"""Statistics of an evaluated cohort: means, intervals over subjects, undefined cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tversky_seg.evaluation.cohort import EvaluatedCohort
from tversky_seg.evaluation.groups import Groups, group_cases
from tversky_seg.metrics.averages import unwrap_single
from tversky_seg.metrics.case_metrics import CaseMetrics, mean_metrics

MetricRow = dict[str, float]

MOST_DRAWN = 2**22
"""Numbers of drawn subjects in memory at a time."""


def summarize_metrics(
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


def summarize_groups(
    cohort: EvaluatedCohort, by: Sequence[str] | None, *, n_bootstrap: int, seed: int
) -> dict[str, Any]:
    """Summarize the groups of the cases: "groups", then `by_<column>` for each column.

    Args:
        cohort: Cohort of at least one case.
        by: Columns; None: site, scanner and modalities where cases differ in them.
        n_bootstrap: Resamplings of the subjects of a group.
        seed: Seed of the resamplings.
    """
    groups_by = group_cases(cohort.cases, by)
    sections: dict[str, Any] = {"groups": list(groups_by)}
    for column, groups in groups_by.items():
        by_class: dict[str, Any] = {}
        for name in cohort.totals:
            by_class[name] = _groups(cohort, name, groups, n_bootstrap=n_bootstrap, seed=seed)
        sections[f"by_{column}"] = unwrap_single(by_class)
    return sections


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
