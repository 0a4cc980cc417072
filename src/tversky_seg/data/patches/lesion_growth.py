"""Larger lesions than the training cases have: those of a patch grow, in the image and in the labels."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

TEXTURE = (
    0.4  # share of the tissue's own contrast that shows through a lesion that has grown over it
)
SMALL_MM3 = 2000.0  # of lesion in a patch; with more it shows large lesions as it is
EDGE_MM = 2.0  # over which the new border fades


def grow(
    image: Tensor, labels: Tensor, *, reach_mm: float, spacing_mm: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Let every lesion of a patch grow into the brain around it.

    Where a lesion grows, each channel goes to the mean of the patch's lesions, and some of the texture that was there
    stays; labels become those of the nearest lesion voxel. So a network that has only small lesions to learn from does
    not learn that what is large is no lesion (the aim of LesionMix, Basaran et al. 2023; growing this way is our own).

    Args:
        image: (C, x, y, z), 0 outside the brain.
        labels: (K, x, y, z) integers, 0 where there is no lesion.
        reach_mm: How far.
        spacing_mm: Voxel size.

    Returns:
        Both anew; as they came where there is no lesion, more than `SMALL_MM3` of it, or nothing around it.
    """
    lesion = (labels > 0).any(dim=0).cpu().numpy()
    brain = (image != 0).any(dim=0).cpu().numpy() | lesion
    if not 0 < lesion.sum() * math.prod(spacing_mm) <= SMALL_MM3:
        return image, labels
    distance, nearest = ndimage.distance_transform_edt(
        ~lesion, sampling=spacing_mm, return_indices=True
    )
    ring = brain & (distance > 1) & (distance < 4)
    if not ring.any():
        return image, labels
    fade = np.clip((reach_mm - distance) / EDGE_MM + 0.5, 0, 1) * (brain & ~lesion)
    share = torch.from_numpy(fade).to(image)
    level, around = (_mean_inside(image, mask) for mask in (lesion, ring))
    filled = level + TEXTURE * (image - around)
    x, y, z = torch.from_numpy(nearest.astype(np.int64)).to(labels.device)
    is_new = torch.from_numpy((distance <= reach_mm) & brain).to(labels.device)
    return image + share * (filled - image), torch.where(is_new, labels[:, x, y, z], labels)


def _mean_inside(image: Tensor, mask: NDArray[np.bool_]) -> Tensor:
    """(C, 1, 1, 1)."""
    return image[:, torch.from_numpy(mask).to(image.device)].mean(dim=1)[:, None, None, None]
