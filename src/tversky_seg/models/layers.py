"""Parts that the networks share: layers by name, padding to a multiple, initial weights."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tversky_seg.models.batch_norm import Layers
from tversky_seg.models.group_norm import GroupNorm
from tversky_seg.models.strides import Triple

Norm = Literal["instance", "batch", "group"]
NORMS: tuple[Norm, ...] = ("instance", "batch", "group")
Logits = TypeVar("Logits", bound=Tensor | tuple[Tensor, ...])


def normalization(
    norm: Norm | None, n_channels: int, *, eps: float = 1e-5, relu: bool = False
) -> nn.Module:
    """Make the named normalisation of (B, C, X, Y, Z), with a learnt scale and shift.

    Args:
        norm: "instance" (each channel of each sample), "batch" (each channel over the batch;
            running statistics in eval mode), "group" (up to 8 groups of two or more channels of
            each sample), or None, which does nothing.
        n_channels: Channels C.
        eps: Number added to the variance.
        relu: Set negative results to 0; for "instance" and "group" alone.
    """
    if norm is None:
        return nn.Identity()
    if norm == "instance":
        # One group a channel: the numbers of InstanceNorm3d, a fifth faster per step on the CPU.
        return GroupNorm(n_channels, n_channels, eps=eps, relu=relu)
    if norm == "batch":
        return nn.BatchNorm3d(n_channels, eps=eps)
    if norm == "group":
        return GroupNorm(_n_groups(n_channels), n_channels, eps=eps, relu=relu)
    raise ValueError(f"norm must be one of {', '.join(NORMS)} or null, got {norm!r}")


def norm_and_relu(
    norm: Norm | None, n_channels: int, *, eps: float = 1e-5
) -> tuple[nn.Module, nn.Module]:
    """Make a normalisation and the ReLU that follows it, in place.

    Two modules, so that weights have the same names with every norm. A fused norm computes the ReLU
    itself, and the second module does nothing.
    """
    if norm in ("instance", "group"):
        return normalization(norm, n_channels, eps=eps, relu=True), nn.Identity()
    return normalization(norm, n_channels, eps=eps), nn.ReLU(inplace=True)


def _n_groups(n_channels: int) -> int:
    """Choose 8, 4, 2 or 1 groups, of two or more channels: 16 -> 8, 12 -> 4, 8 -> 4, 3 -> 1."""
    for n_groups in (8, 4, 2):
        if n_channels % n_groups == 0 and n_channels > n_groups:
            return n_groups
    return 1


def preactivation(
    in_channels: int,
    out_channels: int,
    kernel_size: int | Triple = 3,
    *,
    norm: Norm | None,
    bias: bool = False,
    eps: float = 1e-5,
) -> Layers:
    """Make a normalisation, a ReLU and a convolution that keeps the size.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Sides of the kernel, odd, one number or three.
        norm: See `normalization`.
        bias: Give the convolution a bias even if `norm` is given; without `norm` it always has one.
        eps: See `normalization`.
    """
    has_bias = bias or norm is None
    conv = nn.Conv3d(
        in_channels, out_channels, kernel_size, padding=same_padding(kernel_size), bias=has_bias
    )
    normalise, relu = norm_and_relu(norm, in_channels, eps=eps)
    if norm is None:
        relu = nn.ReLU()  # in place it would change features that are used elsewhere
    return Layers(normalise, relu, conv)


def same_padding(kernel_size: int | Triple) -> Triple:
    """Return the padding with which a convolution keeps the size of its input."""
    if isinstance(kernel_size, int):
        kernel_size = (kernel_size, kernel_size, kernel_size)
    x, y, z = (side // 2 for side in kernel_size)
    return x, y, z


def pad_and_crop(
    network: Callable[[Tensor], Logits],
    image: Tensor,
    *,
    multiple: Triple,
    scales: Sequence[Triple] = ((1, 1, 1),),
) -> Logits:
    """Run a network that needs sides divisible by `multiple` on an image of any size.

    The image is padded with zeros (the background of a normalised image) at the far end of each
    axis, and the result is cropped to the image's size.

    Args:
        network: (B, C, X', Y', Z') -> (B, K, X', Y', Z'), or a tuple of this and of coarser logits.
        image: (B, C, X, Y, Z).
        multiple: Divisors of X', Y' and Z'.
        scales: Voxels of the image, along each axis, that a voxel of each member of the tuple
            covers.
    """
    x, y, z = image.shape[2:]
    image = F.pad(image, (0, -z % multiple[2], 0, -y % multiple[1], 0, -x % multiple[0]))
    logits = network(image)
    if not isinstance(logits, tuple):
        return logits[..., :x, :y, :z]  # type: ignore[return-value]
    cropped = []
    for level_logits, (a, b, c) in zip(logits, scales, strict=False):
        cropped.append(level_logits[..., : _ceil_div(x, a), : _ceil_div(y, b), : _ceil_div(z, c)])
    return tuple(cropped)  # type: ignore[return-value]


def _ceil_div(a: int, b: int) -> int:
    # Not by math.ceil(a / b): torch.export traces it with symbolic sizes.
    return -(-a // b)


def require_statistics(
    image: Tensor, *, norm: Norm | None, multiple: Triple, training: bool
) -> None:
    """Refuse an image that leaves the lowest level one value a channel: normalising would erase it.

    Args:
        image: (B, C, X, Y, Z).
        norm: Normalisation of the network. "instance" needs more than one voxel; "batch", in
            training, more than one voxel or sample.
        multiple: Voxels of the image along each axis that become one voxel at the lowest level.
        training: Whether the network is in training mode.

    Raises:
        ValueError: Names the multiple, and what to do.
    """
    if norm not in ("instance", "batch"):
        return
    if any(side > step for side, step in zip(image.shape[2:], multiple, strict=True)):
        return
    if norm == "batch" and (not training or image.shape[0] > 1):
        return
    sides = "x".join(str(int(side)) for side in image.shape[2:])
    steps = "x".join(str(step) for step in multiple)
    if len(set(multiple)) == 1:
        steps = str(multiple[0])
    remedies = f"a side of more than {steps} (sides are padded to multiples of {steps}), "
    if norm == "batch":
        remedies += "a batch of more than 1, "
    raise ValueError(
        f"a patch of {sides} is one voxel at the lowest level, too few for norm={norm}; "
        f"expected {remedies}or norm=group"
    )


def initialize(network: nn.Module) -> None:
    """Draw the weights of every convolution by He's rule for ReLU; set biases to zero.

    N(0, sqrt(2 / fan_in)): arXiv 1502.01852, eq. 10.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.normal_(module.weight, std=math.sqrt(2 / _fan_in(module)))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def set_prior(last: nn.Module, prior: float | None) -> None:
    """Shift the logits so that the untrained network predicts about `prior` everywhere.

    Args:
        last: Layer with a bias whose output (B, K, X, Y, Z) are the logits.
        prior: Probability of foreground, in (0, 1) (arXiv 1708.02002, section 3.3); None leaves it
            at about 0.5.
    """
    if prior is None:
        return
    if not 0 < prior < 1:
        raise ValueError(f"prior must lie in (0, 1) or be null, got {prior}")
    assert isinstance(last.bias, Tensor)
    with torch.no_grad():
        last.bias.fill_(math.log(prior / (1 - prior)))


def _fan_in(conv: nn.Conv3d | nn.ConvTranspose3d) -> float:
    """Count the inputs that one value of the output sums, away from the border."""
    n_inputs = conv.in_channels * math.prod(conv.kernel_size)
    if isinstance(conv, nn.ConvTranspose3d):
        # Only every stride-th weight of the kernel meets an input, along each axis.
        return n_inputs / math.prod(conv.stride)
    return n_inputs
