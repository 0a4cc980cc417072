"""Export of a trained network: its file, its description, and the check against prediction."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from tversky_seg.config.checks import ConfigError
from tversky_seg.export.description import describe
from tversky_seg.export.example_case import write_example_case
from tversky_seg.export.network_file import ExportedNetwork, with_exact_norms, write_network
from tversky_seg.inference.ensemble import Ensemble
from tversky_seg.inference.output_errors import writing
from tversky_seg.inference.segmenter import Segmenter
from tversky_seg.inference.trained_model import TrainedModel
from tversky_seg.runtime.files import write_json

TOLERANCE = 1e-4
"""Largest difference of probabilities that a check accepts."""

DESCRIPTION_FILE = "network.json"


def export_network(segmenter: Segmenter, folder: Path, *, file_format: str) -> Path:
    """Write network.onnx or network.pt2 and its description network.json.

    Args:
        segmenter: One network, on the CPU.
        folder: Folder to write to.
        file_format: "onnx" or "pt2".

    Returns:
        The network's file.

    Raises:
        ConfigError: There are several networks, or windows of no fixed size.
        DataError: A file cannot be written.
    """
    model = one_network(segmenter)
    sides = window_sides(segmenter)
    path = folder / f"network.{file_format}"
    description = folder / DESCRIPTION_FILE
    with writing(path):
        write_network(model.network, path, shape=(len(segmenter.modalities), *sides))
    with writing(description):
        write_json(description, describe(model, segmenter.inference, file=path.name, sides=sides))
    return path


def difference_from_file(
    segmenter: Segmenter, path: Path, images: Mapping[str, Path] | None
) -> float:
    """Predict a case with the network and with its file, and return the largest difference.

    The network's norms are summed exactly. In the layout in which prediction runs on a CPU, torch
    rounds them so coarsely that `predict` itself differs from float64 by up to 1e-4 on a real scan.

    Args:
        segmenter: The network, on the CPU in fp32.
        path: File of `export_network`.
        images: Modality -> file of a case; None: an example of noise.
    """
    (member,) = segmenter.ensemble.members
    from_file = replace(member, network=ExportedNetwork(path))
    with tempfile.TemporaryDirectory() as scratch:
        if images is None:
            sides = window_sides(segmenter)
            images = write_example_case(Path(scratch), segmenter.preprocessing, sides=sides)
        exact = replace(member, network=with_exact_norms(member.network))
        own = _probability(replace(segmenter, ensemble=Ensemble([exact])), images)
        exported = _probability(replace(segmenter, ensemble=Ensemble([from_file])), images)
    return float((own - exported).abs().max())


def one_network(segmenter: Segmenter) -> TrainedModel:
    """Return the one network of a segmenter.

    Raises:
        ConfigError: There are several.
    """
    if len(segmenter.models) > 1:
        paths = ", ".join(str(model.path) for model in segmenter.models[:3])
        raise ConfigError(
            f"run: holds {len(segmenter.models)} networks ({paths}, …); expected one of them, "
            "or format=monai, which takes an ensemble"
        )
    return segmenter.models[0]


def window_sides(segmenter: Segmenter) -> Sequence[int]:
    """Return the sides of a window.

    Raises:
        ConfigError: The volume is predicted in one window, of any size.
    """
    windows = segmenter.ensemble.members[0].windows
    if windows.is_whole:
        raise ConfigError(
            "inference.patch_size: is whole in this run; set patch_size=96, or another number"
        )
    return windows.sides


def _probability(segmenter: Segmenter, images: Mapping[str, Path]) -> Tensor:
    """Predict a case on the network's grid, without rounding."""
    # By the steps of prediction, but before the probability is rounded for a file.
    (case,) = segmenter.cases(images)
    predictor = segmenter.predictor()
    return predictor.predict(predictor.read(case)).probability
