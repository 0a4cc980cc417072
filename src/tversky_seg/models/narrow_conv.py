"""Convolutions from or to few channels, where tensor cores want eight.

In training cuDNN tries its algorithms. In prediction it goes by rule, which for so few channels may
be a kernel without tensor cores: implicit_convolveNd_sgemm was a fifth of a prediction in bf16 on
an H100. So there the channels are padded, or a matrix product takes the convolution's place. For 16
and 32 channels there are kernels of our own, see `direct_conv`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tversky_seg.models.direct_conv import direct_convolution, is_direct
from tversky_seg.models.fused import is_channels_last, is_traced

EIGHT = 8


class NarrowConv(nn.Conv3d):
    """A convolution of few channels; weights and numbers are those of `nn.Conv3d`.

    On a GPU in half precision, 16 and 32 channels have kernels of their own; and in prediction,
    zeros fill the channels of an image up to a multiple of eight.
    """

    def forward(self, image: Tensor) -> Tensor:
        """Convolve an image or features (B, C, X, Y, Z)."""
        if is_direct(self, image):
            return direct_convolution(image, self.weight, self.bias)
        if self.in_channels % EIGHT != 0 and _is_predicted_in_half(image):
            return self._padded(image, torch.get_autocast_dtype("cuda"))
        return super().forward(image)

    def _padded(self, image: Tensor, dtype: torch.dtype) -> Tensor:
        b, c, x, y, z = image.shape
        n_missing = -c % EIGHT
        padded = torch.zeros((b, x, y, z, c + n_missing), dtype=dtype, device=image.device)
        padded = padded.permute(0, 4, 1, 2, 3)  # channels last
        padded[:, :c] = image
        # From the last axis on: none along Z, Y and X, then the channels.
        weight = F.pad(self.weight.to(dtype), (0, 0, 0, 0, 0, 0, 0, n_missing))
        bias = None if self.bias is None else self.bias.to(dtype)
        return F.conv3d(padded, weight, bias, self.stride, self.padding)


class LogitConv(nn.Conv3d):
    """A convolution by 1^3 to a few logits; weights and numbers are those of `nn.Conv3d`.

    In prediction in half precision on a GPU it is the product of two matrices.
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True):
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        """Compute logits (B, K, X, Y, Z) of features (B, C, X, Y, Z)."""
        if is_channels_last(features) and _is_predicted_in_half(features):
            return self._product(features)
        return super().forward(features)

    def _product(self, features: Tensor) -> Tensor:
        rows = features.permute(0, 2, 3, 4, 1)
        return F.linear(rows, self.weight.flatten(1), self.bias).permute(0, 4, 1, 2, 3)


def _is_predicted_in_half(features: Tensor) -> bool:
    return (
        features.is_cuda
        and not is_traced(features)
        and not torch.is_grad_enabled()
        and torch.is_autocast_enabled("cuda")
    )
