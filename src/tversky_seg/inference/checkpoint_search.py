"""The checkpoints that a setting names: files, run folders, folders of runs, or globs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from tversky_seg.runtime.checkpoints import CheckpointError
from tversky_seg.runtime.warm_start import checkpoint_file

logger = logging.getLogger("tversky_seg")

MAX_NAMES = 5  # of runs, in one message


def find_checkpoints(names: str | Sequence[str]) -> list[Path]:
    """List the checkpoint files that a setting names, in its order.

    The folder of a sweep means all its runs. A glob that matches run folders means these alone, so
    that `runs/cv/*` passes over the summary next to them. A run that is still in training is taken
    as it is, with a warning.

    Args:
        names: Files, run folders (their best.pt), folders of runs, or globs of these; one or
            several.

    Raises:
        CheckpointError: There is none, or a file is named twice.
    """
    if isinstance(names, str):
        names = [names]
    paths: list[Path] = []
    for name in names:
        paths += _checkpoints_named(str(name))
    expectation = "expected each member of the ensemble once, as [a/best.pt,b/best.pt]"
    if not paths:
        raise CheckpointError(f"checkpoint: none given; {expectation}")
    for path in paths:
        # A member that counts twice would outvote the others.
        if paths.count(path) > 1:
            raise CheckpointError(f"checkpoint: duplicate {path}; {expectation}")
    in_training = [str(path.absolute().parents[1]) for path in paths if _is_in_training(path)]
    if in_training:
        logger.warning(
            "training is not finished in %s; using its best network so far",
            ", ".join(in_training),
        )
    return paths


def _checkpoints_named(name: str) -> list[Path]:
    """List the files that one name stands for."""
    path = checkpoint_file(name)
    if path.is_dir() and not _is_run(path):
        return _checkpoints_of_sweep(path)
    is_glob = "*" in name or "?" in name
    if path.exists() or not is_glob:
        return [checkpoint_of(path)]  # loading it tells if it is missing
    # pathlib globs relative patterns only.
    if path.anchor:
        root = Path(path.anchor)
        matches = sorted(root.glob(str(path.relative_to(root))))
    else:
        matches = sorted(Path().glob(str(path)))
    if not matches:
        raise CheckpointError(
            f"checkpoint: no file matches {name}; expected as runs/*/checkpoints/best.pt"
        )
    # In `runs/cv/*` the runs count, not the summary next to them; `*.pt` names no run at all.
    return _checkpoints_of_runs(matches) or matches


def _checkpoints_of_sweep(folder: Path) -> list[Path]:
    """List the best checkpoints of the runs in a folder."""
    entries = sorted(folder.iterdir())
    checkpoints = _checkpoints_of_runs(entries)
    if checkpoints:
        return checkpoints
    fault = f"checkpoint: {folder} holds no run"
    if any(_is_run(path) for path in entries):
        raise CheckpointError(f"{fault} with a checkpoint yet; expected one that has trained")
    sweeps = [path for path in entries if path.is_dir() and any(map(_is_run, path.iterdir()))]
    if sweeps:
        names = ", ".join(str(path) for path in sweeps[:MAX_NAMES])
        raise CheckpointError(f"{fault}, but folders of runs; choose one of {names}")
    raise CheckpointError(f"{fault}; expected a file, a run folder, or a folder of runs")


def _checkpoints_of_runs(paths: Sequence[Path]) -> list[Path]:
    """List the best checkpoints of the paths that are runs; those without any are passed over."""
    runs = [path for path in paths if _is_run(path)]
    trained = [run for run in runs if checkpoint_of(run).is_file()]
    untrained = [str(run) for run in runs if run not in trained]
    if untrained and trained:
        names = ", ".join(untrained[:MAX_NAMES])
        logger.warning("passed over %s, without checkpoints/best.pt yet", names)
    return [checkpoint_of(run) for run in trained]


def checkpoint_of(path: Path) -> Path:
    """Return the best checkpoint of a run folder; a file is itself."""
    if path.is_dir():
        return path / "checkpoints" / "best.pt"
    return path


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file() or (path / "checkpoints").is_dir()


def _is_in_training(path: Path) -> bool:
    """Tell whether the run of a checkpoint has not come to its prediction, which ends training."""
    # <run>/checkpoints/best.pt
    run = path.absolute().parents[1]
    if not path.is_file() or not (run / "config.yaml").is_file():
        return False
    return not (run / "predictions").exists() and not (run / "evaluation").exists()
