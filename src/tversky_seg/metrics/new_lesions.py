"""New lesions between two sessions of one subject, and how many of them a prediction detects."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from tversky_seg.metrics.components import label_lesions
from tversky_seg.metrics.lesion_rule import ANY_OVERLAP, LesionRule, count_lesions, match_by_rule
from tversky_seg.metrics.lesions import LesionCounts
from tversky_seg.metrics.masks import Mask, as_masks


def new_lesions(
    baseline: ArrayLike, follow_up: ArrayLike, *, rule: LesionRule = ANY_OVERLAP
) -> Mask:
    """Find the lesions of the follow-up that share no voxel with any lesion of the baseline.

    A lesion that grew is not new.

    Args:
        baseline: 0/1 mask (X, Y, Z) of the earlier session.
        follow_up: 0/1 mask of the later session, registered to the same grid.
        rule: Rule that gives the connectivity; its other settings do not matter here.

    Returns:
        Mask of the new lesions; empty without lesions in the follow-up.

    Raises:
        ValueError: Shapes that differ, or other values than 0 and 1.
    """
    before, after = as_masks(baseline, follow_up)
    # With lesions 1 and 2, of which 2 overlaps the baseline, is_new is [False, True, False].
    numbers, n_lesions = label_lesions(after, connectivity=rule.connectivity)
    is_new = np.ones(n_lesions + 1, bool)
    is_new[np.unique(numbers[before])] = False
    is_new[0] = False  # the background
    mask: Mask = is_new[numbers]
    return mask


def new_lesion_counts(
    predictions: tuple[ArrayLike, ArrayLike],
    references: tuple[ArrayLike, ArrayLike],
    *,
    spacing_mm: ArrayLike,
    rule: LesionRule = ANY_OVERLAP,
) -> LesionCounts:
    """Count the new lesions that were detected, and the predicted new lesions that match none.

    A new lesion of the reference is detected only if it is new in the prediction too.

    Args:
        predictions: 0/1 masks (X, Y, Z) of the earlier and the later session.
        references: 0/1 masks of both sessions, likewise.
        spacing_mm: Size of a voxel per axis, in mm.
        rule: Rule of what a lesion is and when it counts as detected.

    Returns:
        The counts: `.tpr` is the new-lesion TPR and `.fpr` the new-lesion FPR (ISBI 2015), NaN
        without new lesions.

    Raises:
        ValueError: Shapes that differ, or other values than 0 and 1.
    """
    predicted = new_lesions(*predictions, rule=rule)
    true = new_lesions(*references, rule=rule)
    match = match_by_rule(predicted, true, spacing_mm=spacing_mm, rule=rule)
    return count_lesions(match, rule)
