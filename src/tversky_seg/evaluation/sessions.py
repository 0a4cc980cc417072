"""New lesions between the sessions of a subject, in the reference and in the prediction."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.time_points import pairs_of
from tversky_seg.evaluation.case_result import find_ignored, read_reference
from tversky_seg.evaluation.cohort import SessionPair
from tversky_seg.evaluation.saved_predictions import Predictions, check_grid
from tversky_seg.metrics.lesion_rule import LesionRule
from tversky_seg.metrics.lesions import LesionCounts
from tversky_seg.metrics.new_lesions import new_lesion_counts

logger = logging.getLogger("tversky_seg")


def compare_sessions(
    cases: Sequence[Case], source: Predictions, *, rule: LesionRule
) -> list[SessionPair]:
    """Compare each session of a subject with the one before.

    Args:
        cases: Evaluated cases; those without a session are left out.
        source: Folder of their predictions.
        rule: Rule of what a lesion is and when it counts as detected.

    Returns:
        One pair for each two successive sessions on one grid. Pairs on different grids are left
        out with a warning.
    """
    pairs: list[SessionPair] = []
    faults: list[DataError] = []
    for before, after in pairs_of(cases):
        try:
            pairs.append(_compare(before, after, source, rule=rule))
        # Both sessions have their own metrics already; only their comparison is missing.
        except DataError as fault:
            faults.append(fault)
    if faults:
        logger.warning(
            "%d pairs of sessions not compared for new lesions; the first: %s",
            len(faults),
            faults[0],
        )
    return pairs


def _compare(before: Case, after: Case, source: Predictions, *, rule: LesionRule) -> SessionPair:
    assert before.label is not None
    assert after.label is not None
    earlier = read_reference(before.label, source)
    later = read_reference(after.label, source)
    # Voxels are compared one by one, so both sessions must lie on one grid.
    check_grid(earlier, later, path=before.label)
    # A lesion is new or not where both sessions count.
    counted = np.ones(later.shape, dtype=bool)
    for case, label in ((before, earlier), (after, later)):
        ignored = find_ignored(case, label, source)
        if ignored is not None:
            counted &= ~ignored
    counts: dict[str, LesionCounts] = {}
    for name, values in source.classes.items():
        # Pairs of (before, after): first the predictions, then the references.
        counts[name] = new_lesion_counts(
            (
                source.read(before, name, reference=later).mask & counted,
                source.read(after, name, reference=later).mask & counted,
            ),
            (
                np.isin(earlier.data, values) & counted,
                np.isin(later.data, values) & counted,
            ),
            spacing_mm=later.spacing_mm,
            rule=rule,
        )
    return SessionPair(before, after, counts)
