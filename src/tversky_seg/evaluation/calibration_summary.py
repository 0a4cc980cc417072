"""Calibration of the saved probabilities in metrics.json, before and after temperature scaling."""

from __future__ import annotations

from typing import Any

from tversky_seg.evaluation.cohort import EvaluatedCohort
from tversky_seg.metrics.calibration import Calibration, calibrate, calibrate_adaptively
from tversky_seg.metrics.score_histogram import ScoreHistogram
from tversky_seg.metrics.temperature import at_temperature


def summarize_calibration(cohort: EvaluatedCohort, name: str) -> dict[str, Any] | None:
    """Summarize the calibration of one class; None for masks without probabilities."""
    totals = cohort.totals[name]
    if totals.histogram is None or totals.near_histogram is None:
        return None
    calibration = calibrate(totals.histogram)
    temperature = cohort.temperature.get(name)
    before = None
    # Otherwise the saved probabilities are those of the network.
    if temperature not in (None, 1):
        # The saved probabilities, brought back to those that the network gave.
        raw = at_temperature(totals.histogram, 1 / temperature)
        raw_near = at_temperature(totals.near_histogram, 1 / temperature)
        before = {
            "expected_calibration_error": calibrate(raw).error,
            "near_lesions": _near_lesions(raw_near),
        }
    return {
        "expected_calibration_error": calibration.error,
        "bins": _bins(calibration),
        "near_lesions": _near_lesions(totals.near_histogram),
        "temperature": temperature,
        "before": before,
    }


def _near_lesions(histogram: ScoreHistogram) -> dict[str, Any]:
    adaptive = calibrate_adaptively(histogram)
    return {
        "n_voxels": int(histogram.n_voxels.sum()),
        "expected_calibration_error": calibrate(histogram).error,
        "adaptive_calibration_error": adaptive.error,
        "bins": _bins(adaptive),
    }


def _bins(calibration: Calibration) -> list[dict[str, Any]]:
    edges = calibration.edges.tolist()
    bins: list[dict[str, Any]] = []
    for k, n_voxels in enumerate(calibration.n_voxels.tolist()):
        one = {
            "from": edges[k],
            "to": edges[k + 1],
            "n_voxels": n_voxels,
            "mean_probability": float(calibration.mean_probability[k]),
            "lesion_share": float(calibration.lesion_share[k]),
        }
        bins.append(one)
    return bins
