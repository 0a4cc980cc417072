"""Repeatability: how alike two scans of the same patient are measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tversky_seg.metrics.masks import FloatArray


@dataclass(frozen=True)
class Repeatability:
    """Agreement of a measurement with its repeat over pairs of scans."""

    n_pairs: int
    cv: float
    """Within-subject coefficient of variation; NaN where no pair has a positive mean."""
    icc_agreement: float
    """ICC(2,1): absolute agreement, scans at random; NaN below two pairs, or without spread."""
    icc_consistency: float
    """ICC(3,1): consistency, a shift between first and second scan left out; NaN as above."""
    bias: float
    """Mean of second minus first; NaN without pairs."""
    sd: float
    """Standard deviation of these differences (n - 1); NaN below two pairs."""
    coefficient: float
    """Repeatability coefficient: 95 % of repeats differ by less; NaN without pairs."""

    @property
    def limits(self) -> tuple[float, float]:
        """95 % limits of agreement, bias -+ 1.96 sd (Bland & Altman 1986)."""
        return self.bias - 1.96 * self.sd, self.bias + 1.96 * self.sd


def repeatability(first: ArrayLike, second: ArrayLike) -> Repeatability:
    """Compare measurements of the same patients in a scan and its repeat.

    With d the difference and m the mean of a pair: the within-subject standard deviation is
    sqrt(mean(d^2 / 2)), the coefficient 1.96 sqrt(2) of it (Bland & Altman 1996), and
    cv = sqrt(mean(d^2 / (2 m^2))) (Hyslop & White 2009). ICC by Shrout & Fleiss (1979).

    Args:
        first: (n,) values >= 0, such as volumes in mm3, of the first scans.
        second: (n,) values of the repeats.

    Raises:
        ValueError: Other shapes.
    """
    x = np.asarray(first, dtype=np.float64)
    y = np.asarray(second, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"expected two lists of one length, got shapes {x.shape} and {y.shape}")
    n = x.size
    if n == 0:
        nan = math.nan
        return Repeatability(0, nan, nan, nan, nan, nan, nan)
    difference = y - x
    mean = (x + y) / 2
    # A pair without any volume has no relative difference.
    defined = mean > 0
    cv = math.nan
    if defined.any():
        cv = math.sqrt(float(np.mean((difference[defined] / mean[defined]) ** 2)) / 2)
    agreement, consistency = intraclass_correlations(np.stack([x, y], axis=1))
    # Not less the bias: a shift between the scans is an error of the repeat, too.
    within = math.sqrt(float(np.mean(difference**2)) / 2)
    return Repeatability(
        n_pairs=n,
        cv=cv,
        icc_agreement=agreement,
        icc_consistency=consistency,
        bias=float(difference.mean()),
        sd=float(difference.std(ddof=1)) if n > 1 else math.nan,
        coefficient=1.96 * math.sqrt(2) * within,
    )


def intraclass_correlations(values: FloatArray) -> tuple[float, float]:
    """Compute ICC(2,1) and ICC(3,1) of single measurements (Shrout & Fleiss 1979).

    With the mean squares of subjects R, of scans C and of the rest E, n subjects and k scans:
    ICC(2,1) = (R - E) / (R + (k - 1) E + k (C - E) / n), ICC(3,1) = (R - E) / (R + (k - 1) E).

    Args:
        values: (n, k) subjects, scans.

    Returns:
        Both, at most 1 and negative where subjects differ less than their scans; NaN below two
        subjects or scans, or where all values are equal.
    """
    n, k = values.shape
    if n < 2 or k < 2:
        return math.nan, math.nan
    # Deviations, rather than sums of squares whose differences would cancel.
    centred = values - values.mean()
    of_subjects = centred.mean(axis=1, keepdims=True)
    of_scans = centred.mean(axis=0, keepdims=True)
    rest = centred - of_subjects - of_scans
    r = k * float((of_subjects**2).sum()) / (n - 1)
    c = n * float((of_scans**2).sum()) / (k - 1)
    e = float((rest**2).sum()) / ((n - 1) * (k - 1))
    agreement = _ratio(r - e, r + (k - 1) * e + k * (c - e) / n)
    consistency = _ratio(r - e, r + (k - 1) * e)
    return agreement, consistency


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan
