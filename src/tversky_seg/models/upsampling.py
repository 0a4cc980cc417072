"""Trilinear upsampling by 1 or 2 along each axis: on a GPU without atomic additions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tversky_seg.models.strides import Triple


def upsample(features: Tensor, stride: Triple = (2, 2, 2)) -> Tensor:
    """Double the sides of (B, C, X, Y, Z) by trilinear interpolation between corner voxels.

    On a GPU the gradient has the same bits in every run (that of torch's interpolation is added up
    by atomics, in any order), and the result is in channels-last layout.

    Args:
        features: (B, C, X, Y, Z).
        stride: 2 along the axes to double, 1 along the others.

    Returns:
        (B, C, 2X, 2Y, 2Z), the values of `interpolate(align_corners=True)`.
    """
    if features.is_cuda:
        return _upsample_by_matrices(features, stride)
    factors = [float(factor) for factor in stride]
    return F.interpolate(features, scale_factor=factors, mode="trilinear", align_corners=True)


def _upsample_by_matrices(features: Tensor, stride: Triple = (2, 2, 2)) -> Tensor:
    """Interpolate along one axis after the other, each a product with a matrix.

    In float32 whatever the features are: a weight of bf16 has three digits.
    """
    b, c, x, y, z = features.shape
    to_x, to_y, to_z = x * stride[0], y * stride[1], z * stride[2]
    dtype = torch.promote_types(features.dtype, torch.float32)
    # Channels last, each axis in turn is the rows of matrices that lie in memory one by one.
    rows = features.permute(0, 2, 3, 4, 1).to(dtype).reshape(b * x * y, z, c)
    with torch.autocast(features.device.type, enabled=False):
        rows = _interpolate(rows, to_z).reshape(b * x, y, to_z * c)
        rows = _interpolate(rows, to_y).reshape(b, x, to_y * to_z * c)
        rows = _interpolate(rows, to_x).reshape(b, to_x, to_y, to_z, c)
    return rows.to(features.dtype).permute(0, 4, 1, 2, 3)


def _interpolate(rows: Tensor, n_rows: int) -> Tensor:
    """Double the rows of matrices (N, n, m): (N, 2n, m), or leave them as they are."""
    n = rows.shape[1]
    if n_rows == n:
        return rows
    # Row i of the result lies at i (n - 1) / (2 n - 1) of the rows given.
    position = torch.arange(2 * n, device=rows.device, dtype=rows.dtype) * (n - 1) / (2 * n - 1)
    distance = position[:, None] - torch.arange(n, device=rows.device, dtype=rows.dtype)
    weights = (1 - distance.abs()).clamp(min=0)
    return torch.bmm(weights.expand(len(rows), -1, -1), rows)
