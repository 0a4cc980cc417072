"""Weights per voxel, from connected components: small lesions count as much as large ones.

`components` are those of the whole volume (0 is the background), cut to the patch. Sizes are
counted inside the patch, separately for each sample and class. Every loss takes the weights as its
third argument.

On a GPU, counting the components that there are waits for it. With a bound of their numbers,
`n_labels`, tables have a fixed size, and nothing waits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

N_BACKGROUND_SLOTS = 4096
"""Counters among which a GPU spreads the background: one for millions of voxels is slow."""


def inverse_weights(
    components: Tensor,
    *,
    w_min: float = 1.0,
    w_max: float = 2e5,
    n_labels: int | None = None,
    ignored: Tensor | None = None,
) -> Tensor:
    """Weigh each voxel by the inverse size of its lesion (arXiv 2007.10033).

    w = N / ((K + 1) |L_k|) for the voxels of component k, with N voxels and K lesions in the patch
    and k = 0 the background; then clipped to [w_min, w_max]. Unclipped (w_min=0, w_max=inf), each
    lesion and the background weigh the same in total and the mean weight is 1. The default clip is
    the released code's: it lifts the background to 1.

    Args:
        components: Component of each voxel, integers, (B, C, X, Y, Z) or (X, Y, Z).
        w_min: Smallest weight, >= 0.
        w_max: Largest weight, may be infinite.
        n_labels: Bound of the components' numbers, so that a GPU need not be waited for; None: look
            for the largest.
        ignored: Voxels that do not count, bool; broadcasts to the components, which are 0 there.
            They are neither background nor among the N voxels, and weigh 0. None: all count.

    Returns:
        float32 weights of the same shape; all 1 (clipped) in a patch without lesions.

    Raises:
        ValueError: The components are not integers >= 0 on 3 or 5 axes, the limits do not satisfy
            0 <= w_min <= w_max, or a component is above `n_labels` (with `n_labels` on a GPU, where
            nobody looks, the weights of such voxels are NaN instead).
    """
    return size_tempered_weights(
        components, t=1.0, w_min=w_min, w_max=w_max, n_labels=n_labels, ignored=ignored
    )


def size_tempered_weights(
    components: Tensor,
    *,
    t: float = 0.5,
    w_min: float = 1.0,
    w_max: float = 2e5,
    n_labels: int | None = None,
    ignored: Tensor | None = None,
) -> Tensor:
    """Weigh each voxel by its lesion's size to the power -t.

    w = N |L_k|^-t / sum_j |L_j|^(1 - t), with j over the background and all lesions of the patch;
    its mean is 1. Then clipped to [w_min, w_max]. t = 0 is no weighting, t = 1 inverse weights.

    Args:
        components: As in `inverse_weights`.
        t: Exponent, in [0, 1]; the total weight of a lesion grows as its size to the power 1 - t.
        w_min: Smallest weight, >= 0.
        w_max: Largest weight, may be infinite.
        n_labels: As in `inverse_weights`.
        ignored: As in `inverse_weights`.

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
    patches = components.reshape(-1, math.prod(components.shape[-3:]))
    n_ignored = None
    if ignored is not None:
        n_ignored = ignored.expand(components.shape).reshape(patches.shape).sum(1)
    if n_labels is not None and components.device.type != "cpu":
        weights = _weigh_by_bound(
            patches, n_labels, n_ignored=n_ignored, t=t, w_min=w_min, w_max=w_max
        )
    else:
        weights = torch.empty(patches.shape, dtype=torch.float32, device=components.device)
        counts = [0] * len(patches) if n_ignored is None else n_ignored.tolist()
        for patch, patch_weights, n in zip(patches, weights, counts, strict=True):
            _weigh(patch, patch_weights, n_labels, n_ignored=n, t=t, w_min=w_min, w_max=w_max)
    weights = weights.view(components.shape)
    return weights if ignored is None else weights.masked_fill_(ignored, 0)


def _weigh(
    patch: Tensor,
    weights: Tensor,
    n_labels: int | None,
    *,
    n_ignored: int,
    t: float,
    w_min: float,
    w_max: float,
) -> None:
    """Write the weights of one patch, (N,), in place."""
    # Lesions are few voxels: only theirs are counted and looked up.
    lesion_voxels = patch.nonzero()[:, 0]
    labels = patch[lesion_voxels].long()
    if len(labels) and labels.min() < 0:
        raise ValueError(f"components must be >= 0, got {int(labels.min())}")
    sizes = torch.bincount(labels, minlength=1).double()
    if n_labels is not None and len(sizes) > n_labels + 1:
        raise ValueError(f"components must be <= n_labels={n_labels}, got {len(sizes) - 1}")
    n_counted = len(patch) - n_ignored
    sizes[0] = n_counted - len(lesion_voxels)
    # Numbers may be missing in a patch, those of lesions elsewhere: their size is 0.
    total = sizes[sizes > 0].pow(1 - t).sum()
    by_component = (n_counted / total * sizes.pow(-t)).clamp(w_min, w_max).float()
    weights.fill_(by_component[0])
    weights[lesion_voxels] = by_component[labels]


def _weigh_by_bound(
    patches: Tensor,
    n_labels: int,
    *,
    t: float,
    w_min: float,
    w_max: float,
    n_ignored: Tensor | None = None,
) -> Tensor:
    """Compute the weights of patches (P, N) in tables whose size does not depend on them."""
    n_patches, n_voxels = patches.shape
    slot = _slots(patches, n_labels)  # (P * N,)
    n_in_slot = torch.zeros(n_patches * _n_slots(n_labels), dtype=torch.long, device=slot.device)
    # Integers: exact in whatever order they are added.
    n_in_slot.index_add_(0, slot, torch.ones_like(slot[:1]).expand(slot.shape))
    n_in_slot = n_in_slot.view(n_patches, -1)
    n_background = n_in_slot[:, :N_BACKGROUND_SLOTS].sum(1, keepdim=True)
    n_counted: Tensor | int = n_voxels
    if n_ignored is not None:
        # They lie in the slots of the background.
        n_background = n_background - n_ignored[:, None]
        n_counted = n_voxels - n_ignored[:, None]
    n_lesion = n_in_slot[:, N_BACKGROUND_SLOTS:-1]
    sizes = torch.cat([n_background, n_lesion], 1).double()  # (P, 1 + n_labels)
    total = (sizes.pow(1 - t) * (sizes > 0)).sum(1, keepdim=True)
    by_component = (n_counted / total * sizes.pow(-t)).clamp(w_min, w_max).float()
    by_slot = torch.cat(
        [
            by_component[:, :1].expand(-1, N_BACKGROUND_SLOTS),
            by_component[:, 1:],
            torch.full_like(by_component[:, :1], math.nan),
        ],
        1,
    )
    return by_slot.view(-1).index_select(0, slot).view(patches.shape)


def _n_slots(n_labels: int) -> int:
    """Count the slots of a patch: background, one for each lesion, numbers above the bound."""
    return N_BACKGROUND_SLOTS + n_labels + 1


def _slots(patches: Tensor, n_labels: int) -> Tensor:
    """Find the slot in which each voxel of patches (P, N) is counted, (P * N,).

    With three background slots and two labels, the patches (0, 0, 2, 0) and (9, 0, 0, 1) give
    (0, 1, 4, 0) and (11, 7, 8, 9).
    """
    voxel = torch.arange(patches.shape[1], device=patches.device)
    background_slot = voxel % N_BACKGROUND_SLOTS
    lesion_slot = patches.long() + (N_BACKGROUND_SLOTS - 1)
    slot = torch.where(patches > 0, lesion_slot, background_slot)
    slot.clamp_(max=_n_slots(n_labels) - 1)
    first_slot = _n_slots(n_labels) * torch.arange(len(patches), device=patches.device)
    return slot.add_(first_slot[:, None]).view(-1)
