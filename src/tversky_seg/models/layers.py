"""What the networks share: normalisation by name, padding to a multiple, and how the weights start."""

import math
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["instance", "batch", "group"]
NORMS: tuple[Norm, ...] = ("instance", "batch", "group")


def normalization(norm: Norm | None, n_channels: int, *, eps: float = 1e-5) -> nn.Module:
    """The named normalisation for (B, C, X, Y, Z), with a learnt scale and shift; None does nothing.

    Args:
        norm: "instance" (each channel of each sample), "batch" (each channel over the batch; running statistics in
            eval mode), "group" (up to 8 groups of two or more channels of each
            sample), or None.
        n_channels: channels C.
        eps: added to the variance.
    """
    if norm is None:
        return nn.Identity()
    if (
        norm == "instance"
    ):  # one group a channel: InstanceNorm3d's numbers, a fifth faster per step on the CPU
        return nn.GroupNorm(n_channels, n_channels, eps=eps)
    if norm == "batch":
        return nn.BatchNorm3d(n_channels, eps=eps)
    if norm == "group":
        groups = next((g for g in (8, 4, 2) if n_channels % g == 0 and n_channels > g), 1)
        return nn.GroupNorm(groups, n_channels, eps=eps)
    raise ValueError(f"norm must be one of {', '.join(NORMS)} or null, got {norm!r}")


Logits = TypeVar("Logits", bound=Tensor | tuple[Tensor, ...])


def pad_and_crop(network: Callable[[Tensor], Logits], image: Tensor, *, multiple: int) -> Logits:
    """Run a network that needs sides divisible by `multiple` on an image of any size.

    The image is padded with zeros (the background of a normalised image) at the far end of each axis, and the
    result is cropped to the image's size.

    Args:
        network: (B, C, X', Y', Z') -> (B, K, X', Y', Z'), or a tuple of this and of half, quarter ... its sides.
        image: (B, C, X, Y, Z).
        multiple: what X', Y', Z' are divisible by.
    """
    x, y, z = image.shape[2:]
    image = F.pad(image, (0, -z % multiple, 0, -y % multiple, 0, -x % multiple))
    logits = network(image)
    if isinstance(logits, tuple):
        cropped = [of[..., : -(-x >> k), : -(-y >> k), : -(-z >> k)] for k, of in enumerate(logits)]
        return tuple(cropped)  # type: ignore[return-value]
    return logits[..., :x, :y, :z]  # type: ignore[return-value]


def require_statistics(image: Tensor, *, norm: Norm | None, multiple: int, training: bool) -> None:
    """Refuse an image that leaves the lowest level one value a channel: its normalisation would erase it.

    Args:
        image: (B, C, X, Y, Z).
        norm: the network's; "instance" needs more than one voxel, "batch" more than one voxel or sample in training.
        multiple: voxels of the image that one voxel of the lowest level stands for, along an axis.
        training: the network's mode.

    Raises:
        ValueError: naming the multiple, and what to do.
    """
    if norm not in ("instance", "batch") or max(image.shape[2:]) > multiple:
        return
    if norm == "batch" and (not training or image.shape[0] > 1):
        return
    raise ValueError(
        f"a patch of {'x'.join(str(int(side)) for side in image.shape[2:])} is one voxel at the lowest level, too few "
        f"for norm={norm}; expected a side of more than {multiple} (sides are padded to multiples of {multiple}), "
        f"{'a batch of more than 1, ' if norm == 'batch' else ''}or norm=group"
    )


def initialize(network: nn.Module) -> None:
    """Start every convolution by He's rule for ReLU: N(0, sqrt(2 / fan_in)), biases zero (arXiv 1502.01852, eq. 10)."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.normal_(module.weight, std=math.sqrt(2 / _fan_in(module)))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def set_prior(last: nn.Module, prior: float | None) -> None:
    """Shift the layer that makes the logits so that the untrained network says about `prior` everywhere.

    Args:
        last: a layer with a bias, (B, K, X, Y, Z) logits out.
        prior: probability of foreground in (0, 1) (arXiv 1708.02002, section 3.3); None leaves it at about 0.5.
    """
    if prior is None:
        return
    if not 0 < prior < 1:
        raise ValueError(f"prior must lie in (0, 1) or be null, got {prior}")
    assert isinstance(last.bias, Tensor)
    with torch.no_grad():
        last.bias.fill_(math.log(prior / (1 - prior)))


def _fan_in(conv: nn.Conv3d | nn.ConvTranspose3d) -> float:
    """How many inputs a value of the output sums, away from the border."""
    strides = math.prod(conv.stride) if isinstance(conv, nn.ConvTranspose3d) else 1
    return conv.in_channels * math.prod(conv.kernel_size) / strides
