"""Calibration of probabilities: of voxels at 0.8, four in five should be lesion."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tversky_seg.metrics.masks import FloatArray, IntArray
from tversky_seg.metrics.score_histogram import N_LEVELS, ScoreHistogram, score_histogram


@dataclass(frozen=True, eq=False)
class Calibration:
    """Voxels in bins by their probability.

    Bin k holds edges[k] < probability <= edges[k + 1]; probability 0 lies in the first bin.
    """

    edges: FloatArray
    """(n + 1,) from 0 to 1."""
    n_voxels: IntArray
    """(n,) voxels in each bin."""
    mean_probability: FloatArray
    """(n,) mean over the voxels of each bin; NaN in an empty bin."""
    lesion_share: FloatArray
    """(n,) share of the voxels of each bin that are lesion; NaN in an empty bin."""

    @property
    def error(self) -> float:
        """Expected calibration error, in [0, 1] (arXiv 1706.04599, eq. 3); NaN without voxels.

        The mean, over voxels, of |mean probability - lesion share| of their bin. Nearly all voxels
        of a brain lie in the first bin, which makes the error small.
        """
        if not self.n_voxels.sum():
            return math.nan
        # The gap of an empty bin is NaN, and counts 0 times.
        gap = np.nan_to_num(np.abs(self.mean_probability - self.lesion_share))
        total = (self.n_voxels * gap).sum()
        return float(total / self.n_voxels.sum())


def calibrate(histogram: ScoreHistogram, *, n_bins: int = 10) -> Calibration:
    """Bin the voxels of a histogram of one case or of several.

    Args:
        histogram: Histogram of the probabilities.
        n_bins: Number of bins of equal width.

    Raises:
        ValueError: Fewer than one bin, or as many as there are levels.
    """
    if not 1 <= n_bins < N_LEVELS:
        raise ValueError(f"n_bins must lie in [1, {N_LEVELS}), got {n_bins}")
    # Bins are closed above: of ten, level 6553 (0.09999) belongs to bin 0 and 6554 to bin 1. So the
    # quotient is rounded up, which is -(-a // b), and probability 0 is moved into bin 0.
    levels = np.arange(N_LEVELS)
    rounded_up = -(-levels * n_bins // (N_LEVELS - 1))
    bins = np.maximum(rounded_up - 1, 0)
    probabilities = levels / (N_LEVELS - 1)
    n_voxels = np.bincount(bins, histogram.n_voxels, n_bins)
    n_positive = np.bincount(bins, histogram.n_positive, n_bins)
    total_probability = np.bincount(bins, histogram.n_voxels * probabilities, n_bins)
    with np.errstate(invalid="ignore"):
        mean_probability = total_probability / n_voxels
        lesion_share = n_positive / n_voxels
    return Calibration(
        edges=np.linspace(0, 1, n_bins + 1),
        n_voxels=n_voxels.astype(np.int64),
        mean_probability=mean_probability,
        lesion_share=lesion_share,
    )


def calibrate_adaptively(histogram: ScoreHistogram, *, n_bins: int = 15) -> Calibration:
    """Bin the voxels of a histogram in bins of equal numbers of voxels (arXiv 1904.01685).

    The bins follow the voxels: where most have one of few probabilities, bins of equal width would
    be empty but for two. Voxels of equal probability share a bin, that of the middle one of them by
    rank, so that there may be fewer bins.

    Args:
        histogram: Histogram of the probabilities.
        n_bins: Largest number of bins.

    Returns:
        Bins that hold a voxel each at least; none without voxels.

    Raises:
        ValueError: Fewer than one bin.
    """
    if n_bins < 1:
        raise ValueError(f"n_bins must be >= 1, got {n_bins}")
    levels = np.flatnonzero(histogram.n_voxels)
    n_voxels = histogram.n_voxels[levels]
    probability = levels / (N_LEVELS - 1)
    # Twice the rank of the middle voxel of each level, to stay with integers.
    middle = 2 * n_voxels.cumsum() - n_voxels
    wanted = middle * n_bins // max(2 * int(n_voxels.sum()), 1)
    # Numbered anew without the empty ones: bins 0, 0, 3, 7 become 0, 0, 1, 2.
    numbers, bins = np.unique(wanted, return_inverse=True)
    n_in_bin = np.bincount(bins, n_voxels, len(numbers))
    ends = np.zeros(len(numbers))
    np.maximum.at(ends, bins, probability)
    return Calibration(
        edges=np.append(0.0, ends),
        n_voxels=n_in_bin.astype(np.int64),
        mean_probability=np.bincount(bins, n_voxels * probability, len(numbers)) / n_in_bin,
        lesion_share=np.bincount(bins, histogram.n_positive[levels], len(numbers)) / n_in_bin,
    )


def expected_calibration_error(
    probability: ArrayLike, reference: ArrayLike, mask: ArrayLike | None = None, *, n_bins: int = 10
) -> float:
    """Measure how far probabilities are from the share of lesion among their voxels.

    See `Calibration.error`.

    Args:
        probability: Probabilities of any shape, in [0, 1]; rounded to 1/65535.
        reference: 0/1 mask of the same shape.
        mask: Voxels to evaluate (0/1), all by default; the brain, for example.
        n_bins: Number of bins of equal width.

    Returns:
        Error in [0, 1]; NaN without voxels.

    Raises:
        ValueError: As for `score_histogram`.
    """
    return calibrate(score_histogram(probability, reference, mask), n_bins=n_bins).error
