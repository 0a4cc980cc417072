"""The 3D U-Net of Salehi et al. 2017 (arXiv 1706.05721, section 2.1)."""

import torch
from torch import Tensor, nn

from tversky_seg.models.layers import (
    Norm,
    initialize,
    normalization,
    pad_and_crop,
    require_statistics,
    set_prior,
)


class ConvBlock(nn.Module):
    """Two 3^3 convolutions, each normalised and followed by ReLU; with `residual`, around a shortcut."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm: Norm | None,
        dropout: float,
        residual: bool,
    ):
        super().__init__()
        bias = norm is None
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, padding=1, bias=bias)
        self.norm1 = normalization(norm, out_channels)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, padding=1, bias=bias)
        self.norm2 = normalization(norm, out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        self.shortcut = nn.Conv3d(in_channels, out_channels, 1, bias=bias) if residual else None

    def forward(self, features: Tensor) -> Tensor:
        """(B, in_channels, X, Y, Z) -> (B, out_channels, X, Y, Z)."""
        hidden = self.relu(self.norm1(self.conv1(features)))
        hidden = self.norm2(self.conv2(hidden))
        if self.shortcut is not None:
            hidden = hidden + self.shortcut(features)
        return self.dropout(self.relu(hidden))  # type: ignore[no-any-return]


class UNet3D(nn.Module):
    """A U-shaped network: half the resolution and twice the features a level down, and back with shortcuts.

    Salehi et al. 2017 (arXiv 1706.05721, section 2.1, Fig. 1): two 3^3 convolutions + ReLU a level, 2^3 max-pooling,
    2^3 transposed convolutions, concatenation, a last 1^3 convolution. The paper names neither depth nor width nor a
    normalisation; `norm=None, prior=None` with one logit a class is its text to the letter.

    Args:
        in_channels: modalities C of the image.
        out_channels: foreground classes K, one logit each.
        n_levels: resolutions, the input's included; sides are padded inside to a multiple of 2^(n_levels - 1).
        width: features of the first level; doubled a level.
        norm: "group", "instance", "batch" or None, after every 3^3 convolution (which then has no bias).
        dropout: share of features zeroed after each level's second convolution, in [0, 1).
        residual: add a 1^3 convolution of a level's input to its output.
        prior: foreground probability of the untrained network, in (0, 1); None is about 0.5, from which
            the Tversky loss of a rare class starts slowly.
        deep_supervision: so many coarser levels, below n_levels, have a 1^3 convolution of their own in training.

    Raises:
        ValueError: for n_levels or width below 1, an unknown norm, a prior outside (0, 1), too many heads.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        n_levels: int = 4,
        width: int = 16,
        norm: Norm | None = "group",
        dropout: float = 0.0,
        residual: bool = False,
        prior: float | None = 0.01,
        deep_supervision: int = 0,
    ):
        super().__init__()
        if n_levels < 1 or width < 1:
            raise ValueError(
                f"n_levels and width must be >= 1, got n_levels={n_levels}, width={width}"
            )
        if not 0 <= deep_supervision < n_levels:
            raise ValueError(
                f"deep_supervision must be >= 0 and < n_levels={n_levels}, got {deep_supervision}"
            )
        widths = [width * 2**level for level in range(n_levels)]

        def block(before: int, after: int) -> ConvBlock:
            return ConvBlock(before, after, norm=norm, dropout=dropout, residual=residual)

        self.norm = norm
        self.multiple = 2 ** (n_levels - 1)
        self.encoder = nn.ModuleList(
            block(*pair) for pair in zip([in_channels, *widths], widths, strict=False)
        )
        self.upsample = nn.ModuleList(
            nn.ConvTranspose3d(2 * w, w, 2, stride=2) for w in reversed(widths[:-1])
        )
        self.decoder = nn.ModuleList(block(2 * w, w) for w in reversed(widths[:-1]))
        self.pool = nn.MaxPool3d(2)
        self.head = nn.Conv3d(width, out_channels, 1)
        initialize(self)  # before further heads, so that these change no weight
        self.coarse_heads = nn.ModuleList(
            nn.Conv3d(w, out_channels, 1) for w in widths[1 : deep_supervision + 1]
        )
        initialize(self.coarse_heads)
        for head in (self.head, *self.coarse_heads):
            set_prior(head, prior)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Logits (B, K, X, Y, Z) of an image (B, C, X, Y, Z) of any size.

        In training with deep supervision, a tuple of these and of (B, K, X/2, Y/2, Z/2) ..., rounded up.
        """
        require_statistics(image, norm=self.norm, multiple=self.multiple, training=self.training)
        return pad_and_crop(self._logits, image, multiple=self.multiple)

    def _logits(self, features: Tensor) -> Tensor | tuple[Tensor, ...]:
        skips, coarse = [], []
        for level, block in enumerate(self.encoder):
            features = block(self.pool(features) if level else features)
            skips.append(features)
        for skip, upsample, block in zip(
            reversed(skips[:-1]), self.upsample, self.decoder, strict=True
        ):
            coarse.append(features)
            features = block(torch.cat((skip, upsample(features)), dim=1))
        if not (self.training and self.coarse_heads):
            return self.head(features)  # type: ignore[no-any-return]
        coarse = [
            head(level) for head, level in zip(self.coarse_heads, reversed(coarse), strict=False)
        ]
        return self.head(features), *coarse
