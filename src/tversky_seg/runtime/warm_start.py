"""Start of a training from the weights of another, whose channels or voxels may differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tversky_seg.runtime.checkpoints import CheckpointError, load_checkpoint

Weights = dict[str, Tensor]

AUTO = "auto"
SYNTHETIC = "synthetic"
"""Names in place of a file: the network that the package carries, and whether to start from it."""

SYNTHETIC_NEEDS = "flair"
"""Modality without which `auto` starts from nothing: lesions of multiple sclerosis shine on it."""

SYNTHETIC_FILE = Path(__file__).parents[1] / "weights" / "synthetic.pt"


def checkpoint_file(name: str | Path) -> Path:
    """Return the file that a name stands for: the synthetic start, or a path.

    The word is never a path, so that `auto` starts alike in every folder; a file of this name is
    `./synthetic`.

    Raises:
        CheckpointError: This copy of the package has no network of its own.
    """
    if name != SYNTHETIC:
        return Path(name).expanduser()
    if not SYNTHETIC_FILE.is_file():
        raise CheckpointError(
            f"{SYNTHETIC}: {SYNTHETIC_FILE} is absent in this copy of the package; "
            "make it by scripts/dev/synthetic_start.py, or give a checkpoint"
        )
    return SYNTHETIC_FILE


def start_network(
    network: nn.Module,
    path: str | Path | None,
    *,
    is_strict: bool = True,
    modalities: Sequence[str] = (),
) -> tuple[str | Path | None, list[str]]:
    """Find out what to start from, and set the weights of a network; see `warm_start`.

    Args:
        network: Network to change in place.
        path: As for `warm_start`, or "auto".
        is_strict: As for `warm_start`.
        modalities: Names of the network's channels.

    Returns:
        What it started from, never "auto", and what a log should say of it, a line each.
    """
    start = resolve_start(path, network, modalities=modalities)
    notes = warm_start(network, start, is_strict=is_strict, modalities=modalities)
    if path == AUTO and start is None and _is_on_flair(modalities):
        notes = ["starting from nothing: the network trained on synthetic patients does not fit"]
    return start, notes


def warm_start(
    network: nn.Module,
    path: str | Path | None,
    *,
    is_strict: bool = True,
    modalities: Sequence[str] = (),
) -> list[str]:
    """Set the weights of a network to those of a checkpoint, adapted to its channels and voxels.

    See `adapt_channels` and `adapt_kernels`.

    Args:
        network: Network to change in place.
        path: Checkpoint of this framework, or "synthetic". None: the network stays as it is.
        is_strict: Whether all weights must then have the same names and shapes. If not, the others
            are left out and listed.
        modalities: Names of the network's channels; empty: unknown.

    Returns:
        The start, what was adapted, and what was left out, a line each.

    Raises:
        CheckpointError: The file cannot be used, some weights do not fit although all must, or
            none fits.
        ValueError: There is no such file.
    """
    if path is None:
        return []
    file = checkpoint_file(path)
    if not file.is_file():
        raise ValueError(
            "init_from must be null, auto, synthetic or a file such as "
            f"<run>/checkpoints/best.pt, got {path}"
        )
    start = _fit(load_checkpoint(file), network, modalities=modalities)
    if start.misfits and (is_strict or not start.fitting):
        remedy = "expected weights of this network"
        if start.fitting:
            remedy = "expected the same network, or trainer.init_strict=false"
        raise CheckpointError(
            f"{path}: {len(start.misfits)} of its weights do not fit, {start.misfits[0]}; {remedy}"
        )
    # Not strict, because the misfits have been dealt with above.
    network.load_state_dict(start.fitting, strict=False)
    of_whom = "a network trained on synthetic patients" if path == SYNTHETIC else str(path)
    notes = [f"starting from {of_whom} (trainer.init_from=null: from nothing)"]
    notes += [f"{path}: {line}" for line in start.adapted]
    if start.misfits:
        counts = f"{len(start.fitting)} weights loaded, {len(start.misfits)} left out"
        notes.append(f"{path}: {counts}: {', '.join(start.misfits)}")
    return notes


def resolve_start(
    path: str | Path | None, network: nn.Module, *, modalities: Sequence[str]
) -> str | Path | None:
    """Replace "auto" by "synthetic" or None; return anything else as it is.

    It means the synthetic network where one of the modalities is FLAIR and all of its weights fit,
    once they are adapted; otherwise nothing.
    """
    if path != AUTO:
        return path
    if not _is_on_flair(modalities) or not SYNTHETIC_FILE.is_file():
        return None
    # Nobody named this network, so one that does not fit is passed over.
    start = _fit(load_checkpoint(SYNTHETIC_FILE), network, modalities=modalities)
    return None if start.misfits else SYNTHETIC


def _is_on_flair(modalities: Sequence[str]) -> bool:
    return SYNTHETIC_NEEDS in [name.casefold() for name in modalities]


@dataclass(frozen=True)
class _Start:
    """Weights of a checkpoint, adapted to a network.

    Attributes:
        fitting: Those that have the name and shape of one of the network.
        misfits: What is wrong with each of the others.
        adapted: What was adapted, a line each.
    """

    fitting: Weights
    misfits: list[str]
    adapted: list[str]


def _fit(checkpoint: Mapping[str, Any], network: nn.Module, *, modalities: Sequence[str]) -> _Start:
    own = network.state_dict()
    preprocessing = checkpoint.get("preprocessing") or {}
    loaded, of_channels = adapt_channels(
        checkpoint["model"], own, before=preprocessing.get("modalities") or (), after=modalities
    )
    loaded, of_kernels = adapt_kernels(loaded, own)
    fitting = {}
    for name, tensor in loaded.items():
        if name in own and own[name].shape == tensor.shape:
            fitting[name] = tensor
    names = dict.fromkeys((*own, *loaded))  # a set that keeps the order of the layers
    misfits = [_describe_misfit(name, loaded, own) for name in names if name not in fitting]
    adapted = [line for line in (of_channels, of_kernels) if line]
    return _Start(fitting, misfits, adapted)


def adapt_channels(
    loaded: Weights, own: Weights, *, before: Sequence[str], after: Sequence[str]
) -> tuple[Weights, str]:
    """Rearrange the weights of the layers that take the image for other modalities.

    A channel gets the weights of the modality of its name, upper and lower case alike; another one
    the mean over all channels, which looks for what they share.

    Args:
        loaded: Weights of a checkpoint.
        own: Weights of the network that they are for.
        before: Modalities of the checkpoint; empty: unknown.
        after: Modalities of the network; empty: unknown.

    Returns:
        The weights, and a line that says what was done; empty where nothing was.
    """
    # State dicts keep the order of the layers, so this is the convolution of the image.
    first = next((name for name in own if own[name].ndim == 5), None)
    if first is None or first not in loaded or loaded[first].ndim != 5:
        return loaded, ""
    n_before, n_after = loaded[first].shape[1], own[first].shape[1]
    old = _known_names(before, n_before)
    new = _known_names(after, n_after)
    is_same = old == new or not old or not new
    if n_before == n_after and is_same:
        return loaded, ""
    sources = [old.index(name) if name in old else None for name in new or [""] * n_after]
    adapted = dict(loaded)
    # Of the first block: a shortcut takes the image, too.
    block = first.rsplit(".", 2)[0]
    for name, weight in loaded.items():
        takes_image = name.startswith(block) and weight.ndim == 5 and weight.shape[1] == n_before
        if takes_image and name in own and own[name].shape[1] == n_after:
            mean = weight.mean(dim=1)
            channels = [mean if i is None else weight[:, i] for i in sources]
            adapted[name] = torch.stack(channels, dim=1)
    return adapted, _describe_channels(sources, before=before, after=after)


def adapt_kernels(loaded: Weights, own: Weights) -> tuple[Weights, str]:
    """Shorten kernels along the axes where those of a network for thick slices have one voxel.

    A convolution takes the sum over the axis, so that an image that is even along it gives the same
    features; a transposed one of stride 2, each of whose weights makes voxels of its own, the mean.

    Returns:
        The weights, and a line that says what was done; empty where nothing was.
    """
    adapted = dict(loaded)
    n_adapted = 0
    for name, weight in loaded.items():
        if name not in own or weight.ndim != 5 or weight.shape == own[name].shape:
            continue
        shorter = [a for a in (2, 3, 4) if weight.shape[a] > 1 and own[name].shape[a] == 1]
        for axis in shorter:
            is_transposed = weight.shape[axis] == 2
            reduce = torch.mean if is_transposed else torch.sum
            weight = reduce(weight, dim=axis, keepdim=True)
        adapted[name] = weight
        n_adapted += bool(shorter)
    if not n_adapted:
        return loaded, ""
    return adapted, f"kernels of {n_adapted} layers shortened for thick slices"


def _known_names(names: Sequence[str], n_channels: int) -> list[str]:
    """Return names to compare, or none where they are not those of the channels."""
    return [name.casefold() for name in names] if len(names) == n_channels else []


def _describe_channels(
    sources: Sequence[int | None], *, before: Sequence[str], after: Sequence[str]
) -> str:
    """Describe the first layer: "FLAIR from FLAIR, PD from the mean of FLAIR, T1, T2"."""
    mean = f"the mean of {', '.join(before) or 'all channels'}"
    origins = []
    for number, source in enumerate(sources):
        name = after[number] if after else f"channel {number}"
        origins.append(f"{name} from {mean if source is None else before[source]}")
    return "first layer: " + ", ".join(origins)


def _describe_misfit(name: str, loaded: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    shape_in_file = _shape_of(name, loaded)
    return f"{name} ({shape_in_file} in the file, {_shape_of(name, own)} in the network)"


def _shape_of(name: str, weights: Mapping[str, Any]) -> str:
    return str(tuple(weights[name].shape)) if name in weights else "none"
