"""The YAML files of configs/: groups, choices, and every key that a command knows."""

from __future__ import annotations

import inspect
from functools import cache
from pathlib import Path
from typing import Any

import yaml

import tversky_seg
from tversky_seg.config.checks import nodes_with_target
from tversky_seg.config.targets import find_object, is_within
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
    """Read plain values from a YAML file."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=YAML_LOADER)


def choices(group: str) -> list[str]:
    """List the choices of a group, such as `loss`: the names of its files."""
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))


def top_level(config_name: str) -> tuple[set[str], dict[str, Any]]:
    """List the groups of a command, and the further settings of its own file."""
    content = read_yaml(CONFIG_DIR / f"{config_name}.yaml")
    groups: set[str] = set()
    for entry in content.pop("defaults"):
        if isinstance(entry, dict):
            groups.update(name for name in entry if not name.startswith("override "))
    content.pop("hydra")
    return groups, content


@cache
def known_keys(config_name: str) -> set[str]:
    """List every key that a command knows.

    These are the keys of its own file, of the files of its groups, and the arguments of the
    classes that those files name.
    """
    groups, content = top_level(config_name)
    keys = {*groups, *content}
    keys.update(key for key, _ in flatten(content))
    for group in groups:
        for file in (CONFIG_DIR / group).glob("*.yaml"):
            keys |= _keys_of_file(file)
    return keys


def _keys_of_file(file: Path) -> set[str]:
    """List the dotted keys of a group's file and the arguments of the classes that it names."""
    settings = read_yaml(file) or {}
    settings.pop("defaults", None)
    if not file.read_text(encoding="utf-8").startswith("# @package _global_"):
        settings = {file.parent.name: settings}
    keys = {key for key, _ in flatten(settings)}
    for key, node in nodes_with_target(settings):
        target = node["_target_"]
        function = find_object(target) if is_within(target, ("tversky_seg", "torch")) else None
        if function is not None:
            keys.update(f"{key}.{name}" for name in inspect.signature(function).parameters)
    return keys
