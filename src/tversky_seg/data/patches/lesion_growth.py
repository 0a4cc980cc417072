"""Lesion growth: the lesions of a patch are made larger, in the image and in the labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, eq=False)
class Growth:
    """What the growth of a patch's lesions needs, as far as it follows from the labels alone.

    It is prepared on the host, because a GPU is slow at distances, and applied where the image is.
    All tensors are those of a box around the lesions.

    Attributes:
        box: Slices of the patch.
        lesion_voxels: x, y and z of the voxels of all lesions.
        ring: (x, y, z) bool: near the lesions, but not at their border, which is partly lesion.
        share: (x, y, z) float32: 0 where the tissue stays, 1 where lesion takes its place.
        is_grown: (x, y, z) bool: inside the grown lesions.
        nearest: (K, x, y, z): labels of the nearest voxel of a lesion.
    """

    box: Box
    lesion_voxels: tuple[Tensor, ...]
    ring: Tensor
    share: Tensor
    is_grown: Tensor
    nearest: Tensor

    def apply(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Let the lesions grow into the brain: changed copies of image and labels.

        With no brain around the lesions, image and labels stay as they are.
        """
        image_box = image[:, *self.box]
        labels_box = labels[:, *self.box]
        brain = (image_box != 0).any(dim=0)
        # A tensor: a look at it would wait for a GPU.
        of_tissue, has_tissue = _mean_inside(image_box, self.ring & brain)
        x, y, z = self.lesion_voxels
        of_lesion = image_box[:, x, y, z].mean(dim=1)[:, None, None, None]
        filled = of_lesion + TEXTURE * (image_box - of_tissue)
        brain &= has_tissue
        grown_image = image.clone()
        grown_box = grown_image[:, *self.box]  # a view
        grown_box += (self.share * brain) * (filled - image_box)
        grown_labels = labels.clone()
        grown_labels[:, *self.box] = torch.where(self.is_grown & brain, self.nearest, labels_box)
        return grown_image, grown_labels


def plan_growth(labels: Tensor, *, reach_mm: float, spacing_mm: Sequence[float]) -> Growth | None:
    """Prepare the growth of all lesions of a patch into the brain around them.

    Where a lesion grows, each channel goes to the mean of the patch's lesions, and some of the
    texture of the tissue stays; labels become those of the nearest lesion voxel. So a network that
    is trained on small lesions alone does not learn that a large bright region is no lesion (the
    aim of LesionMix, Basaran et al. 2023; this way of growing is our own).

    Args:
        labels: (K, x, y, z) integers on the CPU, 0 where there is no lesion, -1 where it is not
            known: there it stays unknown.
        reach_mm: Distance by which lesions grow.
        spacing_mm: Voxel size.

    Returns:
        The growth; None without lesion, or with more than `SMALL_MM3` of it.
    """
    lesion = (labels > 0).any(dim=0).numpy()
    lesion_mm3 = lesion.sum() * math.prod(spacing_mm)
    if not 0 < lesion_mm3 <= SMALL_MM3:
        return None
    # Farther away nothing changes, and the distances to all voxels of a patch take long.
    box = _box_around(lesion, margin_mm=max(RING_MM[1], reach_mm + EDGE_MM), spacing_mm=spacing_mm)
    lesion = lesion[box]
    distance_mm, nearest_voxel = ndimage.distance_transform_edt(
        ~lesion, sampling=spacing_mm, return_indices=True
    )
    # 1 inside the grown lesion, 0 outside; 0.5 at reach_mm
    ramp = (reach_mm - distance_mm) / EDGE_MM + 0.5
    # The lesion itself stays as it is; only tissue around it is changed.
    share = np.clip(ramp, 0, 1) * ~lesion
    x, y, z = torch.from_numpy(nearest_voxel.astype(np.int64))
    return Growth(
        box=box,
        lesion_voxels=torch.from_numpy(lesion).nonzero(as_tuple=True),
        ring=torch.from_numpy((distance_mm > RING_MM[0]) & (distance_mm < RING_MM[1])),
        share=torch.from_numpy(share.astype(np.float32)),
        is_grown=torch.from_numpy(distance_mm <= reach_mm) & (labels[:, *box] != -1).all(dim=0),
        nearest=labels[:, *box][:, x, y, z],
    )


def _box_around(mask: Bools, *, margin_mm: float, spacing_mm: Sequence[float]) -> Box:
    """Find the smallest box around a mask that is not empty, with a margin inside the volume."""
    box = []
    for axis, size_mm in enumerate(spacing_mm):
        others = tuple(other for other in range(3) if other != axis)
        occupied = np.flatnonzero(mask.any(axis=others))
        margin = math.ceil(margin_mm / size_mm)
        first, last = int(occupied[0]), int(occupied[-1])
        box.append(slice(max(first - margin, 0), last + margin + 1))
    return tuple(box)


def _mean_inside(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Average each channel over a mask, and tell whether it has a voxel: (C, 1, 1, 1), ()."""
    if image.device.type == "cpu":
        mean = image[:, mask].mean(dim=1)[:, None, None, None]
        return mean.nan_to_num(), mask.any()
    # The same without a list of the voxels, whose length only a GPU would know.
    n_voxels = mask.sum()
    total = (image * mask).sum(dim=(1, 2, 3), keepdim=True)
    return total / n_voxels.clamp_min(1), n_voxels > 0
