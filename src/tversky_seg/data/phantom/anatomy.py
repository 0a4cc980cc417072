"""Anatomies of synthetic subjects: the MNI152 atlas that nilearn carries, deformed at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tversky_seg.data.rotation import rotation_about_axis

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Anatomy:
    """Tissue maps of the atlas at 1 mm, cut to the brain; axes R, A, S.

    Attributes:
        tissue: (3, X, Y, Z) shares of grey matter, white matter and cerebrospinal fluid (CSF),
            in [0, 1].
        ventricle_mm: (X, Y, Z) distance to the lateral ventricles, 0 inside.
        centre_mm: (3,) MNI coordinate of the array's centre.
    """

    tissue: Array
    ventricle_mm: Array
    centre_mm: NDArray[np.float64]


@dataclass(frozen=True)
class Head:
    """Anatomy of a subject before lesions and intensities, on the subject's grid.

    Attributes:
        tissue: (3, X, Y, Z) shares of grey matter, white matter and CSF.
        ventricle_mm: (X, Y, Z) distance to the lateral ventricles.
        spacing_mm: Voxel size.
    """

    tissue: Array
    ventricle_mm: Array
    spacing_mm: float


@cache
def load_anatomy() -> Anatomy:
    """Load the MNI152 (2009a, symmetric) tissue maps of the installed nilearn package.

    Nothing is downloaded. Each process loads them once.
    """
    from nilearn import datasets

    grey_image = datasets.load_mni152_gm_template(resolution=1)
    white_image = datasets.load_mni152_wm_template(resolution=1)
    brain = datasets.load_mni152_brain_mask(resolution=1).get_fdata() > 0.5
    box = ndimage.find_objects(brain.astype(np.uint8))[0]
    brain = brain[box]
    grey = np.asarray(grey_image.get_fdata(dtype=np.float32))[box]
    white = np.asarray(white_image.get_fdata(dtype=np.float32))[box]
    csf = np.clip(brain - grey - white, 0, 1)
    tissue = np.stack([grey, white, csf]).astype(np.float32)
    first_voxel = np.array([side.start for side in box])
    centre = first_voxel + (np.array(brain.shape) - 1) / 2
    return Anatomy(
        tissue=tissue,
        ventricle_mm=_distance_to_ventricles(tissue[2] > 0.5),
        centre_mm=grey_image.affine[:3, :3] @ centre + grey_image.affine[:3, 3],
    )


def draw_head(anatomy: Anatomy, *, spacing_mm: float, rng: np.random.Generator) -> Head:
    """Deform the atlas: size, pose, a smooth random field, wider ventricles.

    Afterwards the tissue is sharpened, because the atlas is a blurred average of brains.
    """
    # The order of the draws is part of the seed's meaning.
    size = np.array(anatomy.ventricle_mm.shape)
    # A voxel of air on each side.
    shape = tuple(int(n) for n in np.ceil((size + 2) / spacing_mm))
    # The atlas is larger than most brains.
    scale = rng.uniform(0.82, 0.92) * np.exp(rng.normal(0, 0.02, 3))
    turn = _rotation(rng.normal(0, 0.05, 3)) / scale
    grid = np.indices(shape, dtype=np.float32)
    offset_mm = (grid - ((np.array(shape) - 1) / 2)[:, None, None, None]) * spacing_mm
    position = np.einsum("ij,jxyz->ixyz", turn.astype(np.float32), offset_mm)
    waves = [smooth_noise(shape, rng, sigma_mm=18, spacing_mm=spacing_mm) for _ in range(3)]
    position += np.stack(waves) * 2.5
    position += ((size - 1) / 2)[:, None, None, None].astype(np.float32)
    distance = _sample(anatomy.ventricle_mm, position)
    # Points that are sampled nearer to the ventricles make these wider.
    inward = np.stack(np.gradient(ndimage.gaussian_filter(distance, 2 / spacing_mm), spacing_mm))
    position -= rng.uniform(0, 5) * np.exp(-distance / 15) * inward
    tissue = np.stack([_sample(part, position, outside=0.0) for part in anatomy.tissue])
    return Head(_sharpen(tissue), _sample(anatomy.ventricle_mm, position), spacing_mm)


def smooth_noise(
    shape: Sequence[int], rng: np.random.Generator, *, sigma_mm: float, spacing_mm: float
) -> Array:
    """Draw smooth Gaussian noise of mean about 0 and standard deviation 1.

    It is drawn and smoothed on the coarsest grid that carries this sigma, then interpolated.
    """
    sigma = sigma_mm / spacing_mm
    # A Gaussian of 1.5 voxels is the narrowest that linear interpolation does not distort.
    step = max(1, int(sigma / 1.5))
    field = rng.standard_normal([n // step + 2 for n in shape], dtype=np.float32)
    field = ndimage.gaussian_filter(field, sigma / step)
    field /= field.std()
    return upsample(field, step, shape=shape)


def upsample(field: Array, step: int, *, shape: Sequence[int]) -> Array:
    """Interpolate linearly to a grid `step` times as fine, and cut it to `shape`."""
    for axis in range(3):
        field = ndimage.uniform_filter1d(np.repeat(field, step, axis=axis), step, axis=axis)
    return np.asarray(field[tuple(slice(n) for n in shape)])


def _distance_to_ventricles(csf: Mask) -> Array:
    """Compute the distance in voxels to the ventricles: the second largest part of the CSF.

    The largest part lies around the brain.
    """
    parts, _ = ndimage.label(csf)
    sizes = np.bincount(parts.ravel())[1:]
    ventricles = 1 + np.argsort(sizes)[-2]
    outside = parts != ventricles
    # On every second voxel, because the exact transform of the whole grid takes seconds.
    coarse = 2 * ndimage.distance_transform_edt(outside[::2, ::2, ::2]).astype(np.float32)
    return np.where(outside, upsample(coarse, 2, shape=csf.shape), np.float32(0))


def _rotation(radians: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the rotation (3, 3) that turns about the third axis first, the first axis last."""
    about_x, about_y, about_z = (
        rotation_about_axis(axis, angle) for axis, angle in enumerate(radians)
    )
    return about_x @ about_y @ about_z


def _sample(volume: Array, position: Array, *, outside: float | None = None) -> Array:
    """Interpolate linearly at voxel positions (3, …).

    Args:
        volume: (X, Y, Z).
        position: (3, …) voxel coordinates.
        outside: Value beyond the edge; None: the nearest value.
    """
    mode = "nearest" if outside is None else "constant"
    fill = 0.0 if outside is None else outside
    return np.asarray(
        ndimage.map_coordinates(volume, position, order=1, mode=mode, cval=fill, output=np.float32)
    )


def _sharpen(tissue: Array, power: float = 2.0) -> Array:
    """Push (3, …) tissue shares, and the share that is none of them, towards 0 and 1."""
    powered = np.clip(tissue, 0, 1) ** power
    rest = np.clip(1 - tissue.sum(0), 0, 1) ** power
    return np.asarray(powered / (powered.sum(0) + rest))
