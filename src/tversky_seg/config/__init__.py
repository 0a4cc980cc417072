"""Configuration: the only package that knows Hydra."""

from tversky_seg.config.checks import ConfigError, check_arguments
from tversky_seg.config.composed_config import check_config, plain, user_overrides
from tversky_seg.config.entry_point import Command
from tversky_seg.config.instantiate import build, build_network, check_network
from tversky_seg.config.log import logger
from tversky_seg.config.run_directory import open_run, recall_auto
from tversky_seg.config.voxel_settings import resolve_voxel_settings

__all__ = [
    "Command",
    "ConfigError",
    "build",
    "build_network",
    "check_arguments",
    "check_config",
    "check_network",
    "logger",
    "open_run",
    "plain",
    "recall_auto",
    "resolve_voxel_settings",
    "user_overrides",
]
