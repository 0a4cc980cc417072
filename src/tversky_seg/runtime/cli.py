"""Arguments of the scripts that need no Hydra."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NoReturn

from tversky_seg.runtime.program import as_called


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, as those of the commands are."""

    def __init__(self, **settings: Any) -> None:
        # "tversky-seg compare" or "compare.py"; argparse would name __main__ in `python -m`.
        settings.setdefault("prog", Path(sys.argv[0]).name)
        # A module's own text names the script of a clone.
        settings["description"] = as_called(settings.get("description") or "")
        super().__init__(**settings)

    def error(self, message: str) -> NoReturn:
        """Print the error in one line and exit with status 2."""
        self.exit(2, f"error: {message}\n")
