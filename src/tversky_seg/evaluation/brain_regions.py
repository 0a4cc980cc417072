"""Where lesions lie: periventricular, juxtacortical, infratentorial or deep white matter.

For cases whose affine places them in MNI space, by the tissue maps of the ICBM 152 template (2009a)
that nilearn ships. docs/metrics.md tells the rule and its limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tversky_seg.metrics.components import find_components
from tversky_seg.metrics.lesions import Lesions
from tversky_seg.metrics.masks import Mask, bounding_box, memory_order

PERIVENTRICULAR = "periventricular"
JUXTACORTICAL = "juxtacortical"
INFRATENTORIAL = "infratentorial"
DEEP = "deep_white_matter"
REGIONS = (PERIVENTRICULAR, JUXTACORTICAL, INFRATENTORIAL, DEEP)
MCDONALD_REGIONS = (PERIVENTRICULAR, JUXTACORTICAL, INFRATENTORIAL)
"""Those that count for dissemination in space (McDonald 2017); the spinal cord is not seen here."""

PERIVENTRICULAR_MM = 3.0
"""Distance up to which a lesion touches the ventricles of the template."""
JUXTACORTICAL_MM = 1.0
"""Distance up to which it touches the cortex of the template."""


def is_mni(space: str | None) -> bool:
    """Tell whether a manifest's `space` is MNI space: MNI, MNI152, MNI152NLin6Asym, …."""
    return space is not None and space.upper().startswith("MNI")


@dataclass(frozen=True, eq=False)
class RegionAtlas:
    """Maps on one grid in MNI space."""

    ventricle_mm: NDArray[np.float32]
    """(X, Y, Z) distance to the lateral ventricles."""
    cortex_mm: NDArray[np.float32]
    """(X, Y, Z) distance to the cortex of the cerebrum."""
    infratentorial: NDArray[np.bool_]
    """(X, Y, Z) brainstem and cerebellum."""
    affine: NDArray[np.float64]
    """(4, 4) voxels to mm."""

    def at(self, points_mm: NDArray[np.float64]) -> tuple[NDArray[Any], ...]:
        """Look up the three maps at points (n, 3) in mm; beyond them all is far away."""
        inverse = np.linalg.inv(self.affine)
        voxels = np.rint(points_mm @ inverse[:3, :3].T + inverse[:3, 3]).astype(np.int64)
        is_inside = ((voxels >= 0) & (voxels < self.cortex_mm.shape)).all(axis=1)
        ventricle = np.full(len(voxels), np.inf)
        cortex = np.full(len(voxels), np.inf)
        infratentorial = np.zeros(len(voxels), dtype=bool)
        index = tuple(voxels[is_inside].T)
        ventricle[is_inside] = self.ventricle_mm[index]
        cortex[is_inside] = self.cortex_mm[index]
        infratentorial[is_inside] = self.infratentorial[index]
        return ventricle, cortex, infratentorial


def regions_of_lesions(
    lesions: Lesions,
    mask: Mask,
    affine: NDArray[np.float64],
    *,
    connectivity: int,
    atlas: RegionAtlas | None = None,
) -> list[str]:
    """Name the region of each lesion.

    A lesion is infratentorial if more than half of it lies in brainstem or cerebellum; otherwise
    periventricular if it comes within 3 mm of the lateral ventricles; otherwise juxtacortical if it
    comes within 1 mm of the cortex; otherwise of the deep white matter.

    Args:
        lesions: Lesions of the mask, as they were matched.
        mask: Mask (X, Y, Z) that holds them.
        affine: (4, 4) from its voxels to mm in MNI space.
        connectivity: 6, 18 or 26 neighbours make one lesion.
        atlas: Maps; None: those of the template.

    Returns:
        A name of `REGIONS` for each row of the lesions.
    """
    if not len(lesions):
        return []
    if atlas is None:
        atlas = mni_atlas()
    box = bounding_box(mask)
    corner = np.array([side.start for side in box])
    components = find_components(mask[box], connectivity=connectivity, order=memory_order(mask))
    voxels = np.stack(
        np.unravel_index(components.positions, components.shape, order=components.order), axis=1
    )
    points_mm = (voxels + corner) @ affine[:3, :3].T + affine[:3, 3]
    ventricle_mm, cortex_mm, infratentorial = atlas.at(points_mm)
    n = len(components)
    nearest_ventricle = np.full(n, np.inf)
    nearest_cortex = np.full(n, np.inf)
    np.minimum.at(nearest_ventricle, components.rows, ventricle_mm)
    np.minimum.at(nearest_cortex, components.rows, cortex_mm)
    share_below = np.bincount(components.rows, infratentorial, n) / components.n_voxels
    named: list[str] = []
    for k in range(n):
        named.append(_region(share_below[k], nearest_ventricle[k], nearest_cortex[k]))
    # Lesions that were too small for the match are components, too, so rows are found by place.
    rows = _rows_at(lesions.centre, components.centres() + corner)
    return [named[row] for row in rows]


def _region(share_infratentorial: float, ventricle_mm: float, cortex_mm: float) -> str:
    if share_infratentorial > 0.5:
        return INFRATENTORIAL
    if ventricle_mm <= PERIVENTRICULAR_MM:
        return PERIVENTRICULAR
    if cortex_mm <= JUXTACORTICAL_MM:
        return JUXTACORTICAL
    return DEEP


def _rows_at(centres: NDArray[np.float64], all_centres: NDArray[np.float64]) -> NDArray[np.int64]:
    """Find the component that has each centre."""
    from scipy.spatial import KDTree

    _, rows = KDTree(all_centres).query(centres)
    return np.asarray(rows, dtype=np.int64)


@lru_cache(maxsize=1)
def mni_atlas() -> RegionAtlas:
    """Make the maps from the template's grey and white matter; it takes a few seconds, once."""
    from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template

    grey_image = load_mni152_gm_template(resolution=1)
    grey = np.asarray(grey_image.dataobj, dtype=np.float32)
    white = np.asarray(load_mni152_wm_template(resolution=1).dataobj, dtype=np.float32)
    # The brain fills half of the template's volume.
    box = bounding_box(grey + white > 0)
    corner = np.eye(4)
    corner[:3, 3] = [side.start for side in box]
    return make_atlas(grey[box], white[box], np.asarray(grey_image.affine) @ corner)


def make_atlas(
    grey: NDArray[np.float32], white: NDArray[np.float32], affine: NDArray[np.float64]
) -> RegionAtlas:
    """Make the maps from probabilities of grey and white matter in MNI space.

    Coordinates below are mm in MNI space, read off the template.

    Args:
        grey: (X, Y, Z) in [0, 1].
        white: (X, Y, Z) in [0, 1].
        affine: (4, 4), axis-aligned voxels of 1 mm.
    """
    x, y, z = _coordinates(grey.shape, affine)
    tissue = grey + white
    ventricles = _lateral_ventricles(tissue, x, y, z)
    infratentorial = _infratentorial(tissue, white, x, y, z)
    # Basal ganglia, thalamus and the nuclei of the midbrain are grey matter, too, but no cortex.
    is_deep_grey = (np.abs(x) <= 31) & (y >= -38) & (y <= 24) & (z >= -14) & (z <= 20)
    is_deep_grey |= (np.abs(x) <= 16) & (y >= -45) & (y <= 0) & (z >= -30) & (z <= 0)
    ventricle_mm = _distance_mm(ventricles)
    # The grey rim of the ventricles is a mixture of white matter and fluid.
    is_cortex = (grey > 0.5) & ~is_deep_grey & ~infratentorial & (ventricle_mm > 4)
    return RegionAtlas(ventricle_mm, _distance_mm(is_cortex), infratentorial, affine)


def _coordinates(
    shape: Sequence[int], affine: NDArray[np.float64]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return x, y and z in mm, each along its own axis, to be broadcast."""
    axes: list[NDArray[Any]] = []
    for axis, n in enumerate(shape):
        axes.append(affine[axis, axis] * np.arange(n) + affine[axis, 3])
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    return x, y, z


def _lateral_ventricles(
    tissue: NDArray[np.float32], x: NDArray[Any], y: NDArray[Any], z: NDArray[Any]
) -> NDArray[np.bool_]:
    """Find the fluid in the middle of the cerebrum that is connected with the ventricles' bodies.

    Third ventricle and cisterns, which meet them in the midline, are left out.
    """
    in_reach = (np.abs(x) <= 40) & (y >= -62) & (y <= 38) & (z >= -26) & (z <= 34)
    is_midline = ((np.abs(x) <= 5) & (y < -12)) | ((np.abs(x) <= 2) & (z < 8))
    fluid = (tissue < 0.6) & in_reach & ~is_midline
    numbers, _ = ndimage.label(fluid)
    in_body = (np.abs(x) >= 3) & (np.abs(x) <= 15) & (y >= -10) & (y <= 20) & (z >= 8) & (z <= 24)
    n_voxels = np.bincount(numbers[fluid & in_body], minlength=2)
    n_voxels[0] = 0
    # Left and right are apart where the septum between them is thick enough to be seen.
    large = np.flatnonzero(n_voxels >= max(1, n_voxels.max() // 10))
    return np.isin(numbers, large)


def _infratentorial(
    tissue: NDArray[np.float32],
    white: NDArray[np.float32],
    x: NDArray[Any],
    y: NDArray[Any],
    z: NDArray[Any],
) -> NDArray[np.bool_]:
    """Divide the brain along the tentorium, the gap between cerebellum and cerebrum.

    A watershed of the tissue grows from sure parts of both; every second voxel is enough. In front
    of the cerebellum the brainstem ends at z = -8 mm, with the midbrain.
    """
    from skimage.segmentation import watershed

    half = (slice(None, None, 2),) * 3
    coarse, coarse_white = tissue[half], white[half]
    x, y, z = x[::2], y[:, ::2], z[:, :, ::2]
    is_brain = coarse > 0.3
    lateral = np.abs(x) > 22
    above = (z > 6) | (y > 0) | (lateral & ((y > -25) | (z > -4)))
    brainstem = (np.abs(x) <= 8) & (y <= -14) & (y > -45) & (z < -18)
    cerebellum = (np.abs(x) < 48) & (y < -42) & (z < -28)
    markers = np.zeros(coarse.shape, dtype=np.int32)
    markers[(coarse_white > 0.6) & above] = 1
    markers[is_brain & (brainstem | cerebellum)] = 2
    divided = watershed(-ndimage.gaussian_filter(coarse, 0.7), markers, mask=is_brain)
    below = (divided == 2) & ~((z > -8) & (y > -20))
    full = below.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
    nx, ny, nz = tissue.shape
    return np.asarray(full[:nx, :ny, :nz])


def _distance_mm(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Measure the distance from each voxel of 1 mm to a mask; infinite without one."""
    if not mask.any():
        return np.full(mask.shape, np.inf, dtype=np.float32)
    distance: NDArray[Any] = ndimage.distance_transform_edt(~mask)
    return distance.astype(np.float32)
