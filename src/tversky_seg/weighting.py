"""Per-voxel weights that make small lesions count as much as large ones: connected components in, weights out."""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_weights(components: Tensor, *, w_min: float = 1.0, w_max: float = 2e5) -> Tensor:
    """Weigh each voxel by the inverse size of its lesion (arXiv 2007.10033).

    In every patch and class, w = N / ((K + 1) |L_k|) for the voxels of component k, with N voxels and K lesions in the
    patch and k = 0 the background; then clipped to [w_min, w_max]. Unclipped (w_min=0, w_max=inf), each lesion and the
    background have the same total weight and the mean weight is 1. The default clip is that of the released code: it
    lifts the background to weight 1.

    Args:
        components: integer components of the whole volume cut to the patch, (B, C, X, Y, Z) or (X, Y, Z): 0 is the
            background, sizes are counted inside the patch.
        w_min: smallest weight, >= 0.
        w_max: largest weight, may be infinite.

    Returns:
        float32 weights of the same shape; all 1 in a patch without lesions (whatever the clip, if it contains 1).

    Raises:
        ValueError: components are no integers, or the limits are not 0 <= w_min <= w_max.
    """
    if not 0 <= w_min <= w_max:
        raise ValueError(f"weights need 0 <= w_min <= w_max, got w_min={w_min}, w_max={w_max}")
    if components.is_floating_point() or components.is_complex() or components.ndim not in (3, 5):
        found = f"{components.dtype} {tuple(components.shape)}"
        raise ValueError(f"components must be integers (X, Y, Z) or (B, C, X, Y, Z), got {found}")
    weights = [
        _patch_weights(patch, w_min=w_min, w_max=w_max) for patch in components.reshape(-1, *components.shape[-3:])
    ]
    return torch.stack(weights).reshape(components.shape) if weights else torch.ones(components.shape)


def _patch_weights(patch: Tensor, *, w_min: float, w_max: float) -> Tensor:
    sizes = torch.bincount(patch.flatten())
    n_components = torch.count_nonzero(sizes[1:]) + 1
    table = (patch.numel() / (n_components * sizes)).clamp(w_min, w_max).float()
    return table[patch.long()]
