"""The rule by which a lesion counts as detected, and the counts that it gives.

Rules of published evaluations are in configs/evaluation; docs/metrics.md compares them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tversky_seg.metrics.components import CONNECTIVITIES
from tversky_seg.metrics.lesions import LesionCounts, LesionMatch, Lesions, match_lesions
from tversky_seg.metrics.masks import BoolArray, IntArray


@dataclass(frozen=True)
class LesionRule:
    """When voxels are one lesion, and when a lesion counts as detected.

    Attributes:
        connectivity: 6, 18 or 26 neighbours make one lesion.
        min_overlap: A reference lesion is detected when more than this share of it is covered,
            in [0, 1).
        min_volume_mm3: Smaller lesions, of the reference and of the prediction, are not counted.
        strictly_larger: Lesions of exactly `min_volume_mm3` are not counted either.
        max_outside: A lesion is not detected if a predicted lesion that covers it has more than
            this share of its voxels outside all reference lesions, in [0, 1]; 1: never.
        enough_overlap: Predicted lesions are tested against `max_outside` from the largest overlap
            on, until they make up this share of the covered voxels, in (0, 1].
        both_ways: Whether a predicted lesion is matched by the same test with the masks exchanged;
            otherwise any overlap matches it.
        source: Publication that states the rule.
    """

    connectivity: int = 26
    min_overlap: float = 0.0
    min_volume_mm3: float = 0.0
    strictly_larger: bool = False
    max_outside: float = 1.0
    enough_overlap: float = 1.0
    both_ways: bool = False
    source: str = ""

    def __post_init__(self) -> None:
        if self.connectivity not in CONNECTIVITIES:
            raise ValueError(f"connectivity must be one of 6, 18, 26, got {self.connectivity}")
        if not 0 <= self.min_overlap < 1:
            raise ValueError(f"min_overlap must lie in [0, 1), got {self.min_overlap}")
        if not 0 <= self.min_volume_mm3 < math.inf:
            raise ValueError(f"min_volume_mm3 must be >= 0 and finite, got {self.min_volume_mm3}")
        if not 0 <= self.max_outside <= 1:
            raise ValueError(f"max_outside must lie in [0, 1], got {self.max_outside}")
        if not 0 < self.enough_overlap <= 1:
            raise ValueError(f"enough_overlap must lie in (0, 1], got {self.enough_overlap}")


ANY_OVERLAP = LesionRule()


def lesion_counts(
    prediction: ArrayLike,
    reference: ArrayLike,
    *,
    spacing_mm: ArrayLike,
    connectivity: int = 26,
    min_overlap: float = 0.0,
    min_volume_mm3: float = 0.0,
) -> LesionCounts:
    """Count the reference lesions that were detected and the predicted lesions that match none.

    Args:
        prediction: 0/1 mask (X, Y, Z).
        reference: 0/1 mask of the same shape.
        spacing_mm: Size of a voxel per axis, in mm.
        connectivity: 6, 18 or 26 neighbours make one lesion.
        min_overlap: A reference lesion is detected when more than this share of it is covered, in
            [0, 1). A predicted lesion is unmatched when none of its voxels overlaps a reference
            lesion, whatever `min_overlap` is.
        min_volume_mm3: Smaller lesions are dropped from both masks before anything is compared.

    Returns:
        The counts, with rates `.tpr`, `.fpr`, `.f1`. Empty masks count 0 lesions.

    Raises:
        ValueError: Shapes that differ, other values than 0 and 1, or a setting out of range.
    """
    rule = LesionRule(
        connectivity=connectivity, min_overlap=min_overlap, min_volume_mm3=min_volume_mm3
    )
    match = match_by_rule(prediction, reference, spacing_mm=spacing_mm, rule=rule)
    return count_lesions(match, rule)


def match_by_rule(
    prediction: ArrayLike,
    reference: ArrayLike,
    *,
    spacing_mm: ArrayLike,
    rule: LesionRule,
    scores: ArrayLike | None = None,
) -> LesionMatch:
    """Match the lesions that the rule counts; see `match_lesions`."""
    return match_lesions(
        prediction,
        reference,
        spacing_mm=spacing_mm,
        connectivity=rule.connectivity,
        min_volume_mm3=rule.min_volume_mm3,
        strictly_larger=rule.strictly_larger,
        scores=scores,
    )


def count_lesions(match: LesionMatch, rule: LesionRule) -> LesionCounts:
    """Count detected reference lesions and unmatched predicted ones; empty masks count 0."""
    n_matched = int(np.count_nonzero(matched_lesions(match, rule)))
    return LesionCounts(
        n_reference=len(match.reference),
        n_detected=int(np.count_nonzero(detected_lesions(match, rule))),
        n_predicted=len(match.predicted),
        n_unmatched=len(match.predicted) - n_matched,
    )


def detected_lesions(match: LesionMatch, rule: LesionRule) -> BoolArray:
    """Tell which reference lesions were detected, (n_reference,)."""
    pairs = match.pairs[:, [1, 0, 2]]
    return _pass_test(match.reference, match.predicted, pairs, rule)


def matched_lesions(match: LesionMatch, rule: LesionRule) -> BoolArray:
    """Tell which predicted lesions are true positives, (n_predicted,)."""
    if rule.both_ways:
        return _pass_test(match.predicted, match.reference, match.pairs, rule)
    return ~match.is_false_positive


def _pass_test(lesions: Lesions, others: Lesions, pairs: IntArray, rule: LesionRule) -> BoolArray:
    """Tell which lesions are covered enough by others that do not lie outside too much.

    Args:
        lesions: Lesions to test.
        others: Lesions of the other mask.
        pairs: (m, 3) row of `lesions`, row of `others`, voxels in common.
        rule: Thresholds of the test.

    Returns:
        (n,) bool, a value for each of `lesions`.
    """
    passes: BoolArray = lesions.overlap > rule.min_overlap
    if rule.max_outside == 1:
        return passes
    # Pairs go lesion by lesion, the largest overlap first. For two lesions, three others that
    # overlap the first and one that overlaps the second, with enough_overlap = 0.65:
    #
    #   lesion     0  0  0  1
    #   n_shared   6  3  1  4      voxels in common
    #   n_before   0  6  9  0      voxels in common of the earlier pairs of the same lesion
    #   n_total   10 10 10  4      voxels in common of all its pairs
    #   is_tested  y  y  n  y      n_before < 0.65 * n_total
    lesion, other, n_shared = pairs.T
    order = np.lexsort((other, -n_shared, lesion))
    lesion, other, n_shared = pairs[order].T
    n_total = np.bincount(lesion, n_shared, len(lesions))[lesion]
    n_before = np.cumsum(n_shared) - n_shared  # 0 6 9 10: over the lesions before it, too
    first_pair = np.searchsorted(lesion, lesion)  # 0 0 0 3
    n_before = n_before - n_before[first_pair]
    is_tested = n_before < rule.enough_overlap * n_total
    is_outside = 1 - others.overlap[other] > rule.max_outside
    passes[lesion[is_tested & is_outside]] = False
    return passes
