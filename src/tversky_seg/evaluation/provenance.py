"""Where evaluated predictions come from: run, network, data, command, checkpoint, version, date."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tversky_seg.data.case import Case
from tversky_seg.evaluation.saved_predictions import Predictions
from tversky_seg.inference.prediction_folder import SETTINGS_FILE
from tversky_seg.losses.checks import tversky_weights
from tversky_seg.runtime.files import read_json_if_whole

N_CHECKSUM_LETTERS = 12


def describe_origin(
    source: Predictions, cases: Sequence[Case], *, command: Sequence[str] | None = None
) -> dict[str, str]:
    """List what a reader needs to find the origin of an evaluation: name -> value.

    What is unknown is left out: another tool's masks have no run and no checkpoint.

    Args:
        source: The predictions.
        cases: The evaluated cases.
        command: Words of the command that evaluates them. None: the command of the training, where
            the predictions lie in its folder.
    """
    # runs/x/predictions of a training lies beside its settings.
    run = source.folder.resolve().parent
    settings = _settings(run / "config.yaml")
    environment = read_json_if_whole(run / "environment.json") or {}
    saved = read_json_if_whole(source.folder / SETTINGS_FILE) or {}
    origin: dict[str, str] = {}
    origin["Run"] = run.name if settings else ""
    origin["Predictions"] = str(source.folder)
    if source.pattern is not None:
        origin["Predictions"] = f"{source.folder}, masks named {source.pattern}"
    origin["Model"] = _network(settings)
    origin["Data"] = _data(settings, cases)
    trained_by = _command(environment.get("command"))
    origin["Trained by"] = trained_by
    origin["Command"] = _as_typed(command) if command else trained_by
    if origin["Command"] == trained_by:
        del origin["Trained by"]
    origin["Checkpoint"] = _checkpoint(saved.get("checkpoint"))
    origin["Version"] = _versions(environment)
    origin["Date"] = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z")
    return {name: value for name, value in origin.items() if value}


def _settings(path: Path) -> Mapping[str, Any]:
    """Read a run's settings; empty where there are none to read."""
    import yaml

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    # The page is worth having without this line.
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return settings if isinstance(settings, Mapping) else {}


def _network(settings: Mapping[str, Any]) -> str:
    """Name network and loss with the numbers that the user set."""
    parts: list[str] = []
    for key in ("model", "loss", "lesion_term", "weighting"):
        part = settings.get(key)
        if isinstance(part, Mapping) and "_target_" in part:
            parts.append(_named(part))
    return ", ".join(parts)


def _named(part: Mapping[str, Any]) -> str:
    """{"_target_": "a.b.Loss", "smooth": 1.0, "name": null} -> "Loss(smooth=1)"."""
    settings = dict(part)
    # null stands for a number here, which depends on the other of the two.
    if {"alpha", "beta"} <= settings.keys():
        with contextlib.suppress(ValueError):
            weights = tversky_weights(settings["alpha"], settings["beta"])
            settings["alpha"], settings["beta"] = weights
    values: list[str] = []
    for key, value in settings.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            values.append(f"{key}={value:g}")
    name = str(part["_target_"]).rpartition(".")[2]
    return f"{name}({', '.join(values)})"


def _data(settings: Mapping[str, Any], cases: Sequence[Case]) -> str:
    modalities: dict[str, None] = {}
    for case in cases:
        modalities |= dict.fromkeys(case.images)
    n_cases = f"{len(cases)} case{'' if len(cases) == 1 else 's'}"
    data = settings.get("data")
    folder = ""
    if isinstance(data, Mapping):
        folder = str(data.get("manifest") or data.get("root") or "")
    parts = [folder, n_cases, ", ".join(modalities)]
    return "; ".join(part for part in parts if part)


def _command(saved: Any) -> str:
    """Shorten a saved command line: without the folders of Python and of the program."""
    if not isinstance(saved, list) or len(saved) < 2:
        return ""
    _, program, *words = map(str, saved)
    return _as_typed([Path(program).name, *words])


def _as_typed(words: Sequence[str]) -> str:
    """Join words without the quotes that Hydra needs around paths: a='b/c' -> a=b/c."""
    program, *settings = words
    plain = [re.sub(r"^([^=]+)='([^']*)'$", r"\1=\2", setting) for setting in settings]
    # The program may be two words: tversky-seg evaluate.
    return f"{program} {shlex.join(plain)}".strip()


def _checkpoint(checksums: Any) -> str:
    """Write the first letters of one SHA-256 or of several."""
    if isinstance(checksums, str):
        checksums = [checksums]
    if not isinstance(checksums, list):
        return ""
    return "SHA-256 " + ", ".join(str(one)[:N_CHECKSUM_LETTERS] for one in checksums)


def _versions(environment: Mapping[str, Any]) -> str:
    try:
        text = f"tversky-seg {importlib.metadata.version('tversky-seg')}"
    except importlib.metadata.PackageNotFoundError:
        text = "tversky-seg"
    commit = environment.get("git_commit")
    if commit:
        text += f", trained at commit {str(commit)[:N_CHECKSUM_LETTERS]}"
    return text
