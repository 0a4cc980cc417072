"""The directory of a run: chosen from the settings, made once, reopened with the same settings."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tversky_seg.config.checks import ConfigError
from tversky_seg.config.composed_config import plain
from tversky_seg.config.config_files import read_yaml
from tversky_seg.config.implied_choices import log_implied_choices
from tversky_seg.config.log import is_first_process, log_to_file
from tversky_seg.config.sweep import is_sweep
from tversky_seg.runtime.files import write_text
from tversky_seg.runtime.run_settings import differences, fingerprint

CONFIG_FILE = "config.yaml"
SETTLED_KEYS = ("precision", "init_from")
"""Keys of the trainer whose "auto" is replaced by what it means when a run begins."""

MOST_DIFFERENCES = 3
"""Further settings that differ are counted, not named."""


def open_run(cfg: DictConfig) -> Path:
    """Make the run directory of the settings with its config.yaml, or reopen an existing one.

    Returns:
        The directory; train.log in it gets the log from now on.

    Raises:
        ConfigError: The directory holds a run with other settings, which are named, or cannot be
            written.
    """
    output_dir = run_directory(cfg)
    # As chosen, not as set: null and a relative path mean another place elsewhere.
    settings = plain(cfg) | {"output_dir": str(output_dir)}
    config_file = output_dir / CONFIG_FILE
    try:
        if config_file.exists():
            _refuse_other_settings(config_file, settings)
        else:
            output_dir.mkdir(parents=True, exist_ok=True)
            write_text(config_file, yaml.safe_dump(settings, sort_keys=False))
        if is_first_process():
            log_to_file(output_dir / "train.log")
            log_implied_choices()
    except OSError as fault:
        raise ConfigError(
            f"output_dir: {output_dir} cannot be written ({fault.strerror}); choose another"
        ) from fault
    return output_dir


def recall_auto(cfg: DictConfig) -> None:
    """Replace "auto" by the word of the run in `output_dir`, if there is one, for SETTLED_KEYS.

    A run keeps the precision that it began with, also on a machine where auto means another, and
    the weights that it started from, also in a version that would choose others.

    Args:
        cfg: Composed config of train.py, changed in place. An `output_dir` that is made from the
            settings is made from those of the command line, and set.
    """
    keys = [key for key in SETTLED_KEYS if cfg.trainer[key] == "auto"]
    if not keys:
        return
    output_dir = run_directory(cfg)
    if not is_sweep():
        cfg.output_dir = str(output_dir)
    with suppress(OSError, yaml.YAMLError, UnicodeDecodeError):
        before = read_yaml(output_dir / "config.yaml")
        settings: Any = before.get("trainer") if isinstance(before, dict) else None
        for key in keys:
            # A file without the key is refused, or written again, when the run is opened.
            if isinstance(settings, dict) and key in settings:
                cfg.trainer[key] = settings[key]


def run_directory(cfg: DictConfig) -> Path:
    """Choose the directory of this run.

    It is Hydra's in a sweep, otherwise `output_dir`, otherwise a name made from the settings.
    """
    hydra_config = HydraConfig.get()
    if is_sweep():
        return Path(hydra_config.runtime.output_dir)
    if cfg.output_dir is not None:
        return Path(str(cfg.output_dir)).expanduser()
    choices = hydra_config.runtime.choices
    name = [choices["data"], choices["model"], choices["loss"], fingerprint(plain(cfg))]
    return Path("runs") / "_".join(name)


def has_run(cfg: DictConfig) -> bool:
    """Tell whether the directory of this run holds a run's settings already."""
    return (run_directory(cfg) / CONFIG_FILE).exists()


def forget_failed_start(cfg: DictConfig) -> None:
    """Remove the settings of a run that failed before its first checkpoint.

    The corrected command, which has other settings, may then use the same directory.
    """
    output_dir = run_directory(cfg)
    if not (output_dir / "checkpoints").exists():
        with suppress(OSError):
            (output_dir / CONFIG_FILE).unlink()


def _refuse_other_settings(config_file: Path, settings: dict[str, Any]) -> None:
    """Refuse to resume a run whose numbers another setting would change."""
    try:
        before = read_yaml(config_file)
    except (yaml.YAMLError, UnicodeDecodeError):
        before = None  # refused below, as is a file that a power cut emptied
    if not isinstance(before, dict):
        raise ConfigError(
            f"{config_file}: holds no settings; restore it or choose another output_dir"
        )
    changed = differences(before, settings)
    if not changed:
        return
    text = ", ".join(changed[:MOST_DIFFERENCES])
    if len(changed) > MOST_DIFFERENCES:
        text += f" and {len(changed) - MOST_DIFFERENCES} more"
    raise ConfigError(
        f"output_dir: {config_file.parent} holds a run with other settings ({text}); choose another"
    )
