"""The settings of a run as plain values: flattened, compared, and named by a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

FREE_KEYS = ("output_dir", "data.cache_dir", "trainer.device", "trainer.n_workers", "trainer.threads",
             "trainer.max_hours", "trainer.trackers", "trust")  # fmt: skip


def flatten(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each plain value with its dotted key."""
    if isinstance(settings, dict) and settings:
        for key, value in settings.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, settings


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits of the settings that decide the numbers."""
    deciding = {key: value for key, value in flatten(dict(settings)) if not is_free(key)}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:8]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`key was …, now …` for each setting that decides the numbers and has changed."""
    old, new = dict(flatten(dict(before))), dict(flatten(dict(now)))
    changed = [
        key for key in sorted({*old, *new}) if old.get(key) != new.get(key) and not is_free(key)
    ]
    return [
        f"{key} was {json.dumps(old.get(key), default=str)}, now {json.dumps(new.get(key), default=str)}"
        for key in changed
    ]


def is_free(key: str) -> bool:
    """Whether a run may go on with another value of this key."""
    return any(key == free or key.startswith(free + ".") for free in FREE_KEYS)
