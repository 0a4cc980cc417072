"""A case in memory as the network takes it, read before the device needs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tversky_seg.data.grids import Bools, Floats
from tversky_seg.data.preprocessing.prepared_case import PreparedCase
from tversky_seg.inference.window_memory import pinned_memory


@dataclass(frozen=True, eq=False)
class LoadedCase:
    """What a prediction needs of a case.

    Attributes:
        image: (C, X, Y, Z) int16; for a GPU in page-locked memory, from which it is copied fastest.
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
        pinned = pinned_memory(image.shape, torch.int16, device)
        if pinned is not None:
            in_pinned_memory = pinned.numpy()
            np.copyto(in_pinned_memory, image)
            image = in_pinned_memory
    return LoadedCase(image, prepared.image_scale, prepared.foreground)
