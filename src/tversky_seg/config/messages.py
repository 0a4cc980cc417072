"""Every fault as one line: `<file or key>: <what was found>; <what was expected or to do>`."""

from __future__ import annotations

import re

import yaml
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import OmegaConfBaseException

from tversky_seg.config.checks import nearest
from tversky_seg.config.config_files import CONFIG_DIR, choices, known_keys
from tversky_seg.runtime.devices import is_out_of_memory
from tversky_seg.runtime.distributed import LostProcess


def one_line(fault: BaseException, *, config_name: str) -> str:
    """Say in one line what went wrong, and where the user can mend it.

    Args:
        fault: Exception that ended a command.
        config_name: The command, whose keys a hint may name.
    """
    if isinstance(fault, MissingConfigException):
        return _missing_choice(fault)
    if isinstance(fault, OverrideParseException):
        return (
            f"{fault.override}: cannot be read; "
            "expected key=value (quote what has spaces, brackets or =)"
        )
    if isinstance(fault, ConfigCompositionException):
        cause = fault.__cause__
        if isinstance(cause, OmegaConfBaseException):
            return _unknown_key(cause.full_key or str(cause.key), config_name)
    if isinstance(fault, OmegaConfBaseException):
        key = fault.full_key or "settings"
        return f"{key}: {first_line(fault)}; --cfg job shows the settings"
    if isinstance(fault, HydraException):
        return f"settings: {first_line(fault)}; --help shows what can be set"
    return _line_of_other_fault(fault)


def _line_of_other_fault(fault: BaseException) -> str:
    """Reword a fault that is not of the settings: of files, memory, values."""
    if isinstance(fault, yaml.MarkedYAMLError) and fault.problem_mark:
        mark = fault.problem_mark
        return f"{mark.name}: {fault.problem} in line {mark.line + 1}; expected YAML"
    if is_out_of_memory(fault):
        return (
            "trainer.batch_size: out of memory; "
            "lower it, sampler.patch_size, inference.patch_size or model.width"
        )
    if isinstance(fault, OSError) and fault.strerror:
        where = fault.filename or "files"
        return (
            f"{where}: {fault.strerror}; make it readable or make room, and run the command again"
        )
    if isinstance(fault, ValueError | FloatingPointError | LostProcess):
        return reword(first_line(fault))
    return f"{type(fault).__name__}: {first_line(fault)}; HYDRA_FULL_ERROR=1 shows where"


def first_line(fault: BaseException) -> str:
    """Take the first line of a message that says anything; the name of its type if none does."""
    for line in str(fault).splitlines():
        if line.strip():
            return line.strip()
    return type(fault).__name__


def reword(message: str, key: str = "") -> str:
    """Put an object's word on its arguments in the form of a line about a key.

        reword("width must be >= 1, got 0", "model") == "model.width: got 0; width must be >= 1"

    Args:
        message: Text of an exception. House rule: `<argument> must …, got <value>`.
        key: Dotted key of the object's settings; empty outside of a group.
    """
    expected, got, value = message.rpartition(", got ")
    if not got:
        if not key or message.startswith(key):
            return message
        return f"{key}: {message}; --help shows what can be set"
    argument = re.match(r"[a-z_]\w*", expected)
    parts = [key, argument[0] if argument else ""]
    where = ".".join(part for part in parts if part) or "settings"
    return f"{where}: got {value}; {expected}"


def _unknown_key(key: str, config_name: str) -> str:
    """Say why Hydra knows no such key: it is misspelt, or belongs to another choice."""
    keys = known_keys(config_name)
    if key not in keys:
        return f"{key}: no such key; {nearest(key, keys)}"
    group = key.split(".")[0]
    return f"{key}: not set by the chosen {group}; choose one that sets it, or write +{key}=…"


def _missing_choice(fault: MissingConfigException) -> str:
    """Say which choices a group has."""
    group, _, choice = (fault.missing_cfg_file or "").rpartition("/")
    existing = choices(group) if group else []
    if not existing:
        where = group or "settings"
        return f"{where}: no choice named {choice}; there is none in {CONFIG_DIR / group}"
    hint = nearest(choice, existing)
    if hint.startswith("did"):
        hint = f"{hint} ({', '.join(existing)})"
    return f"{group}: no choice named {choice!r}; {hint}"
