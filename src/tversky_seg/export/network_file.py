"""A network in a file that runs without this package: ONNX, or torch's exported program (.pt2)."""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from tversky_seg.config.checks import ConfigError

FORMATS = ("onnx", "pt2")
PROBABILITY_EPSILON = 1e-7  # probabilities are kept so far from 0 and 1, to have finite logits


class ProbabilityNetwork(nn.Module):
    """A network that gives probabilities, not logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Compute probabilities (B, K, X, Y, Z) of an image (B, C, X, Y, Z)."""
        return torch.sigmoid(self.network(image))


class ExportedNetwork(nn.Module):
    """A network from a file, as the predictor takes it: image -> logits, on the CPU.

    Args:
        path: `.onnx` or `.pt2` file of `write_network`.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._run = _onnx_runner(path) if path.suffix == ".onnx" else _pt2_runner(path)

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits (B, K, X, Y, Z) of an image (B, C, X, Y, Z)."""
        return torch.logit(self._run(image), eps=PROBABILITY_EPSILON)


def write_network(network: nn.Module, path: Path, *, shape: Sequence[int]) -> None:
    """Write a network, with its sigmoid, for windows of one size and batches of any.

    Args:
        network: Module (B, C, X, Y, Z) -> logits (B, K, X, Y, Z), on the CPU.
        path: `.onnx` or `.pt2` file to write.
        shape: C, X, Y, Z of a window.

    Raises:
        ConfigError: ONNX without the packages that write it.
    """
    if path.suffix == ".onnx":
        require("onnxscript", "onnxruntime", what="format=onnx")
    if path.suffix == ".onnx":
        network = with_exact_norms(network)
    exported = ProbabilityNetwork(network).eval()
    example = torch.zeros(2, *shape)  # of one image, torch would fix the batch at 1
    batch = {"image": {0: torch.export.Dim("batch")}}
    with torch.no_grad(), _quiet():
        if path.suffix == ".onnx":
            torch.onnx.export(
                exported,
                (example,),
                path,
                input_names=["image"],
                output_names=["probability"],
                dynamic_shapes=batch,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        else:
            program = torch.export.export(exported, (example,), dynamic_shapes=batch)
            torch.export.save(program, path)


def with_exact_norms(network: nn.Module) -> nn.Module:
    """Copy a network, with group norms in plain arithmetic.

    ONNX Runtime sums an InstanceNormalization, as which a group norm is exported, in one float32
    after the other: over a window of 48^3 probabilities are wrong by up to 1e-4, a hundred times
    as much as torch's. The mean of means is as exact as torch.
    """
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = MethodType(_exact_group_norm, module)  # type: ignore[method-assign]
    return network


def _exact_group_norm(module: nn.GroupNorm, features: Tensor) -> Tensor:
    """Normalise features (B, C, X, Y, Z), with a ReLU where the module has one."""
    b, _, _, y, z = features.shape
    # (B, groups, channels of a group * X, Y * Z)
    grouped = features.reshape(b, module.num_groups, -1, y * z)
    centred = grouped - _mean_of_means(grouped)
    variance = _mean_of_means(centred * centred)
    normalised = (centred * torch.rsqrt(variance + module.eps)).reshape(features.shape)
    if module.affine:
        normalised = normalised * module.weight.view(-1, 1, 1, 1) + module.bias.view(-1, 1, 1, 1)
    return torch.relu(normalised) if getattr(module, "relu", False) else normalised


def _mean_of_means(values: Tensor) -> Tensor:
    return values.mean(3, keepdim=True).mean(2, keepdim=True)


def require(*packages: str, what: str) -> None:
    """Check that optional packages are installed.

    Raises:
        ConfigError: One is missing; it says how to install them.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{what}: needs {' and '.join(missing)}; pip install 'tversky-seg[export]'"
        )


def _onnx_runner(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> Tensor:
        (probability,) = session.run(None, {"image": image.contiguous().numpy()})
        return torch.from_numpy(probability)

    return run


def _pt2_runner(path: Path) -> Callable[[Tensor], Tensor]:
    with _quiet():
        module: Any = torch.export.load(path).module()

    # Not the module itself: as a part of another module it would be asked for its eval mode, which
    # an exported program has not.
    def run(image: Tensor) -> Tensor:
        probability: Tensor = module(image)
        return probability

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's remarks to its own developers from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
