"""Choices of groups that another choice makes: data=phantom also chooses trainer=phantom."""

from __future__ import annotations

import logging
import re

from hydra.core.hydra_config import HydraConfig

from tversky_seg.config.config_files import CONFIG_DIR, read_yaml

logger = logging.getLogger("tversky_seg")

_OVERRIDE = re.compile(r"override /(\w+)(@.*)?")  # override /trainer@_global_.trainer: phantom


def log_implied_choices() -> None:
    """Log one line for each choice of the running command that makes further choices."""
    choices = HydraConfig.get().runtime.choices
    for group, choice in choices.items():
        implied = [
            f"{other}={value}"
            for other, value in _overrides_of(group, choice).items()
            if choices.get(other) == value  # else the user chose otherwise
        ]
        if implied:
            logger.info("%s=%s also sets %s", group, choice, ", ".join(implied))


def _overrides_of(group: str, choice: str | None) -> dict[str, str]:
    """Read which choices a choice overrides: {"trainer": "phantom", …}."""
    file = CONFIG_DIR / group / f"{choice}.yaml"
    if not file.is_file():  # null, a list of experiments, or a file of the user's own
        return {}
    overrides = {}
    for entry in read_yaml(file).get("defaults", []):
        if isinstance(entry, dict):
            for key, value in entry.items():
                match = _OVERRIDE.fullmatch(key)
                if match:
                    overrides[match[1]] = value
    return overrides
