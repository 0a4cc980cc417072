"""The volume from which lesions are detected reliably, and its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from tversky_seg.metrics.masks import BoolArray, FloatArray, IntArray


class DetectionLimit(NamedTuple):
    """Volume from which recall reaches 0.8, over all lesions of a cohort."""

    volume_mm3: float
    """NaN if it is never reached, or without lesions."""
    low_mm3: float
    """Lower end of the 95 % interval; NaN for fewer than two subjects with lesions."""
    high_mm3: float
    """Upper end; infinite if recall does not reach 0.8 in 2.5 % of the resamplings or more."""
    share_reached: float
    """Share of the resamplings in which recall reaches 0.8."""


def recall80_volume(volume_mm3: ArrayLike, detected: ArrayLike) -> float:
    """Find the lesion volume from which recall reaches 0.8.

    It is the smallest volume v of a lesion such that, of the lesions from v up to any larger
    volume, at least 80 % are detected. Among lesions of 2, 3, 5 and 9 mm3 of which that of 3 mm3 is
    missed it is 5 mm3: from 2 mm3 on, one of the first two lesions is missed. This is where recall
    as a rising function of volume (isotonic regression, Barlow et al. 1972) first is 0.8.

    Args:
        volume_mm3: (n,) volumes of the reference lesions.
        detected: (n,) whether each was detected.

    Returns:
        The volume; NaN without lesions, or where it is not reached.
    """
    volumes, group = _group_equal(np.asarray(volume_mm3, np.float64))
    excess = np.bincount(group, _excess(np.asarray(detected, bool)), len(volumes))
    n_lesions = np.bincount(group, minlength=len(volumes))
    return _lowest_volume(volumes, excess, n_lesions)


def bootstrap_recall80(
    volume_mm3: Sequence[FloatArray],
    detected: Sequence[BoolArray],
    subjects: Sequence[str],
    *,
    n_bootstrap: int,
    rng: np.random.Generator,
) -> DetectionLimit:
    """Find the volume of `recall80_volume` over all cases, and its 95 % interval.

    Whole subjects are drawn with replacement, since the lesions of one subject are alike. A draw in
    which recall does not reach 0.8 counts as an infinite volume.

    Args:
        volume_mm3: For each case, the (n,) volumes of its reference lesions.
        detected: For each case, whether each of them was detected.
        subjects: For each case, its subject.
        n_bootstrap: Resamplings of the subjects.
        rng: Generator of the resamplings.
    """
    # The empty array first: a cohort may have no case.
    all_volumes = np.concatenate([np.zeros(0), *volume_mm3])
    all_detected = np.concatenate([np.zeros(0, bool), *detected])
    limit = recall80_volume(all_volumes, all_detected)

    subject_of_case = np.unique(subjects, return_inverse=True)[1]
    n_of_case = [len(volumes) for volumes in volume_mm3]
    subject = np.repeat(subject_of_case, n_of_case)
    # As elsewhere in metrics.json, an interval needs two subjects that define the metric.
    if len(np.unique(subject)) < 2:
        return DetectionLimit(limit, math.nan, math.nan, math.nan)

    volumes, group = _group_equal(all_volumes)
    n_subjects = int(subject_of_case.max()) + 1
    shape = (len(volumes), n_subjects)
    # (volumes, subjects): what each subject adds at each volume.
    excess = sparse.coo_array((_excess(all_detected), (group, subject)), shape=shape).tocsr()
    n_lesions = sparse.coo_array((np.ones(len(group)), (group, subject)), shape=shape).tocsr()
    draws = np.full(n_bootstrap, math.inf)
    for k in range(n_bootstrap):
        drawn = rng.integers(n_subjects, size=n_subjects)
        times = np.bincount(drawn, minlength=n_subjects)
        lowest = _lowest_volume(volumes, excess @ times, n_lesions @ times)
        if not math.isnan(lowest):
            draws[k] = lowest
    # Draws themselves, not values between them: nothing lies halfway to infinity.
    low, high = np.quantile(draws, (0.025, 0.975), method="inverted_cdf").tolist()
    return DetectionLimit(limit, low, high, float(np.isfinite(draws).mean()))


def _group_equal(volume_mm3: FloatArray) -> tuple[FloatArray, IntArray]:
    """List the distinct volumes by rising size, and the place of each lesion among them."""
    # Spacing comes from float32 affines: 2.9999999 and 3 mm3 are one volume.
    rounded = np.array([float(f"{volume:.6g}") for volume in volume_mm3], np.float64)
    volumes, group = np.unique(rounded, return_inverse=True)
    return volumes, group.astype(np.int64)


def _excess(detected: BoolArray) -> FloatArray:
    """Give 1 for a detected lesion and -4 for a missed one: the sum is >= 0 from 80 % on."""
    return np.where(detected, 1.0, -4.0)


def _lowest_volume(volumes: FloatArray, excess: NDArray[Any], n_lesions: NDArray[Any]) -> float:
    """Find the first volume from which no sum of `excess` up to a larger volume is negative."""
    # before[k] sums all smaller volumes; from k up to any end, the sum is >= 0 when no later value
    # falls below before[k].
    before = np.append(0.0, np.cumsum(excess))
    lowest_after = np.minimum.accumulate(before[::-1])[::-1]
    is_reached = (before[:-1] <= lowest_after[1:]) & (n_lesions > 0)
    if not is_reached.any():
        return math.nan
    return float(volumes[np.argmax(is_reached)])
