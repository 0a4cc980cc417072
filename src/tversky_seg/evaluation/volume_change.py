"""The change between two sessions in metrics.json: volumes, and the voxels that have changed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

from tversky_seg.evaluation.cohort import SessionPair
from tversky_seg.metrics.agreement import bland_altman, volume_correlation
from tversky_seg.metrics.overlap import OverlapCounts


def summarize_change(pairs: Sequence[SessionPair], name: str) -> dict[str, Any] | None:
    """Summarize one class over the pairs of sessions; None without pairs.

    Args:
        pairs: Pairs of sessions.
        name: Name of the class.
    """
    if not pairs:
        return None
    predicted = [pair.predicted_change_mm3[name] for pair in pairs]
    reference = [pair.reference_change_mm3[name] for pair in pairs]
    # Of changes, not of volumes: an error that both times share cancels.
    difference = bland_altman(predicted, reference)
    lowest, highest = difference.limits
    # Rates of all voxels, since many pairs have no changed voxel and so no rate.
    pooled = reduce(add, (pair.changed_voxels[name] for pair in pairs))
    rows: list[dict[str, Any]] = []
    for pair in pairs:
        row = {
            "subject_id": pair.after.subject_id,
            "from_case": pair.before.case_id,
            "to_case": pair.after.case_id,
            "predicted_change_mm3": pair.predicted_change_mm3[name],
            "reference_change_mm3": pair.reference_change_mm3[name],
            **_rates(pair.changed_voxels[name]),
        }
        rows.append(row)
    return {
        "n_pairs": len(pairs),
        "volume_change_correlation": volume_correlation(predicted, reference),
        "bland_altman": {
            "bias_mm3": difference.bias,
            "sd_mm3": difference.sd,
            "lowest_mm3": lowest,
            "highest_mm3": highest,
        },
        **_rates(pooled),
        "pairs": rows,
    }


def _rates(changed: OverlapCounts) -> dict[str, float]:
    return {
        "changed_dice": changed.dice,
        "changed_sensitivity": changed.sensitivity,
        "changed_precision": changed.precision,
    }
