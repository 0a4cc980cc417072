"""New lesions between two sessions of one subject, and how many of them a prediction finds."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from tversky_seg.metrics.lesion_rule import ANY_OVERLAP, LesionRule, count_by_rule
from tversky_seg.metrics.lesions import LesionCounts, label_lesions, overlap_lesions
from tversky_seg.metrics.masks import Mask, as_masks


def new_lesions(
    baseline: ArrayLike,
    follow_up: ArrayLike,
    *,
    spacing_mm: ArrayLike,
    rule: LesionRule = ANY_OVERLAP,
) -> Mask:
    """The lesions of the follow-up that share no voxel with any lesion of the baseline; grown ones are not new.

    Args:
        baseline: 0/1 mask (X, Y, Z) of the earlier session.
        follow_up: 0/1 mask of the later one, on the same grid and registered.
        spacing_mm: size of a voxel per axis, in mm.
        rule: its connectivity; the rest does not matter here.

    Returns:
        Mask of the new lesions.

    Raises:
        ValueError: for shapes that differ, or other values than 0 and 1.
    """
    before, after = as_masks(baseline, follow_up)
    components, n = label_lesions(after, connectivity=rule.connectivity)
    is_new = np.ones(n + 1, bool)
    is_new[np.unique(components[before])] = False
    is_new[0] = False
    found: Mask = is_new[components]
    return found


def new_lesion_counts(
    predictions: tuple[ArrayLike, ArrayLike],
    references: tuple[ArrayLike, ArrayLike],
    *,
    spacing_mm: ArrayLike,
    rule: LesionRule = ANY_OVERLAP,
) -> LesionCounts:
    """Count new lesions of the reference that are new in the prediction too, and predicted new ones that match none.

    Args:
        predictions: masks (X, Y, Z) of the earlier and the later session.
        references: likewise.
        spacing_mm: size of a voxel per axis, in mm.
        rule: what a lesion is and when it counts as found.

    Returns:
        The counts: `.tpr` is the new-lesion TPR, `.fpr` the new-lesion FPR (ISBI 2015), NaN without new lesions.

    Raises:
        ValueError: for shapes that differ, or other values than 0 and 1.
    """
    predicted, referred = (
        new_lesions(*pair, spacing_mm=spacing_mm, rule=rule) for pair in (predictions, references)
    )
    match = overlap_lesions(
        predicted,
        referred,
        spacing_mm=spacing_mm,
        connectivity=rule.connectivity,
        min_volume_mm3=rule.min_volume_mm3,
        strictly_larger=rule.strictly_larger,
    )
    return count_by_rule(match, rule)
