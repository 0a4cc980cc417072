"""The command line: `tversky-seg <command> [words]`, the same as `python -m tversky_seg`.

Each command is a function of the package, imported once it is called: help and misspelt words
answer without torch.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tversky_seg.runtime.sturdy_output import sturdy_output


@dataclass(frozen=True)
class Word:
    """A command of the command line.

    Attributes:
        summary: What it does, one line.
        function: "module:function" that does it.
        config: Name of its file in configs/, where it takes Hydra's settings. The function then
            gets the composed config. Otherwise it takes no argument and reads sys.argv.
    """

    summary: str
    function: str
    config: str | None = None


COMMANDS = {
    "train": Word(
        "train a network, predict the test cases and evaluate the predictions",
        "tversky_seg.commands.train:train",
        config="train",
    ),
    "predict": Word(
        "segment new cases with one trained network or several",
        "tversky_seg.commands.predict:predict",
        config="predict",
    ),
    "evaluate": Word(
        "evaluate predictions, ours or another tool's, against the labels of a manifest",
        "tversky_seg.commands.evaluate:evaluate",
        config="evaluate",
    ),
    "follow-up": Word(
        "compare the lesions of two examinations: new, grown, shrunk, vanished",
        "tversky_seg.commands.follow_up:follow_up",
        config="follow_up",
    ),
    "check": Word(
        "check every file of a dataset, and plan a training",
        "tversky_seg.commands.check_data:check_data",
        config="check_data",
    ),
    "prepare": Word(
        "fill the cache of prepared cases, a share for each job of an array",
        "tversky_seg.commands.prepare:prepare",
        config="prepare",
    ),
    "manifest": Word(
        "write the manifest of your own files: a CSV of cases, images and labels",
        "tversky_seg.commands.manifest:main",
    ),
    "import": Word(
        "write the manifest of a public data set",
        "tversky_seg.data.datasets.import_command:main",
    ),
    "stress": Word(
        "predict the same scans rotated, blurred, noisy and so on, and tell what changes",
        "tversky_seg.commands.stress:stress",
        config="stress",
    ),
    "export": Word(
        "write a network, or predictions, in the formats of other programs",
        "tversky_seg.commands.export:export",
        config="export",
    ),
    "summarize": Word(
        "summarize a sweep or a cross-validation, and recommend a setting",
        "tversky_seg.commands.summarize:main",
    ),
    "operating-point": Word(
        "choose threshold and smallest lesion on the held-out predictions of all folds",
        "tversky_seg.commands.operating_point:main",
    ),
    "compare": Word(
        "compare runs, with intervals and tests",
        "tversky_seg.commands.compare:main",
    ),
    "reproduce": Word(
        "run all rows of a paper's table and write the table",
        "tversky_seg.commands.reproduce:main",
    ),
    "isbi-submission": Word(
        "pack predicted masks for the site of the ISBI 2015 challenge",
        "tversky_seg.commands.isbi_submission:main",
    ),
}


def main() -> None:
    """Run the command that the first word names, and exit with its status."""
    words = sys.argv[1:]
    if not words or words[0] in ("--help", "-h", "help"):
        print(overview())
        sys.exit(0)
    name = words[0]
    if name in ("--version", "-V"):
        print(f"tversky-seg {importlib.import_module('tversky_seg').__version__}")
        sys.exit(0)
    if name == "--completion":
        print(_completion(words[1:]), end="")
        sys.exit(0)
    if name not in COMMANDS:
        print(f"error: {name}: no such command; {_hint(name)}", file=sys.stderr)
        sys.exit(2)
    # The command reads the rest, and names itself so in its help.
    sys.argv = [f"tversky-seg {name}", *words[1:]]
    command(name)()


def command(name: str) -> Callable[[], Any]:
    """Return the command of a word: it reads sys.argv[1:] and exits with its status."""
    word = COMMANDS[name]
    if word.config is not None:
        # Hydra takes a third of a second to import.
        from tversky_seg.config import Command

        return Command(word.config, word.function)

    def run() -> None:
        module, _, function = word.function.partition(":")
        with sturdy_output():
            status = getattr(importlib.import_module(module), function)()
        sys.exit(status)

    return run


def overview() -> str:
    """Write the page of `tversky-seg` alone: each command with its line."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{word.summary}" for name, word in COMMANDS.items()]
    return "\n".join(
        [
            "tversky-seg COMMAND [words]",
            "",
            "3D segmentation of very small targets, such as lesions.",
            "",
            "Commands",
            *lines,
            "",
            "tversky-seg COMMAND --help describes a command. Start with: tversky-seg train",
            'In bash and zsh: eval "$(tversky-seg --completion bash)" completes words.',
        ]
    )


def _completion(words: list[str]) -> str:
    """Write what a shell evaluates to complete the words of this program."""
    from tversky_seg.config.completion import SHELLS, completion_script

    if len(words) != 1 or words[0] not in SHELLS:
        given = " ".join(words) or "no shell"
        print(f"error: --completion: {given}; expected one of {', '.join(SHELLS)}", file=sys.stderr)
        sys.exit(2)
    configs = {name: word.config for name, word in COMMANDS.items()}
    return completion_script(words[0], configs)


def _hint(name: str) -> str:
    matches = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    if matches:
        return f"did you mean {matches[0]}?"
    return f"expected one of {', '.join(COMMANDS)}"
