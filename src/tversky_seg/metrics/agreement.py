"""Agreement over a cohort: lesion volumes, the ISBI score, and recall by lesion volume."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tversky_seg.metrics.masks import FloatArray, IntArray

VOLUME_EDGES_MM3 = (0.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, math.inf)


@dataclass(frozen=True)
class BlandAltman:
    """Differences predicted minus reference over cases (Bland & Altman 1986)."""

    bias: float
    """Mean difference; NaN without cases."""
    sd: float
    """Standard deviation of the differences (n - 1); NaN for fewer than two cases."""

    @property
    def limits(self) -> tuple[float, float]:
        """95 % limits of agreement, bias -+ 1.96 sd."""
        half_width = 1.96 * self.sd
        return self.bias - half_width, self.bias + half_width


def bland_altman(predicted: ArrayLike, reference: ArrayLike) -> BlandAltman:
    """Compute bias and spread of predicted minus reference values, such as volumes in mm3.

    Args:
        predicted: (n,) one value per case.
        reference: (n,) one value per case.

    Raises:
        ValueError: Other shapes.
    """
    x, y = _check_pairs(predicted, reference)
    difference = x - y
    # numpy warns of means of nothing; here too few cases are a normal result.
    bias = math.nan
    sd = math.nan
    if len(difference):
        bias = float(difference.mean())
    if len(difference) > 1:
        sd = float(difference.std(ddof=1))
    return BlandAltman(bias, sd)


def volume_correlation(predicted: ArrayLike, reference: ArrayLike) -> float:
    """Compute the Pearson correlation of predicted and reference volumes over cases.

    Args:
        predicted: (n,) one volume per case.
        reference: (n,) one volume per case.

    Returns:
        Correlation in [-1, 1]; NaN for fewer than two cases, or where all predicted or all
        reference volumes are equal.

    Raises:
        ValueError: Other shapes.
    """
    x, y = _check_pairs(predicted, reference)
    if not x.size:
        return math.nan
    x = x - x.mean()
    y = y - y.mean()
    x_squares = float((x * x).sum())
    y_squares = float((y * y).sum())
    spread = math.sqrt(x_squares * y_squares)
    if not spread > 0:
        return math.nan
    correlation = float((x * y).sum()) / spread
    # Rounding may lead past 1.
    return min(1.0, max(-1.0, correlation))


def isbi_score(
    *, dice: float, precision: float, lesion_fpr: float, lesion_tpr: float, correlation: float
) -> float:
    """Compute the score of the ISBI 2015 challenge (Carass et al. 2017), in [0, 1].

    dice/8 + precision/8 + (1 - lesion_fpr)/4 + lesion_tpr/4 + correlation/4, of means over the
    scans of a rater; NaN if one of them is. The scale of the website, on which human raters have
    90, is not published.
    """
    of_voxels = dice / 8 + precision / 8
    return of_voxels + (1 - lesion_fpr) / 4 + lesion_tpr / 4 + correlation / 4


@dataclass(frozen=True)
class VolumeBin:
    """Reference lesions of from_mm3 <= volume < to_mm3, and how many of them were detected."""

    from_mm3: float
    to_mm3: float
    n_lesions: int
    n_detected: int

    @property
    def recall(self) -> float:
        """Share of the lesions that were detected; NaN without lesions."""
        if not self.n_lesions:
            return math.nan
        return self.n_detected / self.n_lesions


def recall_by_volume(
    volume_mm3: ArrayLike, detected: ArrayLike, edges_mm3: Sequence[float] = VOLUME_EDGES_MM3
) -> list[VolumeBin]:
    """Count the lesions of each size, and those detected, between rising edges.

    Args:
        volume_mm3: (n,) volumes of the reference lesions.
        detected: (n,) whether each was detected.
        edges_mm3: (bins + 1,) rising volumes; a lesion on an edge belongs to the bin above.

    Raises:
        ValueError: Edges that do not rise.
    """
    is_detected = np.asarray(detected, bool)
    bins = bin_volumes(volume_mm3, edges_mm3)
    counts: list[VolumeBin] = []
    for k, (low, high) in enumerate(itertools.pairwise(edges_mm3)):
        is_inside = bins == k
        n_detected = int(is_detected[is_inside].sum())
        n_lesions = int(is_inside.sum())
        counts.append(VolumeBin(low, high, n_lesions, n_detected))
    return counts


def bin_volumes(volume_mm3: ArrayLike, edges_mm3: Sequence[float] = VOLUME_EDGES_MM3) -> IntArray:
    """Find the bin of each lesion by its volume.

    Args:
        volume_mm3: (n,) volumes of lesions.
        edges_mm3: (bins + 1,) rising volumes; a lesion on an edge belongs to the bin above.

    Returns:
        (n,) bin, 0..bins - 1; -1 below the first edge.

    Raises:
        ValueError: Edges that do not rise.
    """
    if not (np.diff(edges_mm3) > 0).all():
        raise ValueError(f"edges_mm3 must rise, got {tuple(edges_mm3)}")
    # Spacing comes from float32 affines: a lesion of 2.9999999 mm3 lies on the edge of 3 mm3.
    # With edges 0, 3 and 10, volumes 1, 3 and 9.9 go into bins 0, 1 and 1.
    lowered_edges = np.array(edges_mm3) * (1 - 1e-6)
    return np.searchsorted(lowered_edges, np.asarray(volume_mm3, np.float64), side="right") - 1


def quartile_edges(volume_mm3: ArrayLike) -> list[float]:
    """Find the edges that part the lesions into quarters by volume, for `recall_by_volume`.

    Args:
        volume_mm3: (n,) volumes of the lesions.

    Returns:
        Five edges, the last infinite; fewer where volumes are tied, none without lesions.
    """
    volumes = np.asarray(volume_mm3, np.float64)
    if not volumes.size:
        return []
    # Equal quartiles become one edge: lesions of one volume are never parted.
    quartiles = np.quantile(volumes, (0, 0.25, 0.5, 0.75))
    return [*np.unique(quartiles).tolist(), math.inf]


def _check_pairs(predicted: ArrayLike, reference: ArrayLike) -> tuple[FloatArray, FloatArray]:
    x = np.asarray(predicted, np.float64)
    y = np.asarray(reference, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(
            f"one value per case is expected on both sides, got {x.shape} and {y.shape}"
        )
    return x, y
