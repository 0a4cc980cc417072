"""Whether two images of one subject lie on each other: measured, never corrected."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from tversky_seg.data.grids import Floats, network_grid, resample
from tversky_seg.data.nifti import Volume

GRID_MM = 2.0
"""Voxel size at which images are compared: edges of the brain matter, not noise."""
FARTHEST_VOXELS = 8
"""Largest shift that is looked for along each axis, on that grid."""
SHIFT_MM = 1.0
"""Shift of the whole image from which two images do not lie on each other."""
LOCAL_SHIFT_MM = 2.0
"""Shift of an eighth of the image from which they do not: they may be turned."""
ALIKE = 0.75
"""Correlation of edges at the best shift below which they hardly show one subject."""
BRIGHTEST_PERCENT = 99
MIN_ENERGY_SHARE = 0.02


@dataclass(frozen=True)
class Alignment:
    """How far an earlier image lies off a later one.

    Attributes:
        shift_mm: Shift of the earlier image along R, A, S at which the edges of both correlate
            best, with its sign reversed: (2, 0, 0) lies 2 mm too far to the right.
        local_shift_mm: Largest such shift of an eighth of the image: large where one is turned.
        similarity: Correlation of the edges as the images lie, in [-1, 1]; NaN for an image without
            any.
        best_similarity: Correlation at the best shift.
    """

    shift_mm: tuple[float, float, float]
    local_shift_mm: float
    similarity: float
    best_similarity: float

    @property
    def distance_mm(self) -> float:
        """Length of the shift."""
        return math.hypot(*self.shift_mm)

    @property
    def fault(self) -> str | None:
        """What is wrong, in half a sentence; None for images that lie on each other."""
        if math.isnan(self.similarity):
            return "one of them is empty where the other lies"
        if self.best_similarity < ALIKE:
            return (
                f"their edges hardly correlate ({self.best_similarity:.2f} at best): another "
                "subject, another modality, or turned"
            )
        if self.distance_mm > SHIFT_MM:
            x, y, z = self.shift_mm
            return (
                f"the earlier lies {self.distance_mm:.1f} mm off the later "
                f"(R {x:+.1f}, A {y:+.1f}, S {z:+.1f} mm)"
            )
        if self.local_shift_mm > LOCAL_SHIFT_MM:
            return f"parts of them lie {self.local_shift_mm:.1f} mm apart: one is turned or bent"
        return None


def measure_alignment(earlier: Volume, later: Volume) -> Alignment:
    """Measure how far an earlier image lies off a later one, by their affines.

    Both are resampled to voxels of 2 mm on the grid of the later one. The measure is the
    correlation of the magnitudes of their gradients, which another scale or contrast of the scanner
    hardly changes: over all shifts up to 16 mm along each axis, for the whole image and for each of
    its eight octants. The best shift is refined by a parabola through its neighbours.

    Args:
        earlier: Image of the earlier examination.
        later: Image of the later one, of the same kind.
    """
    shape, affine = network_grid(later.shape, later.affine, spacing_mm=(GRID_MM,) * 3)
    # Edges of the field of view are no edges of the brain.
    inside = resample(np.ones(earlier.shape, np.float32), earlier.affine, affine, shape) > 0.5
    inside = ndimage.binary_erosion(inside, iterations=2)
    edges = []
    for volume in (earlier, later):
        data = resample(volume.data.astype(np.float32), volume.affine, affine, shape)
        edges.append(np.where(inside, _edges(data), 0).astype(np.float32))
    whole = _best_shift(*edges)
    local_mm = 0.0
    for octant in _octants(shape):
        shares = [_energy(part[octant]) / max(_energy(part), 1e-30) for part in edges]
        if min(shares) < MIN_ENERGY_SHARE:
            continue  # hardly more than background
        shift, _, _ = _best_shift(edges[0][octant], edges[1][octant])
        local_mm = max(local_mm, GRID_MM * float(np.linalg.norm(shift)))
    shift, similarity, best_similarity = whole
    x, y, z = (GRID_MM * shift).tolist()
    return Alignment((x, y, z), local_mm, similarity, best_similarity)


def _edges(data: Floats) -> Floats:
    """Compute the magnitude of the gradient of an image whose bright voxels are cut off."""
    values = data[data != 0]
    if values.size == 0:
        return np.zeros_like(data)
    low, high = np.percentile(values, (100 - BRIGHTEST_PERCENT, BRIGHTEST_PERCENT))
    # Vessels and hot voxels would outweigh all edges of the brain.
    clipped = np.clip(data, min(low, 0.0), high)
    edges: Floats = ndimage.gaussian_gradient_magnitude(clipped, 1.0)
    return edges


def _energy(edges: Floats) -> float:
    return float(np.square(edges, dtype=np.float64).sum())


def _octants(shape: tuple[int, ...]) -> list[tuple[slice, ...]]:
    halves = []
    for n in shape:
        halves.append((slice(0, n // 2), slice(n // 2, n)))
    return list(itertools.product(*halves))


def _best_shift(earlier: Floats, later: Floats) -> tuple[NDArray[np.float64], float, float]:
    """Find the shift of the earlier edges off the later ones, in voxels.

    Returns:
        The shift (3,), the correlation without shift, and that at the best one; NaN where one of
        them is constant.
    """
    first = earlier.astype(np.float64) - earlier.mean(dtype=np.float64)
    second = later.astype(np.float64) - later.mean(dtype=np.float64)
    norm = math.sqrt(_energy_of(first) * _energy_of(second))
    if norm == 0:
        return np.zeros(3), math.nan, math.nan
    # Padded, so that what leaves at one side does not come in at the other.
    size = [fft.next_fast_len(n + FARTHEST_VOXELS, real=True) for n in first.shape]
    spectrum = fft.rfftn(first, size) * np.conj(fft.rfftn(second, size))
    everywhere = fft.irfftn(spectrum, size) / norm
    shifts = np.arange(-FARTHEST_VOXELS, FARTHEST_VOXELS + 1)
    correlation = everywhere[np.ix_(*[shifts % n for n in size])]
    peak = np.unravel_index(int(correlation.argmax()), correlation.shape)
    refined = np.array([_refined(correlation, peak, axis) for axis in range(3)])
    middle = (FARTHEST_VOXELS,) * 3
    return refined, float(correlation[middle]), float(correlation[peak])


def _energy_of(values: NDArray[np.float64]) -> float:
    return float(np.square(values).sum())


def _refined(correlation: NDArray[np.float64], peak: tuple[np.intp, ...], axis: int) -> float:
    """Refine the shift along an axis by a parabola through the peak and its neighbours."""
    others = [int(index) for number, index in enumerate(peak) if number != axis]
    values = np.moveaxis(correlation, axis, 2)[others[0], others[1]]
    k = int(peak[axis])
    shift = float(k - FARTHEST_VOXELS)
    # At the end of the search there is no neighbour to lay a parabola through.
    if 0 < k < len(values) - 1:
        left, top, right = values[k - 1 : k + 2].tolist()
        bend = left - 2 * top + right
        if bend < 0:
            shift += 0.5 * (left - right) / bend
    return shift
