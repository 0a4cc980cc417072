"""The config that Hydra composes: checked as a whole, and turned into plain values."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from tversky_seg.config.checks import (
    ConfigError,
    UnknownKey,
    check_arguments,
    check_type,
    nodes_with_target,
)
from tversky_seg.config.config_files import known_keys, top_level
from tversky_seg.config.hints import similar_key, unknown_key
from tversky_seg.config.targets import check_target
from tversky_seg.runtime.run_settings import flatten

TOP_LEVEL_TYPES: Mapping[str, Any] = {
    "seed": int,
    "trust": list,
    "classes": dict,
    "inference": dict,
    "threads": int | None,
    "device": str,
    "precision": str,
    "combine": str,
    "uncertainty": str | None,
}
"""Types of the settings that stand in no group, and so belong to no signature."""


def check_config(cfg: DictConfig, *, config_name: str) -> None:
    """Refuse unknown keys, unfit or missing values, and targets that are not allowed.

    Args:
        cfg: Composed config of a command.
        config_name: The command, such as `train`.

    Raises:
        ConfigError: Names the key and, for a misspelt one, the nearest right key.
    """
    groups, content = top_level(config_name)
    top_level_keys = {*groups, *content} - {"experiment"}
    for key in map(str, cfg):
        if key not in top_level_keys:
            hint = similar_key(key, known_keys(config_name) - {"experiment"})
            raise UnknownKey(key, hint)
    settings = plain(cfg)
    # A file that trusts its own packages would make the check of targets worthless.
    trust = settings.get("trust") or []
    if trust and not _is_on_the_command_line("trust"):
        raise ConfigError(
            f"trust: {trust} in a file; expected it on the command line, as trust=[package]"
        )
    for key, annotation in TOP_LEVEL_TYPES.items():
        if key in settings:
            check_type(key, settings[key], annotation)
    for key, node in nodes_with_target(settings):
        # First what may be built at all, then whether its arguments are right.
        function = check_target(key, node, trust=trust)
        try:
            check_arguments(key, node, function)
        except UnknownKey as fault:
            # `loss=dice +loss.beta=0.7`: the key is right, for another loss.
            if fault.key not in known_keys(config_name):
                raise
            line = unknown_key(fault.key, config_name=config_name, chosen=_chosen())
            raise ConfigError(line) from fault


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Turn a composed config into dicts, lists and plain values.

    Raises:
        ConfigError: A value is still missing (`???`).
    """
    try:
        settings = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as fault:
        key = getattr(fault, "full_key", None) or "a setting"
        raise ConfigError(
            f"{key}: no value given; set it on the command line as {key}=…"
        ) from fault
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}


def expand_home(cfg: DictConfig) -> None:
    """Replace a leading `~` in every setting by the home directory, as a shell would.

    A shell does so only at the beginning of a word, not in `data.root=~/scans`.

    Args:
        cfg: Composed config, changed in place.
    """
    settings = OmegaConf.to_container(cfg, resolve=False)
    for key, value in flatten(settings):
        expanded = value
        if isinstance(value, str):
            expanded = _expanded(value)
        elif isinstance(value, list):
            expanded = [_expanded(item) for item in value]
        if expanded != value:
            OmegaConf.update(cfg, key, expanded)


def _expanded(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("~"):
        return os.path.expanduser(value)  # noqa: PTH111 (keeps ~nobody as it is)
    return value


def _chosen() -> dict[str, list[str]]:
    """Read the choice of each group, where Hydra composed the config of this process."""
    if not HydraConfig.initialized():
        return {}
    choices = HydraConfig.get().runtime.choices
    return {str(group): [str(choice)] for group, choice in choices.items()}


def _is_on_the_command_line(key: str) -> bool:
    return any(word.startswith(f"{key}=") for word in HydraConfig.get().overrides.task)


def user_overrides() -> list[str]:
    """List the overrides of the command line as they were typed, without Hydra's quotes."""
    overrides: list[str] = []
    for word in HydraConfig.get().overrides.task:
        quoted = re.fullmatch(r"([\w.+]+)='(.*)'", word)
        if quoted:
            value = quoted[2].replace(r"\'", "'")
            word = f"{quoted[1]}={value}"
        overrides.append(word)
    return overrides
