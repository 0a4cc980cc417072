"""Several raters' masks as one: the mean, the majority, or the consensus by STAPLE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.errors import DataError
from tversky_seg.data.grids import Bools

MAX_RATERS = 255
"""Votes are kept in one byte a voxel."""


def count_votes(masks: Sequence[Bools]) -> NDArray[np.uint8]:
    """Count in how many masks, all of one shape, each voxel lies."""
    votes = np.zeros(masks[0].shape, dtype=np.uint8)
    for mask in masks:
        votes += mask
    return votes


def majority(masks: Sequence[Bools]) -> Bools:
    """Return the voxels that more than half of the raters drew; of two raters a voxel needs both.

    Args:
        masks: At least one, all of one shape.
    """
    drawn_by_most: Bools = count_votes(masks) > len(masks) / 2
    return drawn_by_most


def staple(masks: Sequence[Bools], *, key: str = "data.rater") -> Bools:
    """Estimate the mask behind several raters' masks by STAPLE (Warfield et al. 2004).

    Expectation-maximisation finds each rater's sensitivity and specificity together with the
    probability that a voxel is lesion; voxels of at least 0.5 are. The prior is the raters' mean
    share of lesion voxels. Only voxels on which raters differ or that all drew are close calls:
    the size of the background around them moves the estimate through this prior alone.

    Args:
        masks: (K, X, Y, Z) of each rater; the classes are taken one by one.
        key: Setting that asks for it, for the error.

    Returns:
        (K, X, Y, Z) mask; empty where all raters' are. With one rater, this rater's.

    Raises:
        DataError: SimpleITK is not installed.
    """
    try:
        import SimpleITK
    except ImportError as error:
        raise DataError(
            key, "staple needs SimpleITK", "pip install 'tversky-seg[staple]', or take majority"
        ) from error
    consensus = np.zeros(masks[0].shape, dtype=bool)
    for number, of_class in enumerate(zip(*masks, strict=True)):
        united = np.any(of_class, axis=0)
        if not united.any() or len(of_class) == 1:
            consensus[number] = united
            continue
        images = [_as_image(SimpleITK, mask) for mask in of_class]
        probability = SimpleITK.GetArrayFromImage(SimpleITK.STAPLE(images, 1.0))
        consensus[number] = probability >= 0.5
    return consensus


def _as_image(simple_itk: Any, mask: Bools) -> Any:
    # The place of a voxel does not matter to STAPLE, so neither do axes.
    return simple_itk.GetImageFromArray(mask.astype(np.uint8))
