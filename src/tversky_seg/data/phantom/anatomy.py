"""Anatomies of synthetic subjects: the MNI152 atlas that nilearn carries, deformed at random."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Anatomy:
    """Tissue maps of the atlas at 1 mm, cut to the brain; axes R, A, S.

    Attributes:
        tissue: (3, X, Y, Z) shares of grey matter, white matter and cerebrospinal fluid (CSF), in [0, 1].
        ventricle_mm: (X, Y, Z) distance to the lateral ventricles, 0 inside.
        centre_mm: (3,) MNI coordinate of the array's centre.
    """

    tissue: Array
    ventricle_mm: Array
    centre_mm: NDArray[np.float64]


@dataclass(frozen=True)
class Head:
    """A subject's anatomy before lesions and intensities, on the subject's grid."""

    tissue: Array  # (3, X, Y, Z) grey matter, white matter, CSF
    ventricle_mm: Array
    spacing_mm: float


def load_anatomy() -> Anatomy:
    """The MNI152 (2009a, symmetric) tissue maps of the installed nilearn package; nothing is downloaded."""
    from nilearn import datasets

    maps = [
        datasets.load_mni152_gm_template(resolution=1),
        datasets.load_mni152_wm_template(resolution=1),
    ]
    brain = datasets.load_mni152_brain_mask(resolution=1).get_fdata() > 0.5
    box = ndimage.find_objects(brain.astype(np.uint8))[0]
    brain = brain[box]
    grey, white = (np.asarray(image.get_fdata(dtype=np.float32))[box] for image in maps)
    tissue = np.stack([grey, white, np.clip(brain - grey - white, 0, 1)]).astype(np.float32)
    centre = np.array([axis.start for axis in box]) + (np.array(brain.shape) - 1) / 2
    return Anatomy(
        tissue=tissue,
        ventricle_mm=_distance_to_ventricles(tissue[2] > 0.5),
        centre_mm=maps[0].affine[:3, :3] @ centre + maps[0].affine[:3, 3],
    )


def draw_head(anatomy: Anatomy, *, spacing_mm: float, rng: np.random.Generator) -> Head:
    """Deform the atlas: size, pose, a smooth random field, wider ventricles; then sharpen what averaging blurred."""
    size = np.array(anatomy.ventricle_mm.shape)
    shape = tuple(int(n) for n in np.ceil((size + 2) / spacing_mm))
    scale = rng.uniform(0.82, 0.92) * np.exp(rng.normal(0, 0.02, 3))
    turn = _rotation(rng.normal(0, 0.05, 3)) / scale
    grid = np.indices(shape, dtype=np.float32)
    position = (grid - ((np.array(shape) - 1) / 2)[:, None, None, None]) * spacing_mm
    position = np.einsum("ij,jxyz->ixyz", turn.astype(np.float32), position)
    position += (
        np.stack([smooth_noise(shape, rng, sigma_mm=18, spacing_mm=spacing_mm) for _ in range(3)])
        * 2.5
    )
    position += ((size - 1) / 2)[:, None, None, None].astype(np.float32)
    distance = _sample(anatomy.ventricle_mm, position)
    inward = np.stack(np.gradient(ndimage.gaussian_filter(distance, 2 / spacing_mm), spacing_mm))
    position -= rng.uniform(0, 5) * np.exp(-distance / 15) * inward
    tissue = np.stack([_sample(part, position, outside=0.0) for part in anatomy.tissue])
    return Head(_sharpen(tissue), _sample(anatomy.ventricle_mm, position), spacing_mm)


def smooth_noise(
    shape: Sequence[int], rng: np.random.Generator, *, sigma_mm: float, spacing_mm: float
) -> Array:
    """Smooth Gaussian noise, mean about 0 and standard deviation 1, drawn on a grid as coarse as it may be."""
    sigma = sigma_mm / spacing_mm
    step = max(1, int(sigma / 1.5))
    field = rng.standard_normal([n // step + 2 for n in shape], dtype=np.float32)
    field = ndimage.gaussian_filter(field, sigma / step)
    field /= field.std()
    return upsample(field, step, shape=shape)


def upsample(field: Array, step: int, *, shape: Sequence[int]) -> Array:
    """Linear interpolation to a grid `step` times as fine, cut to `shape`."""
    for axis in range(3):
        field = ndimage.uniform_filter1d(np.repeat(field, step, axis=axis), step, axis=axis)
    return np.asarray(field[tuple(slice(n) for n in shape)])


def _distance_to_ventricles(csf: Mask) -> Array:
    """Distance in voxels to the second largest connected part of the CSF; the largest is around the brain."""
    parts, _ = ndimage.label(csf)
    outside = parts != 1 + np.argsort(np.bincount(parts.ravel())[1:])[-2]
    distance = 2 * ndimage.distance_transform_edt(outside[::2, ::2, ::2]).astype(np.float32)
    return np.where(outside, upsample(distance, 2, shape=csf.shape), np.float32(0))


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation about the three axes in turn, angles in radians."""
    product = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[[i, j], [i, j]] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        product = product @ turn
    return product


def _sample(volume: Array, position: Array, *, outside: float | None = None) -> Array:
    """Linear interpolation at (3, …) voxel positions; beyond the edge `outside`, or the nearest value."""
    mode, value = ("nearest", 0.0) if outside is None else ("constant", outside)
    return np.asarray(
        ndimage.map_coordinates(volume, position, order=1, mode=mode, cval=value, output=np.float32)
    )


def _sharpen(tissue: Array, power: float = 2.0) -> Array:
    """Push (3, …) tissue shares, and the share that is none of them, towards 0 and 1."""
    powered = np.clip(tissue, 0, 1) ** power
    none = np.clip(1 - tissue.sum(0), 0, 1) ** power
    return np.asarray(powered / (powered.sum(0) + none))
