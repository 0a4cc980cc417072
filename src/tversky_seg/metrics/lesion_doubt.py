"""Doubt about predicted lesions: their entropy, and how far networks or views disagree on them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from tversky_seg.metrics.components import label_lesions
from tversky_seg.metrics.masks import FloatArray, Mask


def mean_entropy(lesions: NDArray[Any], probability: NDArray[np.float32]) -> FloatArray:
    """Average the entropy of the voxels of each lesion, in bits, from 0 (sure) to 1 (p = 1/2).

    H(p) = -p log2 p - (1 - p) log2(1 - p)

    Args:
        lesions: (X, Y, Z) numbers 1 … n of lesions, 0 outside.
        probability: (X, Y, Z) in [0, 1].

    Returns:
        (n,), empty without lesions.
    """
    inside = lesions > 0
    number = lesions[inside]
    p = probability[inside].astype(np.float64)
    bits = (entr(p) + entr(1 - p)) / np.log(2)
    n_voxels = np.bincount(number)[1:]
    means: FloatArray = np.bincount(number, weights=bits)[1:] / n_voxels
    return means


def structural_uncertainty(lesions: NDArray[Any], masks: Iterable[Mask]) -> FloatArray:
    """Measure how far the masks of several networks or views disagree on each lesion, in [0, 1].

    1 - 1/M sum_m max_l IoU(L, l), over the lesions l (26-connected) of mask m: 0 where all masks
    have the same lesion, 1 where none has any of its voxels (lesion structural uncertainty, arXiv
    2311.08931). A mask that lacks the lesion counts with an IoU of 0.

    Args:
        lesions: (X, Y, Z) numbers 1 … n of lesions, 0 outside.
        masks: One or more masks (X, Y, Z), taken one by one.

    Returns:
        (n,), empty without lesions; NaN without masks.
    """
    n_lesions = int(lesions.max(initial=0))
    n_voxels = np.bincount(lesions[lesions > 0], minlength=n_lesions + 1)
    total: FloatArray = np.zeros(n_lesions + 1)
    n_masks = 0
    for mask in masks:
        others, n_others = label_lesions(mask)
        n_voxels_other = np.bincount(others[mask], minlength=n_others + 1)
        # Voxels in common of each pair of lesions that meet.
        is_common = mask & (lesions > 0)
        pairs = np.stack([lesions[is_common], others[is_common]])
        (own, other), n_common = np.unique(pairs, axis=1, return_counts=True)
        own = own.astype(np.int64)
        iou = n_common / (n_voxels[own] + n_voxels_other[other.astype(np.int64)] - n_common)
        best: FloatArray = np.zeros(n_lesions + 1)
        np.maximum.at(best, own, iou)
        total += best
        n_masks += 1
    if not n_masks:
        return np.full(n_lesions, np.nan)
    return np.asarray(1 - total[1:] / n_masks)


def doubt_ranks(doubt: FloatArray) -> list[int]:
    """Rank lesions by doubt, the most doubtful 1; equal ones in their order."""
    order = np.argsort(-doubt, kind="stable")
    ranks = np.empty(len(doubt), dtype=np.int64)
    ranks[order] = np.arange(1, len(doubt) + 1)
    return [int(rank) for rank in ranks]
