"""The log of a command: plain lines on the terminal, lines with a clock in a file."""

from __future__ import annotations

import logging
import os
from pathlib import Path

logger = logging.getLogger("tversky_seg")


def is_first_process() -> bool:
    """Tell whether this is the only process, or the first that torchrun started."""
    return os.environ.get("RANK", "0") == "0" or "TORCHELASTIC_RUN_ID" not in os.environ


class _Terminal(logging.Handler):
    """Prints plain lines on standard output; standard error is kept for the last word."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


def log_to_terminal() -> None:
    """Send the library's log to the terminal; of several processes only the first prints."""
    if not logger.handlers:
        logger.addHandler(_Terminal())
    logger.setLevel(logging.INFO if is_first_process() else logging.ERROR)
    logger.propagate = False


def log_to_file(path: Path) -> None:
    """Send the library's log to a file as well, in place of the file of an earlier run."""
    log_to_terminal()
    close_log_file()
    file_handler = logging.FileHandler(path, encoding="utf-8")
    file_handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(file_handler)


def close_log_file() -> None:
    """End the log in a file, if there is one; the next job of a sweep has its own."""
    for handler in list(logger.handlers):
        if isinstance(handler, logging.FileHandler):
            logger.removeHandler(handler)
            handler.close()
