"""Progress of long work: bars with a rate and the time left on a terminal, plain lines in a log."""

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
console = Console(stderr=True)
Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10.0


class Reporter:
    """Shows how far `total` pieces of work have come; use as a context and call `advance` after each piece."""

    def __init__(self, description: str, *, total: int, done: int = 0) -> None:
        self.description, self.total, self.done, self._first = description, total, done, done
        self._start = self._last_line = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Reporter:
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = Progress(*columns, console=console)
            self._bar.add_task(
                self.description, total=self.total, completed=self.done, rate="", note=""
            )
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
        elif self.done > self._first:
            self._line("")

    def advance(self, note: str = "") -> None:
        """One more piece is done; `note` is shown beside the bar or in the line."""
        self.done += 1
        if self._bar:
            task = self._bar.tasks[0]
            self._bar.update(task.id, completed=self.done, rate=f"{self._rate():.2f}/s", note=note)
        elif self.done < self.total and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._line(note)

    def _rate(self) -> float:
        return (self.done - self._first) / max(time.monotonic() - self._start, 1e-9)

    def _line(self, note: str) -> None:
        self._last_line = time.monotonic()
        left = (self.total - self.done) / max(self._rate(), 1e-9)
        text = f"{self.description}: {self.done}/{self.total}, {self._rate():.2f}/s, {left:.0f} s left {note}"
        logger.info("%s", text.rstrip())


def track(items: Iterable[Item], description: str, *, total: int) -> Iterator[Item]:
    """Yield the items and show how many are done."""
    with Reporter(description, total=total) as reporter:
        for item in items:
            yield item
            reporter.advance()
