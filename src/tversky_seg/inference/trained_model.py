"""Trained models: networks from checkpoints, with their preprocessing and inference settings."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from tversky_seg.config.checks import ConfigError
from tversky_seg.config.instantiate import build_network
from tversky_seg.data.preprocessing.pipeline import Preprocessing
from tversky_seg.inference.checkpoint_search import checkpoint_of
from tversky_seg.inference.ensemble import Ensemble, Member
from tversky_seg.inference.operating_point import OperatingPoint, as_settings
from tversky_seg.inference.settings import Inference
from tversky_seg.inference.sliding_window import SlidingWindow
from tversky_seg.runtime.allocation_limit import AllocationLimit, TooLarge
from tversky_seg.runtime.checkpoints import CheckpointError, checksum, load_checkpoint
from tversky_seg.runtime.devices import PRECISIONS, computes_fast
from tversky_seg.runtime.run_settings import flatten, is_free

logger = logging.getLogger("tversky_seg")

REQUIRED_ENTRIES = {"config", "preprocessing", "inference", "threshold"}
CHOSEN_ENTRIES = ("threshold", "min_volume_mm3", "min_peak", "temperature")
EXPECTED_TO_DIFFER = ("seed", "data.fold")
# Room for what a network makes besides its weights, such as buffers that are not saved.
MEMORY_FACTOR = 4
SPARE_BYTES = 2**26
NORMS_OF_A_WINDOW = (nn.GroupNorm, nn.InstanceNorm3d)
# How many times as large or small a window may be before a warning says so.
MOST_TIMES_AS_LARGE = 2
MOST_CHARACTERS = 160  # of what torch says of weights that do not fit, which can fill pages


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A network from a checkpoint, with its preprocessing and inference settings.

    Attributes:
        path: The checkpoint.
        checksum: SHA-256 of the file.
        network: Network with its weights.
        preprocessing: Preprocessing of the training.
        inference: Settings of the training, with threshold, smallest lesion, lowest peak and
            temperature as chosen on validation.
        settings: The same without what validation chose.
        chosen: What validation chose: "threshold", "min_volume_mm3", "min_peak", "temperature".
        config: All settings of the training.
        allows_missing_modalities: Whether it was trained with channel dropout, or on cases without
            some modality.
        modality_sets: Sets of modalities that its training cases had, the most frequent first;
            empty where the checkpoint does not say (versions before 0.2).
        drops_modalities: Whether it was trained with channel dropout.
    """

    path: Path
    checksum: str
    network: nn.Module
    preprocessing: Preprocessing
    inference: Inference
    settings: Inference
    chosen: Mapping[str, Any]
    config: Mapping[str, Any]
    allows_missing_modalities: bool
    modality_sets: tuple[tuple[str, ...], ...] = ()
    drops_modalities: bool = False

    @property
    def required_modalities(self) -> tuple[str, ...]:
        """Modalities that a case must have; of the others one is enough."""
        if not self.allows_missing_modalities:
            return self.preprocessing.modalities
        return self.preprocessing.require or ()

    def has_seen(self, modalities: Sequence[str]) -> bool:
        """Tell whether it was trained on cases with exactly these modalities.

        With channel dropout, on some of those that a training case had, too. True where the
        checkpoint does not say.
        """
        wanted = set(modalities)
        for seen in map(set, self.modality_sets):
            if wanted == seen or (self.drops_modalities and wanted < seen):
                return True
        return not self.modality_sets


def load_trained(path: Path | str, *, trust: Sequence[str] = ()) -> TrainedModel:
    """Build the network of a checkpoint that train.py wrote; a stranger's file runs no code.

    Args:
        path: Checkpoint, or folder of a run, of which the best checkpoint is taken.
        trust: Further packages whose networks may be built.

    Raises:
        CheckpointError: The file is missing, damaged, or not of train.py.
        ConfigError: It names anything but classes of networks.
    """
    path = checkpoint_of(Path(path).expanduser())
    state = load_checkpoint(path)
    if not set(state) >= REQUIRED_ENTRIES:
        raise CheckpointError(
            f"{path}: was not written by train.py; expected <run>/checkpoints/best.pt"
        )
    config = state["config"]
    try:
        preprocessing = Preprocessing.from_dict(state["preprocessing"])
        settings = Inference(**state["inference"])
        chosen = {name: state.get(name) for name in CHOSEN_ENTRIES}
        # Networks of before there were peaks predict as they did.
        chosen["min_peak"] = state.get("min_peak", 0.0)
        inference = settings.with_operating_point(chosen)
        network = _build_network(
            config, preprocessing, weights=state["model"], n_bytes=path.stat().st_size, trust=trust
        )
        drops_modalities = _drops_modalities(config)
        modality_sets = tuple(tuple(map(str, names)) for names in state.get("modality_sets", ()))
    except TooLarge as error:
        raise CheckpointError(
            f"{path}: its settings describe a larger network than its weights; "
            "expected a file of train.py"
        ) from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    # Whatever the classes that a stranger's settings name make of their arguments.
    except Exception as error:
        reason = shorten(str(error), MOST_CHARACTERS) or type(error).__name__
        raise CheckpointError(
            f"{path}: its parts do not fit each other; expected a file of train.py ({reason})"
        ) from error
    return TrainedModel(
        path=path,
        checksum=checksum(path),
        network=network,
        preprocessing=preprocessing,
        inference=inference,
        settings=settings,
        chosen=chosen,
        config=config,
        allows_missing_modalities=drops_modalities or _has_optional(preprocessing),
        modality_sets=modality_sets,
        drops_modalities=drops_modalities,
    )


def _drops_modalities(config: Mapping[str, Any]) -> bool:
    """Tell whether the training left modalities out at random, and so can do without some."""
    augmentation = config.get("augmentation") or {}
    dropout_probability = augmentation.get("dropout_probability") or 0
    return bool(dropout_probability > 0)


def _has_optional(preprocessing: Preprocessing) -> bool:
    """Tell whether some modality may be missing from a case."""
    if preprocessing.require is None:
        return False
    return set(preprocessing.require) < set(preprocessing.modalities)


def common_preprocessing(models: Sequence[TrainedModel]) -> Preprocessing:
    """Return the preprocessing that all models share.

    Raises:
        CheckpointError: Two models differ; it names the first such setting, with both values.
    """
    first = models[0]
    expected = first.preprocessing.as_dict()
    for model in models[1:]:
        settings = model.preprocessing.as_dict()
        for name, value in expected.items():
            other = settings.get(name)
            if not _is_same(other, value) and name != "require":
                raise CheckpointError(
                    f"checkpoint: {first.path} has {name} {value}, "
                    f"{model.path} {other}; "
                    "expected members trained on the same modalities, classes and preprocessing; "
                    "choose one run, or a list of those that agree"
                )
    return first.preprocessing


def trained_precision(models: Sequence[TrainedModel], device: torch.device) -> str:
    """Return the precision that all models were trained in; "fp32" where the device emulates it.

    Models of several precisions predict in fp32, too.
    """
    words = {(model.config.get("trainer") or {}).get("precision", "fp32") for model in models}
    if len(words) > 1:
        return "fp32"
    word = str(words.pop())
    return word if word in PRECISIONS and computes_fast(word, device) else "fp32"


def differing_settings(models: Sequence[TrainedModel]) -> dict[str, list[Any]]:
    """List the settings of the training in which models differ, with the values of each model.

    Seed and fold are left out, in which the members of an ensemble should differ.
    """
    # Keys with a dot, as on the command line: {"loss": {"beta": 0.7}} -> {"loss.beta": 0.7}.
    configs = [dict(flatten(dict(model.config))) for model in models]
    keys = set().union(*configs)
    differing = {}
    for key in sorted(keys):
        values = [config.get(key) for config in configs]
        is_expected = key in EXPECTED_TO_DIFFER or is_free(key)
        # By comparison and not by a set, since values may be lists.
        if not is_expected and values != values[:1] * len(values):
            differing[key] = values
    return differing


def warn_of_other_windows(
    models: Sequence[TrainedModel], patch_size: int | Sequence[int] | str | None
) -> None:
    """Warn where windows are much larger or smaller than those of the training, and it matters.

    Group and instance norm measure mean and spread over the window itself, so that a window of
    another size gives other probabilities.

    Args:
        models: Networks.
        patch_size: Sides of the windows to predict by; None: those of each training.
    """
    if patch_size is None:
        return
    for model in models:
        trained = model.settings.patch_size
        if trained is None or not _normalises_windows(model.network):
            continue
        smaller, larger = sorted([_n_voxels(trained), _n_voxels(patch_size)])
        if larger > MOST_TIMES_AS_LARGE * smaller:
            logger.warning(
                "%s: was trained for windows of %s and normalises its features over a window, so "
                "windows of %s give other probabilities; expected inference.patch_size=null",
                model.path,
                trained,
                patch_size,
            )


def _normalises_windows(network: nn.Module) -> bool:
    return any(isinstance(module, NORMS_OF_A_WINDOW) for module in network.modules())


def _n_voxels(patch_size: int | Sequence[int] | str) -> float:
    window = SlidingWindow(patch_size)
    return math.inf if window.is_whole else math.prod(window.sides)


def build_ensemble(
    models: Sequence[TrainedModel],
    *,
    overrides: Mapping[str, Any],
    combine: str = "mean",
    uncertainty: str | None = None,
) -> tuple[Ensemble, Inference]:
    """Make one ensemble of the models, with the settings that make masks of its probability.

    Each member predicts by its own windows and at its own temperature unless `overrides` replaces
    them. Threshold, smallest lesion and lowest peak are those of `overrides`, otherwise the
    members' mean. Votes are cast at each member's own threshold, and half of them are enough.

    Args:
        models: One or more.
        overrides: Settings of `Inference` that replace the checkpoints'.
        combine: "mean", "vote" or "lesions".
        uncertainty: "entropy", "disagreement" or None.
    """
    classes = tuple(models[0].preprocessing.classes)
    of_members = dict(overrides)
    if combine != "mean":
        # What is set is then of the share of votes, not to vote by.
        of_members.pop("threshold", None)
        of_members.pop("min_peak", None)
    members = []
    points_of_models = []
    for model in models:
        own = replace(model.settings, **of_members).with_operating_point(model.chosen)
        points = own.operating_points(classes)
        points_of_models.append(points)
        member = Member(
            model.network,
            own.windows,
            model.checksum,
            threshold=tuple(point.threshold for point in points.values()),
            temperature=tuple(own.temperatures(classes).values()),
        )
        members.append(member)
    mean_points = {}
    for name in classes:
        mean_point = _mean_point([points[name] for points in points_of_models])
        if combine in ("vote", "lesions"):
            # The probability is now a share of votes: half of them are enough.
            mean_point = replace(mean_point, threshold=0.5, min_peak=0.0)
        mean_points[name] = mean_point
    inference = replace(models[0].inference, **as_settings(mean_points))
    return Ensemble(members, combine, uncertainty), replace(inference, **overrides)


def _build_network(
    config: Mapping[str, Any],
    preprocessing: Preprocessing,
    *,
    weights: Mapping[str, Tensor],
    n_bytes: int,
    trust: Sequence[str],
) -> nn.Module:
    """Build a network with its weights; a file of kilobytes cannot make it take gigabytes.

    The bytes of the file are counted, not those of its tensors: a tensor that repeats one number
    along an axis (`expand`) is as large as it says, and takes four bytes in the file.
    """
    with AllocationLimit(MEMORY_FACTOR * n_bytes + SPARE_BYTES):
        network = build_network(
            config,
            in_channels=len(preprocessing.modalities),
            out_channels=len(preprocessing.classes),
            trust=trust,
        )
    network.load_state_dict(weights)
    return network


def _is_same(one: Any, other: Any) -> bool:
    """Tell whether two settings are equal; the order of classes counts, since it is channels'."""
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one.items()) == list(other.items())
    return bool(one == other)


def _mean_point(points: Sequence[OperatingPoint]) -> OperatingPoint:
    """Average the points of the models for one class."""
    return OperatingPoint(
        threshold=fmean(point.threshold for point in points),
        min_volume_mm3=fmean(point.min_volume_mm3 for point in points),
        min_peak=fmean(point.min_peak for point in points),
    )
