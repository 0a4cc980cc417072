"""The settings of a run as plain values: flattened, compared, and named by a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

FREE_KEYS = (
    "output_dir",
    "data.cache_dir",
    "trainer.compile",
    "trainer.cuda_graph",
    "trainer.device",
    "trainer.n_workers",
    "trainer.recompute",
    "trainer.threads",
    "trainer.max_hours",
    "trainer.trackers",
    "trust",
)
"""Settings that may change when a run is resumed: they change no number, or by rounding alone."""


def flatten(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each plain value with its dotted key: ("loss.alpha", 0.3)."""
    if not isinstance(settings, dict) or not settings:
        yield prefix, settings
        return
    for key, value in settings.items():
        dotted = f"{prefix}.{key}" if prefix else str(key)
        yield from flatten(value, dotted)


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Return eight hexadecimal digits of the settings that decide the numbers of a run."""
    # Sorted keys: the order of lines in a YAML file decides nothing.
    deciding = _deciding_settings(settings)
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:8]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List `key was …, now …` for each changed setting that decides the numbers of a run."""
    old = _deciding_settings(before)
    new = _deciding_settings(now)
    changes = []
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            changes.append(f"{key} was {_as_json(old.get(key))}, now {_as_json(new.get(key))}")
    return changes


def is_free(key: str) -> bool:
    """Tell whether a run may be resumed with another value of this key, or of one below it."""
    return any(key == free or key.startswith(free + ".") for free in FREE_KEYS)


def _deciding_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flatten(dict(settings)) if not is_free(key)}


def _as_json(value: Any) -> str:
    return json.dumps(value, default=str)
