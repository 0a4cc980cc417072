"""Sweeps: `-m` runs one job for each combination of settings, each in a directory of its own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from tversky_seg.runtime.checkpoints import load_checkpoint
from tversky_seg.runtime.run_settings import is_free

LONGEST_NAME = 200
"""File systems allow 255 bytes; a letter may take more than one."""


def is_sweep() -> bool:
    """Tell whether this job is one of a sweep."""
    mode = HydraConfig.get().mode
    return mode is not None and mode.name == "MULTIRUN"


def best_value(run: Path) -> float | None:
    """Read what a search over settings maximises: the best value of trainer.monitor.

    Args:
        run: Directory of a job.

    Returns:
        None where the job left no checkpoint.
    """
    checkpoint = run / "checkpoints" / "best.pt"
    if not checkpoint.exists():
        return None
    return float(load_checkpoint(checkpoint)["best"])


def sweep_directory(output_dir: str | None) -> str:
    """Name the directory that holds the jobs of a sweep."""
    return str(output_dir or "runs/sweep")


def job_directory(overrides: Sequence[str]) -> str:
    """Name the directory of a job by its settings: slashes replaced, paths last, hashed if long.

    Args:
        overrides: Words of the job, such as `loss.beta=0.5`.
    """
    deciding = []
    for word in overrides:
        key = word.lstrip("+~").split("=")[0]
        if not is_free(key):
            deciding.append(word.replace("'", ""))
    deciding.sort(key=lambda word: ("/" in word, word))
    words = ",".join(deciding)
    name = re.sub(r"[^\w.,=+-]+", "_", words) or "default"
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 10]}_{hashlib.sha256(words.encode()).hexdigest()[:8]}"


# train.yaml names the directories of a sweep by these two functions.
OmegaConf.register_new_resolver("tversky_seg_sweep_dir", sweep_directory, replace=True)
OmegaConf.register_new_resolver("tversky_seg_setting", job_directory, replace=True)
