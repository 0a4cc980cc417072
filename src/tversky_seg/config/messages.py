"""Every fault as one line: `<file or key>: <what was found>; <what was expected or to do>`."""

from __future__ import annotations

import re
from collections.abc import Collection

import yaml
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import OmegaConfBaseException

from tversky_seg.config.checks import ConfigError, nearest
from tversky_seg.config.config_files import CONFIG_DIR, choices, known_keys
from tversky_seg.config.hints import similar_key, unknown_key


def one_line(fault: BaseException, *, config_name: str) -> str:
    """Say in one line what went wrong, and where the user can mend it.

    Args:
        fault: Exception that ended a command.
        config_name: The command, whose keys a hint may name.
    """
    if isinstance(fault, MissingConfigException):
        return _missing_choice(fault)
    if isinstance(fault, OverrideParseException):
        return _unreadable_word(str(fault.override), config_name)
    if isinstance(fault, ConfigCompositionException):
        cause = fault.__cause__
        # Hydra's text is of several lines; the cause under it has the key.
        if isinstance(cause, OmegaConfBaseException):
            key = cause.full_key or str(cause.key)
            chosen = getattr(fault, "chosen", {})
            return unknown_key(key, config_name=config_name, chosen=chosen)
    # Ours are one line already.
    if isinstance(fault, ConfigError) and ", got " not in str(fault):
        return first_line(fault)
    if isinstance(fault, OmegaConfBaseException):
        key = fault.full_key or "settings"
        return f"{key}: {first_line(fault)}; --cfg job shows the settings"
    if isinstance(fault, HydraException):
        return f"settings: {first_line(fault)}; --help shows what can be set"
    return _line_of_other_fault(fault, config_name)


def _line_of_other_fault(fault: BaseException, config_name: str) -> str:
    """Reword a fault that Hydra does not know: of files, memory, values."""
    from tversky_seg.runtime.devices import is_out_of_memory
    from tversky_seg.runtime.distributed import LostProcess

    if isinstance(fault, yaml.MarkedYAMLError) and fault.problem_mark:
        mark = fault.problem_mark
        return f"{mark.name}: {fault.problem} in line {mark.line + 1}; expected YAML"
    if isinstance(fault, RecursionError):
        return "settings: nested too deeply; expected some lists in lists at most"
    if is_out_of_memory(fault):
        return (
            "trainer.batch_size: out of memory; "
            "lower it, sampler.patch_size, inference.patch_size or model.width"
        )
    # Without strerror an OSError is a library's own sentence, as of h5py or torch.
    if isinstance(fault, OSError) and fault.strerror:
        where = fault.filename or "files"
        return (
            f"{where}: {fault.strerror}; make it readable or make room, and run the command again"
        )
    # Ours: DataError, CheckpointError and ConfigError are ValueErrors and already one line.
    if isinstance(fault, ValueError | FloatingPointError | LostProcess):
        keys = known_keys(config_name)
        names = {key.rpartition(".")[2] for key in keys}
        return with_whole_key(reword(first_line(fault), names=names), keys)
    return f"{type(fault).__name__}: {first_line(fault)}; HYDRA_FULL_ERROR=1 shows where"


def first_line(fault: BaseException) -> str:
    """Take the first line of a message that says anything; the name of its type if none does."""
    for line in str(fault).splitlines():
        if line.strip():
            return line.strip()
    return type(fault).__name__


def with_whole_key(line: str, keys: Collection[str]) -> str:
    """Replace the name that a line begins with by its key, where one key alone ends in it.

    with_whole_key("min_peak: got 2", {"inference.min_peak"}) == "inference.min_peak: got 2"
    """
    name, colon, rest = line.partition(": ")
    candidates = [key for key in keys if key == name or key.endswith(f".{name}")]
    return f"{candidates[0]}{colon}{rest}" if len(candidates) == 1 else line


def reword(message: str, key: str = "", *, names: Collection[str] = ()) -> str:
    """Put an object's word on its arguments in the form of a line about a key.

        reword("width must be >= 1, got 0", "model", names={"width"})
        == "model.width: got 0; width must be >= 1"

    Only the order of the words changes; a message of another form is kept as it is.

    Args:
        message: Text of an exception. House rule: `<argument> must …, got <value>`.
        key: Dotted key of the object's settings; empty outside of a group.
        names: Arguments of the object. The first of them in the message is the one at fault.
    """
    expected, got, value = message.rpartition(", got ")
    if not got:
        if not key or message.startswith(key):
            return message
        return f"{key}: {message}; --help shows what can be set"
    where = key
    for word in re.findall(r"[A-Za-z_]\w*", expected):
        if word in names:
            where = f"{key}.{word}".lstrip(".")
            break
    return f"{where or 'settings'}: got {value}; {expected}"


def _unreadable_word(word: str, config_name: str) -> str:
    """Say what is wrong with a word that Hydra's grammar does not take."""
    key, equals, _ = word.partition("=")
    keys = known_keys(config_name)
    if equals and key.lstrip("+~") not in keys:
        return f"{key}: no such key; {similar_key(key, keys)}"
    return f"{word}: cannot be read; expected key=value (quote what has spaces, brackets or =)"


def _missing_choice(fault: MissingConfigException) -> str:
    """Say which choices a group has."""
    if not CONFIG_DIR.is_dir():
        return f"{CONFIG_DIR}: no such folder; install tversky-seg by pip, or run it from a clone"
    group, _, choice = (fault.missing_cfg_file or "").rpartition("/")
    # experiment=salehi2017: the rows of a paper stand in a folder.
    if (CONFIG_DIR / group / choice).is_dir() and group and choice:
        names = [f"{choice}/{name}" for name in choices(f"{group}/{choice}")]
        return f"{group}: {choice} is a folder; expected one of {', '.join(names)}"
    existing = choices(group) if group else []
    if not existing:
        where = group or "settings"
        return f"{where}: no choice named {choice}; there is none in {CONFIG_DIR / group}"
    hint = nearest(choice, existing)
    if hint.startswith("did"):
        hint = f"{hint} ({', '.join(existing)})"
    return f"{group}: no choice named {choice!r}; {hint}"
