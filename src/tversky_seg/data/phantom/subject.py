"""Images of one synthetic subject: tissue contrast, lesions, noise.

The ranges of contrast and noise are those of one real pair of patients (open_ms_data; Lesjak et al.
2018, doi 10.1007/s12021-017-9348-7), measured by
`python scripts/dev/compare_phantom.py --real <open_ms_data>`; docs/phantom.md compares real and
synthetic subjects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tversky_seg.data.phantom.anatomy import Anatomy, Array, Head, Mask, draw_head, smooth_noise
from tversky_seg.data.phantom.lesions import Lesion, draw_lesion_sizes, grow_lesions

MODALITIES = ("FLAIR", "T1", "T2")
WHITE_MATTER_LEVEL = 300.0
"""Intensity of white matter in the int16 files, before the subject's own gain."""


@dataclass(frozen=True)
class Contrast:
    """Ranges from which a subject's values of one modality are drawn.

    Intensities are relative to white matter, which is 1.

    Attributes:
        grey_matter: Intensity of grey matter.
        csf: Intensity of cerebrospinal fluid.
        lesion: Intensity of lesions minus that of white matter.
        noise: Standard deviation of the noise at 2 mm.
        texture: Standard deviation of smooth unevenness.
    """

    grey_matter: tuple[float, float]
    csf: tuple[float, float]
    lesion: tuple[float, float]
    noise: tuple[float, float]
    texture: tuple[float, float]


CONTRASTS = {
    "FLAIR": Contrast(
        grey_matter=(1.10, 1.19),
        csf=(0.20, 0.40),
        lesion=(0.46, 0.57),
        noise=(0.018, 0.040),
        texture=(0.05, 0.10),
    ),
    "T1": Contrast(
        grey_matter=(0.61, 0.71),
        csf=(0.09, 0.11),
        lesion=(-0.45, -0.28),
        noise=(0.010, 0.020),
        texture=(0.03, 0.06),
    ),
    "T2": Contrast(
        grey_matter=(1.34, 1.57),
        csf=(2.85, 3.40),
        lesion=(0.70, 1.25),
        noise=(0.020, 0.044),
        texture=(0.08, 0.12),
    ),
}

ANY_CONTRASTS = {
    "FLAIR": Contrast(
        grey_matter=(0.95, 1.35),
        csf=(0.05, 0.60),
        lesion=(0.15, 0.80),
        noise=(0.010, 0.080),
        texture=(0.03, 0.12),
    ),
    "T1": Contrast(
        grey_matter=(0.50, 0.90),
        csf=(0.05, 0.35),
        lesion=(-0.50, -0.08),
        noise=(0.005, 0.060),
        texture=(0.02, 0.10),
    ),
    "T2": Contrast(
        grey_matter=(1.10, 1.80),
        csf=(1.80, 4.00),
        lesion=(0.30, 1.60),
        noise=(0.010, 0.080),
        texture=(0.05, 0.14),
    ),
}
"""Wider ranges than any one scanner has, chosen and not measured: to train for unknown scanners."""

THICKEST_MM = 5.0
BLURRIEST_MM = 0.8
"""Largest slice, and largest standard deviation of a blur, of a subject of any contrast."""


@dataclass(frozen=True)
class Subject:
    """One synthetic subject; axes R, A, S.

    Attributes:
        images: Modality -> (X, Y, Z) int16, 0 outside the brain.
        lesions: (X, Y, Z) mask that the consensus of raters would draw.
        brain: (X, Y, Z) mask of the brain.
        affine: (4, 4) voxel indices to mm.
    """

    images: Mapping[str, NDArray[np.int16]]
    lesions: Mask
    brain: Mask
    affine: NDArray[np.float64]


def draw_subject(
    anatomy: Anatomy,
    *,
    load_rank: float,
    spacing_mm: float,
    rng: np.random.Generator,
    contrast: str = "measured",
) -> Subject:
    """Draw one subject.

    Args:
        anatomy: The atlas.
        load_rank: Rank of the lesion load among real patients, in [0, 1], 0 the least.
        spacing_mm: Voxel size.
        rng: Generator of all draws.
        contrast: "measured": as on real scans. "any": contrast from wide ranges, and for each
            modality a resolution, from isotropic to slices of 5 mm along any axis.
    """
    head = draw_head(anatomy, spacing_mm=spacing_mm, rng=rng)
    sizes = draw_lesion_sizes(load_rank, spacing_mm=spacing_mm, rng=rng)
    lesions = list(grow_lesions(head, sizes, rng=rng))
    brain = ndimage.binary_fill_holes(head.tissue.sum(0) > 0.5)
    marked = np.zeros(brain.shape, dtype=bool)
    for lesion in lesions:
        marked[tuple(lesion.marked.T)] = True
    images = {}
    contrasts = ANY_CONTRASTS if contrast == "any" else CONTRASTS
    for name, image in _draw_images(head, lesions, contrasts, rng=rng).items():
        if contrast == "any":
            image = _at_any_resolution(image, spacing_mm=spacing_mm, rng=rng)
        images[name] = _as_int16(image * brain)
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = anatomy.centre_mm - spacing_mm * (np.array(brain.shape) - 1) / 2
    return Subject(images=images, lesions=marked & brain, brain=brain, affine=affine)


def _draw_images(
    head: Head,
    lesions: Sequence[Lesion],
    contrasts: Mapping[str, Contrast],
    *,
    rng: np.random.Generator,
) -> dict[str, Array]:
    """Draw the intensities of all modalities: white matter is about 1 times a gain."""
    # The order of the draws is part of the seed's meaning.
    spacing_mm = head.spacing_mm
    grey, white, csf = head.tissue
    shape = white.shape
    # Spots without label keep a network from taking all that shines for a lesion.
    faint_spots = _draw_faint_spots(head, n=len(lesions) // 4 + 2, rng=rng)
    share, severity = _paint(shape, lesions, faint_spots, rng=rng)
    severity *= np.exp(0.4 * smooth_noise(shape, rng, sigma_mm=4, spacing_mm=spacing_mm))
    # The lining of the ventricles shines on FLAIR.
    rim = rng.uniform(0.03, 0.15) * np.exp(-head.ventricle_mm / 2.5)
    images = {}
    for name in MODALITIES:
        contrast = contrasts[name]
        lesion_contrast = rng.uniform(*contrast.lesion)
        grey_matter = grey * rng.uniform(*contrast.grey_matter)
        if name == "FLAIR":
            healthy = grey_matter + white * (1 + rim)
            noise = smooth_noise(shape, rng, sigma_mm=3, spacing_mm=spacing_mm)
            patchy = 1 + 0.15 * noise
        else:
            healthy = grey_matter + white
            patchy = severity
        # Black holes on T1 are dark, but not without signal.
        lesion = np.maximum(1 + lesion_contrast * patchy, 0.15)
        solid = share * lesion * (grey + white) + (1 - share) * healthy
        image = solid + csf * rng.uniform(*contrast.csf)
        images[name] = _add_scanner(image, head, contrast, rng=rng)
    return images


def _draw_faint_spots(head: Head, *, n: int, rng: np.random.Generator) -> list[Lesion]:
    """Draw small bright spots of white matter that no rater marks."""
    candidates = np.argwhere(head.tissue[1] > 0.7)
    chosen = candidates[rng.integers(len(candidates), size=n)]
    spots = []
    for voxel in chosen:
        spots.append(Lesion(marked=voxel[None], abnormal=voxel[None]))
    return spots


def _paint(
    shape: tuple[int, ...],
    lesions: Sequence[Lesion],
    faint_spots: Sequence[Lesion],
    *,
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """Paint lesions with graded borders.

    Returns:
        Share of each voxel that is lesion, in [0, 1], and severity of the lesion there, about 1.
    """
    share = np.zeros(shape, dtype=np.float32)
    severity = np.ones(shape, dtype=np.float32)
    strengths = [1.0] * len(lesions) + [0.7] * len(faint_spots)
    for lesion, strength in zip([*lesions, *faint_spots], strengths, strict=True):
        # The box leaves room for the blurred border.
        low = np.maximum(lesion.abnormal.min(0) - 3, 0)
        high = lesion.abnormal.max(0) + 4
        box = tuple(slice(first, end) for first, end in zip(low, high, strict=True))
        inside = np.zeros(share[box].shape, dtype=np.float32)
        voxels = tuple((lesion.abnormal - low).T)
        inside[voxels] = strength * np.clip(rng.normal(1, 0.15), 0.5, 1.4)
        graded = ndimage.gaussian_filter(inside, rng.uniform(0.45, 0.7))
        share[box] = np.maximum(share[box], graded)
        n_voxels = len(lesion.abnormal)
        # Small lesions are fainter.
        by_size = 0.65 + 0.35 * n_voxels / (n_voxels + 10)
        severity[box][graded > 0.02] = by_size * np.exp(rng.normal(0, 0.25))
    return np.minimum(share, 1.0), severity


def _add_scanner(
    image: Array, head: Head, contrast: Contrast, *, rng: np.random.Generator
) -> Array:
    """Add uneven tissue, a bias field, Rician noise and a gain."""
    shape = image.shape
    spacing_mm = head.spacing_mm
    uneven = 0.7 * smooth_noise(shape, rng, sigma_mm=3, spacing_mm=spacing_mm)
    uneven += 0.7 * smooth_noise(shape, rng, sigma_mm=9, spacing_mm=spacing_mm)
    bias = 0.04 * smooth_noise(shape, rng, sigma_mm=45, spacing_mm=spacing_mm)
    texture = rng.uniform(*contrast.texture) * uneven * (1 + 0.25 * head.tissue[0])
    clean = image * np.exp(texture + bias)
    # The exponent was measured at 1 mm: noise of neighbouring voxels is correlated, otherwise
    # it would be 1.5, that of averaging independent voxels.
    noise = rng.uniform(*contrast.noise) * (2 / spacing_mm) ** 0.4
    real, imaginary = rng.standard_normal((2, *shape), dtype=np.float32) * np.float32(noise)
    gain = rng.uniform(0.6, 1.6)
    return np.asarray(gain * WHITE_MATTER_LEVEL * np.hypot(clean + real, imaginary))


def _at_any_resolution(image: Array, *, spacing_mm: float, rng: np.random.Generator) -> Array:
    """Draw a blur, and for half of the images thick slices; return to the grid by interpolation."""
    image = ndimage.gaussian_filter(image, rng.uniform(0, BLURRIEST_MM) / spacing_mm)
    is_thick = rng.random() < 0.5
    axis = int(rng.integers(3))
    thickness_mm = rng.uniform(2, THICKEST_MM)
    n_voxels = max(round(thickness_mm / spacing_mm), 1)
    if not is_thick or n_voxels == 1:
        return image
    # A slice is the mean of the voxels that it covers, and lies at their centre.
    averaged = ndimage.uniform_filter1d(image, n_voxels, axis=axis, mode="nearest")
    n = image.shape[axis]
    centres = np.arange(0, n - 1 + n_voxels, n_voxels).clip(max=n - 1)
    slices = np.take(averaged, centres, axis=axis)
    position = np.arange(n) / n_voxels
    below = np.minimum(position.astype(int), len(centres) - 2)
    share = (
        (position - below).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(3)])
    )
    lower = np.take(slices, below, axis=axis)
    upper = np.take(slices, below + 1, axis=axis)
    return np.asarray(lower * (1 - share) + upper * share)


def _as_int16(image: Array) -> NDArray[np.int16]:
    return np.clip(np.rint(image), 0, 32767).astype(np.int16)
