"""A case in memory as the network takes it, read before the device needs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tversky_seg.data.grids import Bools, Floats
from tversky_seg.data.preprocessing.prepared_case import PreparedCase


@dataclass(frozen=True, eq=False)
class LoadedCase:
    """What a prediction needs of a case.

    Attributes:
        image: (C, X, Y, Z) int16; for a GPU in pinned memory, from which it is copied fastest.
        image_scale: (C,) factors from the image to normalised intensities.
        foreground: (X, Y, Z) mask of the brain.
    """

    image: NDArray[np.int16]
    image_scale: Floats
    foreground: Bools


def load_case(prepared: PreparedCase, device: torch.device) -> LoadedCase:
    """Read the arrays of a case from the cache, for a network on this device."""
    image: NDArray[Any] = prepared.image
    if device.type == "cuda":
        image = _pinned(image, device)
    return LoadedCase(image, prepared.image_scale, prepared.foreground)


def _pinned(array: NDArray[Any], device: torch.device) -> NDArray[Any]:
    """Copy an array to pinned memory of the host."""
    # A new thread is on the first GPU, and must not open that for a process on another.
    with torch.cuda.device(device):
        pinned = torch.empty(array.shape, dtype=torch.int16, pin_memory=True).numpy()
    np.copyto(pinned, array)
    return pinned
