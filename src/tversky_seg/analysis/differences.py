"""Paired differences of one metric between two runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tversky_seg.analysis.power import detectable_effect
from tversky_seg.analysis.runs import Run, check_metric
from tversky_seg.analysis.seeds import SeedModel, seed_model, seed_table
from tversky_seg.analysis.statistics import (
    bootstrap_interval,
    noninferiority_p,
    pair_subjects,
    rank_biserial,
    standardized_mean,
    wilcoxon_p,
)


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
    rank_biserial: float = math.nan
    """Effect size of the signed-rank test, -1 to 1; NaN where no subject differs."""
    dz: float = math.nan
    """Mean difference in standard deviations of the differences (Cohen's d_z)."""
    detectable: float = math.nan
    """Smallest true mean difference that the test finds in 80 of 100 such studies, in the metric's
    unit; NaN where so few subjects never reach p = 0.05."""
    margin: float = math.nan
    """Margin of non-inferiority; NaN where none was set."""
    p_noninferior: float = math.nan
    """One-sided signed-rank test that the second run is worse by less than the margin."""
    p_noninferior_holm: float = math.nan
    """The same, corrected for all such tests of the comparison."""
    seed_sd: float = math.nan
    """Standard deviation of a method's mean between its seeds; NaN where each has one seed."""
    p_seeds: float = math.nan
    """Two-sided test with subjects and seeds as random effects (see `seed_model`)."""
    p_seeds_holm: float = math.nan
    """The same, corrected for all such tests of the comparison."""
    n_seed_subjects: int = 0
    """Subjects of that test: those that are defined in every seed of both methods."""

    @property
    def is_within_seeds(self) -> bool:
        """Whether the difference is smaller than what another seed changes in one method."""
        return abs(self.mean) < self.seed_sd


def paired_difference(
    first: Run,
    second: Run,
    class_name: str,
    metric: str,
    *,
    n_bootstrap: int,
    rng: np.random.Generator,
    margin: float = math.nan,
    lower_is_better: bool = False,
) -> Difference:
    """Compare one metric of one class in two runs that were evaluated alike.

    Args:
        first: Baseline.
        second: Run that is compared with it.
        class_name: Class of the voxels.
        metric: Name as in metrics.json.
        n_bootstrap: Resamplings of the subjects behind the interval.
        rng: Generator that draws them.
        margin: Margin of non-inferiority, in the metric's unit; NaN: no such test.
        lower_is_better: Whether the second run is worse where the metric is higher.

    Raises:
        DataError: The metric is not in both runs.
    """
    # Both, since one run may have been evaluated with more metrics than the other.
    check_metric(first, class_name, metric)
    check_metric(second, class_name, metric)
    # Subjects, since the cases of one are no independent draws.
    pairs = pair_subjects(
        _values(first, class_name, metric),
        _values(second, class_name, metric),
        subjects=first.subjects,
    )
    mean_first, mean_second = pairs.means_of_runs
    differences = pairs.differences
    low, high = bootstrap_interval(differences, n_bootstrap=n_bootstrap, rng=rng)
    seeds = _seed_model(first, second, class_name, metric)
    return Difference(
        first=first.name,
        second=second.name,
        class_name=class_name,
        metric=metric,
        n_subjects=len(differences),
        n_undefined=pairs.n_undefined,
        mean_first=mean_first,
        mean_second=mean_second,
        mean=mean_second - mean_first,
        low=low,
        high=high,
        p=wilcoxon_p(differences),
        rank_biserial=rank_biserial(differences),
        dz=standardized_mean(differences),
        detectable=_detectable_difference(differences),
        margin=margin,
        p_noninferior=_noninferiority_p(differences, margin, lower_is_better=lower_is_better),
        seed_sd=seeds.seed_sd,
        p_seeds=seeds.p,
        n_seed_subjects=seeds.n_subjects,
    )


def _noninferiority_p(
    differences: NDArray[np.float64], margin: float, *, lower_is_better: bool
) -> float:
    """Test non-inferiority; NaN where no margin is given."""
    if math.isnan(margin):
        return math.nan
    return noninferiority_p(differences, margin=margin, lower_is_better=lower_is_better)


def _detectable_difference(differences: NDArray[np.float64]) -> float:
    """Scale the detectable effect by the spread of the differences."""
    effect = detectable_effect(differences.size)
    if math.isnan(effect) or np.ptp(differences) == 0:
        return math.nan
    return effect * float(differences.std(ddof=1))


def _seed_model(first: Run, second: Run, class_name: str, metric: str) -> SeedModel:
    tables: list[NDArray[np.float64]] = []
    for run in (first, second):
        of_seeds = run.of_each_seed(class_name)
        tables.append(seed_table(of_seeds, metric, subjects=first.subjects))
    return seed_model(*tables)


def _values(run: Run, class_name: str, metric: str) -> dict[str, float]:
    return {case: row[metric] for case, row in run.rows[class_name].items()}
