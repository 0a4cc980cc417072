"""The 3D U-Net of Salehi et al. 2017 (arXiv 1706.05721, section 2.1)."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from tversky_seg.models.batch_norm import norm_relu
from tversky_seg.models.concatenation import concatenate
from tversky_seg.models.layers import (
    Norm,
    initialize,
    norm_and_relu,
    normalization,
    pad_and_crop,
    require_statistics,
    same_padding,
    set_prior,
)
from tversky_seg.models.narrow_conv import LogitConv, NarrowConv
from tversky_seg.models.pooling import MaxPool
from tversky_seg.models.strides import Triple, kernels_for, resolve_strides, total_stride

MAX_LEVELS = 16


class ConvBlock(nn.Module):
    """Two convolutions, by 3^3 or as `kernel` says, each normalised and followed by ReLU.

    With `residual`, a 1^3 convolution of the input is added before the last ReLU.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm: Norm | None,
        dropout: float,
        residual: bool,
        kernel: Triple = (3, 3, 3),
    ):
        super().__init__()
        # A norm subtracts the mean, and with it any bias.
        bias = norm is None
        padding = same_padding(kernel)
        self.conv1 = NarrowConv(in_channels, out_channels, kernel, padding=padding, bias=bias)
        self.norm1, self.relu1 = norm_and_relu(norm, out_channels)
        self.conv2 = NarrowConv(out_channels, out_channels, kernel, padding=padding, bias=bias)
        self.norm2, self.relu2 = norm_and_relu(norm, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.shortcut = None
        if residual:
            # The shortcut is added between the two.
            self.norm2, self.relu2 = normalization(norm, out_channels), nn.ReLU(inplace=True)
            self.shortcut = nn.Conv3d(in_channels, out_channels, 1, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        """Compute (B, out_channels, X, Y, Z) from (B, in_channels, X, Y, Z)."""
        hidden = norm_relu(self.norm1, self.relu1, self.conv1(features))
        hidden = self.conv2(hidden)
        if self.shortcut is None:
            hidden = norm_relu(self.norm2, self.relu2, hidden)
        else:
            hidden = self.relu2(self.norm2(hidden) + self.shortcut(features))
        return self.dropout(hidden)  # type: ignore[no-any-return]


class UNet3D(nn.Module):
    """A U-shaped network: each level has half the resolution and twice the features.

    Salehi et al. 2017 (arXiv 1706.05721, section 2.1, Fig. 1): two 3^3 convolutions + ReLU a level,
    2^3 max-pooling, 2^3 transposed convolutions, concatenation, a last 1^3 convolution. The paper
    names neither depth nor width nor a normalisation; `norm=None, prior=None` with one logit a
    class is its text to the letter.

    Args:
        in_channels: Modalities C of the image.
        out_channels: Foreground classes K, one logit each.
        n_levels: Resolutions, the input's included. Sides are padded inside to a multiple of
            2^(n_levels - 1).
        width: Features of the first level; doubled at each level.
        norm: "group", "instance", "batch" or None, after every 3^3 convolution (which then has no
            bias).
        dropout: Share of features zeroed after each level's second convolution, in [0, 1).
        residual: Add a 1^3 convolution of a level's input to its output.
        prior: Foreground probability of the untrained network, in (0, 1); None is about 0.5, from
            which the Tversky loss of a rare class starts slowly.
        deep_supervision: Number of coarser levels, below n_levels, that have a 1^3 convolution of
            their own in training.
        strides: For voxels that are not cubes: 1 or 2 along each axis between two levels, a list
            of n_levels - 1 triples; "auto": those of `strides.strides_for`; None: 2 along every
            axis. Kernels have one voxel along an axis until it is first halved.
        spacing_mm: Voxel size of the image, for "auto".

    Attributes:
        strides: The strides in use.

    Raises:
        ValueError: n_levels is not 1 to 16, width is below 1, the norm is unknown, the prior is
            outside (0, 1), there are too many heads, or the strides do not fit.
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
        strides: Sequence[Sequence[int]] | str | None = None,
        spacing_mm: Sequence[float] | None = None,
    ):
        super().__init__()
        # Before 2^n_levels is computed: a checkpoint may come from a stranger.
        _check_sizes(n_levels=n_levels, width=width, deep_supervision=deep_supervision)
        widths = [width * 2**level for level in range(n_levels)]
        widths_upward = widths[-2::-1]  # without the lowest level's
        self.norm = norm
        self.strides = resolve_strides(strides, n_steps=n_levels - 1, spacing_mm=spacing_mm)
        self.multiple = total_stride(self.strides)
        self.scales = [total_stride(self.strides[:level]) for level in range(deep_supervision + 1)]
        kernels = kernels_for(self.strides)
        conv_block = partial(ConvBlock, norm=norm, dropout=dropout, residual=residual)
        self.encoder = nn.ModuleList()
        for (before, after), kernel in zip(pairwise([in_channels, *widths]), kernels, strict=True):
            self.encoder.append(conv_block(before, after, kernel=kernel))
        self.upsample = nn.ModuleList()
        for w, stride in zip(widths_upward, reversed(self.strides), strict=True):
            self.upsample.append(nn.ConvTranspose3d(2 * w, w, stride, stride=stride))
        self.decoder = nn.ModuleList()
        for w, kernel in zip(widths_upward, kernels[-2::-1], strict=True):
            # Twice the features: those of the level below and those handed across.
            self.decoder.append(conv_block(2 * w, w, kernel=kernel))
        self.pools = nn.ModuleList([MaxPool(stride) for stride in self.strides])
        self.head = LogitConv(width, out_channels)
        initialize(self)  # before further heads are made, so that these change no other weight
        coarse_widths = widths[1 : deep_supervision + 1]
        self.coarse_heads = nn.ModuleList([nn.Conv3d(w, out_channels, 1) for w in coarse_widths])
        initialize(self.coarse_heads)
        for head in (self.head, *self.coarse_heads):
            set_prior(head, prior)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Compute logits (B, K, X, Y, Z) of an image (B, C, X, Y, Z) of any size.

        In training with deep supervision, a tuple of these and of (B, K, X/2, Y/2, Z/2) ...,
        rounded up; an axis that is not halved keeps its side.
        """
        require_statistics(image, norm=self.norm, multiple=self.multiple, training=self.training)
        return pad_and_crop(self._logits, image, multiple=self.multiple, scales=self.scales)

    def _logits(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Compute logits of an image whose sides are multiples of `self.multiple`."""
        features = image
        skips = []
        for level, block in enumerate(self.encoder):
            if level > 0:
                features = self.pools[level - 1](features)
            features = block(features)
            skips.append(features)
        skips.pop()  # the lowest level's own output
        coarse_features = []  # of the levels below the first, from the lowest upward
        for upsample, block in zip(self.upsample, self.decoder, strict=True):
            coarse_features.append(features)
            features = block(concatenate((skips.pop(), upsample(features))))
        logits = self.head(features)
        if not (self.training and self.coarse_heads):
            return logits  # type: ignore[no-any-return]
        all_logits = [logits]
        for head in self.coarse_heads:
            all_logits.append(head(coarse_features.pop()))
        return tuple(all_logits)


def _check_sizes(*, n_levels: int, width: int, deep_supervision: int) -> None:
    if n_levels < 1 or width < 1:
        raise ValueError(f"n_levels and width must be >= 1, got n_levels={n_levels}, width={width}")
    if n_levels > MAX_LEVELS:
        raise ValueError(f"n_levels must be <= {MAX_LEVELS}, got {n_levels}")
    if not 0 <= deep_supervision < n_levels:
        raise ValueError(
            f"deep_supervision must be >= 0 and < n_levels={n_levels}, got {deep_supervision}"
        )
