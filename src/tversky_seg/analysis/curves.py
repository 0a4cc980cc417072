"""Pooled precision-recall curves of evaluated runs."""

from __future__ import annotations

import csv
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tversky_seg.analysis.runs import Run
from tversky_seg.data.errors import DataError


@dataclass(frozen=True, eq=False)
class PooledCurve:
    """Precision and recall of all voxels of a cohort, by rising threshold."""

    recall: NDArray[np.float64]
    """(n,) falling, in [0, 1]."""
    precision: NDArray[np.float64]
    """(n,) in [0, 1]."""

    @property
    def area(self) -> float:
        """Step-wise area: each precision times the recall down to the next point."""
        # Recall falls, so its differences are negative. 0 is the recall above all thresholds.
        steps = -np.diff(self.recall, append=0)
        return float((steps * self.precision).sum())


def read_curves(run: Run) -> dict[str, PooledCurve]:
    """Read pr_curve.csv of a run.

    Returns:
        Class -> curve; without the classes of which only masks were saved.

    Raises:
        DataError: The file cannot be read.
    """
    path = run.folder / "pr_curve.csv"
    # A row for each threshold and class, by rising threshold: class,threshold,precision,recall
    recall: dict[str, list[float]] = {}
    precision: dict[str, list[float]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                recall.setdefault(row["class"], []).append(float(row["recall"]))
                precision.setdefault(row["class"], []).append(float(row["precision"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(path, f"cannot be read ({error})", "evaluate again") from error
    curves: dict[str, PooledCurve] = {}
    for name, values in recall.items():
        curves[name] = PooledCurve(np.array(values), np.array(precision[name]))
    return curves
