"""Temperature of a probability: one number that makes a network as sure as it is right."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit

from tversky_seg.metrics.masks import FloatArray, IntArray, Mask
from tversky_seg.metrics.score_histogram import N_LEVELS, ScoreHistogram, to_levels

LOWEST_LOGIT = -104.0
HIGHEST_LOGIT = 18.0
"""Logits of all float32 probabilities: from 1e-45 to 1, which stands for 1 - 2^-25."""

N_BINS = 65_536
SHARPEST = 1.0
"""A fit only softens: below 1 the highest 16-bit levels of a saved probability would merge."""
SMOOTHEST = 100.0


@dataclass(frozen=True, eq=False)
class LogitHistogram:
    """Numbers of voxels and of lesion voxels in bins of equal width by their logit.

    A network that says 0 or 1 has most voxels in the outermost of 65,536 levels of probability; by
    logits they stay apart, and the histograms of any number of cases add up to one of this size.
    """

    n_voxels: IntArray
    """(65536,) voxels of a probability above 0."""
    n_positive: IntArray
    """(65536,) those of the reference."""

    def __add__(self, other: LogitHistogram) -> LogitHistogram:
        """Add the voxels of another histogram."""
        return LogitHistogram(
            n_voxels=self.n_voxels + other.n_voxels, n_positive=self.n_positive + other.n_positive
        )

    def negative_log_likelihood(self, temperature: float = 1.0) -> float:
        """Compute the mean of -log of the probability given to the truth, at a temperature.

        In nats: the mean over voxels of log(1 + e^u) - y u with u = logit / temperature. NaN
        without voxels.
        """
        n_voxels = int(self.n_voxels.sum())
        if not n_voxels:
            return math.nan
        scaled = _logits() / temperature
        total = self.n_voxels @ np.logaddexp(0, scaled) - self.n_positive @ scaled
        return float(total / n_voxels)


def logit_histogram(
    probability: ArrayLike, reference: ArrayLike, mask: ArrayLike | None = None
) -> LogitHistogram:
    """Count voxels and lesion voxels by the logit of their probability.

    Args:
        probability: Probabilities of any shape, in [0, 1]. Voxels of exactly 0 are left out: they
            were not predicted, or stay 0 at any temperature.
        reference: 0/1 mask of the same shape.
        mask: Voxels to count (0/1), all by default.
    """
    values = np.asarray(probability)
    is_counted = values > 0
    if mask is not None:
        is_counted &= np.asarray(mask, dtype=bool)
    width = (HIGHEST_LOGIT - LOWEST_LOGIT) / N_BINS
    bins = ((_logit(values[is_counted]) - LOWEST_LOGIT) / width).astype(np.int64)
    bins = bins.clip(0, N_BINS - 1)
    is_lesion = np.asarray(reference, dtype=bool)[is_counted]
    return LogitHistogram(
        n_voxels=np.bincount(bins, minlength=N_BINS),
        n_positive=np.bincount(bins[is_lesion], minlength=N_BINS),
    )


def fit_temperature(histogram: LogitHistogram) -> float:
    """Fit the temperature that makes the truth most likely (arXiv 1706.04599, section 4.2).

    The negative log-likelihood is convex in 1 / temperature, so that its slope has one zero. Below
    1 it is not followed: at 0.5 the 180 highest of the 65,536 levels of a saved probability would
    become one, and with them PR-AUC and FROC would change.

    Args:
        histogram: Voxels of the validation cases.

    Returns:
        Temperature from 1 to 100; 1 if all voxels are lesion, or none is.
    """
    n_positive = int(histogram.n_positive.sum())
    if n_positive in (0, int(histogram.n_voxels.sum())):
        return 1.0
    logits = _logits()

    def slope(sharpness: float) -> float:
        """Differentiate the likelihood's negative logarithm by 1 / temperature."""
        expected = histogram.n_voxels * expit(logits * sharpness)
        return float(logits @ (expected - histogram.n_positive))

    # The slope rises: where it is still below 0 at the sharpest end, its zero lies beyond.
    if slope(1 / SHARPEST) < 0:
        return SHARPEST
    if slope(1 / SMOOTHEST) > 0:
        return SMOOTHEST
    return 1 / float(brentq(slope, 1 / SMOOTHEST, 1 / SHARPEST))


def calibrated(probability: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Divide the logits of probabilities by a temperature: sigmoid(logit(p) / temperature).

    A rising map: the order of voxels stays, and 0, 1/2. A probability of 1 counts as 1 - 2^-25, the
    largest below 1 that float32 tells from it, so that a network that says 1 can be doubted too.

    Args:
        probability: Probabilities of any shape, in [0, 1].
        temperature: Above 0: more than 1 draws probabilities to 1/2, less to 0 and 1.

    Returns:
        A new array; the same one at temperature 1.
    """
    if temperature == 1:
        return probability
    result = np.zeros_like(probability)
    # Most voxels of a volume lie outside the brain, where the probability is 0.
    is_predicted = probability > 0
    result[is_predicted] = expit(_logit(probability[is_predicted]) / np.float32(temperature))
    return result


def at_temperature(histogram: ScoreHistogram, temperature: float) -> ScoreHistogram:
    """Bring a histogram of saved probabilities to a temperature; 1 / T takes a calibrated one back.

    What 16 bits have rounded to 0 or 1 stays there.
    """
    probabilities = (np.arange(N_LEVELS) / (N_LEVELS - 1)).astype(np.float32)
    levels = to_levels(calibrated(probabilities, temperature))
    # The highest level stands for all that was rounded to 1, which nothing takes apart again.
    levels[-1] = N_LEVELS - 1
    n_voxels = np.bincount(levels, histogram.n_voxels, N_LEVELS)
    n_positive = np.bincount(levels, histogram.n_positive, N_LEVELS)
    return ScoreHistogram(n_voxels.astype(np.int64), n_positive.astype(np.int64))


def calibrated_threshold(threshold: float, temperature: float) -> float:
    """Return the threshold that makes the same mask of a calibrated probability.

    It lies halfway between two levels of a saved probability, as `choose_threshold` has it.

    Args:
        threshold: Threshold of the probability at temperature 1, in [0, 1].
        temperature: Above 0.
    """
    if temperature == 1 or threshold == 0:
        return threshold
    exact = _scaled(threshold, temperature)
    # Between two levels, so that rounding the probability cannot cross it.
    level = min(max(round(exact * (N_LEVELS - 1) + 0.5), 1), N_LEVELS - 1)
    return (level - 0.5) / (N_LEVELS - 1)


def uncalibrated_threshold(threshold: float, temperature: float) -> float:
    """Return the threshold at temperature 1 that makes the mask of this calibrated threshold."""
    if temperature == 1 or threshold == 0:
        return threshold
    return _scaled(threshold, 1 / temperature)


def _logits() -> FloatArray:
    """Return the logit in the middle of each bin."""
    width = (HIGHEST_LOGIT - LOWEST_LOGIT) / N_BINS
    first = LOWEST_LOGIT + width / 2
    return np.linspace(first, first + (N_BINS - 1) * width, N_BINS, dtype=np.float64)


def _logit(probability: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute log(p / (1 - p)) of probabilities above 0."""
    values = np.asarray(probability, dtype=np.float32)
    # 1 - p is exact near 1.
    rest = np.maximum(np.float32(1) - values, np.float32(2**-25))
    logits: NDArray[np.float32] = np.log(values) - np.log(rest)
    return logits


def _exact_logit(probability: float) -> float:
    return math.log(probability) - math.log(max(1 - probability, 2**-25))


def _scaled(probability: float, temperature: float) -> float:
    return float(expit(_exact_logit(probability) / temperature))


def near_lesions(reference: Mask, spacing_mm: ArrayLike, *, margin_mm: float = 3.0) -> Mask:
    """Mark the voxels of the reference and those at most some mm away along each axis.

    Args:
        reference: (X, Y, Z).
        spacing_mm: Three voxel sizes.
        margin_mm: Half the side of the box around each lesion voxel.
    """
    near: Mask = np.zeros(reference.shape, dtype=bool)
    # The voxel size has the error of float32.
    margin = (margin_mm / np.asarray(spacing_mm, dtype=np.float64) + 1e-6).astype(int)
    box = _box_around(reference, margin)
    wide = np.asarray(reference, dtype=bool)[box]
    for axis, n_voxels in enumerate(margin.tolist()):
        wide = _widened(wide, axis, n_voxels)
    near[box] = wide
    return near


def _box_around(mask: Mask, margin: IntArray) -> tuple[slice, ...]:
    """Cut out the voxels of a mask with a margin; an empty box where it has none."""
    box = []
    for axis, n_voxels in enumerate(margin.tolist()):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        planes = np.flatnonzero(np.any(mask, axis=others))
        if not len(planes):
            return (slice(0, 0),) * mask.ndim
        box.append(slice(max(int(planes[0]) - n_voxels, 0), int(planes[-1]) + n_voxels + 1))
    return tuple(box)


def _widened(mask: Mask, axis: int, n_voxels: int) -> Mask:
    """Spread a mask by a number of voxels along one axis, both ways."""
    source = np.moveaxis(mask, axis, 0)
    wide = source.copy()
    for shift in range(1, min(n_voxels, len(source) - 1) + 1):
        wide[shift:] |= source[:-shift]
        wide[:-shift] |= source[shift:]
    return np.moveaxis(wide, 0, axis)
