"""The image of a case: its channels in one int16 array, 0 outside the foreground."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.grids import Bools, Box, Shape
from tversky_seg.data.preprocessing.modality import LARGEST_INT16, Channel


def union_of_foregrounds(channels: Sequence[Channel], shape: Shape) -> Bools:
    """Unite the foregrounds of all channels."""
    foreground = np.zeros(shape, dtype=bool)
    for channel in channels:
        # Each modality has a background, and so a box, of its own.
        foreground[channel.box] |= channel.foreground
    return foreground


def stack(channels: list[Channel], box: Box, inside: Bools) -> NDArray[np.int16]:
    """Move the channels into one image (C, X, Y, Z), 0 outside the foreground; empty the list.

    Each channel leaves the list before it is copied, so that it is freed before the next one is
    touched: channels and image would else be in memory at once.
    """
    image = np.empty((len(channels), *inside.shape), dtype=np.int16)
    for plane in image:
        np.multiply(channels.pop(0).within(box), inside, out=plane)
    return image


def stretch(image: NDArray[np.int16], inside: Bools) -> NDArray[np.float32]:
    """Map each channel's smallest and largest value in the foreground to 0 and 1, in place.

    Returns:
        (C,) factors from the image to normalised intensities.
    """
    for plane in image:
        low = int(plane.min(where=inside, initial=LARGEST_INT16))
        high = int(plane.max(where=inside, initial=0))
        factor = LARGEST_INT16 / max(high - low, 1)
        # Slab by slab, because the arithmetic takes float64.
        for slab, mask in zip(plane, inside, strict=True):
            slab[mask] = np.rint((slab[mask] - float(low)) * factor)
    return np.full(len(image), 1 / LARGEST_INT16, dtype=np.float32)


def missing_channels(modalities: Sequence[str], present: Sequence[str]) -> tuple[int, ...]:
    """Number the channels of the modalities that a case lacks."""
    return tuple(number for number, name in enumerate(modalities) if name not in present)


def insert_missing(
    image: NDArray[np.int16], scales: NDArray[np.float32], missing: Sequence[int]
) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Insert channels of 0, with factors of 1, where a case lacks a modality.

    Args:
        image: (C, X, Y, Z) of the modalities that the case has.
        scales: (C,) factors from the image to normalised intensities.
        missing: Numbers of the missing channels among all, ascending.
    """
    # A factor of 1, since what it multiplies is 0.
    places = _places(missing)
    return np.insert(image, places, 0, axis=0), np.insert(scales, places, np.float32(1))


def _places(missing: Sequence[int]) -> list[int]:
    """Say where in the array of the other channels numpy.insert puts those that are missing.

    Of four channels 1 and 3 are missing: before channels 1 and 2 of the two that are there.
    """
    return [number - before for before, number in enumerate(missing)]


def flat_indices(mask: Bools) -> NDArray[np.int32]:
    """List the linear indices (C order) of the true voxels of (X, Y, Z).

    Slab by slab, because numpy makes indices of eight bytes.
    """
    indices = []
    for number, slab in enumerate(mask):
        first = np.int32(number * slab.size)
        indices.append(np.flatnonzero(slab).astype(np.int32) + first)
    return np.concatenate(indices)
