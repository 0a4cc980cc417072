"""The config that Hydra composes: checked as a whole, and turned into plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from tversky_seg.config.checks import (
    ConfigError,
    check_arguments,
    check_type,
    nearest,
    nodes_with_target,
)
from tversky_seg.config.config_files import top_level
from tversky_seg.config.targets import check_target

TOP_LEVEL_TYPES: Mapping[str, Any] = {
    "seed": int,
    "trust": list,
    "classes": dict,
    "inference": dict,
    "threads": int | None,
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
            raise ConfigError(f"{key}: no such key; {nearest(key, top_level_keys)}")
    settings = plain(cfg)
    trust = settings.get("trust") or []
    if trust and not _is_on_the_command_line("trust"):
        raise ConfigError(
            f"trust: {trust} in a file; expected it on the command line, as trust=[package]"
        )
    for key, annotation in TOP_LEVEL_TYPES.items():
        if key in settings:
            check_type(key, settings[key], annotation)
    for key, node in nodes_with_target(settings):
        check_arguments(key, node, check_target(key, node, trust=trust))


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


def _is_on_the_command_line(key: str) -> bool:
    return any(word.startswith(f"{key}=") for word in HydraConfig.get().overrides.task)
