"""Records of a run: metrics.csv, timings.csv, TensorBoard, and the trackers that it names."""

from __future__ import annotations

import csv
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tversky_seg.runtime.distributed import is_first
from tversky_seg.runtime.files import append_csv, write_csv
from tversky_seg.runtime.one_line import message_lines
from tversky_seg.runtime.run_settings import flatten
from tversky_seg.runtime.trackers import Tracker, open_trackers, settings_of_run

logger = logging.getLogger("tversky_seg")

COLUMNS = ("step", "name", "value")


@dataclass(frozen=True)
class Scalar:
    """One row of metrics.csv or timings.csv."""

    step: int
    name: str
    value: float


class Recorder:
    """Write scalars as rows `step,name,value`, and send them and pictures to TensorBoard, trackers.

    Args:
        output_dir: The run directory.
        from_step: Step of the checkpoint that the run resumes from. Rows of later steps, left by
            the interrupted run, are dropped, and TensorBoard's events are rewritten from the
            remaining rows: no step appears twice.
        trackers: Names of the trackers (trackers.py). Rows that an earlier command did not send to
            them are sent now.
    """

    def __init__(
        self, output_dir: Path, *, from_step: int = 0, trackers: Sequence[str] = ()
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._metrics = output_dir / "metrics.csv"
        self._timings = output_dir / "timings.csv"
        scalars = cut_table(self._metrics, from_step) + cut_table(self._timings, from_step)
        # TensorBoard wants steps in order, and keeps both values of a step that comes twice.
        scalars.sort(key=lambda scalar: scalar.step)
        shutil.rmtree(output_dir / "tensorboard", ignore_errors=True)
        self._events = SummaryWriter(str(output_dir / "tensorboard"))
        self._trackers = open_trackers(trackers, output_dir)
        self._write_settings(settings_of_run(output_dir))
        for scalar in scalars:
            self._send(scalar.step, {scalar.name: scalar.value})

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers that a rerun repeats exactly."""
        self._write(self._metrics, step, values)

    def timings(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers that depend on the clock."""
        self._write(self._timings, step, values)

    def pictures(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Record pictures, uint8 arrays (height, width, 3)."""
        for name, picture in values.items():
            self._events.add_image(name, picture, step, dataformats="HWC")
        self._for_each_tracker(lambda tracker: tracker.pictures(step, values))

    def close(self) -> None:
        """Flush what TensorBoard and the trackers still hold."""
        self._events.close()
        self._for_each_tracker(lambda tracker: tracker.close())

    def _write(self, path: Path, step: int, values: Mapping[str, float]) -> None:
        numbers = {name: float(value) for name, value in values.items()}
        # repr gives the shortest text from which exactly the same float is read again.
        append_csv(path, COLUMNS, [(step, name, repr(value)) for name, value in numbers.items()])
        self._send(step, numbers)

    def _send(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._events.add_scalar(tag(name), value, step)
        self._for_each_tracker(lambda tracker: tracker.numbers(step, values))

    def _write_settings(self, settings: Mapping[str, Any]) -> None:
        """Write the settings of the run for TensorBoard's table of hyperparameters."""
        from torch.utils.tensorboard.summary import hparams

        values: dict[str, Any] = {}
        for key, value in settings.items():
            values[key] = value if isinstance(value, bool | int | float | str) else str(value)
        # The columns of results beside the settings; their values are the scalars of these tags.
        results = dict.fromkeys((tag("val_dice"), "test/dice", "test/lesion_f1"), 0.0)
        if values:
            writer: Any = self._events.file_writer
            summaries: Any = hparams  # torch gives it no types
            for summary in summaries(values, results):
                writer.add_summary(summary)

    def _for_each_tracker(self, send: Callable[[Tracker], None]) -> None:
        _send_to_all(self._trackers, send)


def record_results(
    output_dir: Path, metrics: Mapping[str, Any], *, step: int, trackers: Sequence[str] = ()
) -> None:
    """Send the results on the test cases to TensorBoard and to the trackers of a run.

    The trackers also get the report, its numbers and the best checkpoint.

    Args:
        output_dir: The run directory.
        metrics: Content of metrics.json; its means are sent, as `test/dice` and so on.
        step: Step of the evaluated network.
        trackers: Names of the trackers.
    """
    from torch.utils.tensorboard import SummaryWriter

    values: dict[str, float] = {}
    for name, value in flatten(metrics["mean"]):
        if value is not None and math.isfinite(value):
            values[f"test/{name}"] = float(value)
    with closing(SummaryWriter(str(output_dir / "tensorboard"))) as events:
        for name, value in values.items():
            events.add_scalar(name, value, step)
    names = ("evaluation/report.html", "evaluation/metrics.json", "checkpoints/best.pt")
    files = [output_dir / name for name in names if (output_dir / name).is_file()]
    try:
        opened = open_trackers(trackers, output_dir)
    except ValueError as fault:
        logger.warning("%s", fault)  # the results are written, so nothing is lost
        return
    _send_to_all(opened, lambda tracker: tracker.results(step, values, files))
    _send_to_all(opened, lambda tracker: tracker.close())


def _send_to_all(trackers: list[Tracker], send: Callable[[Tracker], None]) -> None:
    """Send to every tracker, and drop one that fails: a dead server must not end a training."""
    for tracker in list(trackers):
        try:
            send(tracker)
        except Exception as error:  # the packages of trackers raise anything
            first_line = message_lines(error)[0]
            logger.warning(
                "%s receives nothing from here on: %s; the run directory has all",
                type(tracker).__name__,
                first_line,
            )
            trackers.remove(tracker)


def tag(name: str) -> str:
    """Name a scalar in TensorBoard, which draws what has the same first part side by side.

    "val_dice" -> "val/dice", "step_s" -> "time/step_s", "loss" -> "train/loss".
    """
    if name.startswith("val_"):
        return f"val/{name.removeprefix('val_')}"
    if name.endswith("_s"):
        return f"time/{name}"
    return f"train/{name}"


class SilentRecorder:
    """Record nothing: for all processes of a run but the first."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Ignore the numbers."""

    def timings(self, step: int, values: Mapping[str, float]) -> None:
        """Ignore the timings."""

    def pictures(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Ignore the pictures."""

    def close(self) -> None:
        """Do nothing."""


def open_recorder(
    output_dir: Path, *, from_step: int = 0, trackers: Sequence[str] = ()
) -> Recorder | SilentRecorder:
    """Open the recorder of a run directory; only the first of several processes writes."""
    if not is_first():
        return SilentRecorder()
    return Recorder(output_dir, from_step=from_step, trackers=trackers)


class Stopwatch:
    """Add up where the time between two rows of timings.csv went."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._last_lap = time.perf_counter()

    def lap(self, name: str) -> None:
        """Add the time since the last lap to `name`."""
        now = time.perf_counter()
        self._add(name, now - self._last_lap)
        self._last_lap = now

    def split_lap(self, name: str, seconds: float, *, rest: str) -> None:
        """Add `seconds` of the time since the last lap to `name`, and the remainder to `rest`."""
        now = time.perf_counter()
        seconds = min(seconds, now - self._last_lap)
        self._add(name, seconds)
        self._add(rest, now - self._last_lap - seconds)
        self._last_lap = now

    def read(self, *, n_steps: int = 1) -> dict[str, float]:
        """Return seconds per step by name, averaged over `n_steps`, and reset them to 0."""
        seconds = self._seconds
        self._seconds = {}
        return {name: total / n_steps for name, total in seconds.items()}

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds


def cut_table(path: Path, last_step: int) -> list[Scalar]:
    """Drop the rows of a table after `last_step`, and return the remaining ones.

    A kill can cut the last row short. Checkpoints are written after rows, so such a row belongs to
    a step after the checkpoint, and is dropped as well.
    """
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if _is_whole(row) and int(row[0]) <= last_step]
    write_csv(path, COLUMNS, rows)
    return [Scalar(int(step), name, float(value)) for step, name, value in rows]


def _is_whole(row: Sequence[str]) -> bool:
    """Tell a row of numbers from the header and from a row that was cut short."""
    return len(row) == len(COLUMNS) and row[0].isdigit()
