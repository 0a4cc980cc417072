"""Implanted lesions: lesions of other cases, and made-up ones, in the healthy tissue of a patch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tversky_seg.data.grids import Bools, Floats
from tversky_seg.data.patches.donor import Donor, cut_donor, make_blob
from tversky_seg.data.preprocessing.prepared_case import PreparedCase

Array = NDArray[np.float32]

DEPTH_MM = 5.0
"""Depth below the surface of the brain from which tissue counts as inside."""
GAP_MM = 2.0
"""Smallest distance to another lesion."""
HEALTHY_SHARE = 0.75
"""Share of the voxels of an implanted lesion that must fall on healthy tissue."""
N_TRIES = 10
"""Donors, and places, that are tried before a patch stays as it is."""
THICK_MM = 3.0
"""Distance of slices from which neighbours are not averaged across them."""
SAME_VOXEL = 0.05
"""Largest relative difference of a donor's voxel size."""
N_SAMPLED = 20_000
"""Voxels of a brain of which its commonest intensities are taken."""

LEAST_RANGE = 1e-6
"""Smallest range of the intensities of a modality."""


@dataclass(frozen=True)
class Implant:
    """Carry lesions into healthy tissue of training patches, in the image and in the labels.

    A donor is a lesion of another subject of the training, or a blob with the contrast of one. Its
    contrast to its own surround is added, in each modality, to the mean of the tissue around its
    new place, so that scanners need not agree; at the border it fades into the tissue. The cache of
    preprocessing, which lists the voxels of all lesions, is the bank that donors are cut from.

    Healthy tissue is: 5 mm below the surface of the brain (as far as the patch shows it); in every
    modality, averaged over 3^3 voxels, within half the interquartile range of the brain's commonest
    intensity, which is that of white matter; and 2 mm away from any lesion. Three quarters of an
    implanted lesion lie on such voxels, all of it lies in the brain, and none within 2 mm of
    another lesion. Where no place is found in a few tries, the patch stays as it is. Carrying
    lesions from patient to patient is the idea of CarveMix (Zhang et al. 2021) and LesionMix
    (Basaran et al. 2023); the rules are our own.

    Args:
        probability: Share of the patches that get lesions, in [0, 1].
        max_lesions: Most lesions of one patch; their number is uniform in 1 to max_lesions.
        size_mm3: Smallest and largest volume.
        small_power: Of one case's lesions, one is drawn in proportion to its volume to the power
            of -small_power: 0 draws them uniformly, and more prefers the small ones.
        synthetic_share: Share of blobs, in [0, 1]: ellipsoids with uneven borders, with half to
            twice the volume and the mean contrast of a lesion.
        contrast: Smallest and largest factor on the contrast, uniform.

    Raises:
        ValueError: A setting out of its range.
    """

    probability: float = 0.5
    max_lesions: int = 3
    size_mm3: Sequence[float] = (3.0, 500.0)
    small_power: float = 0.5
    synthetic_share: float = 0.3
    contrast: Sequence[float] = (0.7, 1.2)

    def __post_init__(self) -> None:
        """Check the settings before any data are read."""
        for name in ("probability", "synthetic_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {name}={getattr(self, name)}")
        if self.max_lesions < 1 or self.small_power < 0:
            raise ValueError(
                f"max_lesions must be >= 1 and small_power >= 0, "
                f"got max_lesions={self.max_lesions}, small_power={self.small_power}"
            )
        for name in ("size_mm3", "contrast"):
            limits = getattr(self, name)
            if len(limits) != 2 or not 0 < limits[0] <= limits[1]:
                raise ValueError(
                    f"{name} must be two numbers above 0, the smaller first, got {name}={limits}"
                )

    def apply(
        self,
        image: Array,
        labels: NDArray[np.int32],
        *,
        cases: Sequence[PreparedCase],
        case: PreparedCase,
        rng: np.random.Generator,
        as_components: bool,
    ) -> int:
        """Implant lesions into the box of a patch, in place.

        Args:
            image: (C, x, y, z) normalised intensities, 0 outside the brain.
            labels: (K, x, y, z) of the same box: target of 0 and 1, or numbers of components.
            cases: All training cases.
            case: The case of the box.
            rng: Source of all randomness.
            as_components: Whether the labels are numbers of components: an implanted lesion gets
                the next number.

        Returns:
            The number of implanted lesions.
        """
        if rng.random() >= self.probability:
            return 0
        n_wanted = int(rng.integers(1, self.max_lesions + 1))
        n_before = max(case.n_lesions, default=0)
        brain: Bools = np.asarray(image.any(axis=0))
        healthy = healthy_tissue(image, case)
        n_implanted = 0
        for _ in range(n_wanted):
            donor = self._draw_donor(cases, case, rng)
            if donor is None or donor.lacks_a_modality_of(image):
                continue
            # Again for each one, since those implanted before are lesions too.
            near = _near(np.asarray(labels.any(axis=0)), case.spacing_mm)
            place = _find_place(donor, allowed=brain & ~near, healthy=healthy & ~near, rng=rng)
            if place is None:
                continue
            n_implanted += 1
            number = n_before + n_implanted if as_components else 1
            lowest, highest = self.contrast
            factor = rng.uniform(lowest, highest)
            _paint(donor, place, image, labels, number=number, factor=factor)
        return n_implanted

    def _draw_donor(
        self, cases: Sequence[PreparedCase], case: PreparedCase, rng: np.random.Generator
    ) -> Donor | None:
        """Draw a lesion of another subject; of the same one only if no other has any."""
        fallback = None
        for _ in range(N_TRIES):
            candidate = cases[int(rng.integers(len(cases)))]
            lesion = self._draw_lesion(candidate, case, rng)
            if lesion is None:
                continue
            if candidate.subject_id != case.subject_id:
                return self._cut(candidate, lesion, rng)
            fallback = candidate, lesion
        if fallback is None:
            return None
        return self._cut(*fallback, rng)

    def _draw_lesion(
        self, candidate: PreparedCase, case: PreparedCase, rng: np.random.Generator
    ) -> int | None:
        """Draw a lesion of the right size, small ones first; None where the case has none."""
        # A donor is carried voxel by voxel, never resampled.
        if not np.allclose(candidate.spacing_mm, case.spacing_mm, rtol=SAME_VOXEL):
            return None
        volumes = np.diff(candidate.lesion_offsets) * math.prod(candidate.spacing_mm)
        smallest, largest = self.size_mm3
        fitting = np.flatnonzero((volumes >= smallest) & (volumes <= largest))
        if not len(fitting):
            return None
        weights = volumes[fitting] ** -self.small_power
        return int(rng.choice(fitting, p=weights / weights.sum()))

    def _cut(self, candidate: PreparedCase, lesion: int, rng: np.random.Generator) -> Donor | None:
        """Cut a lesion out of its case, mirrored at random, or make a blob of its contrast."""
        donor = cut_donor(candidate, lesion)
        if donor is None:
            return None
        if rng.random() < self.synthetic_share:
            # Of a like volume, because the contrast of lesions depends on their size.
            volume_mm3 = (
                donor.mask.sum() * math.prod(candidate.spacing_mm) * 2 ** rng.uniform(-1, 1)
            )
            smallest, largest = self.size_mm3
            volume_mm3 = float(np.clip(volume_mm3, smallest, largest))
            donor = make_blob(donor, volume_mm3, spacing_mm=candidate.spacing_mm, rng=rng)
        axes = [axis for axis in (1, 2, 3) if rng.random() < 0.5]
        return donor.mirrored(axes)


@lru_cache(maxsize=64)
def commonest_intensities(case: PreparedCase) -> tuple[Floats, Floats]:
    """Find each modality's commonest intensity in the brain, and how far healthy tissue strays.

    Returns:
        (C,) mode of a smoothed histogram, and (C,) half the interquartile range.
    """
    voxels = case.foreground_voxels
    # Every n-th voxel rather than random ones: the same in every worker.
    step = max(len(voxels) // N_SAMPLED, 1)
    x, y, z = np.unravel_index(voxels[::step], case.geometry.shape)
    values = np.asarray(case.image)[:, x, y, z] * np.asarray(case.image_scale)[:, None]
    modes, widths = [], []
    for channel in values:
        low, first, third, high = np.percentile(channel, (1, 25, 75, 99))
        # A missing modality is 0 throughout.
        counts, edges = np.histogram(channel, bins=64, range=(low, max(high, low + LEAST_RANGE)))
        peak = int(np.argmax(ndimage.gaussian_filter1d(counts.astype(float), 2)))
        modes.append((edges[peak] + edges[peak + 1]) / 2)
        widths.append(max((third - first) / 2, LEAST_RANGE))
    return np.array(modes, dtype=np.float32), np.array(widths, dtype=np.float32)


def healthy_tissue(image: Array, case: PreparedCase) -> Bools:
    """Mark tissue as bright as most of the brain, below its surface; see `Implant`.

    Args:
        image: (C, x, y, z) normalised intensities of a box, 0 outside the brain.
        case: The case of the box.

    Returns:
        (x, y, z) mask. Faint lesions may be in it.
    """
    modes, widths = commonest_intensities(case)
    # Means over neighbours, so that noise does not decide; not across thick slices.
    width = [1, *(3 if size_mm < THICK_MM else 1 for size_mm in case.spacing_mm)]
    smooth = ndimage.uniform_filter(image, width, mode="nearest")
    strays = np.abs(smooth - modes[:, None, None, None]) > widths[:, None, None, None]
    brain: Bools = np.asarray(image.any(axis=0))
    inside = _min_filter(brain, DEPTH_MM, case.spacing_mm)
    healthy: Bools = inside & ~strays.any(axis=0)
    return healthy


def _find_place(
    donor: Donor, *, allowed: Bools, healthy: Bools, rng: np.random.Generator
) -> tuple[slice, ...] | None:
    """Draw where in a box the donor's box may lie; None where no place was found.

    Args:
        donor: The lesion.
        allowed: (x, y, z) voxels that it may cover.
        healthy: (x, y, z) voxels that most of it must cover, among those allowed.
        rng: Source of all randomness.
    """
    size = donor.mask.shape[1:]
    room = np.subtract(allowed.shape, size)
    if (room < 0).any():
        return None
    # Only where the donor's box fits.
    centre = np.array(size) // 2
    fits = tuple(slice(c, c + r + 1) for c, r in zip(centre, room, strict=True))
    candidates = np.argwhere(healthy[fits])
    if not len(candidates):
        return None
    mask = donor.mask[0]
    for _ in range(N_TRIES):
        start = candidates[int(rng.integers(len(candidates)))]
        place = tuple(slice(s, s + n) for s, n in zip(start.tolist(), size, strict=True))
        is_allowed = allowed[place][mask].all()
        if is_allowed and healthy[place][mask].mean() >= HEALTHY_SHARE:
            return place
    return None


def _paint(
    donor: Donor,
    place: tuple[slice, ...],
    image: Array,
    labels: NDArray[np.int32],
    *,
    number: int,
    factor: float,
) -> None:
    """Write a donor into image and labels at a place, in place."""
    box = image[:, *place]  # a view
    brain = box.any(axis=0)
    tissue = donor.surround[0] & brain & ~labels[:, *place].any(axis=0)
    if not tissue.any():
        # Between crowded lesions, what there is of the brain must do.
        tissue = brain
    mean = box[:, tissue].mean(axis=1)[:, None, None, None]
    # A modality that is missing here stays blank.
    share = donor.share * brain * box.any(axis=(1, 2, 3), keepdims=True)
    # A lesion brings its own texture; a blob has none, and keeps that of the tissue.
    tissue_here = box if donor.is_blob else mean
    box += share * (tissue_here + factor * donor.contrast - box)
    of_box = labels[:, *place]
    of_box[donor.classes] = number


def _near(lesions: Bools, spacing_mm: Sequence[float]) -> Bools:
    """Mark lesions and what is too near to them."""
    return ~_min_filter(~lesions, GAP_MM, spacing_mm)


def _min_filter(mask: Bools, distance_mm: float, spacing_mm: Sequence[float]) -> Bools:
    """Erode a mask by a box of `distance_mm` to each side; beyond the border it goes on."""
    eroded = mask.view(np.uint8)
    # Axis by axis, which for a box is the same and takes a fraction of the time.
    for axis, size_mm in enumerate(spacing_mm):
        width = 2 * math.ceil(distance_mm / size_mm) + 1
        eroded = ndimage.minimum_filter1d(eroded, width, axis=axis, mode="nearest")
    return eroded.view(bool)
