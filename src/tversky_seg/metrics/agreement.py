"""Agreement over a cohort: lesion volumes, the ISBI score, recall by lesion volume."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

VOLUME_EDGES_MM3 = (0.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, math.inf)


@dataclass(frozen=True)
class BlandAltman:
    """Differences predicted minus reference over cases (Bland & Altman 1986); NaN where there are too few cases."""

    bias: float
    """Mean difference."""
    sd: float
    """Standard deviation of the differences (n - 1); NaN for one case."""

    @property
    def limits(self) -> tuple[float, float]:
        """95 % limits of agreement, bias -+ 1.96 sd."""
        return self.bias - 1.96 * self.sd, self.bias + 1.96 * self.sd


def bland_altman(predicted: ArrayLike, reference: ArrayLike) -> BlandAltman:
    """Bias and spread of predicted minus reference values, as volumes in mm3; NaN without cases.

    Args:
        predicted: (n,) one value per case.
        reference: (n,).
    """
    difference = np.subtract(*_paired(predicted, reference))
    n = len(difference)
    return BlandAltman(
        float(difference.mean()) if n else math.nan,
        float(difference.std(ddof=1)) if n > 1 else math.nan,
    )


def volume_correlation(predicted: ArrayLike, reference: ArrayLike) -> float:
    """Pearson correlation of predicted and reference volumes over cases, in [-1, 1].

    NaN for fewer than two cases, or where all predicted or all reference volumes are equal.
    """
    x, y = (
        values - (values.mean() if values.size else 0) for values in _paired(predicted, reference)
    )
    spread = math.sqrt(float((x * x).sum()) * float((y * y).sum()))
    return min(1.0, max(-1.0, float((x * y).sum()) / spread)) if spread > 0 else math.nan


def isbi_score(
    *, dice: float, precision: float, lesion_fpr: float, lesion_tpr: float, correlation: float
) -> float:
    """Score of the ISBI 2015 challenge (Carass et al. 2017), in [0, 1]; NaN where a term is.

    dice/8 + precision/8 + (1 - lesion_fpr)/4 + lesion_tpr/4 + correlation/4, with means over the scans of a rater. The
    website's scale, on which human raters have 90, is not published.
    """
    return dice / 8 + precision / 8 + (1 - lesion_fpr) / 4 + lesion_tpr / 4 + correlation / 4


@dataclass(frozen=True)
class VolumeBin:
    """Reference lesions of from_mm3 <= volume < to_mm3, and how many of them were found."""

    from_mm3: float
    to_mm3: float
    n_lesions: int
    n_detected: int

    @property
    def recall(self) -> float:
        """Share found; NaN without lesions."""
        return self.n_detected / self.n_lesions if self.n_lesions else math.nan


def recall_by_volume(
    volume_mm3: ArrayLike, detected: ArrayLike, edges_mm3: Sequence[float] = VOLUME_EDGES_MM3
) -> list[VolumeBin]:
    """Recall of lesions of each size, between rising edges.

    Args:
        volume_mm3: (n,) of the reference lesions.
        detected: (n,) whether each was found.
        edges_mm3: (bins + 1,) rising; a lesion on an edge belongs above it.

    Raises:
        ValueError: for edges that do not rise.
    """
    volumes, found = np.asarray(volume_mm3, np.float64), np.asarray(detected, bool)
    if not (np.diff(edges_mm3) > 0).all():
        raise ValueError(f"edges_mm3 must rise, got {tuple(edges_mm3)}")
    which = (
        np.searchsorted(np.array(edges_mm3) * (1 - 1e-6), volumes, side="right") - 1
    )  # float32 spacing
    return [
        VolumeBin(low, high, int((which == k).sum()), int(found[which == k].sum()))
        for k, (low, high) in enumerate(itertools.pairwise(edges_mm3))
    ]


def quartile_edges(volume_mm3: ArrayLike) -> list[float]:
    """Edges that part the lesions into quarters by volume, the last infinite; fewer where volumes are tied.

    Empty without lesions.
    """
    volumes = np.asarray(volume_mm3, np.float64)
    if not volumes.size:
        return []
    return [*np.unique(np.quantile(volumes, (0, 0.25, 0.5, 0.75))).tolist(), math.inf]


def _paired(
    predicted: ArrayLike, reference: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    pair = np.asarray(predicted, np.float64), np.asarray(reference, np.float64)
    if pair[0].shape != pair[1].shape or pair[0].ndim != 1:
        raise ValueError(
            f"one value per case is expected on both sides, got {pair[0].shape} and {pair[1].shape}"
        )
    return pair
