"""What changes between two sessions of a subject, in the reference and in the prediction."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np

from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import Volume
from tversky_seg.data.time_points import on_grid_of, pairs_of
from tversky_seg.evaluation.case_result import find_ignored, read_reference
from tversky_seg.evaluation.cohort import SessionPair
from tversky_seg.evaluation.saved_predictions import Predictions
from tversky_seg.inference.predict import first_names
from tversky_seg.metrics.lesion_rule import LesionRule
from tversky_seg.metrics.masks import Mask
from tversky_seg.metrics.new_lesions import new_lesion_counts
from tversky_seg.metrics.overlap import overlap_counts

logger = logging.getLogger("tversky_seg")


def compare_sessions(
    cases: Sequence[Case], source: Predictions, *, rule: LesionRule
) -> list[SessionPair]:
    """Compare each session of a subject with its baseline, or the session before.

    Args:
        cases: Evaluated cases; those without an earlier one are left out.
        source: Folder of their predictions.
        rule: Rule of what a lesion is and when it counts as detected.

    Returns:
        One pair for each case with an earlier one. Masks of the earlier session are resampled by
        their affines where they lie on another grid, which is logged; nothing is registered.
    """
    pairs: list[SessionPair] = []
    faults: list[DataError] = []
    for before, after in pairs_of(cases):
        try:
            pairs.append(_compare(before, after, source, rule=rule))
        # Both sessions have their own metrics already; only their comparison is missing.
        except DataError as fault:
            faults.append(fault)
    resampled = [pair.before.case_id for pair in pairs if pair.is_resampled]
    if resampled:
        logger.warning(
            "%d of %d earlier sessions lie on another grid than the later one, and are resampled "
            "by their affines: %s",
            len(resampled),
            len(pairs),
            first_names(resampled),
        )
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
    counted_before, counted_after = _counted(before, after, earlier, later, source)
    pair = SessionPair(before, after, counts={})
    for name, values in source.classes.items():
        # Pairs of (before, after): first the predictions, then the references.
        predicted_before = source.read(before, name, reference=earlier).mask & counted_before
        reference_before = np.isin(earlier.data, values) & counted_before
        predictions = (
            Volume(predicted_before, earlier.affine),
            source.read(after, name, reference=later).mask & counted_after,
        )
        references = (
            Volume(reference_before, earlier.affine),
            np.isin(later.data, values) & counted_after,
        )
        pair = _add_class(pair, name, predictions, references, later, rule=rule)
    return pair


def _counted(
    before: Case, after: Case, earlier: Volume, later: Volume, source: Predictions
) -> tuple[Mask, Mask]:
    """Draw the voxels that count in both sessions, on the grid of each."""
    ignored = find_ignored(after, later, source)
    ignored_after = np.zeros(later.shape, dtype=bool) if ignored is None else ignored
    ignored = find_ignored(before, earlier, source)
    ignored_before = np.zeros(earlier.shape, dtype=bool) if ignored is None else ignored
    # What does not count at one time can be neither new nor gone.
    from_before, _ = on_grid_of(Volume(ignored_before, earlier.affine), later)
    from_after, _ = on_grid_of(Volume(ignored_after, later.affine), earlier)
    return ~(ignored_before | from_after), ~(ignored_after | from_before)


def _add_class(
    pair: SessionPair,
    name: str,
    predictions: tuple[Volume, Mask],
    references: tuple[Volume, Mask],
    later: Volume,
    *,
    rule: LesionRule,
) -> SessionPair:
    """Add one class: the masks of the earlier session come on their own grid."""
    # Volumes on each session's own grid: resampling changes those of small lesions.
    change = []
    moved = []
    is_resampled = False
    for earlier, mask in (predictions, references):
        change.append(_volume_mm3(mask, later) - _volume_mm3(earlier.data, earlier))
        on_grid, is_resampled = on_grid_of(earlier, later)
        moved.append(on_grid)
    (_, predicted), (_, reference) = predictions, references
    counts = new_lesion_counts(
        (moved[0], predicted), (moved[1], reference), spacing_mm=later.spacing_mm, rule=rule
    )
    # Lesion at one time alone, in either direction.
    changed = overlap_counts(moved[0] ^ predicted, moved[1] ^ reference)
    return SessionPair(
        pair.before,
        pair.after,
        counts={**pair.counts, name: counts},
        predicted_change_mm3={**pair.predicted_change_mm3, name: change[0]},
        reference_change_mm3={**pair.reference_change_mm3, name: change[1]},
        changed_voxels={**pair.changed_voxels, name: changed},
        is_resampled=is_resampled,
    )


def _volume_mm3(mask: Mask, grid: Volume) -> float:
    return float(np.count_nonzero(mask) * math.prod(grid.spacing_mm))
