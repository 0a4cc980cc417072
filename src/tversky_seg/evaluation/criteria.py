"""What an evaluation measures by: the lesion rule, the surface tolerance, the raters' consensus."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tversky_seg.data.errors import DataError
from tversky_seg.metrics.by_lesion import DEFAULT_SETTINGS, LesionSettings
from tversky_seg.metrics.case_metrics import TOLERANCE_MM
from tversky_seg.metrics.lesion_rule import ANY_OVERLAP, LesionRule

CONSENSUS = ("majority", "staple")


@dataclass(frozen=True)
class Criteria:
    """Settings that every case of an evaluation is measured by.

    Attributes:
        rule: Rule of what a lesion is and when it counts as detected.
        tolerance_mm: Distance up to which surfaces agree, for the surface Dice.
        by_lesion: Settings of the metrics by lesion, which raters do not get.
        consensus: "majority" or "staple": how the raters' consensus is made, where the label is
            none.

    Raises:
        DataError: The consensus is unknown, or the tolerance negative or not finite.
    """

    rule: LesionRule = ANY_OVERLAP
    tolerance_mm: float = TOLERANCE_MM
    by_lesion: LesionSettings = DEFAULT_SETTINGS
    consensus: str = "majority"

    def __post_init__(self) -> None:
        if self.consensus not in CONSENSUS:
            expected = f"expected {' or '.join(CONSENSUS)}"
            raise DataError("evaluation.consensus", repr(self.consensus), expected)
        # In this order NaN fails as well.
        if not 0 <= self.tolerance_mm < math.inf:
            raise DataError("tolerance_mm", f"{self.tolerance_mm}", "expected 0 or more")
