"""Each metric of a setting over its subjects and seeds: mean, spread, interval, pooled value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tversky_seg.analysis.runs import MetricRow, Run, check_metric
from tversky_seg.analysis.statistics import bootstrap_interval
from tversky_seg.analysis.sweep import Setting
from tversky_seg.metrics.averages import mean_of_defined

DEFAULT_METRICS = (
    "dice",
    "sensitivity",
    "precision",
    "f2",
    "pr_auc",
    "lesion_tpr",
    "lesion_fpr",
    "lesion_f1",
)


@dataclass(frozen=True)
class Summary:
    """One metric of one class in one setting."""

    setting: str
    """Name of the setting."""
    class_name: str
    metric: str
    """Name as in metrics.json."""
    mean: float
    """Mean over seeds of the mean over subjects; the cases of a subject are averaged first."""
    sd: float
    """Standard deviation of that mean between seeds; NaN for one seed."""
    low: float
    """Lower limit of the 95 % interval over subjects, each averaged over seeds; NaN below two."""
    high: float
    pooled: float
    """All voxels or lesions of all subjects together, mean over seeds; NaN where undefined."""
    n_subjects: int
    """Subjects that define the metric."""
    n_seeds: int
    n_runs: int
    """Folds times seeds."""


def summarize_settings(
    settings: Sequence[Setting],
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    n_bootstrap: int = 10_000,
    seed: int = 0,
) -> list[Summary]:
    """Summarize each metric of each class and setting.

    Args:
        settings: Settings of a sweep.
        metrics: Names as in metrics.json.
        n_bootstrap: Resamplings of the subjects behind each interval.
        seed: Seed of the resamplings; each metric draws the same ones.

    Raises:
        DataError: A metric is in no run.
    """
    summaries: list[Summary] = []
    for setting in settings:
        first = next(iter(setting.cohorts.values()))
        for class_name in first.rows:
            for metric in metrics:
                # Each metric draws the same resamplings.
                rng = np.random.default_rng(seed)
                summary = _summarize(setting, class_name, metric, n_bootstrap=n_bootstrap, rng=rng)
                summaries.append(summary)
    return summaries


def _summarize(
    setting: Setting, class_name: str, metric: str, *, n_bootstrap: int, rng: np.random.Generator
) -> Summary:
    cohorts = list(setting.cohorts.values())
    for cohort in cohorts:
        check_metric(cohort, class_name, metric)
    # (seeds, subjects). All seeds evaluated the same cases, so the columns are the same subjects.
    values = np.array([_subject_means(cohort, class_name, metric) for cohort in cohorts])
    seed_means = [mean_of_defined(row) for row in values]
    # An interval is over subjects: more seeds of the same subjects are no more evidence.
    subject_means = np.array([mean_of_defined(column) for column in values.T])
    defined = subject_means[~np.isnan(subject_means)]
    low, high = bootstrap_interval(defined, n_bootstrap=n_bootstrap, rng=rng)
    # One seed has no spread.
    sd = math.nan
    if len(seed_means) > 1:
        sd = float(np.std(seed_means, ddof=1))
    # Pooled per seed: the seeds' predictions of one voxel are not several voxels.
    pooled: list[float] = []
    for cohort in cohorts:
        rates = pooled_rates(cohort.rows[class_name].values())
        pooled.append(rates.get(metric, math.nan))
    return Summary(
        setting=setting.name,
        class_name=class_name,
        metric=metric,
        mean=mean_of_defined(seed_means),
        sd=sd,
        low=low,
        high=high,
        pooled=mean_of_defined(pooled),
        n_subjects=len(defined),
        n_seeds=len(cohorts),
        n_runs=len(setting.runs),
    )


def _subject_means(cohort: Run, class_name: str, metric: str) -> list[float]:
    """Average the cases of each subject, in the order of the subjects' names."""
    # A subject scanned at five time points counts once, as does one scanned once.
    values: dict[str, list[float]] = {}
    for case, row in cohort.rows[class_name].items():
        values.setdefault(cohort.subjects[case], []).append(row[metric])
    return [mean_of_defined(values[subject]) for subject in sorted(values)]


def pooled_rates(cases: Iterable[MetricRow]) -> dict[str, float]:
    """Pool all voxels and lesions of some cases, from the rates and totals of each.

    Sensitivity times the reference volume is the true positive volume of a case, and so on.

    Returns:
        Metric -> pooled rate, NaN over nothing.
    """
    rows = list(cases)
    # Two cases of 10 and 90 mm³ with sensitivities 0.5 and 0.9 have (5 + 81) / 100 = 0.86 pooled,
    # while the mean over cases is 0.7.
    reference = _column(rows, "reference_volume_mm3")
    true_positive = (_column(rows, "sensitivity") * reference).sum()
    n_reference = _column(rows, "n_reference_lesions")
    n_detected = (_column(rows, "lesion_tpr") * n_reference).sum()
    n_predicted = _column(rows, "n_predicted_lesions")
    n_false = (_column(rows, "lesion_fpr") * n_predicted).sum()
    reference_total = reference.sum()
    predicted = _column(rows, "predicted_volume_mm3").sum()
    # The F measure (1 + b^2) TP / (b^2 reference + predicted): Dice for b = 1, F2 for b = 2.
    return {
        "dice": _ratio(2 * true_positive, reference_total + predicted),
        "sensitivity": _ratio(true_positive, reference_total),
        "precision": _ratio(true_positive, predicted),
        "f2": _ratio(5 * true_positive, 4 * reference_total + predicted),
        "lesion_tpr": _ratio(n_detected, n_reference.sum()),
        "lesion_fpr": _ratio(n_false, n_predicted.sum()),
    }


def _column(rows: Sequence[MetricRow], metric: str) -> NDArray[np.float64]:
    """List a metric of all cases, 0 where it is undefined: a rate over nothing adds nothing."""
    values = np.array([row.get(metric, math.nan) for row in rows], dtype=np.float64)
    return np.nan_to_num(values)


def _ratio(part: float, whole: float) -> float:
    if not whole:
        return math.nan
    return float(part / whole)
