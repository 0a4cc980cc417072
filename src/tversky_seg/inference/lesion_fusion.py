"""Lesion fusion: the lesions of several networks or views, voted on as objects."""

from __future__ import annotations

from collections.abc import Sequence

import cc3d
import numpy as np
from numpy.typing import NDArray


def fuse_lesions(
    masks: Sequence[NDArray[np.int64]], shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Vote on whole lesions, then on the voxels of each among those that have it.

    After the self-ensembled lesion fusion of Zhang et al. (arXiv 2312.01460). Candidates are the
    26-connected components of the union of M masks. A mask votes for a candidate if it holds any of
    its voxels; n masks do. A voxel of the candidate gets

        min(n / M, share of these n masks that hold the voxel)

    so at a threshold of 1/2 a lesion stays if half of the masks have it, however they place it, and
    has the voxels on which half of those agree. A vote on voxels would lose a lesion of few voxels
    that every mask has one voxel farther.

    Args:
        masks: Flat indices of the voxels of each mask, sorted.
        shape: (X, Y, Z).

    Returns:
        (X, Y, Z) in [0, 1]; 0 throughout without a voxel in any mask.
    """
    n_votes = np.zeros(np.prod(shape), dtype=np.uint16)
    for voxels in masks:
        n_votes[voxels] += 1
    is_candidate = (n_votes > 0).reshape(shape)
    candidates, n_candidates = cc3d.connected_components(
        is_candidate, connectivity=26, return_N=True
    )
    candidates = candidates.reshape(-1)
    n_voters = np.zeros(n_candidates + 1, dtype=np.int64)
    for voxels in masks:
        n_voters[np.unique(candidates[voxels])] += 1
    fused = np.zeros(len(n_votes), dtype=np.float32)
    voxels = np.flatnonzero(n_votes)
    voters = n_voters[candidates[voxels]]
    fused[voxels] = np.minimum(voters / len(masks), n_votes[voxels] / voters)
    return fused.reshape(shape)
