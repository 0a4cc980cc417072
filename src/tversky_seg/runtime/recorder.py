"""What a run leaves to read: metrics.csv (numbers only), timings.csv, TensorBoard, environment.json; trackers."""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tversky_seg.runtime.distributed import is_first, world_size
from tversky_seg.runtime.trackers import Tracker, check_trackers, open_trackers

logger = logging.getLogger("tversky_seg")
VERSIONED = (
    "torch",
    "monai",
    "numpy",
    "scipy",
    "nibabel",
    "hydra-core",
    "scikit-image",
    "connected-components-3d",
)


@dataclass(frozen=True)
class Validation:
    """What whole volumes say of a network: measures, threshold and smallest lesion chosen on them, pictures."""

    measures: Mapping[str, float]
    threshold: float | dict[str, float] = 0.5
    pictures: Mapping[str, np.ndarray] = field(default_factory=dict)
    min_volume_mm3: float | dict[str, float] = 0.0


class Recorder:
    """Writes scalars as rows `step,name,value`, and the same scalars and pictures for TensorBoard and trackers.

    Args:
        output_dir: The run directory.
        from_step: Rows of later steps, left by a run that was stopped after its last checkpoint, are dropped, and
            TensorBoard's events are written again from what remains: no step appears twice.
        trackers: Names of what else to send to (trackers.py); what an earlier command did not send is sent now.
    """

    def __init__(
        self, output_dir: Path, *, from_step: int = 0, trackers: Sequence[str] = ()
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._metrics, self._timings = output_dir / "metrics.csv", output_dir / "timings.csv"
        kept = [_cut(path, from_step) for path in (self._metrics, self._timings)]
        shutil.rmtree(output_dir / "tensorboard", ignore_errors=True)
        self._events = SummaryWriter(str(output_dir / "tensorboard"))
        self._trackers = open_trackers(trackers, output_dir)
        for step, name, value in sorted(
            (row for rows in kept for row in rows), key=lambda row: int(row[0])
        ):
            self._send(int(step), {name: float(value)})

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers that a rerun repeats exactly."""
        self._write(self._metrics, step, values)

    def timings(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers that depend on the clock."""
        self._write(self._timings, step, values)

    def pictures(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Pictures as uint8 arrays (height, width, 3)."""
        for name, picture in values.items():
            self._events.add_image(name, picture, step, dataformats="HWC")
        self._track(lambda tracker: tracker.pictures(step, values))

    def close(self) -> None:
        """Flush what TensorBoard and the trackers still hold."""
        self._events.close()
        self._track(lambda tracker: tracker.close())

    def _write(self, path: Path, step: int, values: Mapping[str, float]) -> None:
        _append(path, ((step, name, repr(float(value))) for name, value in values.items()))
        self._send(step, {name: float(value) for name, value in values.items()})

    def _send(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._track(lambda tracker: tracker.numbers(step, values))

    def _track(self, send: Callable[[Tracker], None]) -> None:
        """Training goes on without a tracker that fails; its package may raise anything."""
        for tracker in [*self._trackers]:
            try:
                send(tracker)
            except Exception as fault:
                cause = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
                logger.warning(
                    "%s left out from here on: %s; metrics.csv has all",
                    type(tracker).__name__,
                    cause,
                )
                self._trackers.remove(tracker)


class Silent(Recorder):
    """Records nothing, for the processes of a run that do not write."""

    def __init__(self) -> None:
        pass

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    timings = pictures = metrics  # type: ignore[assignment]

    def close(self) -> None:
        """Nothing."""


def recording_to(trackers: Sequence[str] | None) -> Callable[..., Recorder]:
    """What opens the recorder of a run, `(output_dir, from_step=)`; of several processes, the first one's writes.

    Raises:
        ValueError: For a tracker that is unknown or not installed.
    """
    names = check_trackers(trackers or ())
    return partial(Recorder, trackers=names) if is_first() else lambda *_, **__: Silent()


class Stopwatch:
    """Adds up where the time between two rows of timings.csv went."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Count the time since the last lap under this name."""
        now = time.perf_counter()
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._last
        self._last = now

    def read(self, *, n_steps: int = 1) -> dict[str, float]:
        """Seconds by name since the last reading, for each of so many steps."""
        seconds, self._seconds = self._seconds, {}
        return {name: total / n_steps for name, total in seconds.items()}


def record_environment(path: Path, *, data: Sequence[Path] = ()) -> None:
    """Write environment.json; where a run goes on with other threads, torch or data, warn that its bits may vary.

    Args:
        path: The file; with several processes, the first one writes it.
        data: The files that the run reads.
    """
    if not is_first():
        return
    now = environment() | {"data": data_fingerprint(data)}
    if path.exists():
        before = read_json(path)
        facts = {
            name: [before.get(name), now[name]]
            for name in ("threads", "processes", "device", "data")
        }
        facts["torch"] = [(before.get("versions") or {}).get("torch"), now["versions"]["torch"]]
        changed = [
            f"{name} was {old}, now {new}" for name, (old, new) in facts.items() if old != new
        ]
        if changed:
            logger.warning(
                "the numbers may differ from those of an uninterrupted run: %s", ", ".join(changed)
            )
    write_json(path, now)


def data_fingerprint(files: Sequence[Path]) -> str:
    """16 hexadecimal digits that change with the files' contents, not with where they lie.

    Of each file its size, first and last 4096 bytes are read: the end of a .nii.gz is a checksum of all its voxels. Of
    an uncompressed file a change in the middle that keeps the size goes unseen.
    """
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(size.to_bytes(8, "big"))
            for start in (0, max(size - 4096, 0)):
                file.seek(start)
                digest.update(file.read(4096))
    return digest.hexdigest()[:16]


def environment() -> dict[str, Any]:
    """What a rerun needs to know: versions, device, threads, git commit, command."""
    return {
        "command": [sys.executable, *sys.argv],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("tversky-seg", *VERSIONED)
        },
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "cpus": os.cpu_count(),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or "cpu",
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def write_json(path: Path, content: Any) -> None:
    """Write JSON beside and rename, so that the file is whole or absent."""
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text(json.dumps(content, indent=2) + "\n")
    scratch.replace(path)


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text())


def _append(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("step", "name", "value")] if is_new else [])
        writer.writerows(rows)


def _cut(path: Path, last_step: int) -> list[list[str]]:
    """Keep the whole rows up to a step; a row that a kill cut short belongs to a later step than the checkpoint."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = [
            row
            for row in csv.reader(file)
            if len(row) == 3 and row[0].isdigit() and int(row[0]) <= last_step
        ]
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.unlink(missing_ok=True)
    _append(scratch, rows)
    scratch.replace(path)
    return rows


def _git(*words: str) -> str | None:
    folder = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, check=False, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
