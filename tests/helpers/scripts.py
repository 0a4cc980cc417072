"""Call a script of scripts/ in this process, as a shell would."""

import contextlib
import io
import runpy
import sys
from pathlib import Path
from unittest import mock

from helpers.command_line import ROOT, Outcome


def run_script(name: str, *words: object) -> Outcome:
    """Run `python scripts/<name> <words>` without a new process."""
    script = str(ROOT / "scripts" / name)
    stdout = io.StringIO()
    stderr = io.StringIO()
    status = 0
    with (
        mock.patch.object(sys, "argv", [script, *map(str, words)]),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(bool(end.code))
    return Outcome(status, stdout.getvalue(), stderr.getvalue())


def names_in(folder: Path) -> set[str]:
    """List the names in a folder."""
    return {path.name for path in folder.iterdir()}
