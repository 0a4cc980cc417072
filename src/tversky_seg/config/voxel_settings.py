"""Settings that follow the voxel: patches in mm, and the strides of the network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from tversky_seg.config.checks import ConfigError
from tversky_seg.config.instantiate import build
from tversky_seg.config.log import logger

if TYPE_CHECKING:
    from tversky_seg.data.dataset import Dataset

AUTO_MM = 64.0
"""Side of the patches of `sampler.patch_size=auto`."""


def resolve_voxel_settings(cfg: DictConfig, dataset: Dataset) -> None:
    """Replace a `sampler.patch_size` in mm and `model.strides=auto` by numbers of voxels.

    Only then are headers of the files read here, for the voxel size of the network.

    Args:
        cfg: Composed config, changed in place: the run and its checkpoints keep the numbers.
        dataset: The data set of the config.

    Raises:
        ConfigError: A length cannot be read, or the network has no strides to choose.
        DataError: The voxel size cannot be read.
    """
    side_mm = _side_mm(cfg.sampler.get("patch_size"))
    are_strides_open = cfg.model.get("strides") == "auto"
    if side_mm is None and not are_strides_open:
        return
    # Imported late: help and misspelt words need no torch.
    from tversky_seg.data.patches.sampling import patch_sides_of_mm
    from tversky_seg.data.preprocessing.pipeline import network_spacing

    spacing_mm = network_spacing(dataset)
    if side_mm is not None:
        cfg.sampler.patch_size = list(patch_sides_of_mm(side_mm, spacing_mm))
    if are_strides_open:
        # Of any number of channels: the strides alone are wanted.
        network = build(cfg, "model", in_channels=1, out_channels=1, spacing_mm=spacing_mm)
        cfg.model.strides = [list(stride) for stride in network.strides]
    _log_choice(cfg, spacing_mm, has_patch=side_mm is not None, has_strides=are_strides_open)


def _side_mm(patch_size: object) -> float | None:
    """Read "auto" or "48mm"; None: a number of voxels, or three."""
    if not isinstance(patch_size, str):
        return None
    if patch_size == "auto":
        return AUTO_MM
    number = patch_size.removesuffix("mm").strip()
    try:
        side_mm = float(number) if number != patch_size else math.nan
    except ValueError:
        side_mm = math.nan
    if not 0 < side_mm < math.inf:
        raise ConfigError(
            f"sampler.patch_size: {patch_size}; expected voxels as in 64 or [64,64,16], "
            "a length as in 48mm, or auto"
        )
    return side_mm


def _log_choice(
    cfg: DictConfig, spacing_mm: Sequence[float], *, has_patch: bool, has_strides: bool
) -> None:
    choices = []
    if has_patch:
        choices.append(f"patches of {_times(cfg.sampler.patch_size)}")
    if has_strides:
        choices.append("strides " + ", ".join(_times(stride) for stride in cfg.model.strides))
    logger.info("voxels of %s mm: %s", _times(spacing_mm), "; ".join(choices))


def _times(numbers: Sequence[float]) -> str:
    return "x".join(f"{number:g}" for number in numbers)
