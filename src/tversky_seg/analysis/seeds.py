"""Seeds as a random effect: whether a difference exceeds what another seed would change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tversky_seg.metrics.averages import mean_of_defined


@dataclass(frozen=True)
class SeedModel:
    """Two methods whose subjects and seeds are both drawn at random."""

    n_subjects: int
    """Subjects that are defined in every seed of both methods."""
    difference: float
    """Mean of the second method minus mean of the first."""
    seed_sd: float
    """Standard deviation of a method's mean between its seeds, pooled over both methods."""
    standard_error: float
    """Of the difference, for other subjects and other seeds."""
    df: float
    """Degrees of freedom of the test."""
    p: float
    """Two-sided, that the difference is 0."""


UNKNOWN = SeedModel(0, math.nan, math.nan, math.nan, math.nan, math.nan)


def seed_model(first: ArrayLike, second: ArrayLike) -> SeedModel:
    """Test the difference of two methods for other subjects and other seeds.

    The mixed model of value y of subject s, method m and seed k (of a method)

        y = mean_m + subject_s + (subject x method)_sm + seed_k(m) + rest

    in its closed form for complete tables: the squared standard error of the difference is that of
    the paired t-test, plus the seeds' variance component times (1 / K1 + 1 / K2). Degrees of
    freedom by Satterthwaite (1946). A component estimated below 0 is 0, as with REML. This is the
    quasi-F test of Clark (1973), where seeds take the place of words.

    Args:
        first: (K1, n) values of the first method: seeds, subjects. Subjects with a NaN in either
            method are left out.
        second: (K2, n) values of the second method, of the same subjects.

    Returns:
        The test. NaN in all but the number and the difference where fewer than two subjects are
        complete, or no method has two seeds.
    """
    tables = [np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)]
    undefined = np.isnan(tables[0]).any(axis=0) | np.isnan(tables[1]).any(axis=0)
    tables = [table[:, ~undefined] for table in tables]
    n = tables[0].shape[1]
    if n == 0:
        return UNKNOWN
    differences = tables[1].mean(axis=0) - tables[0].mean(axis=0)
    difference = float(differences.mean())
    seed_df = sum(len(table) - 1 for table in tables)
    if n < 2 or seed_df < 1:
        return SeedModel(n, difference, math.nan, math.nan, math.nan, math.nan)
    # Between the means of a method's seeds, and what remains of a value without its row and column.
    between = sum(_sum_of_squares(table.mean(axis=1)) for table in tables) / seed_df
    rest = sum(_interaction(table) for table in tables) / (seed_df * (n - 1))
    per_seed = 1 / len(tables[0]) + 1 / len(tables[1])
    by_subject = float(differences.var(ddof=1)) / n
    by_seed = max(between - rest / n, 0.0) * per_seed
    variance = by_subject + by_seed
    uncertainty = by_subject**2 / (n - 1)
    if by_seed > 0:
        uncertainty += (between * per_seed) ** 2 / seed_df
        uncertainty += (rest / n * per_seed) ** 2 / (seed_df * (n - 1))
    df = variance**2 / uncertainty if uncertainty > 0 else math.nan
    return SeedModel(
        n_subjects=n,
        difference=difference,
        seed_sd=math.sqrt(between),
        standard_error=math.sqrt(variance),
        df=df,
        p=_t_test(difference, math.sqrt(variance), df),
    )


def seed_table(
    rows_of_seeds: Sequence[Mapping[str, Mapping[str, float]]],
    metric: str,
    *,
    subjects: Mapping[str, str],
) -> NDArray[np.float64]:
    """Tabulate a metric by seed and subject; the cases of a subject are averaged.

    Args:
        rows_of_seeds: For each seed, case -> metric -> value.
        metric: Name as in metrics.json.
        subjects: Case -> subject.

    Returns:
        (seeds, subjects) sorted by name of the subject; NaN where no case of the subject defines
        the metric.
    """
    names = sorted(set(subjects.values()))
    table = np.empty((len(rows_of_seeds), len(names)))
    for k, rows in enumerate(rows_of_seeds):
        values: dict[str, list[float]] = {name: [] for name in names}
        for case, row in rows.items():
            values[subjects[case]].append(row[metric])
        table[k] = [mean_of_defined(values[name]) for name in names]
    return table


def _sum_of_squares(values: NDArray[np.float64]) -> float:
    return float(((values - values.mean()) ** 2).sum())


def _interaction(table: NDArray[np.float64]) -> float:
    """Sum the squares that neither the seeds' nor the subjects' means explain."""
    rows = table.mean(axis=1, keepdims=True)
    columns = table.mean(axis=0, keepdims=True)
    return float(((table - rows - columns + table.mean()) ** 2).sum())


def _t_test(difference: float, standard_error: float, df: float) -> float:
    # scipy.stats takes half a second to import, so help must not wait for it.
    from scipy.special import stdtr

    if not standard_error > 0 or math.isnan(df):
        return math.nan
    return float(2 * stdtr(df, -abs(difference) / standard_error))
