"""The environment of a run, environment.json: versions, device, threads, commit, data."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tversky_seg.runtime.distributed import is_first, world_size
from tversky_seg.runtime.files import read_json_if_whole, write_json

logger = logging.getLogger("tversky_seg")

PACKAGES = (
    "tversky-seg",
    "torch",
    "monai",
    "numpy",
    "scipy",
    "nibabel",
    "hydra-core",
    "scikit-image",
    "connected-components-3d",
)
DECIDES_BITS = ("threads", "processes", "device", "cudnn", "data")
"""Entries of environment.json, besides the version of torch, that change rounding or draws."""

FINGERPRINT_BYTES = 4096


def record_environment(path: Path, *, data: Sequence[Path] = ()) -> None:
    """Write environment.json, and warn if a resumed run no longer repeats its own bits.

    Args:
        path: File to write. With several processes, the first one writes it.
        data: Files that the run reads.
    """
    if not is_first():
        return
    current = describe_environment()
    current["data"] = data_fingerprint(data)
    previous = read_json_if_whole(path)
    if previous is not None:
        _warn_of_changes(previous, current)
        # A complete run trains no more, and would not write this entry again.
        current["computation"] = previous.get("computation")
    write_json(path, current)


def record_computation(path: Path, computation: Mapping[str, Any]) -> None:
    """Add to an environment.json how the steps of a training are computed.

    Args:
        path: The file. Where there is none, as for a trainer without train.py, nothing is written.
        computation: Plain values, such as the precision and whether the network is compiled.
    """
    environment = read_json_if_whole(path)
    if environment is not None:
        write_json(path, {**environment, "computation": dict(computation)})


def describe_environment() -> dict[str, Any]:
    """List what a rerun needs to know: versions, device, threads, git commit, command."""
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "command": [sys.executable, *sys.argv],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "cpus": os.cpu_count(),
        "device": _device_name(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "driver": _driver_version(),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def data_fingerprint(files: Sequence[Path]) -> str:
    """Return 16 hexadecimal digits that change with the contents of files, not with their folder.

    The size and the first and last 4096 bytes of each file are read: a .nii.gz ends with a checksum
    of all its voxels. A change in the middle of an uncompressed file that keeps its size is missed.
    """
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(size.to_bytes(8, "big"))
            # The header lies at the start, the checksum of a gzip file at the end.
            for start in (0, max(size - FINGERPRINT_BYTES, 0)):
                file.seek(start)
                digest.update(file.read(FINGERPRINT_BYTES))
    return digest.hexdigest()[:16]


def _warn_of_changes(previous: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Warn of every entry that decides bits and differs between two environments."""
    # Other entries, such as the command and the platform, may differ without any harm.
    pairs = {}
    for name in DECIDES_BITS:
        pairs[name] = (previous.get(name), current[name])
    previous_versions = previous.get("versions") or {}
    pairs["torch"] = (previous_versions.get("torch"), current["versions"]["torch"])
    changes = [f"{name} was {old}, now {new}" for name, (old, new) in pairs.items() if old != new]
    if changes:
        logger.warning(
            "the numbers may differ from those of an uninterrupted run: %s", ", ".join(changes)
        )


def _version(package: str) -> str | None:
    """Return the version of a package; None for one on PYTHONPATH that is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return platform.processor() or "cpu"


def _driver_version() -> str | None:
    """Read the version of NVIDIA's driver; None without one, or on another system than Linux."""
    try:
        # "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 …"
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"\b(\d{3,}\.[\d.]+)", text)
    return match[1] if match else None


def _git(*arguments: str) -> str | None:
    """Ask git about the folder of this package; None without git, or outside a repository."""
    try:
        # A folder on a network drive may hang; a run must not wait for its commit.
        process = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if process.returncode != 0:
        return None
    return process.stdout.strip()
