"""When a lesion counts as found: the rule, those of published evaluations, and what they make of overlaps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tversky_seg.metrics.lesions import CONNECTIVITIES, LesionCounts, LesionMatch, Lesions


@dataclass(frozen=True)
class LesionRule:
    """When voxels are one lesion, and when a lesion counts as found.

    Attributes:
        connectivity: 6, 18 or 26 neighbours make one lesion.
        min_overlap: A reference lesion is detected when more than this share of it is covered, in [0, 1).
        min_volume_mm3: Smaller lesions, of the reference and of the prediction, are not counted.
        strictly_larger: Lesions of just `min_volume_mm3` are not counted either.
        max_outside: A lesion is not detected where a predicted lesion that covers it lies outside of all reference
            lesions with more than this share, in [0, 1]; 1: never.
        enough_overlap: Predicted lesions are held against `max_outside` from the largest overlap on, until they make
            up this share of the covered voxels, in (0, 1].
        both_ways: Whether a predicted lesion is matched by the same test with the masks exchanged; else by any overlap.
        source: Where the rule comes from.
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
ISBI_2015 = LesionRule(
    source="ISBI 2015 challenge: LTPR and LFPR by any overlap (Carass et al. 2017)"
)
MSSEG_2016 = LesionRule(
    connectivity=6,
    min_overlap=0.1,
    min_volume_mm3=3.0,
    strictly_larger=True,
    max_outside=0.7,
    enough_overlap=0.65,
    both_ways=True,
    source="MSSEG 2016 challenge: animaSegPerfAnalyzer (Commowick et al. 2018)",
)
WMH_2017 = LesionRule(
    source="WMH 2017 challenge: lesion recall and F1 by any overlap (Kuijf et al. 2019)"
)
SHIROKIKH_2020 = LesionRule(
    source="Shirokikh et al. 2020 (arXiv 2007.10033): FROC, average recall, object Dice"
)


def detected_lesions(match: LesionMatch, rule: LesionRule) -> NDArray[np.bool_]:
    """(n_reference,) which reference lesions were found."""
    return _found(match.referred, match.predicted, match.pairs[:, [1, 0, 2]], rule)


def matched_lesions(match: LesionMatch, rule: LesionRule) -> NDArray[np.bool_]:
    """(n_predicted,) which predicted lesions are true ones."""
    if rule.both_ways:
        return _found(match.predicted, match.referred, match.pairs, rule)
    return ~match.false


def count_by_rule(match: LesionMatch, rule: LesionRule) -> LesionCounts:
    """How many lesions were found, missed and invented; empty masks count 0 lesions."""
    return LesionCounts(
        n_reference=len(match.referred),
        n_detected=int(detected_lesions(match, rule).sum()),
        n_predicted=len(match.predicted),
        n_unmatched=int((~matched_lesions(match, rule)).sum()),
    )


def _found(
    lesions: Lesions, others: Lesions, pairs: NDArray[np.int64], rule: LesionRule
) -> NDArray[np.bool_]:
    """Which lesions are covered enough by others that do not lie outside too much.

    Args:
        lesions: those tested.
        others: those of the other mask.
        pairs: (m, 3) row of `lesions`, row of `others`, voxels in common.
        rule: what is enough.
    """
    found: NDArray[np.bool_] = lesions.overlap > rule.min_overlap
    if rule.max_outside == 1:
        return found
    lesion, other, n_shared = pairs[np.lexsort((pairs[:, 1], -pairs[:, 2], pairs[:, 0]))].T
    total = np.bincount(lesion, n_shared, len(lesions))
    before = np.cumsum(n_shared) - n_shared  # shared by pairs that come earlier, of all lesions ...
    before -= before[np.searchsorted(lesion, lesion)]  # ... and of this one
    looked_at = before < rule.enough_overlap * total[lesion]
    outside = 1 - others.overlap[other] > rule.max_outside
    found[lesion[looked_at & outside]] = False
    return found
