"""The residual 3D U-Net of Shirokikh et al. 2020 (arXiv 2007.10033)."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from tversky_seg.models.layers import (
    Norm,
    initialize,
    normalization,
    pad_and_crop,
    require_statistics,
    set_prior,
)


def preactivation(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    *,
    norm: Norm | None,
    bias: bool = False,
) -> nn.Sequential:
    """Normalisation, ReLU, convolution of the same size."""
    # in place only on the normalisation's own result: without one it would change the features of the shortcut
    return nn.Sequential(
        normalization(norm, in_channels),
        nn.ReLU(inplace=norm is not None),
        nn.Conv3d(
            in_channels,
            out_channels,
            kernel_size,
            padding=kernel_size // 2,
            bias=bias or norm is None,
        ),
    )


class ResidualBlock(nn.Module):
    """Two pre-activated convolutions, added to their input (through a 1^3 convolution where the width changes)."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, *, norm: Norm | None
    ):
        super().__init__()
        self.path = nn.Sequential(
            preactivation(in_channels, out_channels, kernel_size, norm=norm),
            preactivation(out_channels, out_channels, kernel_size, norm=norm),
        )
        same = in_channels == out_channels
        self.shortcut = (
            nn.Identity() if same else nn.Conv3d(in_channels, out_channels, 1, bias=False)
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, in_channels, X, Y, Z) -> (B, out_channels, X, Y, Z)."""
        return self.path(features) + self.shortcut(features)  # type: ignore[no-any-return]


class ResidualUNet3D(nn.Module):
    """A U-shaped network of residual blocks, whose shortcuts are added rather than concatenated.

    Shirokikh et al. 2020 (arXiv 2007.10033; structure of the authors' released code): pre-activated residual blocks,
    2^3 max-pooling, trilinear upsampling, shortcuts through a pre-activated 1^3 convolution, and a normalisation of
    the logit itself. 11,074,306 trainable parameters with one channel, one class and the defaults.

    Args:
        in_channels: modalities C of the image.
        out_channels: foreground classes K, one logit each.
        widths: features of each level, from the image's resolution down; sides are padded inside to a multiple of
            2^(len(widths) - 1).
        norm: "batch" (the paper), "instance", "group" or None.
        prior: foreground probability of the untrained network, in (0, 1), as the shift of the logit's normalisation;
            None is about 0.5.

    Raises:
        ValueError: for fewer than 2 levels, a width below 1, an unknown norm, a prior outside (0, 1).
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int] = (16, 64, 128, 256),
        norm: Norm | None = "batch",
        prior: float | None = None,
    ):
        super().__init__()
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"widths must be two or more numbers >= 1, got {list(widths)}")

        def chain(*channels: int) -> nn.Sequential:
            return nn.Sequential(
                *(ResidualBlock(before, after, norm=norm) for before, after in pairwise(channels))
            )

        *levels, lowest = widths
        first, befores = levels[0], [levels[0], *levels[:-1]]
        self.norm = norm
        self.multiple = 2 ** (len(widths) - 1)
        self.stem = nn.Sequential(
            nn.Conv3d(in_channels, first, 3, padding=1, bias=norm is None),
            preactivation(first, first, norm=norm, bias=True),
        )
        self.encoder = nn.ModuleList(
            chain(before, w, w) for before, w in zip(befores, levels, strict=True)
        )
        self.pool = nn.MaxPool3d(2)
        self.bottleneck = chain(levels[-1], lowest, lowest, levels[-1])
        self.shortcuts = nn.ModuleList(
            preactivation(w, w, 1, norm=norm, bias=True) for w in reversed(levels)
        )
        self.decoder = nn.ModuleList(
            chain(w, w, before)
            for w, before in zip(reversed(levels), reversed(befores), strict=True)
        )
        last = preactivation(first, out_channels, 1, norm=norm)
        logit_norm = normalization(norm, out_channels)
        self.head = nn.Sequential(ResidualBlock(first, first, 1, norm=norm), last, logit_norm)
        initialize(self)
        set_prior(logit_norm if norm else last[-1], prior)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, X, Y, Z) of an image (B, C, X, Y, Z) of any size."""
        require_statistics(image, norm=self.norm, multiple=self.multiple, training=self.training)
        return pad_and_crop(self._logits, image, multiple=self.multiple)

    def _logits(self, image: Tensor) -> Tensor:
        features, skips = self.stem(image), []
        for block in self.encoder:
            skips.append(block(features))
            features = self.pool(skips[-1])
        features = self.bottleneck(features)
        for skip, shortcut, block in zip(
            reversed(skips), self.shortcuts, self.decoder, strict=True
        ):
            features = F.interpolate(
                features, scale_factor=2.0, mode="trilinear", align_corners=True
            )
            features = block(shortcut(skip) + features)
        return self.head(features)  # type: ignore[no-any-return]
