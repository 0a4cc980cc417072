"""The residual 3D U-Net of Shirokikh et al. 2020 (arXiv 2007.10033)."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from tversky_seg.models.layers import (
    Norm,
    initialize,
    normalization,
    pad_and_crop,
    preactivation,
    require_statistics,
    same_padding,
    set_prior,
)
from tversky_seg.models.narrow_conv import NarrowConv
from tversky_seg.models.pooling import MaxPool
from tversky_seg.models.strides import Triple, kernels_for, resolve_strides, total_stride
from tversky_seg.models.upsampling import upsample


class ResidualBlock(nn.Module):
    """Two pre-activated convolutions, added to their input.

    Where the number of channels changes, the input goes through a 1^3 convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Triple = 3,
        *,
        norm: Norm | None,
    ):
        super().__init__()
        self.path = nn.Sequential(
            preactivation(in_channels, out_channels, kernel_size, norm=norm),
            preactivation(out_channels, out_channels, kernel_size, norm=norm),
        )
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = nn.Conv3d(in_channels, out_channels, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Compute (B, out_channels, X, Y, Z) from (B, in_channels, X, Y, Z)."""
        return self.path(features) + self.shortcut(features)  # type: ignore[no-any-return]


class ResidualUNet3D(nn.Module):
    """A U-shaped network of residual blocks, whose shortcuts are added rather than concatenated.

    Shirokikh et al. 2020 (arXiv 2007.10033; structure of the authors' released code): pre-activated
    residual blocks, 2^3 max-pooling, trilinear upsampling, shortcuts through a pre-activated 1^3
    convolution, and a normalisation of the logit itself. 11,074,306 trainable parameters with one
    channel, one class and the defaults.

    Args:
        in_channels: Modalities C of the image.
        out_channels: Foreground classes K, one logit each.
        widths: Features of each level, from the image's resolution down. Sides are padded inside to
            a multiple of 2^(len(widths) - 1).
        norm: "batch" (the paper), "instance", "group" or None.
        prior: Foreground probability of the untrained network, in (0, 1), as the shift of the
            logit's normalisation; None is about 0.5.
        strides: For voxels that are not cubes, see `UNet3D`; one for each width but the last.
        spacing_mm: Voxel size of the image, for strides="auto".

    Raises:
        ValueError: There are fewer than 2 levels, a width is below 1, the norm is unknown, or the
            prior is outside (0, 1).
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int] = (16, 64, 128, 256),
        norm: Norm | None = "batch",
        prior: float | None = None,
        strides: Sequence[Sequence[int]] | str | None = None,
        spacing_mm: Sequence[float] | None = None,
    ):
        super().__init__()
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"widths must be two or more numbers >= 1, got {list(widths)}")

        *levels, lowest = widths
        first = levels[0]
        input_widths = [first, *levels[:-1]]  # features that each level gets from the one above
        self.norm = norm
        self.strides = resolve_strides(strides, n_steps=len(levels), spacing_mm=spacing_mm)
        self.multiple = total_stride(self.strides)
        kernels = kernels_for(self.strides)[:-1]  # the lowest level has 3^3
        padding = same_padding(kernels[0])
        self.stem = nn.Sequential(
            NarrowConv(in_channels, first, kernels[0], padding=padding, bias=norm is None),
            preactivation(first, first, kernels[0], norm=norm, bias=True),
        )
        self.encoder = nn.ModuleList()
        for input_width, width, kernel in zip(input_widths, levels, kernels, strict=True):
            self.encoder.append(_chain(input_width, width, width, norm=norm, kernel=kernel))
        self.pools = nn.ModuleList([MaxPool(stride) for stride in self.strides])
        self.bottleneck = _chain(levels[-1], lowest, lowest, levels[-1], norm=norm)
        self.shortcuts = nn.ModuleList()
        for width in reversed(levels):
            # The released code has these biases, though the next normalisation undoes them.
            self.shortcuts.append(preactivation(width, width, 1, norm=norm, bias=True))
        self.decoder = nn.ModuleList()
        upward = zip(input_widths[::-1], levels[::-1], kernels[::-1], strict=True)
        for input_width, width, kernel in upward:
            self.decoder.append(_chain(width, width, input_width, norm=norm, kernel=kernel))
        last = preactivation(first, out_channels, 1, norm=norm)
        logit_norm = normalization(norm, out_channels)
        self.head = nn.Sequential(ResidualBlock(first, first, 1, norm=norm), last, logit_norm)
        initialize(self)
        set_prior(logit_norm if norm else last[-1], prior)

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits (B, K, X, Y, Z) of an image (B, C, X, Y, Z) of any size."""
        require_statistics(image, norm=self.norm, multiple=self.multiple, training=self.training)
        return pad_and_crop(self._logits, image, multiple=self.multiple)

    def _logits(self, image: Tensor) -> Tensor:
        """Compute logits of an image whose sides are multiples of `self.multiple`."""
        features = self.stem(image)
        skips = []
        for block, pool in zip(self.encoder, self.pools, strict=True):
            features = block(features)
            skips.append(features)
            features = pool(features)
        features = self.bottleneck(features)
        upward = zip(self.shortcuts, self.decoder, self.strides[::-1], strict=True)
        for shortcut, block, stride in upward:
            features = block(shortcut(skips.pop()) + upsample(features, stride))
        return self.head(features)  # type: ignore[no-any-return]


def _chain(*widths: int, norm: Norm | None, kernel: Triple = (3, 3, 3)) -> nn.Sequential:
    """Make residual blocks one after another: widths (a, b, c) are two blocks, a -> b -> c."""
    blocks = []
    for before, after in pairwise(widths):
        blocks.append(ResidualBlock(before, after, kernel, norm=norm))
    return nn.Sequential(*blocks)
