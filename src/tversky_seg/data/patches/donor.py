"""Donors: lesions cut out of their case, and blobs with the contrast of one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tversky_seg.data.grids import Bools
from tversky_seg.data.patches.spatial import as_shape
from tversky_seg.data.preprocessing.prepared_case import PreparedCase

Array = NDArray[np.float32]

SURROUND_MM = (1.5, 4.0)
"""Nearest and farthest tissue that a lesion is compared with; nearer, voxels are partly lesion."""
EDGE = 0.6
"""Standard deviation of the blended border, in voxels."""


@dataclass(frozen=True, eq=False)
class Donor:
    """A lesion apart from its case, in a box with a margin.

    Attributes:
        mask: (1, x, y, z) bool: the lesion.
        classes: (K, x, y, z) bool: the classes that its voxels belong to.
        contrast: (C, x, y, z) float32: intensity minus the mean of the lesion's surround.
        share: (1, x, y, z) float32: 1 inside the lesion, falling to 0 beyond its border.
        surround: (1, x, y, z) bool: tissue around it, without its partly lesional border.
        is_blob: Whether it is made up, and takes the texture of the tissue at its new place.
    """

    mask: Bools
    classes: Bools
    contrast: Array
    share: Array
    surround: Bools
    is_blob: bool = False

    def lacks_a_modality_of(self, image: Array) -> bool:
        """Tell whether a modality is blank in the donor's case but not in an image (C, x, y, z)."""
        is_blank = ~self.contrast.any(axis=(1, 2, 3))
        return bool((is_blank & image.any(axis=(1, 2, 3))).any())

    def mirrored(self, axes: Sequence[int]) -> Donor:
        """Mirror all arrays along some of the axes 1, 2, 3."""
        axis = tuple(axes)
        return replace(
            self,
            mask=np.flip(self.mask, axis),
            classes=np.flip(self.classes, axis),
            contrast=np.flip(self.contrast, axis),
            share=np.flip(self.share, axis),
            surround=np.flip(self.surround, axis),
        )


def cut_donor(case: PreparedCase, lesion: int) -> Donor | None:
    """Cut a lesion out of a case; None where no healthy tissue surrounds it to compare it with.

    Args:
        case: Case with labels.
        lesion: Index of the lesion, over all classes.
    """
    first, end = case.lesion_offsets[lesion : lesion + 2]
    voxels = np.stack(np.unravel_index(case.lesion_voxels[first:end], case.geometry.shape))
    margin = _margin(case.spacing_mm)
    start = voxels.min(axis=1) - margin
    size = as_shape(voxels.max(axis=1) + margin + 1 - start)
    image = case.intensities(as_shape(start), size)
    target = case.labels(as_shape(start), size) > 0
    mask = np.zeros(size, dtype=bool)
    mask[tuple(voxels - start[:, None])] = True
    surround = _surround(mask, case.spacing_mm)
    brain: Bools = np.asarray(image.any(axis=0))
    # Another lesion nearby would take away from the contrast.
    healthy = surround & brain & ~target.any(axis=0)
    if not healthy.any():
        return None
    mean = image[:, healthy].mean(axis=1)[:, None, None, None]
    return Donor(
        mask=mask[None],
        classes=target & mask,
        contrast=(image - mean) * brain,
        share=_share(mask)[None],
        surround=surround[None],
    )


def make_blob(
    donor: Donor, volume_mm3: float, *, spacing_mm: Sequence[float], rng: np.random.Generator
) -> Donor:
    """Make an ellipsoid with an uneven border and the mean contrast of a lesion.

    Args:
        donor: Lesion whose contrast and classes the blob takes.
        volume_mm3: Volume, reached to a voxel; at least one voxel.
        spacing_mm: Voxel size.
        rng: Source of all randomness.
    """
    n_voxels = max(round(volume_mm3 / math.prod(spacing_mm)), 1)
    radius_mm = (3 * volume_mm3 / (4 * math.pi)) ** (1 / 3)
    # Up to one and a half times as long along an axis, or as short.
    stretch = np.exp(rng.uniform(-0.4, 0.4, 3))
    margin = _margin(spacing_mm)
    half = np.ceil(2 * radius_mm / np.array(spacing_mm)).astype(int) + margin
    size = tuple((2 * half + 1).tolist())
    grid_mm = [(np.arange(n) - h) * mm for n, h, mm in zip(size, half, spacing_mm, strict=True)]
    x, y, z = np.meshgrid(*grid_mm, indexing="ij")
    radius = np.sqrt((x / stretch[0]) ** 2 + (y / stretch[1]) ** 2 + (z / stretch[2]) ** 2)
    noise = ndimage.gaussian_filter(rng.standard_normal(size), 1.5)
    # Uneven by a quarter of the radius; the centre always comes first.
    uneven = radius * np.exp(0.25 * noise / noise.std())
    # By rank, not by a radius, so that the volume is met to a voxel.
    nearest = np.argsort(uneven, axis=None, kind="stable")[:n_voxels]
    mask = np.zeros(size, dtype=bool)
    mask.reshape(-1)[nearest] = True
    mean = donor.contrast[:, donor.mask[0]].mean(axis=1)
    is_member: Bools = np.asarray(donor.classes.any(axis=(1, 2, 3)))
    return Donor(
        mask=mask[None],
        classes=mask[None] & is_member[:, None, None, None],
        contrast=np.broadcast_to(mean[:, None, None, None], (len(mean), *size)),
        share=_soft(mask)[None],
        surround=_surround(mask, spacing_mm)[None],
        is_blob=True,
    )


def _margin(spacing_mm: Sequence[float]) -> NDArray[np.int64]:
    """Count the voxels, along each axis, that the surround of a lesion may take."""
    farthest_mm = max(SURROUND_MM[1], 2.1 * min(spacing_mm))
    return np.ceil(farthest_mm / np.array(spacing_mm)).astype(int)


def _surround(mask: Bools, spacing_mm: Sequence[float]) -> Bools:
    """Mark what surrounds a lesion, without the voxels at its border."""
    distance_mm = ndimage.distance_transform_edt(~mask, sampling=spacing_mm)
    nearest_mm = max(SURROUND_MM[0], 1.1 * min(spacing_mm))
    farthest_mm = max(SURROUND_MM[1], 2.1 * min(spacing_mm))
    return np.asarray((distance_mm > nearest_mm) & (distance_mm <= farthest_mm))


def _share(mask: Bools) -> Array:
    """Blend a mask: 1 inside, a fraction in the voxels next to it."""
    blurred = ndimage.gaussian_filter(mask.astype(np.float32), EDGE, truncate=3)
    return np.where(mask, np.float32(1), blurred)


def _soft(mask: Bools) -> Array:
    """Blend a mask from its middle outward: voxels at the border of a lesion hold tissue, too."""
    blurred: Array = ndimage.gaussian_filter(mask.astype(np.float32), EDGE, truncate=3)
    blurred /= blurred.max()
    return blurred
