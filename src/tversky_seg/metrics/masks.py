"""What a mask is, checked once for all measures: 0 and 1, and two masks of one shape."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Mask = NDArray[np.bool_]


def as_mask(values: ArrayLike, *, name: str = "mask") -> Mask:
    """The values as a bool array; an array of bool is returned as it is.

    Args:
        values: array of any shape, or a torch tensor on the CPU; 0 is background and 1 is lesion.
        name: how the error calls it.

    Raises:
        ValueError: when another value than 0 and 1 occurs.
    """
    array = as_array(values)
    if array.dtype == np.bool_:
        return array
    mask: Mask = array == 1
    strange = array[mask != (array != 0)]
    if strange.size:
        raise ValueError(
            f"{name} must be a mask of 0 and 1, got the value {strange.flat[0]}: threshold it first"
        )
    return mask


def as_array(values: ArrayLike) -> NDArray[Any]:
    """The values as a numpy array; tensors on the CPU are taken, also such as require a gradient."""
    return np.asarray(values.detach() if isinstance(values, Tensor) else values)


def as_masks(prediction: ArrayLike, reference: ArrayLike) -> tuple[Mask, Mask]:
    """Prediction and reference as bool arrays of one shape.

    Raises:
        ValueError: when the shapes differ or another value than 0 and 1 occurs.
    """
    masks = as_mask(prediction, name="prediction"), as_mask(reference, name="reference")
    if masks[0].shape != masks[1].shape:
        raise ValueError(
            f"prediction and reference must have one shape, got {masks[0].shape} and {masks[1].shape}"
        )
    return masks


def bounding_box(mask: Mask) -> tuple[slice, ...]:
    """The smallest box that holds the mask, as one slice per axis; empty slices for an empty mask."""
    box = [slice(None)] * mask.ndim
    for axis in np.argsort([-abs(stride) for stride in mask.strides], kind="stable").tolist():
        cropped = mask[
            tuple(box)
        ]  # the axis along which memory runs comes last: the rest is cropped by then
        occupied = np.flatnonzero(
            cropped.any(axis=tuple(other for other in range(mask.ndim) if other != axis))
        )
        if not occupied.size:
            return (slice(0, 0),) * mask.ndim
        box[axis] = slice(int(occupied[0]), int(occupied[-1]) + 1)
    return tuple(box)


def memory_order(mask: Mask) -> Literal["C", "F"]:
    """Which axis runs fastest in memory, the last (C) or the first, as NIfTI files hold them (F)."""
    return "F" if mask.ndim and mask.strides[0] < mask.strides[-1] else "C"


def check_spacing(spacing_mm: ArrayLike, *, ndim: int) -> NDArray[np.float64]:
    """The voxel's size in mm, one positive number per axis.

    Raises:
        ValueError: for another number of axes, or a size that is not positive and finite.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (ndim,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ValueError(f"spacing_mm must be {ndim} positive numbers, got {spacing_mm!r}")
    return spacing
