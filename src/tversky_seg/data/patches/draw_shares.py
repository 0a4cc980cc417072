"""Draw shares: which lesions the patches of a training are drawn for, by size."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.patches.case_list import as_case_list
from tversky_seg.data.patches.sampling import Sampler, draw_patch, patch_sides
from tversky_seg.data.preprocessing.prepared_case import PreparedCase

logger = logging.getLogger("tversky_seg")


@dataclass(frozen=True)
class DrawShares:
    """Shares of the patches that target the lesions of each size.

    Attributes:
        n_lesions: Number of lesions in all cases and classes.
        limits: (3,) sizes in voxels between the quartiles of the lesions; NaN without lesions.
        shares: (4,) share of the lesion patches that target each quartile, the smallest lesions
            first; NaN where no patch targets a lesion.
        lesion_share: Share of all patches that target a lesion.
        off_centre: Median and 90th percentile of the distance between the drawn lesion voxel and
            the centre of its patch, along the axis where it is largest, as a share of half the
            side: 0 is the centre, 1 the border. NaN where no patch targets a lesion.
    """

    n_lesions: int
    limits: tuple[float, ...]
    shares: tuple[float, ...]
    lesion_share: float
    off_centre: tuple[float, float]


def draw_shares(
    sampler: Sampler, cases: Sequence[PreparedCase], *, n_draws: int = 2000, seed: int = 0
) -> DrawShares:
    """Draw patches as a training does, and count the lesions that they target; no image is read.

    Args:
        sampler: Sampler of the training.
        cases: Training cases, at least one.
        n_draws: Number of patches to draw.
        seed: Seed of the draws.
    """
    cases = as_case_list(cases)
    sizes = [np.diff(case.lesion_offsets) for case in cases]
    pooled_sizes = np.concatenate(sizes)
    quartiles = _quartiles(sizes)
    counts = np.zeros(4)
    off_centre = []
    half = np.array(patch_sides(sampler.patch_size)) / 2
    for number in range(n_draws):
        rng = np.random.default_rng([seed, number])  # one for each patch, as in a training
        aim, start = draw_patch(sampler, cases, rng, patch_number=number)
        if aim.lesion is None:  # a patch of the brain, or from anywhere
            continue
        counts[quartiles[aim.case_index][aim.lesion]] += 1
        # The middle of the voxel: in a patch of 8, whose centre is at 4, voxel 4 lies at 4.5
        middle_of_voxel = np.subtract(aim.voxel, start) + 0.5
        off_centre.append(np.abs(middle_of_voxel / half - 1).max())

    n_targeted = int(counts.sum())
    limits = (math.nan,) * 3
    shares = (math.nan,) * 4
    median, high = math.nan, math.nan
    if len(pooled_sizes):
        limits = tuple(np.percentile(pooled_sizes, (25, 50, 75)).tolist())
    if n_targeted:
        shares = tuple((counts / n_targeted).tolist())
        median, high = np.percentile(off_centre, (50, 90)).tolist()
    return DrawShares(
        n_lesions=len(pooled_sizes),
        limits=limits,
        shares=shares,
        lesion_share=n_targeted / n_draws,
        off_centre=(median, high),
    )


def _quartiles(sizes: Sequence[NDArray[np.int_]]) -> list[NDArray[np.int_]]:
    """Find the size quartile (0 smallest to 3) of each lesion among the lesions of all cases.

    Lesions of equal size are ranked in their order, so that each quartile holds a quarter of the
    lesions: sizes [1, 1, 1, 9] have the quartiles [0, 1, 2, 3].
    """
    pooled = np.concatenate(sizes)
    ranks = np.empty(len(pooled), dtype=int)
    ranks[np.argsort(pooled, kind="stable")] = np.arange(len(pooled))
    quartiles = ranks * 4 // max(len(pooled), 1)
    ends = np.cumsum([len(of_case) for of_case in sizes])
    return np.split(quartiles, ends[:-1])


def log_draw_shares(sampler: Sampler, cases: Sequence[PreparedCase]) -> None:
    """Log before a training which lesions its patches target."""
    drawn = draw_shares(sampler, cases)
    if not drawn.lesion_share:
        logger.info(
            "sampling: patches target no lesion in particular (%d lesions)", drawn.n_lesions
        )
        return
    small, medium, large = drawn.limits
    logger.info(
        "sampling: %.0f %% of patches target a lesion; "
        "by size quartile (<= %.0f, <= %.0f, <= %.0f, > %.0f voxels): %s %%",
        100 * drawn.lesion_share,
        small,
        medium,
        large,
        large,
        ", ".join(f"{100 * share:.0f}" for share in drawn.shares),
    )
    median, high = drawn.off_centre
    logger.debug(
        "sampling: the target voxel lies %.0f %% (median; 90th percentile %.0f %%) of the way "
        "from the centre of the patch to its border",
        100 * median,
        100 * high,
    )
