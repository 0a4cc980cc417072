"""Weights per voxel, from connected components: small lesions count as much as large ones.

`components` are those of the whole volume (0 is the background), cut to the patch. Sizes are
counted inside the patch, separately for each sample and class. Every loss takes the weights as its
third argument.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def inverse_weights(components: Tensor, *, w_min: float = 1.0, w_max: float = 2e5) -> Tensor:
    """Weigh each voxel by the inverse size of its lesion (arXiv 2007.10033).

    w = N / ((K + 1) |L_k|) for the voxels of component k, with N voxels and K lesions in the patch
    and k = 0 the background; then clipped to [w_min, w_max]. Unclipped (w_min=0, w_max=inf), each
    lesion and the background weigh the same in total and the mean weight is 1. The default clip is
    the released code's: it lifts the background to 1.

    Args:
        components: Component of each voxel, integers, (B, C, X, Y, Z) or (X, Y, Z).
        w_min: Smallest weight, >= 0.
        w_max: Largest weight, may be infinite.

    Returns:
        float32 weights of the same shape; all 1 (clipped) in a patch without lesions.

    Raises:
        ValueError: The components are not integers >= 0 on 3 or 5 axes, or the limits do not
            satisfy 0 <= w_min <= w_max.
    """
    return size_tempered_weights(components, t=1.0, w_min=w_min, w_max=w_max)


def size_tempered_weights(
    components: Tensor, *, t: float = 0.5, w_min: float = 1.0, w_max: float = 2e5
) -> Tensor:
    """Weigh each voxel by its lesion's size to the power -t.

    w = N |L_k|^-t / sum_j |L_j|^(1 - t), with j over the background and all lesions of the patch;
    its mean is 1. Then clipped to [w_min, w_max]. t = 0 is no weighting, t = 1 inverse weights.

    Args:
        components: As in `inverse_weights`.
        t: Exponent, in [0, 1]; the total weight of a lesion grows as its size to the power 1 - t.
        w_min: Smallest weight, >= 0.
        w_max: Largest weight, may be infinite.

    Returns:
        float32 weights of the same shape; all 1 (clipped) in a patch without lesions.

    Raises:
        ValueError: As `inverse_weights`, or t is outside [0, 1].
    """
    if not 0 <= t <= 1:
        raise ValueError(f"t must lie in [0, 1], got t={t}")
    if not 0 <= w_min <= w_max or w_min == math.inf:
        raise ValueError(f"weights need 0 <= w_min <= w_max, got w_min={w_min}, w_max={w_max}")
    is_integer = not components.is_floating_point() and components.dtype != torch.bool
    if not is_integer or components.ndim not in (3, 5):
        raise ValueError(
            "components must be integers (X, Y, Z) or (B, C, X, Y, Z), "
            f"got {components.dtype} {tuple(components.shape)}"
        )
    weights = torch.empty(components.shape, dtype=torch.float32, device=components.device)
    patches = components.reshape(-1, math.prod(components.shape[-3:]))
    for patch, patch_weights in zip(patches, weights.view(patches.shape), strict=True):
        _weigh(patch, patch_weights, t=t, w_min=w_min, w_max=w_max)
    return weights


def _weigh(patch: Tensor, weights: Tensor, *, t: float, w_min: float, w_max: float) -> None:
    """Write the weights of one patch, (N,), in place."""
    # Lesions are few voxels: only theirs are counted and looked up.
    lesion_voxels = patch.nonzero()[:, 0]
    labels = patch[lesion_voxels].long()
    if len(labels) and labels.min() < 0:
        raise ValueError(f"components must be >= 0, got {int(labels.min())}")
    sizes = torch.bincount(labels, minlength=1).double()
    sizes[0] = len(patch) - len(lesion_voxels)
    # Numbers may be missing in a patch, those of lesions elsewhere: their size is 0.
    total = sizes[sizes > 0].pow(1 - t).sum()
    by_component = (len(patch) / total * sizes.pow(-t)).clamp(w_min, w_max).float()
    weights.fill_(by_component[0])
    weights[lesion_voxels] = by_component[labels]
