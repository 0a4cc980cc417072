"""What checkpoints hold, ready to predict: networks, their preprocessing, and what validation chose."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from tversky_seg.config.instantiate import build_network
from tversky_seg.data.preprocessing.pipeline import Preprocessing
from tversky_seg.inference.ensemble import Ensemble, Member
from tversky_seg.inference.predict import Inference
from tversky_seg.runtime.checkpoints import CheckpointError, checksum, load_checkpoint

logger = logging.getLogger("tversky_seg")
NEEDED = {"config", "preprocessing", "inference", "threshold"}


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network and how it was trained to see and to be read.

    Attributes:
        path: The checkpoint.
        checksum: Of the file.
        network: With its weights.
        preprocessing: As in training.
        inference: As in training, with threshold and smallest lesion as chosen on validation.
        may_lack: Whether it was trained with channel dropout, so that a modality may be missing.
    """

    path: Path
    checksum: str
    network: nn.Module
    preprocessing: Preprocessing
    inference: Inference
    may_lack: bool


def find_checkpoints(asked: str | Sequence[str]) -> list[Path]:
    """The checkpoint files that a setting names, in its order: files, run folders (their best.pt), or globs of these.

    A glob that matches run folders means these alone, so that `runs/cv/*` passes over the summary beside them. A run
    that is still in training is taken as it is, with a warning.

    Raises:
        CheckpointError: Nothing is there, or a file is named twice.
    """
    names = [asked] if isinstance(asked, str) else [str(name) for name in asked]
    paths = [path for name in names for path in _found(name)]
    twice = [path for path in paths if paths.count(path) > 1]
    if twice or not paths:
        found = f"{twice[0]} stands twice" if twice else "none given"
        raise CheckpointError(
            f"checkpoint: {found}; expected each member of the ensemble once, as [a/best.pt,b/best.pt]"
        )
    training = [path.absolute().parents[1] for path in paths if _is_in_training(path)]
    if training:
        logger.warning(
            "training is not finished in %s; its best network so far is taken",
            ", ".join(map(str, training)),
        )
    return paths


def load_trained(path: Path, *, trust: Sequence[str] = ()) -> Trained:
    """Build the network of a checkpoint that train.py wrote; a stranger's file runs no code.

    Raises:
        CheckpointError: The file is missing, damaged, or not of train.py.
        ConfigError: It names anything but classes of networks.
    """
    state = load_checkpoint(path)
    if not set(state) >= NEEDED:
        raise CheckpointError(
            f"{path}: was not written by train.py; expected <run>/checkpoints/best.pt"
        )
    try:
        preprocessing = Preprocessing.from_dict(state["preprocessing"])
        inference = Inference(**state["inference"]).with_operating_point(state)
        network = build_network(
            state["config"],
            in_channels=len(preprocessing.modalities),
            out_channels=len(preprocessing.classes),
            trust=trust,
        )
        network.load_state_dict(state["model"])
        augmentation = state["config"].get("augmentation") or {}
    except (TypeError, AttributeError, RuntimeError) as fault:
        raise CheckpointError(
            f"{path}: its parts do not fit each other; expected a file of train.py"
        ) from fault
    may_lack = (augmentation.get("dropout_probability") or 0) > 0
    return Trained(path, checksum(path), network, preprocessing, inference, may_lack)


def require_agreement(members: Sequence[Trained]) -> Preprocessing:
    """The preprocessing that all members share.

    Raises:
        CheckpointError: naming the first setting in which two differ, with both values.
    """
    first = members[0]
    for other in members[1:]:
        ours, theirs = first.preprocessing.as_dict(), other.preprocessing.as_dict()
        for name, value in ours.items():
            if theirs[name] != value or (name == "classes" and list(theirs[name]) != list(value)):
                raise CheckpointError(
                    f"checkpoint: {first.path} has {name} {value}, {other.path} {theirs[name]}; "
                    "expected members trained on the same modalities, classes and preprocessing"
                )
    return first.preprocessing


def combine(
    members: Sequence[Trained],
    *,
    asked: Mapping[str, Any],
    combination: str = "mean",
    uncertainty: str | None = None,
) -> tuple[Ensemble, Inference]:
    """The members as one, and how its probability becomes a mask.

    Each member predicts by its own windows where `asked` says nothing else. Threshold and smallest lesion are those
    asked for; else the members' mean. Votes are cast at each member's own threshold, and half of them are enough.

    Args:
        members: One or more.
        asked: Settings of `Inference` that replace the checkpoints'.
        combination: "mean" or "vote".
        uncertainty: "entropy", "disagreement" or None.
    """
    classes = tuple(members[0].preprocessing.classes)
    parts = [
        Member(
            member.network,
            replace(member.inference, **asked).windows,
            member.checksum,
            tuple(member.inference.threshold_of(name) for name in classes),
        )
        for member in members
    ]
    settings = [member.inference for member in members]
    vote = combination == "vote"
    inference = replace(
        settings[0],
        threshold=0.5
        if vote
        else _one({name: _mean(each.threshold_of(name) for each in settings) for name in classes}),
        min_volume_mm3=_one(
            {name: _mean(each.min_volume_of(name) for each in settings) for name in classes}
        ),
    )
    return Ensemble(parts, combination, uncertainty), replace(inference, **asked)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _one(by_class: dict[str, float]) -> float | dict[str, float]:
    """The value itself where there is one class."""
    return by_class if len(by_class) > 1 else next(iter(by_class.values()))


def _found(name: str) -> list[Path]:
    """The files that one name stands for."""
    path = Path(name).expanduser()
    if path.exists():
        return [_in_run(path)]
    if not any(sign in name for sign in "*?"):
        return [path]  # loading it says that it is missing
    anchor = Path(path.anchor)
    paths = sorted(
        anchor.glob(str(path.relative_to(anchor))) if path.anchor else Path().glob(str(path))
    )
    if not paths:
        raise CheckpointError(
            f"checkpoint: no file matches {name}; expected as runs/*/checkpoints/best.pt"
        )
    runs = [path for path in paths if _is_run(path)]
    return [_in_run(path) for path in runs or paths]


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file() or (path / "checkpoints").is_dir()


def _is_in_training(path: Path) -> bool:
    """Whether train.py, which predicts the test cases after training, has not come to that in this checkpoint's run."""
    run = path.absolute().parents[1]
    is_over = any((run / name).exists() for name in ("predictions", "evaluation"))
    return path.is_file() and (run / "config.yaml").is_file() and not is_over


def _in_run(path: Path) -> Path:
    return path / "checkpoints" / "best.pt" if path.is_dir() else path
