"""The 3D fully convolutional DenseNet of Hashemi et al. 2018 (arXiv 1803.11078)."""

from collections.abc import Callable

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
from tversky_seg.models.recompute import recomputed

EPS = 1.1e-5  # of the normalisations in the released code


def preactivation(in_channels: int, conv: nn.Conv3d, *, norm: Norm | None) -> list[nn.Module]:
    """Normalisation, ReLU, convolution."""
    # in place only on the normalisation's own result: without one it would change the features that are kept
    return [normalization(norm, in_channels, eps=EPS), nn.ReLU(inplace=norm is not None), conv]


class DenseLayer(nn.Module):
    """`growth_rate` new features of all features so far, through a 1^3 bottleneck of four times as many."""

    def __init__(
        self,
        in_channels: int,
        growth_rate: int,
        *,
        norm: Norm | None,
        dropout: float,
        checkpointing: bool,
    ):
        bias, hidden = norm is None, 4 * growth_rate
        super().__init__()
        self.path = nn.Sequential(
            *preactivation(in_channels, nn.Conv3d(in_channels, hidden, 1, bias=bias), norm=norm),
            *preactivation(
                hidden, nn.Conv3d(hidden, growth_rate, 3, padding=1, bias=bias), norm=norm
            ),
            nn.Dropout(dropout),
        )
        self.checkpointing = checkpointing

    def forward(self, *features: Tensor) -> Tensor:
        """Features (B, C_i, X, Y, Z) with in_channels channels together -> (B, growth_rate, X, Y, Z)."""
        if self.checkpointing:
            return recomputed(self, self._new_features, *features)  # type: ignore[no-any-return]
        return self._new_features(*features)

    def _new_features(self, *features: Tensor) -> Tensor:
        return self.path(torch.cat(features, dim=1))  # type: ignore[no-any-return]


class DenseBlock(nn.Module):
    """Dense layers, each of which sees the block's input and the new features of all layers before it."""

    def __init__(
        self,
        in_channels: int,
        *,
        n_layers: int,
        growth_rate: int,
        layer: Callable[[int], DenseLayer],
    ):
        super().__init__()
        self.layers = nn.ModuleList(layer(in_channels + i * growth_rate) for i in range(n_layers))

    def forward(self, features: Tensor, *, only_new: bool) -> Tensor:
        """(B, C, X, Y, Z) -> (B, n_layers growth_rate, X, Y, Z) with `only_new`, else the input before them."""
        seen = [features]
        for layer in self.layers:
            seen.append(layer(*seen))
        return torch.cat(seen[1:] if only_new else seen, dim=1)


class FCDenseNet3D(nn.Module):
    """A U-shaped network of dense blocks, in which each layer sees the features of all layers before it.

    Hashemi et al. 2018 (arXiv 1803.11078); what the paper leaves open follows the authors' released code: three 3^3
    convolutions, then five dense blocks with a halving transition each, a bottleneck block, five transposed
    convolutions with a dense block each, and one logit a class without bias. Growth 12 x 4 layers is the paper's,
    16 x 5 that of the released code. Only new features are handed up between decoder blocks.

    Args:
        in_channels: modalities C of the image.
        out_channels: foreground classes K, one logit each.
        growth_rate: new features of a dense layer.
        n_layers: dense layers of a block.
        n_blocks: dense blocks on the way down; sides are padded inside to a multiple of 2^n_blocks (compact: twice).
        width: features of the first convolutions.
        compact: work at half the resolution between a strided first and a transposed last convolution.
        norm: "batch" (the paper), "instance", "group" or None. With batches of one, "group" or "instance" trains and
            predicts by the same statistics; "batch" then needs a patch of more than the multiple.
        dropout: share of features zeroed after each dense layer, in [0, 1).
        checkpointing: compute dense layers again in the backward pass instead of keeping their inner features: same
            gradients, less memory, about a third more time.
        prior: foreground probability of the untrained network, in (0, 1), held by a bias that the last convolution
            has only then; None is about 0.5.

    Raises:
        ValueError: for a count below 1, an unknown norm, a prior outside (0, 1).
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        growth_rate: int = 12,
        n_layers: int = 4,
        n_blocks: int = 5,
        width: int = 48,
        compact: bool = False,
        norm: Norm | None = "batch",
        dropout: float = 0.2,
        checkpointing: bool = False,
        prior: float | None = None,
    ):
        super().__init__()
        if min(growth_rate, n_layers, n_blocks, width) < 1:
            raise ValueError(
                "growth_rate, n_layers, n_blocks and width must be >= 1, "
                f"got {growth_rate}, {n_layers}, {n_blocks} and {width}"
            )
        new = growth_rate * n_layers

        def layer(channels: int) -> DenseLayer:
            return DenseLayer(
                channels, growth_rate, norm=norm, dropout=dropout, checkpointing=checkpointing
            )

        def block(channels: int) -> DenseBlock:
            return DenseBlock(channels, n_layers=n_layers, growth_rate=growth_rate, layer=layer)

        self.norm = norm
        self.multiple = 2 ** (n_blocks + compact)
        self.stem = _stem(in_channels, width, compact=compact, norm=norm)
        self.encoder, self.transitions = nn.ModuleList(), nn.ModuleList()
        channels, skips = width, []
        for _ in range(n_blocks):
            self.encoder.append(block(channels))
            skips.append(channels + new)
            channels = skips[-1] // 2
            halve = nn.Conv3d(skips[-1], channels, 1, bias=norm is None)
            self.transitions.append(
                nn.Sequential(*preactivation(skips[-1], halve, norm=norm), nn.MaxPool3d(2))
            )
        self.bottleneck = block(channels)
        self.upsample = nn.ModuleList(_upsample(new, new) for _ in skips)
        self.decoder = nn.ModuleList(block(new + skip) for skip in reversed(skips))
        channels = 2 * new + skips[0]
        self.full_resolution = _double(channels, width) if compact else nn.Identity()
        self.head = nn.Conv3d(
            width if compact else channels, out_channels, 1, bias=prior is not None
        )
        initialize(self)
        set_prior(self.head, prior)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, X, Y, Z) of an image (B, C, X, Y, Z) of any size."""
        require_statistics(image, norm=self.norm, multiple=self.multiple, training=self.training)
        return pad_and_crop(self._logits, image, multiple=self.multiple)

    def _logits(self, image: Tensor) -> Tensor:
        features, skips = self.stem(image), []
        for block, transition in zip(self.encoder, self.transitions, strict=True):
            skips.append(block(features, only_new=False))
            features = transition(skips[-1])
        features = self.bottleneck(features, only_new=True)
        for upsample, block in zip(self.upsample, self.decoder, strict=True):
            skip = skips.pop()
            features = block(torch.cat((upsample(features), skip), dim=1), only_new=bool(skips))
        return self.head(self.full_resolution(features))  # type: ignore[no-any-return]


def _stem(in_channels: int, width: int, *, compact: bool, norm: Norm | None) -> nn.Sequential:
    """Three 3^3 convolutions with normalisation and ReLU; compact: after one with stride 2."""
    layers: list[nn.Module] = []
    if compact:
        layers += [nn.Conv3d(in_channels, width, 2, stride=2), nn.ReLU(inplace=True)]
    for channels in (width if compact else in_channels, width, width):
        conv = nn.Conv3d(channels, width, 3, padding=1, bias=norm is None)
        layers += [conv, normalization(norm, width, eps=EPS), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _upsample(in_channels: int, out_channels: int) -> nn.Sequential:
    """Twice the resolution by a 3^3 transposed convolution."""
    conv = nn.ConvTranspose3d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1)
    return nn.Sequential(conv, nn.ReLU(inplace=True))


def _double(in_channels: int, out_channels: int) -> nn.Sequential:
    """Back to the image's resolution by a 2^3 transposed convolution."""
    return nn.Sequential(
        nn.ConvTranspose3d(in_channels, out_channels, 2, stride=2), nn.ReLU(inplace=True)
    )
