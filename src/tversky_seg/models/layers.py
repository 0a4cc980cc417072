"""What the networks share: normalisation by name, padding to a multiple, and how the weights start."""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["instance", "batch", "group"]
NORMS: tuple[Norm, ...] = ("instance", "batch", "group")


def normalization(norm: Norm | None, n_channels: int) -> nn.Module:
    """The named normalisation for (B, C, X, Y, Z), with a learnt scale and shift; None does nothing.

    Args:
        norm: "instance" (each channel of each sample; needs more than one voxel), "batch" (each channel over the
            batch; running statistics in eval mode), "group" (up to 8 groups of channels of each sample), or None.
        n_channels: channels C.
    """
    if norm is None:
        return nn.Identity()
    if norm == "instance":
        return nn.InstanceNorm3d(n_channels, affine=True)
    if norm == "batch":
        return nn.BatchNorm3d(n_channels)
    if norm == "group":
        return nn.GroupNorm(math.gcd(8, n_channels), n_channels)
    raise ValueError(f"norm must be one of {', '.join(NORMS)} or null, got {norm!r}")


def padded(network: Callable[[Tensor], Tensor], image: Tensor, *, multiple: int) -> Tensor:
    """Run a network that needs sides divisible by `multiple` on an image of any size.

    The image is padded with zeros (the background of a normalised image) at the far end of each axis, and the
    result is cropped to the image's size.

    Args:
        network: (B, C, X', Y', Z') -> (B, K, X', Y', Z').
        image: (B, C, X, Y, Z).
        multiple: what X', Y', Z' are divisible by.
    """
    x, y, z = image.shape[2:]
    image = F.pad(image, (0, -z % multiple, 0, -y % multiple, 0, -x % multiple))
    return network(image)[..., :x, :y, :z]


def initialize(network: nn.Module, *, head: nn.Conv3d, prior: float | None) -> None:
    """Start every convolution by He's rule for ReLU, and the head so that it says `prior` everywhere.

    Args:
        network: its convolutions get N(0, sqrt(2 / fan_in)) weights (arXiv 1502.01852, eq. 10) and zero biases.
        head: the layer that makes the logits; its weights are drawn ten times smaller with a `prior`.
        prior: probability of foreground that an untrained network gives (arXiv 1708.02002, section 3.3), in
            (0, 1); None leaves the bias at zero, that is 0.5.
    """
    if prior is not None and not 0 < prior < 1:
        raise ValueError(f"prior must lie in (0, 1) or be null, got {prior}")
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if prior is not None and head.bias is not None:
        with torch.no_grad():
            head.weight.mul_(0.1)
            head.bias.fill_(math.log(prior / (1 - prior)))
