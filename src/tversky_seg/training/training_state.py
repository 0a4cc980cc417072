"""Progress of a training, as its checkpoints keep it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tversky_seg.inference.operating_point import DEFAULT_PEAK

STORED_NAMES = {"last_validation": "judged"}
"""Fields of `TrainingState` whose entry in a checkpoint has an older name."""

LATER_ENTRIES: Mapping[str, Any] = {"temperature": 1.0, "min_peak": 0.0}
"""Entries that checkpoints of earlier versions lack, and what these mean."""


@dataclass
class TrainingState:
    """Progress of a training, in plain values. Each field is an entry of a checkpoint."""

    step: int = 0
    """Updates done."""

    best: float = -math.inf
    """Highest value of the monitored metric."""

    threshold: float | dict[str, float] = 0.5
    """Threshold chosen at the last validation."""

    min_volume_mm3: float | dict[str, float] = 0.0
    """Minimum lesion size chosen at the last validation."""

    min_peak: float | dict[str, float] = DEFAULT_PEAK
    """Probability that a lesion must reach, chosen at the last validation."""

    temperature: float | dict[str, float] = 1.0
    """Temperature fitted at the last validation; threshold and peak are those before it."""

    last_validation: int = 0
    """Step of the last validation."""

    n_without_gain: int = 0
    """Validations since the best one."""

    n_skipped: int = 0
    """Skipped steps in total."""

    n_skipped_in_a_row: int = 0
    """Consecutive skipped steps up to now."""

    losses: list[float] = field(default_factory=list)
    """Losses since the last row of metrics.csv."""

    @classmethod
    def from_checkpoint(cls, checkpoint: Mapping[str, Any]) -> TrainingState:
        """Return the state when a checkpoint was written."""
        values: dict[str, Any] = {}
        for entry in fields(cls):
            name = STORED_NAMES.get(entry.name, entry.name)
            if name not in checkpoint and name in LATER_ENTRIES:
                values[entry.name] = LATER_ENTRIES[name]
            else:
                values[entry.name] = checkpoint[name]
        return cls(**values)

    def entries(self) -> dict[str, Any]:
        """Return the fields as entries of a checkpoint."""
        stored: dict[str, Any] = {}
        for name, value in asdict(self).items():
            stored[STORED_NAMES.get(name, name)] = value
        return stored
