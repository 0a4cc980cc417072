"""What a config file may do: set our keys, but neither configure Hydra nor fill the memory.

Hydra builds `hydra.callbacks`, loggers and launchers while it composes a config, before a command
can look at it. An experiment file from a stranger could so run any code. Hydra has no hook for
this, so this module alone reaches into Hydra's private modules; pyproject.toml pins hydra-core to
1.3, and tests/config/test_hydra_loading.py fails should a release move things.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra._internal.hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins import file_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import ResultDefault
from hydra.errors import ConfigCompositionException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from tversky_seg.config.checks import ConfigError
from tversky_seg.config.config_files import CONFIG_DIR, YAML_LOADER
from tversky_seg.config.yaml_size import check_yaml


class CheckedConfigLoader(ConfigLoaderImpl):
    """Hydra's loader, which refuses settings of Hydra in files that nobody trusts.

    The command line may configure Hydra, and so may the files of the commands in configs/, those
    in configs/hydra/, Hydra's own, and with `trust=[hydra]` on the command line any file.
    """

    trusts_files = False

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        # By now Hydra has registered its own readers, and imports them no more.
        SourcesRegistry.instance().types["file"] = FileConfigSource
        super().__init__(config_search_path)
        # Choices of each group, as files are loaded: {"loss": ["dice"], …}.
        self.chosen: dict[str, list[str]] = {}

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Compose a config; a fault remembers which choices were made."""
        # Hydra hands over the words of the command line, in the jobs of a sweep too.
        self.trusts_files = _is_trusted("hydra", overrides)
        self.chosen = {}
        try:
            return super().load_configuration(
                config_name, overrides, run_mode, from_shell, validate_sweep_overrides
            )
        except ConfigCompositionException as fault:
            fault.chosen = self.chosen  # type: ignore[attr-defined]
            raise

    def _load_single_config(self, default: ResultDefault, repo: Any) -> ConfigResult:
        loaded = super()._load_single_config(default, repo)
        # By now the settings stand where the file puts them: a header `# @package hydra.callbacks`
        # and a block `hydra: {callbacks: …}` look alike.
        config_path = str(default.config_path)
        group, _, choice = config_path.rpartition("/")
        self.chosen.setdefault(group, []).append(choice)
        settings: Any = loaded.config
        sets_hydra = OmegaConf.is_dict(settings) and "hydra" in settings
        if sets_hydra and not self.trusts_files and not _may_set_hydra(config_path, loaded):
            keys = ", ".join(f"hydra.{key}" for key in settings.hydra)
            raise ConfigError(
                f"{config_path}.yaml: sets {keys}; "
                "expected it on the command line, or trust=[hydra] there"
            )
        return loaded


class FileConfigSource(file_config_source.FileConfigSource):
    """Hydra's reader of files, with a limit of their size.

    It has the name of Hydra's, because Hydra's registry tells readers apart by their names, and
    a launcher's process registers Hydra's a second time.
    """

    def load_config(self, config_path: str) -> ConfigResult:
        """Load a file of a config, if it is not too large."""
        file = Path(self.path) / self._normalize_file_name(config_path)
        if file.is_file():
            with file.open(encoding="utf-8") as opened:
                check_yaml(opened, file, YAML_LOADER)
        return super().load_config(config_path)


def _may_set_hydra(config_path: str, loaded: ConfigResult) -> bool:
    """Tell whether a file comes with Hydra or is one of ours that configures Hydra."""
    place = str(loaded.path)
    # Hydra and its plug-ins load theirs from packages (pkg://, structured://).
    if not place.startswith("file://"):
        return True
    is_ours = Path(place.removeprefix("file://")) == CONFIG_DIR
    is_of_a_command = "/" not in config_path
    return is_ours and (is_of_a_command or config_path.startswith("hydra/"))


def _is_trusted(package: str, overrides: Sequence[str]) -> bool:
    """Look for a package in `trust=[…]` on the command line."""
    for word in overrides:
        key, _, value = word.partition("=")
        names = value.strip("[]'\"").split(",")
        if key == "trust" and package in [name.strip(" '\"") for name in names]:
            return True
    return False


def install() -> None:
    """Have Hydra load files by the classes of this module."""
    hydra._internal.hydra.ConfigLoaderImpl = CheckedConfigLoader  # type: ignore[attr-defined]
