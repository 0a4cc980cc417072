"""Sweeps: `-m` runs one job for each combination of settings, each in a directory of its own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from tversky_seg.runtime.run_settings import is_free

LONGEST_NAME = 200
"""File systems allow 255 bytes; a letter may take more than one."""


def is_sweep() -> bool:
    """Tell whether this job is one of a sweep."""
    mode = HydraConfig.get().mode
    return mode is not None and mode.name == "MULTIRUN"


def describe_job(n_jobs: int | None) -> str:
    """Describe this job of a sweep: `job 3 of 6: loss.beta=0.7, data.fold=1`.

    Args:
        n_jobs: Number of jobs of the sweep; None where a search decides.
    """
    hydra_config = HydraConfig.get()
    number = str(hydra_config.job.num + 1)  # Hydra counts from 0
    if n_jobs is not None:
        number = f"{number} of {n_jobs}"
    fixed_keys = hydra_config.job.config.override_dirname.exclude_keys
    words = _varying_words(hydra_config.overrides.task, fixed_keys)
    return f"job {number}: {', '.join(words)}"


def best_value(run: Path) -> float | None:
    """Read what a search over settings maximises: the best value of trainer.monitor.

    Args:
        run: Directory of a job.

    Returns:
        None where the job left no checkpoint.
    """
    from tversky_seg.runtime.checkpoints import load_checkpoint

    checkpoint = run / "checkpoints" / "best.pt"
    if not checkpoint.exists():
        return None
    return float(load_checkpoint(checkpoint)["best"])


def sweep_directory(
    output_dir: str | None, overrides: Sequence[str] = (), fixed_keys: Collection[str] = ()
) -> str:
    """Name the directory that holds the jobs of a sweep.

    Args:
        output_dir: As set; None gives a name below runs/ that tells sweeps of other settings apart.
        overrides: Words of the command line or of a job.
        fixed_keys: Keys of the words that have one value in all jobs.
    """
    if output_dir:
        return str(Path(output_dir).expanduser())
    varying = _varying_words(overrides, fixed_keys)
    fixed = sorted(word for word in _deciding_words(overrides) if word not in varying)
    # Two sweeps of other data must not meet in a folder whose names hold what varies alone.
    if not fixed:
        return "runs/sweep"
    return f"runs/sweep_{_hash(fixed)}"


def job_directory(overrides: Sequence[str], fixed_keys: Collection[str] = ()) -> str:
    """Name the directory of a job by what varies in the sweep.

        job_directory(["data=lits", "loss.beta=0.5", "data.fold=1"], ["data"])
        == "data.fold=1,loss.beta=0.5"

    Slashes are replaced, words with paths stand last, and a long name ends in a hash.

    Args:
        overrides: Words of the job.
        fixed_keys: Keys of the words that have one value in all jobs.
    """
    words = _varying_words(overrides, fixed_keys)
    words.sort(key=lambda word: ("/" in word, word))
    name = re.sub(r"[^\w.,=+-]+", "_", ",".join(words)) or "default"
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 10]}_{_hash(words)}"


def _varying_words(overrides: Sequence[str], fixed_keys: Collection[str]) -> list[str]:
    """List the words that decide the numbers and differ between jobs."""
    words = _deciding_words(overrides)
    return [word for word in words if _key(word) not in fixed_keys]


def _deciding_words(overrides: Sequence[str]) -> list[str]:
    # command_line put names in quotes; folders go without.
    words = [word.replace("'", "") for word in overrides]
    return [word for word in words if not is_free(_key(word))]


def _key(word: str) -> str:
    """Take the key of a word of the command line: `trainer.max_hours` of `+trainer.max_hours=1`."""
    return word.lstrip("+~").partition("=")[0]


def _hash(words: Sequence[str]) -> str:
    return hashlib.sha256(",".join(words).encode()).hexdigest()[:8]


# train.yaml names the directories of a sweep by these two functions.
OmegaConf.register_new_resolver("tversky_seg_sweep_directory", sweep_directory, replace=True)
OmegaConf.register_new_resolver("tversky_seg_job_directory", job_directory, replace=True)
