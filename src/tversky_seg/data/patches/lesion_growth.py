"""Lesion growth: the lesions of a patch are made larger, in the image and in the labels."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from tversky_seg.data.grids import Bools, Box

# Share of the contrast of the tissue that shows through a lesion that has grown over it.
TEXTURE = 0.4
# Volume of lesion in a patch above which it stays as it is: it shows large lesions already.
SMALL_MM3 = 2000.0
# Width over which the new border fades.
EDGE_MM = 2.0
# Smallest and largest distance from a lesion of the tissue to which it is compared.
RING_MM = (1.0, 4.0)


def grow(
    image: Tensor, labels: Tensor, *, reach_mm: float, spacing_mm: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Let every lesion of a patch grow into the brain around it.

    Where a lesion grows, each channel goes to the mean of the patch's lesions, and some of the
    texture of the tissue stays; labels become those of the nearest lesion voxel. So a network that
    is trained on small lesions alone does not learn that a large bright region is no lesion (the
    aim of LesionMix, Basaran et al. 2023; this way of growing is our own).

    Args:
        image: (C, x, y, z) on the CPU, 0 outside the brain.
        labels: (K, x, y, z) integers, 0 where there is no lesion.
        reach_mm: Distance by which lesions grow.
        spacing_mm: Voxel size.

    Returns:
        Changed copies of both. Without lesion, with more than `SMALL_MM3` of it, or with no brain
        around it, both as they came.
    """
    lesion = (labels > 0).any(dim=0).numpy()
    lesion_mm3 = lesion.sum() * math.prod(spacing_mm)
    if not 0 < lesion_mm3 <= SMALL_MM3:
        return image, labels
    # Farther away nothing changes, and the distances to all voxels of a patch take long.
    box = _box_around(lesion, margin_mm=max(RING_MM[1], reach_mm + EDGE_MM), spacing_mm=spacing_mm)
    lesion = lesion[box]
    image_box = image[:, *box]
    labels_box = labels[:, *box]
    brain = (image_box != 0).any(dim=0).numpy() | lesion
    distance_mm, nearest_voxel = ndimage.distance_transform_edt(
        ~lesion, sampling=spacing_mm, return_indices=True
    )
    # Tissue near the lesions, but not the voxels at their border, which are partly lesion.
    ring = brain & (distance_mm > RING_MM[0]) & (distance_mm < RING_MM[1])
    if not ring.any():
        return image, labels

    # 1 inside the grown lesion, 0 outside; 0.5 at reach_mm
    ramp = (reach_mm - distance_mm) / EDGE_MM + 0.5
    # The lesion itself stays as it is; only tissue around it is changed.
    fade = np.clip(ramp, 0, 1) * (brain & ~lesion)
    share = torch.from_numpy(fade).to(image)
    of_lesion = _mean_inside(image_box, lesion)
    of_tissue = _mean_inside(image_box, ring)
    filled = of_lesion + TEXTURE * (image_box - of_tissue)
    grown_image = image.clone()
    grown_image[:, *box] += share * (filled - image_box)

    x, y, z = torch.from_numpy(nearest_voxel.astype(np.int64))
    is_grown = torch.from_numpy((distance_mm <= reach_mm) & brain)
    grown_labels = labels.clone()
    grown_labels[:, *box] = torch.where(is_grown, labels_box[:, x, y, z], labels_box)
    return grown_image, grown_labels


def _box_around(mask: Bools, *, margin_mm: float, spacing_mm: Sequence[float]) -> Box:
    """Find the smallest box around a mask that is not empty, with a margin inside the volume."""
    box = []
    for axis, size_mm in enumerate(spacing_mm):
        others = tuple(other for other in range(3) if other != axis)
        occupied = np.flatnonzero(mask.any(axis=others))
        margin = math.ceil(margin_mm / size_mm)
        box.append(slice(max(occupied[0] - margin, 0), occupied[-1] + margin + 1))
    return tuple(box)


def _mean_inside(image: Tensor, mask: Bools) -> Tensor:
    """Average each channel over a mask: (C, 1, 1, 1)."""
    inside = image[:, torch.from_numpy(mask)]
    return inside.mean(dim=1)[:, None, None, None]
