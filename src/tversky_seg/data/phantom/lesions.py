"""Lesions of synthetic subjects: as many and as large as on real masks, grown in white matter.

The table is measured on the 29 masks of open_ms_data (Lesjak et al. 2018,
doi 10.1007/s12021-017-9348-7) by
`python scripts/dev/compare_phantom.py --real <open_ms_data> --constants`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.phantom.anatomy import Head, smooth_noise

REACHES_MM = (3.0, 8.0, 14.0)
N_TRIES = 10  # seeds tried for a lesion that finds too little room


@dataclass(frozen=True)
class LesionSizes:
    """Real lesions on a grid of one spacing.

    Attributes:
        count: Number of lesions (26-connected) of each of 29 patients, in order of lesion load.
        largest: Voxels of the largest lesion of each patient.
        second: Voxels of the second largest.
        others: Quantiles of the voxels of all further lesions of all patients, at `QUANTILES`.
    """

    count: tuple[int, ...]
    largest: tuple[int, ...]
    second: tuple[int, ...]
    others: tuple[int, ...]


@dataclass(frozen=True)
class Lesion:
    """Voxels of one lesion.

    Attributes:
        marked: (n, 3) voxels in the mask.
        abnormal: (m, 3) voxels that look abnormal, some more or fewer than are marked.
    """

    marked: NDArray[np.intp]
    abnormal: NDArray[np.intp]


QUANTILES = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split())


LESION_SIZES = {
    1.0: LesionSizes(
        count=_numbers(
            "19 17 20 21 41 37 27 25 61 50 246 124 59 109 29 114 76 95 92 370 195 39 82 "
            "251 191 116 392 98 100"
        ),
        largest=_numbers(
            "71 131 253 260 189 210 203 424 455 1480 629 859 4917 2525 7509 7133 7532 "
            "6338 4520 4116 3971 22433 22825 5360 29692 15150 39401 46870 24724"
        ),
        second=_numbers(
            "64 99 207 258 141 138 195 395 231 1037 473 847 3827 2087 3919 2127 4615 5424 "
            "4248 2922 1838 6031 2530 4985 213 10525 420 606 21008"
        ),
        others=_numbers("1 1 2 5 8 11 16 24 36 54 105 203 408 698 1062 3073"),
    ),
    2.0: LesionSizes(
        count=_numbers(
            "10 14 14 12 25 25 17 18 48 36 145 105 50 76 24 74 81 49 259 54 135 51 182 26 "
            "125 96 220 56 85"
        ),
        largest=_numbers(
            "6 18 32 35 24 30 26 53 63 196 81 122 594 337 772 819 636 937 555 604 527 "
            "2946 659 2939 4003 1986 5096 6184 3347"
        ),
        second=_numbers(
            "5 11 25 30 17 17 21 51 28 140 67 112 499 193 517 233 488 617 392 396 325 333 "
            "645 788 28 1400 53 67 2766"
        ),
        others=_numbers("1 1 1 1 2 2 3 4 6 10 20 38 77 123 153 400"),
    ),
}


def draw_lesion_sizes(
    load_rank: float, *, spacing_mm: float, rng: np.random.Generator
) -> list[int]:
    """Draw the lesion sizes of one subject in voxels, largest first.

    Number, largest and second largest lie between those of the real patients next in lesion load.
    The others are drawn from the lesions of all patients. The real masks were resampled to 1 and
    2 mm; other spacings take the nearer.

    Args:
        load_rank: Rank of the lesion load among real patients, in [0, 1], 0 the least.
        spacing_mm: Voxel size.
        rng: Generator of all draws.
    """
    measured = min(LESION_SIZES, key=lambda spacing: abs(np.log(spacing / spacing_mm)))
    table = LESION_SIZES[measured]
    count = _at_rank(load_rank, table.count)
    largest = _at_rank(load_rank, table.largest)
    second = _at_rank(load_rank, table.second)
    # Patients also differ in the size of their small lesions.
    scale = np.exp(rng.normal(0, 0.3))
    # The others stay below the second largest.
    below_second = np.interp(np.log(second / scale), np.log(table.others), QUANTILES)
    quantiles = rng.random(max(round(count) - 2, 0)) * below_second
    # Inverse transform sampling from the quantiles of the table.
    others = scale * np.exp(np.interp(quantiles, QUANTILES, np.log(table.others)))
    voxels = np.array([largest, second, *others]) * (measured / spacing_mm) ** 3
    sizes = sorted((int(n) for n in np.round(voxels)), reverse=True)
    return [n for n in sizes if n > 0] or [1]


def _at_rank(load_rank: float, column: Sequence[int]) -> float:
    """Interpolate a column of the table, geometrically, between two patients."""
    # Geometrically, because the loads of patients span two orders of magnitude.
    ranks = np.linspace(0, 1, len(column))
    return float(np.exp(np.interp(load_rank, ranks, np.log(column))))


def grow_lesions(head: Head, sizes: Sequence[int], *, rng: np.random.Generator) -> Iterator[Lesion]:
    """Grow lesions of exactly these sizes where there is room, none touching another.

    A lesion is what a front starting at a random voxel of white matter reaches first. The front is
    slow in grey matter and away from the ventricles, and a smooth random field makes it ragged.

    Args:
        head: Anatomy of the subject.
        sizes: Voxels of each lesion, largest first.
        rng: Generator of all draws.
    """
    white = head.tissue[1]
    slowness = _slowness(head, rng=rng)
    candidates = np.argwhere((white > 0.5) & (slowness > 0))
    distance_mm = head.ventricle_mm[tuple(candidates.T)]
    chances_of = {reach: np.cumsum(np.exp(-distance_mm / reach)) for reach in REACHES_MM}
    for size in sizes:
        chances = chances_of[_reach_mm(size * head.spacing_mm**3)]
        n_abnormal = max(1, round(size * np.exp(rng.normal(0, 0.15))))
        order = np.empty((0, 3), dtype=np.intp)
        for _ in range(N_TRIES):
            seed = candidates[np.searchsorted(chances, rng.random() * chances[-1])]
            reached = _spread(slowness, seed, n_voxels=max(size, n_abnormal))
            order = max(order, reached, key=len)
            if len(order) >= size:
                break
        if len(order):
            lesion = Lesion(marked=order[:size], abnormal=order[:n_abnormal])
            _block_surround(slowness, lesion)
            yield lesion


def _slowness(head: Head, *, rng: np.random.Generator) -> NDArray[np.float64]:
    """Compute the cost (X, Y, Z) of a front's step through each voxel; -1 where it cannot go."""
    _, white, csf = head.tissue
    field = smooth_noise(white.shape, rng, sigma_mm=2.5, spacing_mm=head.spacing_mm)
    raggedness = np.exp(0.8 * field)
    cost = raggedness * (1 + head.ventricle_mm / 5) ** 2 / (white**2 + 0.03)
    slowness = np.asarray(cost, dtype=np.float64)
    # Neither through fluid nor out of the brain.
    slowness[(csf > 0.5) | (head.tissue.sum(0) < 0.7)] = -1
    return slowness


def _reach_mm(volume_mm3: float) -> float:
    """Return how far from the ventricles lesions of a volume start: large ones start near."""
    near, middle, far = REACHES_MM
    if volume_mm3 >= 400:
        return near
    if volume_mm3 >= 40:
        return middle
    return far


def _block_surround(slowness: NDArray[np.float64], lesion: Lesion) -> None:
    """Close a lesion and its neighbours to further lesions, in place."""
    last_voxel = np.array(slowness.shape) - 1
    for offset in np.ndindex(3, 3, 3):
        neighbours = np.clip(lesion.marked + offset - 1, 0, last_voxel)
        slowness[tuple(neighbours.T)] = -1


def _spread(
    slowness: NDArray[np.float64], seed: NDArray[np.intp], *, n_voxels: int
) -> NDArray[np.intp]:
    """Find the voxels (n, 3) that a front from `seed` reaches first, in order.

    Args:
        slowness: (X, Y, Z) cost of a step; negative where the front cannot go.
        seed: (3,) voxel where the front starts.
        n_voxels: Number of voxels wanted; fewer come back where the front is shut in.
    """
    from skimage.graph import MCP_Geometric

    if slowness[tuple(seed)] < 0:
        return np.empty((0, 3), dtype=np.intp)
    half = int(np.ceil(1.2 * n_voxels ** (1 / 3))) + 2
    # A box about the seed is faster than the whole volume; it grows until it is large enough.
    while True:
        start = np.maximum(seed - half, 0)
        end = seed + half + 1
        box = tuple(slice(low, high) for low, high in zip(start, end, strict=True))
        costs = slowness[box]
        front = MCP_Geometric(costs, fully_connected=True)
        # The front stops soon after n voxels; the surplus lets equal arrivals be sorted.
        coverage = min(1.0, (1.2 * n_voxels + 30) / costs.size)
        arrival, _ = front.find_costs([tuple(seed - start)], max_coverage=coverage)
        reached = np.flatnonzero(np.isfinite(arrival))
        if len(reached) >= n_voxels or costs.shape == slowness.shape:
            # A stable sort, so that ties are broken alike on every machine.
            by_arrival = np.argsort(arrival.ravel()[reached], kind="stable")
            first = reached[by_arrival][:n_voxels]
            voxels = np.stack(np.unravel_index(first, costs.shape), axis=1)
            return np.asarray(voxels + start)
        half *= 2
