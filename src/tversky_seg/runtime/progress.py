"""Progress of long work: bars with the remaining time on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

logger = logging.getLogger("tversky_seg")
# Standard output is for results, such as the table of metrics.
console = Console(stderr=True)
Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 10.0


class Reporter:
    """Show how many of `total` items are done.

        with Reporter("predict", total=len(cases)) as reporter:
            for case in cases:
                ...
                reporter.advance(case.case_id)

    Args:
        description: Name of the work, as "train".
        total: Number of items.
        done: Number of items that an earlier command has done.
    """

    def __init__(self, description: str, *, total: int, done: int = 0) -> None:
        self.description = description
        self.total = total
        self.done = done
        self._done_before = done
        self._start = time.monotonic()
        self._last_line = self._start
        self._bar: Progress | None = None

    def __enter__(self) -> Reporter:
        # A bar is redrawn in place, which fills a log file with control characters.
        if console.is_terminal:
            self._bar = _progress_bar()
            self._bar.add_task(
                self.description, total=self.total, completed=self.done, rate="", note=""
            )
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Also after an error: a bar that still runs would hide the cursor and garble the message.
        if self._bar is not None:
            self._bar.stop()
        elif self.done > self._done_before:
            self._log_line("")

    def advance(self, note: str = "") -> None:
        """Count one more item as done; `note` follows in the line or next to the bar."""
        self.done += 1
        if self._bar is not None:
            task = self._bar.tasks[0]
            rate = f"{self._rate():.2f}/s"
            self._bar.update(task.id, completed=self.done, rate=rate, note=note)
        # The last line comes at the end, with the whole time.
        elif self.done < self.total and self._is_line_due():
            self._log_line(note)

    def _is_line_due(self) -> bool:
        return time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES

    def _rate(self) -> float:
        """Items a second, counted in this command alone."""
        # What an earlier command did says nothing of the speed of this one.
        seconds = time.monotonic() - self._start
        return (self.done - self._done_before) / max(seconds, 1e-9)

    def _log_line(self, note: str) -> None:
        self._last_line = time.monotonic()
        # "train: 1200/20000, 3.10/s, 1 h 41 min left, loss 0.412"
        parts = [f"{self.description}: {self.done}/{self.total}", f"{self._rate():.2f}/s"]
        if self.done < self.total:
            seconds_left = (self.total - self.done) / max(self._rate(), 1e-9)
            parts.append(f"{format_duration(seconds_left)} left")
        if note:
            parts.append(note)
        logger.info("%s", ", ".join(parts))


def track(items: Iterable[Item], description: str, *, total: int) -> Iterator[Item]:
    """Yield the items and show how many are done."""
    with Reporter(description, total=total) as reporter:
        for item in items:
            yield item
            reporter.advance()


def format_duration(seconds: float) -> str:
    """Format a duration for people: "40 s", "12 min", "16 h 33 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    # Rounded before it is split, so that 119.6 min is "2 h 0 min", never "1 h 60 min".
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def _progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )
