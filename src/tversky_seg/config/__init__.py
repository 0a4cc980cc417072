"""Configuration: the only package that knows Hydra."""

from tversky_seg.config.checks import ConfigError, check_arguments
from tversky_seg.config.entry_point import (
    build,
    build_network,
    check_network,
    command,
    logger,
    open_run,
    plain,
)

__all__ = [
    "ConfigError",
    "build",
    "build_network",
    "check_arguments",
    "check_network",
    "command",
    "logger",
    "open_run",
    "plain",
]
