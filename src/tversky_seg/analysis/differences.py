"""Paired differences of one metric between two runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tversky_seg.analysis.runs import Run, check_metric
from tversky_seg.analysis.statistics import bootstrap_interval, pair_subjects, wilcoxon_p


@dataclass(frozen=True)
class Difference:
    """One metric of one class in two runs, in pairs of subjects."""

    first: str
    """Name of the baseline."""
    second: str
    """Name of the run that is compared with it."""
    class_name: str
    metric: str
    """Name as in metrics.json."""
    n_subjects: int
    """Subjects with a case that defines the metric in both runs: those of means and tests."""
    n_undefined: int
    """Cases left out, because the metric is undefined in either run."""
    mean_first: float
    """Mean over subjects of the mean over their cases."""
    mean_second: float
    mean: float
    """Mean difference, second - first."""
    low: float
    """Lower limit of its 95 % interval; NaN below two subjects."""
    high: float
    p: float
    """Two-sided Wilcoxon signed-rank test over subjects; NaN without subjects."""
    p_holm: float = math.nan
    """The same, corrected for all tests of the comparison."""


def paired_difference(
    first: Run,
    second: Run,
    class_name: str,
    metric: str,
    *,
    n_bootstrap: int,
    rng: np.random.Generator,
) -> Difference:
    """Compare one metric of one class in two runs that were evaluated alike.

    Args:
        first: Baseline.
        second: Run that is compared with it.
        class_name: Class of the voxels.
        metric: Name as in metrics.json.
        n_bootstrap: Resamplings of the subjects behind the interval.
        rng: Generator that draws them.

    Raises:
        DataError: The metric is not in both runs.
    """
    # Both, since one run may have been evaluated with more metrics than the other.
    check_metric(first, class_name, metric)
    check_metric(second, class_name, metric)
    pairs = pair_subjects(
        _values(first, class_name, metric),
        _values(second, class_name, metric),
        subjects=first.subjects,
    )
    n_subjects = len(pairs.means)
    # Means over the pairs only, so that mean_second - mean_first is the mean difference.
    mean_first = mean_second = math.nan
    if n_subjects:
        mean_first, mean_second = pairs.means.mean(axis=0).tolist()
    # (n_subjects,); column 0 is the first run, column 1 the second.
    differences = pairs.means[:, 1] - pairs.means[:, 0]
    low, high = bootstrap_interval(differences, n_bootstrap=n_bootstrap, rng=rng)
    return Difference(
        first=first.name,
        second=second.name,
        class_name=class_name,
        metric=metric,
        n_subjects=n_subjects,
        n_undefined=pairs.n_undefined,
        mean_first=mean_first,
        mean_second=mean_second,
        mean=mean_second - mean_first,
        low=low,
        high=high,
        p=wilcoxon_p(differences),
    )


def _values(run: Run, class_name: str, metric: str) -> dict[str, float]:
    return {case: row[metric] for case, row in run.rows[class_name].items()}
