"""Lesions of synthetic subjects: as many and as large as on real masks, grown in white matter near the ventricles.

The table is measured on the 29 masks of open_ms_data (Lesjak et al. 2018, doi 10.1007/s12021-017-9348-7) by
`python scripts/dev/compare_phantom.py --real <open_ms_data> --constants`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.phantom.anatomy import Head, smooth_noise


@dataclass(frozen=True)
class LesionSizes:
    """Real lesions on a grid of one spacing: of each of 29 patients, in order of lesion load, and of all together.

    Attributes:
        count: Number of lesions (26-connected).
        largest: Voxels of the largest lesion.
        second: Voxels of the second largest.
        others: Quantiles of the voxels of all further lesions, at `QUANTILES`.
    """

    count: tuple[int, ...]
    largest: tuple[int, ...]
    second: tuple[int, ...]
    others: tuple[int, ...]


@dataclass(frozen=True)
class Lesion:
    """Which voxels one lesion takes."""

    marked: NDArray[np.intp]  # (n, 3) voxels in the mask
    seen: NDArray[np.intp]  # (m, 3) voxels that look abnormal, some more or fewer than are marked


# fmt: off
QUANTILES = (0, .05, .1, .2, .3, .4, .5, .6, .7, .8, .9, .95, .98, .99, .995, 1)
LESION_SIZES = {
    1.0: LesionSizes(
        count=(19, 17, 20, 21, 41, 37, 27, 25, 61, 50, 246, 124, 59, 109, 29, 114, 76, 95, 92, 370, 195, 39, 82, 251,
               191, 116, 392, 98, 100),
        largest=(71, 131, 253, 260, 189, 210, 203, 424, 455, 1480, 629, 859, 4917, 2525, 7509, 7133, 7532, 6338, 4520,
                 4116, 3971, 22433, 22825, 5360, 29692, 15150, 39401, 46870, 24724),
        second=(64, 99, 207, 258, 141, 138, 195, 395, 231, 1037, 473, 847, 3827, 2087, 3919, 2127, 4615, 5424, 4248,
                2922, 1838, 6031, 2530, 4985, 213, 10525, 420, 606, 21008),
        others=(1, 1, 2, 5, 8, 11, 16, 24, 36, 54, 105, 203, 408, 698, 1062, 3073),
    ),
    2.0: LesionSizes(
        count=(10, 14, 14, 12, 25, 25, 17, 18, 48, 36, 145, 105, 50, 76, 24, 74, 81, 49, 259, 54, 135, 51, 182, 26,
               125, 96, 220, 56, 85),
        largest=(6, 18, 32, 35, 24, 30, 26, 53, 63, 196, 81, 122, 594, 337, 772, 819, 636, 937, 555, 604, 527, 2946,
                 659, 2939, 4003, 1986, 5096, 6184, 3347),
        second=(5, 11, 25, 30, 17, 17, 21, 51, 28, 140, 67, 112, 499, 193, 517, 233, 488, 617, 392, 396, 325, 333,
                645, 788, 28, 1400, 53, 67, 2766),
        others=(1, 1, 1, 1, 2, 2, 3, 4, 6, 10, 20, 38, 77, 123, 153, 400),
    ),
}
# fmt: on


def draw_lesion_sizes(
    load_rank: float, *, spacing_mm: float, rng: np.random.Generator
) -> list[int]:
    """Lesion sizes of one subject in voxels, largest first.

    Number, largest and second largest lie between those of the real patients next in lesion load; the rest is drawn
    from the lesions of all patients. The real masks were resampled to 1 and 2 mm: other spacings take the nearer.
    """
    measured = min(LESION_SIZES, key=lambda spacing: abs(np.log(spacing / spacing_mm)))
    table = LESION_SIZES[measured]
    place = np.linspace(0, 1, len(table.count))
    count, largest, second = (
        float(np.exp(np.interp(load_rank, place, np.log(column))))
        for column in (table.count, table.largest, table.second)
    )
    scale = np.exp(rng.normal(0, 0.3))  # patients differ in the size of their small lesions, too
    below_second = np.interp(np.log(second / scale), np.log(table.others), QUANTILES)
    drawn = rng.random(max(round(count) - 2, 0)) * below_second
    others = scale * np.exp(np.interp(drawn, QUANTILES, np.log(table.others)))
    voxels = np.array([largest, second, *others]) * (measured / spacing_mm) ** 3
    sizes = sorted((int(n) for n in np.round(voxels)), reverse=True)
    return [n for n in sizes if n > 0] or [1]


def grow_lesions(head: Head, sizes: Sequence[int], *, rng: np.random.Generator) -> Iterator[Lesion]:
    """Grow lesions of exactly these sizes where there is room, none touching another; largest first.

    A lesion is what a front starting at a random voxel of white matter reaches first. The front is slow in grey
    matter and away from the ventricles, and a smooth random field makes it ragged.
    """
    white, csf = head.tissue[1], head.tissue[2]
    raggedness = np.exp(
        0.8 * smooth_noise(white.shape, rng, sigma_mm=2.5, spacing_mm=head.spacing_mm)
    )
    slowness = (raggedness * (1 + head.ventricle_mm / 5) ** 2 / (white**2 + 0.03)).astype(
        np.float64
    )
    slowness[(csf > 0.5) | (head.tissue.sum(0) < 0.7)] = -1
    candidates = np.argwhere((white > 0.5) & (slowness > 0))
    distance = head.ventricle_mm[tuple(candidates.T)]
    reach_mm = (3.0, 8.0, 14.0)
    chances = [np.cumsum(np.exp(-distance / reach)) for reach in reach_mm]
    for size in sizes:
        volume_mm3 = size * head.spacing_mm**3
        chance = chances[0 if volume_mm3 >= 400 else 1 if volume_mm3 >= 40 else 2]
        seen_size = max(1, round(size * np.exp(rng.normal(0, 0.15))))
        order = np.empty((0, 3), dtype=np.intp)
        for _ in range(10):
            seed = candidates[np.searchsorted(chance, rng.random() * chance[-1])]
            reached = _spread(slowness, seed, n=max(size, seen_size))
            order = max(order, reached, key=len)
            if len(order) >= size:
                break
        if len(order):
            lesion = Lesion(marked=order[:size], seen=order[:seen_size])
            for offset in np.ndindex(3, 3, 3):
                around = np.clip(lesion.marked + offset - 1, 0, np.array(slowness.shape) - 1)
                slowness[tuple(around.T)] = -1
            yield lesion


def _spread(slowness: NDArray[np.float64], seed: NDArray[np.intp], *, n: int) -> NDArray[np.intp]:
    """The n voxels that a front from `seed` reaches first, in order; fewer where there is no more way.

    Args:
        slowness: (X, Y, Z) cost of a step; negative: no way.
        seed: (3,) where it starts.
        n: How many voxels.
    """
    from skimage.graph import MCP_Geometric

    if slowness[tuple(seed)] < 0:
        return np.empty((0, 3), dtype=np.intp)
    half = int(np.ceil(1.2 * n ** (1 / 3))) + 2
    while True:
        start = np.maximum(seed - half, 0)
        box = tuple(slice(a, b) for a, b in zip(start, seed + half + 1, strict=True))
        costs = slowness[box]
        front = MCP_Geometric(costs, fully_connected=True)
        arrival, _ = front.find_costs(
            [tuple(seed - start)], max_coverage=min(1.0, (1.2 * n + 30) / costs.size)
        )
        reached = np.flatnonzero(np.isfinite(arrival))
        if len(reached) >= n or costs.shape == slowness.shape:
            first = reached[np.argsort(arrival.ravel()[reached], kind="stable")][:n]
            return np.stack(np.unravel_index(first, costs.shape), axis=1) + start
        half *= 2
