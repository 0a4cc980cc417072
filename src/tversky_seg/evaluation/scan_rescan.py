"""Scan and rescan: the predictions of two scans of the same patient, compared with each other.

No label is needed. Pairs come from the manifest's column `repeat_of`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import Volume, read_grid
from tversky_seg.evaluation.saved_predictions import Predictions, check_grid
from tversky_seg.metrics.averages import mean_of_defined
from tversky_seg.metrics.lesion_rule import (
    LesionRule,
    detected_lesions,
    match_by_rule,
    matched_lesions,
)
from tversky_seg.metrics.overlap import overlap_counts
from tversky_seg.metrics.repeatability import repeatability

logger = logging.getLogger("tversky_seg")

REPEAT_COLUMNS = (
    "class",
    "subject_id",
    "first_case",
    "repeat_case",
    "first_volume_mm3",
    "repeat_volume_mm3",
    "difference_mm3",
    "cv",
    "n_first_lesions",
    "n_repeat_lesions",
    "matched_share",
    "dice",
)
"""Columns of repeatability.csv."""


@dataclass(frozen=True)
class RepeatPair:
    """One class of a scan and its repeat."""

    subject_id: str
    first_case: str
    repeat_case: str
    first_volume_mm3: float
    repeat_volume_mm3: float
    n_first_lesions: int | None
    """None where the two predictions lie on different grids."""
    n_repeat_lesions: int | None
    matched_share: float
    """Share of all lesions of both that the other scan shows, too; NaN without a lesion, or on
    different grids."""
    dice: float
    """Dice of the two masks; NaN where both are empty, or on different grids."""

    @property
    def difference_mm3(self) -> float:
        """Volume of the repeat minus that of the first scan."""
        return self.repeat_volume_mm3 - self.first_volume_mm3

    @property
    def cv(self) -> float:
        """Coefficient of variation of the two volumes; NaN where both are 0."""
        mean = (self.first_volume_mm3 + self.repeat_volume_mm3) / 2
        # Of two values the standard deviation (n - 1) is their difference over sqrt(2).
        return abs(self.difference_mm3) / math.sqrt(2) / mean if mean else math.nan


def compare_repeats(
    cases: Sequence[Case], source: Predictions, *, rule: LesionRule
) -> dict[str, list[RepeatPair]]:
    """Compare the prediction of each repeat with that of its first scan.

    Args:
        cases: Cases, with or without a label.
        source: Folder of their predictions.
        rule: Rule of what a lesion is and when it counts as found again.

    Returns:
        Class -> pairs. Pairs of which a prediction is missing or damaged are left out with a
        warning.
    """
    by_id = {case.case_id: case for case in cases}
    pairs: dict[str, list[RepeatPair]] = {name: [] for name in source.classes}
    faults: list[DataError] = []
    for repeat in cases:
        # None for a case that repeats no other, or one that is not among these.
        first = by_id.get(repeat.repeat_of or "")
        if first is None:
            continue
        try:
            of_classes = [_compare(first, repeat, name, source, rule) for name in pairs]
        # Each scan has its own metrics already; only their comparison is missing.
        except DataError as fault:
            faults.append(fault)
        else:
            for name, pair in zip(pairs, of_classes, strict=True):
                pairs[name].append(pair)
    if faults:
        logger.warning(
            "%d scans not compared with their repeat; the first: %s", len(faults), faults[0]
        )
    return pairs


def _compare(
    first: Case, repeat: Case, name: str, source: Predictions, rule: LesionRule
) -> RepeatPair:
    earlier = _read_mask(first, name, source)
    later = _read_mask(repeat, name, source)
    n_first = n_repeat = None
    share = dice = math.nan
    if _are_on_one_grid(earlier, later, source):
        match = match_by_rule(later.data, earlier.data, spacing_mm=later.spacing_mm, rule=rule)
        n_first, n_repeat = len(match.reference), len(match.predicted)
        # Of both scans, since neither is the reference of the other.
        n_again = int(detected_lesions(match, rule).sum() + matched_lesions(match, rule).sum())
        if n_first + n_repeat:
            share = n_again / (n_first + n_repeat)
        dice = overlap_counts(later.data, earlier.data).dice
    return RepeatPair(
        subject_id=repeat.subject_id,
        first_case=first.case_id,
        repeat_case=repeat.case_id,
        first_volume_mm3=_volume_mm3(earlier),
        repeat_volume_mm3=_volume_mm3(later),
        n_first_lesions=n_first,
        n_repeat_lesions=n_repeat,
        matched_share=share,
        dice=dice,
    )


def _read_mask(case: Case, name: str, source: Predictions) -> Volume:
    """Read a predicted mask on its own grid."""
    shape, affine = read_grid(source.file_of(case, name))
    # `read` asks for a reference, of which only the grid counts here; it takes no memory.
    nothing: NDArray[np.bool_] = np.broadcast_to(np.False_, shape)
    return Volume(source.read(case, name, reference=Volume(nothing, affine)).mask, affine)


def _are_on_one_grid(earlier: Volume, later: Volume, source: Predictions) -> bool:
    try:
        check_grid(earlier, later, path=source.folder)
    except DataError:
        return False
    return True


def _volume_mm3(mask: Volume) -> float:
    return float(np.count_nonzero(mask.data) * math.prod(mask.spacing_mm))


def summarize_repeats(pairs: Sequence[RepeatPair]) -> dict[str, Any] | None:
    """Summarize the pairs of one class for metrics.json; None without pairs."""
    if not pairs:
        return None
    result = repeatability(
        [pair.first_volume_mm3 for pair in pairs], [pair.repeat_volume_mm3 for pair in pairs]
    )
    lowest, highest = result.limits
    n_subjects = len({pair.subject_id for pair in pairs})
    # ICC compares the spread between subjects with that between scans: one subject has none.
    has_icc = n_subjects > 1
    return {
        "n_pairs": len(pairs),
        "n_subjects": n_subjects,
        "volume_cv": result.cv,
        "icc_agreement": result.icc_agreement if has_icc else math.nan,
        "icc_consistency": result.icc_consistency if has_icc else math.nan,
        "bland_altman": {
            "bias_mm3": result.bias,
            "sd_mm3": result.sd,
            "lowest_mm3": lowest,
            "highest_mm3": highest,
        },
        "repeatability_coefficient_mm3": result.coefficient,
        "matched_share": mean_of_defined(pair.matched_share for pair in pairs),
        "dice": mean_of_defined(pair.dice for pair in pairs),
        "n_on_other_grids": sum(pair.n_first_lesions is None for pair in pairs),
        "pairs": [_entry(pair) for pair in pairs],
    }


def repeat_rows(pairs: dict[str, list[RepeatPair]]) -> list[list[Any]]:
    """List the rows of repeatability.csv; cells are empty where undefined."""
    rows: list[list[Any]] = []
    for name, of_class in pairs.items():
        for pair in of_class:
            entry = _entry(pair)
            cells = [None if _is_nan(entry[key]) else entry[key] for key in REPEAT_COLUMNS[1:]]
            rows.append([name, *cells])
    return rows


def _entry(pair: RepeatPair) -> dict[str, Any]:
    return {**vars(pair), "difference_mm3": pair.difference_mm3, "cv": pair.cv}


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
