"""The 3D fully convolutional DenseNet of Hashemi et al. 2018 (arXiv 1803.11078)."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from tversky_seg.models.batch_norm import Layers
from tversky_seg.models.concatenation import concatenate
from tversky_seg.models.layers import (
    Norm,
    initialize,
    norm_and_relu,
    pad_and_crop,
    preactivation,
    require_statistics,
    same_padding,
    set_prior,
)
from tversky_seg.models.narrow_conv import LogitConv, NarrowConv
from tversky_seg.models.pooling import MaxPool
from tversky_seg.models.recompute import recomputed
from tversky_seg.models.strides import Triple, kernels_for, resolve_strides, total_stride

EPS = 1.1e-5  # of the normalisations in the released code

Step = tuple[int, Triple, Triple]
"""Features after the dense block of one resolution, its kernel, and the stride to the next."""


class DenseLayer(nn.Module):
    """`growth_rate` new features of all features so far.

    They go through a 1^3 bottleneck of four times as many features.
    """

    def __init__(
        self,
        in_channels: int,
        growth_rate: int,
        *,
        norm: Norm | None,
        dropout: float,
        checkpointing: bool,
        kernel: Triple,
    ):
        super().__init__()
        hidden = 4 * growth_rate
        self.path = Layers(
            *preactivation(in_channels, hidden, 1, norm=norm, eps=EPS),
            *preactivation(hidden, growth_rate, kernel, norm=norm, eps=EPS),
            nn.Dropout(dropout),
        )
        self.checkpointing = checkpointing

    def forward(self, *features: Tensor) -> Tensor:
        """Compute (B, growth_rate, X, Y, Z) from features (B, C_i, X, Y, Z), in_channels in all."""
        if self.checkpointing:
            return recomputed(self, self._new_features, *features)  # type: ignore[no-any-return]
        return self._new_features(*features)

    def _new_features(self, *features: Tensor) -> Tensor:
        return self.path(concatenate(features))  # type: ignore[no-any-return]


class DenseBlock(nn.Module):
    """Dense layers, each of which gets the block's input and the new features of all before it."""

    def __init__(
        self,
        in_channels: int,
        *,
        n_layers: int,
        growth_rate: int,
        norm: Norm | None,
        dropout: float,
        checkpointing: bool,
        kernel: Triple = (3, 3, 3),
    ):
        super().__init__()
        self.layers = nn.ModuleList()
        for number in range(n_layers):
            layer = DenseLayer(
                in_channels + number * growth_rate,
                growth_rate,
                norm=norm,
                dropout=dropout,
                checkpointing=checkpointing,
                kernel=kernel,
            )
            self.layers.append(layer)

    def forward(self, block_input: Tensor, *, only_new: bool) -> Tensor:
        """Compute new features (B, n_layers growth_rate, X, Y, Z) of features (B, C, X, Y, Z).

        Without `only_new`, the input comes before them.
        """
        features = [block_input]
        for layer in self.layers:
            features.append(layer(*features))
        if only_new:
            # Otherwise the decoder would carry more features from block to block.
            features = features[1:]
        return concatenate(features)


class FCDenseNet3D(nn.Module):
    """A U-shaped network of dense blocks: each layer gets the features of all layers before it.

    Hashemi et al. 2018 (arXiv 1803.11078); what the paper leaves open follows the authors' released
    code: three 3^3 convolutions, then five dense blocks with a halving transition each, a
    bottleneck block, five transposed convolutions with a dense block each, and one logit a class
    without bias. Growth 12 x 4 layers is the paper's, 16 x 5 that of the released code. Only new
    features are handed up between decoder blocks.

    Args:
        in_channels: Modalities C of the image.
        out_channels: Foreground classes K, one logit each.
        growth_rate: New features of a dense layer.
        n_layers: Dense layers of a block.
        n_blocks: Dense blocks on the way down. Sides are padded inside to a multiple of 2^n_blocks
            (compact: twice that).
        width: Features of the first convolutions.
        compact: Work at half the resolution between a strided first and a transposed last
            convolution.
        norm: "batch" (the paper), "instance", "group" or None. With batches of one, "group" or
            "instance" trains and predicts by the same statistics; "batch" then needs a patch of
            more than the multiple.
        dropout: Share of features zeroed after each dense layer, in [0, 1).
        checkpointing: Compute dense layers again in the backward pass instead of keeping their
            inner features: same gradients, less memory, about a third more time.
        prior: Foreground probability of the untrained network, in (0, 1), held by a bias that the
            last convolution has only then; None is about 0.5.
        strides: For voxels that are not cubes, see `UNet3D`; one for each dense block on the way
            down. Not with `compact`, which halves every axis first.
        spacing_mm: Voxel size of the image, for strides="auto".

    Raises:
        ValueError: A count is below 1, the norm is unknown, the prior is outside (0, 1), or the
            strides do not fit.
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
        strides: Sequence[Sequence[int]] | str | None = None,
        spacing_mm: Sequence[float] | None = None,
    ):
        super().__init__()
        _check_counts(growth_rate, n_layers, n_blocks, width)
        self.norm = norm
        if compact and strides is not None:
            raise ValueError(f"strides must be null with compact, got {strides}")
        self.strides = resolve_strides(strides, n_steps=n_blocks, spacing_mm=spacing_mm)
        self.multiple = total_stride([*self.strides, *[(2, 2, 2)] * compact])
        kernels = kernels_for(self.strides)[:-1]  # the bottleneck has 3^3
        dense_block = partial(
            DenseBlock,
            n_layers=n_layers,
            growth_rate=growth_rate,
            norm=norm,
            dropout=dropout,
            checkpointing=checkpointing,
        )
        n_new = growth_rate * n_layers  # features that a block adds
        skips = _skip_channels(width, n_new=n_new, n_blocks=n_blocks)
        self.stem = _stem(in_channels, width, compact=compact, norm=norm, kernel=kernels[0])
        steps = list(zip(skips, kernels, self.strides, strict=True))
        # In this order: it is that in which the generator gives the first weights.
        self.encoder, self.transitions = _way_down(dense_block, steps, n_new=n_new, norm=norm)
        self.bottleneck = dense_block(skips[-1] // 2)
        self.upsample, self.decoder = _way_up(dense_block, steps[::-1], n_new=n_new)
        # The last block hands on its input as well as its new features.
        handed_on = n_new + skips[0] + n_new
        self.full_resolution, channels = _full_resolution(handed_on, width, compact=compact)
        self.head = LogitConv(channels, out_channels, bias=prior is not None)
        initialize(self)
        set_prior(self.head, prior)

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits (B, K, X, Y, Z) of an image (B, C, X, Y, Z) of any size."""
        require_statistics(image, norm=self.norm, multiple=self.multiple, training=self.training)
        return pad_and_crop(self._logits, image, multiple=self.multiple)

    def _logits(self, image: Tensor) -> Tensor:
        """Compute logits of an image whose sides are multiples of `self.multiple`."""
        features = self.stem(image)
        skips = []
        for block, transition in zip(self.encoder, self.transitions, strict=True):
            features = block(features, only_new=False)
            skips.append(features)
            features = transition(features)
        features = self.bottleneck(features, only_new=True)
        for upsample, block in zip(self.upsample, self.decoder, strict=True):
            features = concatenate((upsample(features), skips.pop()))
            is_last = not skips
            features = block(features, only_new=not is_last)
        return self.head(self.full_resolution(features))  # type: ignore[no-any-return]


def _check_counts(growth_rate: int, n_layers: int, n_blocks: int, width: int) -> None:
    if min(growth_rate, n_layers, n_blocks, width) < 1:
        got = f"{growth_rate}, {n_layers}, {n_blocks} and {width}"
        raise ValueError(f"growth_rate, n_layers, n_blocks and width must be >= 1, got {got}")


def _way_down(
    dense_block: Callable[..., DenseBlock], steps: Sequence[Step], *, n_new: int, norm: Norm | None
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Make the dense blocks of the encoder, and the transition after each."""
    blocks, transitions = nn.ModuleList(), nn.ModuleList()
    for skip, kernel, stride in steps:
        # `skip` counts the new features of this block as well.
        blocks.append(dense_block(skip - n_new, kernel=kernel))
        transitions.append(_halving(skip, stride, norm=norm))
    return blocks, transitions


def _way_up(
    dense_block: Callable[..., DenseBlock], steps: Sequence[Step], *, n_new: int
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Make the upsamplings of the decoder, from the lowest step, and the dense block after each."""
    upsamplings, blocks = nn.ModuleList(), nn.ModuleList()
    for skip, kernel, stride in steps:
        upsamplings.append(_doubling(n_new, stride))
        # What comes from below is new features alone; the skip connection brings the others.
        blocks.append(dense_block(n_new + skip, kernel=kernel))
    return upsamplings, blocks


def _skip_channels(width: int, *, n_new: int, n_blocks: int) -> list[int]:
    """Count the features after each dense block on the way down.

    Each block adds `n_new`, each transition halves: width 48 and 40 new are 88, 84, 82 ...
    """
    channels = width
    skip_channels = []
    for _ in range(n_blocks):
        skip_channels.append(channels + n_new)
        channels = skip_channels[-1] // 2
    return skip_channels


def _stem(
    in_channels: int, width: int, *, compact: bool, norm: Norm | None, kernel: Triple
) -> Layers:
    """Make three convolutions with normalisation and ReLU; compact: after a strided one."""
    layers: list[nn.Module] = []
    channels = [in_channels, width, width, width]
    if compact:
        layers += [NarrowConv(in_channels, width, 2, stride=2), nn.ReLU(inplace=True)]
        channels[0] = width
    for before, after in pairwise(channels):
        padding = same_padding(kernel)
        conv = NarrowConv(before, after, kernel, padding=padding, bias=norm is None)
        layers += [conv, *norm_and_relu(norm, after, eps=EPS)]
    return Layers(*layers)


def _halving(channels: int, stride: Triple, *, norm: Norm | None) -> Layers:
    """Halve the resolution and the number of features."""
    mix = preactivation(channels, channels // 2, 1, norm=norm, eps=EPS)
    return Layers(*mix, MaxPool(stride))


def _doubling(channels: int, stride: Triple) -> nn.Sequential:
    """Double the resolution by a 3^3 transposed convolution."""
    conv = nn.ConvTranspose3d(
        channels,
        channels,
        3,
        stride=stride,
        padding=1,
        # Of two possible sizes the one that the skip connection has.
        output_padding=(stride[0] - 1, stride[1] - 1, stride[2] - 1),
    )
    return nn.Sequential(conv, nn.ReLU(inplace=True))


def _full_resolution(in_channels: int, width: int, *, compact: bool) -> tuple[nn.Module, int]:
    """Return to the image's resolution by a 2^3 transposed convolution, if it was left.

    Returns:
        The layers, and the number of features that they give.
    """
    if not compact:
        return nn.Identity(), in_channels
    conv = nn.ConvTranspose3d(in_channels, width, 2, stride=2)
    return nn.Sequential(conv, nn.ReLU(inplace=True)), width
