"""The YAML files of configs/: groups, choices, and every key that a command knows."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

import tversky_seg
from tversky_seg.config.arguments import argument_names
from tversky_seg.config.checks import ConfigError, nodes_with_target
from tversky_seg.config.targets import is_within
from tversky_seg.config.yaml_size import check_yaml
from tversky_seg.runtime.run_settings import flatten

YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The loader of plain values; libyaml's where PyYAML was built with it, ten times as fast."""


def _find_config_dir() -> Path:
    """Locate configs/: inside the installed package, or at the top of a clone."""
    package = Path(str(tversky_seg.__file__)).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parents[1] / "configs"


CONFIG_DIR = _find_config_dir()


def read_yaml(path: Path) -> Any:
    """Read plain values from a YAML file.

    Raises:
        ConfigError: The file is too large or nested too deeply, no text, or holds no such value.
        yaml.MarkedYAMLError: It is not YAML.
    """
    with path.open(encoding="utf-8") as file:
        check_yaml(file, path, YAML_LOADER)
        file.seek(0)
        try:
            return yaml.load(file, Loader=YAML_LOADER)
        except ValueError as fault:  # of a date such as 2026-13-01
            raise ConfigError(f"{path}: {fault}; expected plain values") from fault


def choices(group: str) -> list[str]:
    """List the choices of a group, such as `loss`: the names of its files.

    A name that begins with an underscore is no choice: its file holds what the others share.
    """
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("[!_]*.yaml"))


def folders(group: str) -> list[str]:
    """List the folders of a group, such as `salehi2017` of `experiment`."""
    return sorted(path.name for path in (CONFIG_DIR / group).iterdir() if path.is_dir())


def top_level(config_name: str) -> tuple[set[str], dict[str, Any]]:
    """List the groups of a command, and the further settings of its own file.

    A command whose defaults name the file of another has the groups and settings of both.
    """
    content = read_yaml(CONFIG_DIR / f"{config_name}.yaml")
    groups: set[str] = set()
    settings: dict[str, Any] = {}
    for entry in content.pop("defaults"):
        if isinstance(entry, dict):
            groups.update(name for name in entry if not name.startswith("override "))
        elif entry != "_self_":
            other_groups, other_settings = top_level(entry)
            groups |= other_groups
            settings |= other_settings
    content.pop("hydra")
    return groups, settings | content


@cache
def known_keys(config_name: str) -> set[str]:
    """List every key that a command knows.

    These are the keys of its own file, of the files of its groups, and the arguments of the
    classes that those files name.
    """
    groups, content = top_level(config_name)
    keys = {*groups, *content, *dict(flatten(content))}
    for group in groups:
        for choice in choices(group):
            keys |= keys_of_choice(group, choice)
    return keys


@cache
def keys_of_choice(group: str, choice: str) -> set[str]:
    """List the keys of a choice: those of its file, and the arguments of the classes in it."""
    file = CONFIG_DIR / group / f"{choice}.yaml"
    settings = read_yaml(file) or {}
    defaults = settings.pop("defaults", [])
    # A file of the package _global_ sets keys of several groups, any other those of its own.
    if not file.read_text(encoding="utf-8").startswith("# @package _global_"):
        settings = {group: settings}
    keys = set(dict(flatten(settings)))
    for key, node in nodes_with_target(settings):
        # Arguments that a file leaves to their default are keys as well. MONAI's classes are not
        # looked at, because importing them takes seconds.
        target = node["_target_"]
        if is_within(target, ("tversky_seg", "torch")):
            keys.update(f"{key}.{name}" for name in argument_names(target))
    for entry in defaults:
        # "_common" and the like: a file of the same group that this one starts from.
        if isinstance(entry, str) and (file.parent / f"{entry}.yaml").is_file():
            keys |= keys_of_choice(group, entry)
    return keys
