"""Whether a probability means what it says: of voxels at 0.8, four in five should be lesion."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tversky_seg.metrics.ranking import N_LEVELS, ScoreHistogram, score_histogram


@dataclass(frozen=True, eq=False)
class Calibration:
    """Voxels in bins of equal width by their probability; bin k holds edges[k] < probability <= edges[k + 1]."""

    edges: NDArray[np.float64]
    """(n + 1,) from 0 to 1; probability 0 lies in the first bin."""
    n_voxels: NDArray[np.int64]
    """(n,)."""
    mean_probability: NDArray[np.float64]
    """(n,) NaN in an empty bin."""
    lesion_share: NDArray[np.float64]
    """(n,) share of the bin's voxels that are lesion; NaN in an empty bin."""

    @property
    def error(self) -> float:
        """Expected calibration error: mean over voxels of |mean probability - lesion share| of their bin; NaN without.

        In [0, 1], eq. 3 of arXiv 1706.04599. Nearly all voxels of a brain lie in the first bin, which makes it small.
        """
        if not self.n_voxels.sum():
            return math.nan
        gap = np.nan_to_num(np.abs(self.mean_probability - self.lesion_share))
        return float((self.n_voxels * gap).sum() / self.n_voxels.sum())


def calibrate(histogram: ScoreHistogram, *, n_bins: int = 10) -> Calibration:
    """Bin the voxels of a histogram; histograms of cases add up.

    Raises:
        ValueError: for fewer than one bin or more than levels.
    """
    if not 1 <= n_bins < N_LEVELS:
        raise ValueError(f"n_bins must lie in [1, {N_LEVELS}), got {n_bins}")
    levels = np.arange(N_LEVELS)
    which = np.maximum(-(-levels * n_bins // (N_LEVELS - 1)) - 1, 0)
    n, n_positive, sums = (
        np.bincount(which, counts, n_bins)
        for counts in (
            histogram.n_voxels,
            histogram.n_positive,
            histogram.n_voxels * (levels / (N_LEVELS - 1)),
        )
    )
    with np.errstate(invalid="ignore"):
        return Calibration(
            np.linspace(0, 1, n_bins + 1), n.astype(np.int64), sums / n, n_positive / n
        )


def expected_calibration_error(
    probability: ArrayLike, reference: ArrayLike, mask: ArrayLike | None = None, *, n_bins: int = 10
) -> float:
    """How far probabilities are from the share of lesion among voxels of such a probability (see `Calibration.error`).

    Args:
        probability: any shape, in [0, 1]; rounded to 1/65535.
        reference: 0/1 mask of the same shape.
        mask: voxels to judge (0/1), all by default; the brain, say.
        n_bins: bins of equal width.

    Returns:
        Error in [0, 1]; NaN without voxels.

    Raises:
        ValueError: as for `score_histogram`.
    """
    return calibrate(score_histogram(probability, reference, mask), n_bins=n_bins).error
