"""The command line as Hydra can read it: options first, names in quotes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from tversky_seg.config.checks import ConfigError

TEXT_KEYS = (
    "checkpoint",
    "input",
    "predictions",
    "manifest",
    "output_dir",
    "case_id",
    "data.manifest",
    "data.root",
    "data.cache_dir",
    "evaluation.pattern",
    "inference.goal",
    "trainer.init_from",
)
"""Settings that hold names, quoted for Hydra, whose grammar stops at `=`, `(` or a space."""


def readable_words(words: Sequence[str]) -> list[str]:
    """Rewrite the words of the command line so that Hydra can read them.

    Raises:
        ConfigError: An option is unknown.
    """
    flags = [word for word in words if word in ("-m", "--multirun")]
    others = [word for word in words if word not in flags]
    is_sweep = bool(flags)
    if is_sweep:
        others = ["--multirun", *others]
    parser = get_args_parser()
    parser.error = _refuse_option  # type: ignore[method-assign]
    parser.parse_args(others)
    return [_quoted(word, is_sweep=is_sweep) for word in others]


def _quoted(word: str, *, is_sweep: bool) -> str:
    """Put the value of a setting that holds a name in quotes, unless it means more than a name."""
    key, _, name = word.partition("=")
    if key not in TEXT_KEYS or name in ("", "null", "???"):
        return word
    # {case_id}_mask.nii.gz is a name, no mapping.
    signs_of_more = "'\"" if key == "evaluation.pattern" else "'\"{["
    if name[0] in signs_of_more or "${" in name:
        return word
    if is_sweep and "," in name:
        return word
    escaped = name.replace("'", r"\'")
    return f"{key}='{escaped}'"


def _refuse_option(message: str) -> NoReturn:
    raise ConfigError(f"command line: {message}; --help shows what can be set")
