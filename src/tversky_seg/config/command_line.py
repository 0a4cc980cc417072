"""The command line: options anywhere, and settings as Hydra's grammar can read them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override

from tversky_seg.config.checks import ConfigError
from tversky_seg.config.config_files import known_keys
from tversky_seg.config.hints import usual_name

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


@dataclass(frozen=True)
class CommandLine:
    """A command line, taken apart.

    Attributes:
        options: Options for Hydra, such as `--config-dir=mine`.
        settings: Words such as `loss.beta=0.7`, with quotes where Hydra needs them.
        is_sweep: Whether `-m` was given.
        wants_help: Whether `--help` was given; the settings are then left as they are.
        fixed_keys: Keys of the settings that have one value in all jobs of a sweep.
        n_jobs: Number of combinations of the settings; None where a search decides.
    """

    options: tuple[str, ...]
    settings: tuple[str, ...]
    is_sweep: bool
    wants_help: bool
    fixed_keys: tuple[str, ...]
    n_jobs: int | None

    @property
    def topic(self) -> str | None:
        """The page of `--help <topic>`; None for that of the command."""
        topics = [word for word in self.settings if "=" not in word]
        return topics[0] if topics else None

    @property
    def words_for_hydra(self) -> list[str]:
        """The command line as Hydra reads it: options first."""
        words = [*self.options, *self.settings]
        if self.is_sweep:
            # The names of the jobs' directories leave these out: see sweep.job_directory.
            keys = ",".join(self.fixed_keys)
            words.append(f"hydra.job.config.override_dirname.exclude_keys=[{keys}]")
        return words


def read_command_line(words: Sequence[str], *, config_name: str = "train") -> CommandLine:
    """Take a command line apart; options may stand anywhere among the settings.

    Args:
        words: Words after the name of the command.
        config_name: The command, whose settings a hint may name.

    Raises:
        ConfigError: An option is unknown, or a setting has several values without `-m`.
        OverrideParseException: A word cannot be read as a setting.
    """
    # Intermixed: `data=lits --config-dir=mine loss=dice`, which Hydra's own parser refuses.
    arguments, unknown = _parser().parse_known_intermixed_args(list(words))
    if unknown:
        raise _unknown_option(unknown[0], config_name)
    is_sweep = arguments.multirun
    options = []
    for name in ("cfg", "package", "config_dir", "info"):
        value = getattr(arguments, name)
        if value is not None:
            options.append(f"--{name.replace('_', '-')}={value}")
    for name in ("multirun", "resolve", "hydra_help"):
        if getattr(arguments, name):
            options.append(f"--{name.replace('_', '-')}")

    if arguments.help:
        return CommandLine(tuple(options), tuple(arguments.settings), is_sweep, True, (), 1)

    # Hydra's own parser of settings tells what sweeps: `0.5,0.7`, `range(3)`, `choice(a,b)`.
    settings = []
    fixed_keys = []
    n_jobs: int | None = 1
    parser = OverridesParser.create()
    for typed in arguments.settings:
        word = _quoted(typed, is_sweep=is_sweep)
        settings.append(word)
        setting = parser.parse_overrides([word])[0]
        n_values = _count_values(setting)
        if n_values == 1:
            fixed_keys.append(setting.key_or_group)
        elif not is_sweep:
            _refuse_several_values(setting)
        # A search over an interval decides itself how many jobs it runs.
        if n_jobs is not None:
            n_jobs = None if n_values is None else n_jobs * n_values
    return CommandLine(
        options=tuple(options),
        settings=tuple(settings),
        is_sweep=is_sweep,
        wants_help=False,
        fixed_keys=tuple(fixed_keys),
        n_jobs=n_jobs,
    )


class _Parser(argparse.ArgumentParser):
    """Options whose faults are one line as well."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}; --help shows what can be set")


def _unknown_option(word: str, config_name: str) -> ConfigError:
    """Say how to write a setting that was written as other tools do: `--epochs 10`."""
    option, _, value = word.partition("=")
    key = option.lstrip("-").replace("-", "_")
    keys = known_keys(config_name)
    hint = "--help shows what can be set"
    if key in keys:
        hint = f"settings are written key=value: {key}={value or '…'}"
    elif usual_name(key, keys) is not None:
        hint = f"settings are written key=value: {usual_name(key, keys)}"
    return ConfigError(f"command line: unrecognized arguments: {option}; {hint}")


def _parser() -> argparse.ArgumentParser:
    """List the options of Hydra that a command takes.

    `--experimental-rerun`, which unpickles a file, is left out.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--package", "-p")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--info", "-i", choices=("config", "defaults", "defaults-tree", "plugins"))
    parser.add_argument("--hydra-help", action="store_true")
    return parser


def _count_values(setting: Override) -> int | None:
    """Count the values of a setting, such as 3 in `loss.beta=0.5,0.7,0.9`; None for an interval."""
    if not setting.is_sweep_override():
        return 1
    if isinstance(setting.value(), IntervalSweep):
        return None
    return len(list(setting.sweep_iterator()))


def _refuse_several_values(setting: Override) -> NoReturn:
    key = setting.key_or_group
    values = str(setting.input_line).partition("=")[2]
    raise ConfigError(
        f"{key}: {values} are several values; expected a list in brackets, {key}=[{values}], "
        "or -m to run one job for each"
    )


def _quoted(word: str, *, is_sweep: bool) -> str:
    """Put the value of a setting that holds a name in quotes, unless it means more than a name."""
    key, _, name = word.partition("=")
    if key not in TEXT_KEYS or name in ("", "null", "???"):
        return word
    # {case_id}_mask.nii.gz is a name, no mapping.
    signs_of_more = "'\"" if key == "evaluation.pattern" else "'\"{["
    if name[0] in signs_of_more or "${" in name:
        return word
    # In a sweep the comma separates values: output_dir=a,b.
    if is_sweep and "," in name:
        return word
    escaped = name.replace("'", r"\'")
    return f"{key}='{escaped}'"
