"""Error retention: how fast errors vanish if what is most doubtful is put right.

The x axis is the share that is retained as predicted, the most certain first; the rest counts as
right. A measure that doubts where it errs keeps the curve near 1 up to the end. Its area is
that of arXiv 2206.15407 (Shifts 2.0) and 2311.08931.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from tversky_seg.metrics.components import find_components
from tversky_seg.metrics.masks import FloatArray, IntArray, Mask
from tversky_seg.metrics.score_histogram import N_LEVELS


@dataclass(frozen=True, eq=False)
class RetentionCurve:
    """Quality by the share retained, from all put right (0) to all as predicted (1)."""

    retained: FloatArray
    """(n + 1,) rising from 0 to 1."""
    quality: FloatArray
    """(n + 1,) in [0, 1]; 1 where nothing is retained."""

    @property
    def area(self) -> float:
        """Area under the curve, by straight lines between its points; NaN where it is undefined."""
        if len(self.retained) < 2:
            return math.nan
        return float(np.trapezoid(self.quality, self.retained))


UNDEFINED = RetentionCurve(np.zeros(0), np.zeros(0))
"""The curve of nothing."""


@dataclass(frozen=True, eq=False)
class LesionDoubts:
    """Predicted lesions of a case, or of several, and how doubtful they are."""

    doubt: FloatArray
    """(n,) mean entropy of the voxels of each lesion, in bits."""
    is_false: Mask
    """(n,) whether it has no voxel of the reference."""
    n_voxels: IntArray
    """(n,)."""
    centre: FloatArray
    """(n, 3) mean of its voxels, in voxels from the first of the mask."""


def voxel_retention(
    levels: NDArray[np.uint16], prediction: Mask, reference: Mask
) -> RetentionCurve:
    """Compute the Dice where the voxels of highest entropy are put right.

    With P reference voxels, and FP and FN counted among the voxels retained,

        Dice = 2 (P - FN) / (2 P - FN + FP)

    Voxels of probability 0 outside the reference are left out: they are right, and as many as the
    field of view is large. Voxels of equal entropy are put right together.

    Args:
        levels: (X, Y, Z) probability as a level 0 … 65535; see `score_histogram.to_levels`.
        prediction: (X, Y, Z).
        reference: (X, Y, Z).

    Returns:
        The curve; without points if the reference is empty.
    """
    n_positive = int(reference.sum())
    if not n_positive:
        return UNDEFINED
    is_counted = (levels > 0) | reference | prediction
    # Entropy falls on both sides of 1/2, so the distance to the nearer end has its order.
    doubt = np.minimum(levels[is_counted], N_LEVELS - 1 - levels[is_counted])
    predicted = prediction[is_counted]
    true = reference[is_counted]
    n_doubts = N_LEVELS // 2
    n_voxels = np.bincount(doubt, minlength=n_doubts)
    is_used = n_voxels > 0
    # Small doubts come first, so a sum up to one is over what is retained at it.
    fp = np.bincount(doubt[predicted & ~true], minlength=n_doubts)[is_used].cumsum()
    fn = np.bincount(doubt[~predicted & true], minlength=n_doubts)[is_used].cumsum()
    retained = n_voxels[is_used].cumsum() / n_voxels.sum()
    dice = 2 * (n_positive - fn) / (2 * n_positive - fn + fp)
    return _from_the_start(retained, dice)


def lesion_doubts(
    levels: NDArray[np.uint16], prediction: Mask, reference: Mask, *, connectivity: int = 26
) -> LesionDoubts:
    """List the predicted lesions of a case with their mean entropy and whether they are false.

    Args:
        levels: (X, Y, Z) probability as a level 0 … 65535.
        prediction: (X, Y, Z).
        reference: (X, Y, Z).
        connectivity: 6, 18 or 26 neighbours make one lesion.
    """
    components = find_components(prediction, connectivity=connectivity, order="C")
    n_lesions = len(components)
    p = levels.ravel()[components.positions] / (N_LEVELS - 1)
    # entr is in nats.
    bits = (entr(p) + entr(1 - p)) / math.log(2)
    doubt = np.bincount(components.rows, bits, n_lesions) / np.maximum(components.n_voxels, 1)
    is_true = reference.ravel()[components.positions]
    n_true = np.bincount(components.rows, is_true, n_lesions)
    return LesionDoubts(doubt, n_true == 0, components.n_voxels, components.centres())


def lesion_retention(doubt: FloatArray, is_false: Mask) -> RetentionCurve:
    """Compute the share of predicted lesions that are right where the most doubtful are put right.

    1 - (false lesions among those retained) / n. Missed lesions have no doubt of their own, and do
    not count here. Lesions of equal doubt are put right together.

    Args:
        doubt: (n,) of each predicted lesion, of one case or of several.
        is_false: (n,).

    Returns:
        The curve; without points if nothing is predicted.
    """
    return _mean_retention(doubt, np.where(is_false, 0.0, 1.0))


def case_retention(doubt: FloatArray, dice: FloatArray) -> RetentionCurve:
    """Compute the mean Dice over cases where the most doubtful cases are put right.

    Args:
        doubt: (n,) of each case; NaN, where nothing is predicted, counts as the highest.
        dice: (n,) of each case; cases of NaN are left out.

    Returns:
        The curve; without points if no case has a Dice.
    """
    is_defined = ~np.isnan(dice)
    return _mean_retention(np.where(np.isnan(doubt), np.inf, doubt)[is_defined], dice[is_defined])


def _mean_retention(doubt: FloatArray, quality: FloatArray) -> RetentionCurve:
    """Compute the mean quality over units, of which those put right have 1."""
    n = len(doubt)
    if not n:
        return UNDEFINED
    # Equal doubts are one group, whose order would be chance.
    values, group = np.unique(doubt, return_inverse=True)
    n_retained = np.bincount(group, minlength=len(values)).cumsum()
    shortfall = np.bincount(group, 1 - quality, len(values)).cumsum()
    return _from_the_start(n_retained / n, 1 - shortfall / n)


def _from_the_start(retained: FloatArray, quality: FloatArray) -> RetentionCurve:
    """Add the point where everything is put right."""
    return RetentionCurve(np.append(0.0, retained), np.append(1.0, quality))
