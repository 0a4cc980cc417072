"""Masks as arrays: checks that all metrics share, the bounding box and the order in memory."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Mask = NDArray[np.bool_]
"""Voxels of a volume, True in lesions."""
BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def as_mask(values: ArrayLike, *, name: str = "mask") -> Mask:
    """Convert a mask of 0 and 1 to a bool array; an array of bool is returned as it is.

    Args:
        values: Array of any shape, or a torch tensor on the CPU; 0 is background and 1 is lesion.
        name: Name of the argument, for the error.

    Raises:
        ValueError: Another value than 0 and 1.
    """
    array = as_array(values)
    if array.dtype == np.bool_:
        return array
    mask: Mask = array == 1
    # NaN is among them: it equals neither 1 nor 0.
    other_values = array[~mask & (array != 0)]
    if other_values.size:
        first = other_values.flat[0]
        raise ValueError(
            f"{name} must be a mask of 0 and 1, got the value {first}: threshold it first"
        )
    return mask


def as_array(values: ArrayLike) -> NDArray[Any]:
    """Convert an array, or a tensor on the CPU with or without gradient, to a numpy array."""
    # A tensor with gradient refuses to be read. By its method, since importing torch takes seconds.
    detach = getattr(values, "detach", None)
    return np.asarray(values if detach is None else detach())


def as_masks(prediction: ArrayLike, reference: ArrayLike) -> tuple[Mask, Mask]:
    """Convert prediction and reference to bool arrays of one shape.

    Raises:
        ValueError: Shapes that differ, or another value than 0 and 1.
    """
    predicted = as_mask(prediction, name="prediction")
    true = as_mask(reference, name="reference")
    if predicted.shape != true.shape:
        raise ValueError(
            f"prediction and reference must have one shape, got {predicted.shape} and {true.shape}"
        )
    return predicted, true


def bounding_box(mask: Mask) -> tuple[slice, ...]:
    """Find the smallest box that holds the mask.

    Returns:
        One slice per axis; empty slices for an empty mask.
    """
    box = [slice(None)] * mask.ndim
    # From the slowest axis to the fastest: the axis along which memory runs takes longest to
    # search, so it comes last, when the others are already cropped.
    strides = [abs(stride) for stride in mask.strides]
    slowest_first = np.argsort(strides, kind="stable")[::-1].tolist()
    for axis in slowest_first:
        other_axes = tuple(other for other in range(mask.ndim) if other != axis)
        cropped = mask[tuple(box)]
        occupied = np.flatnonzero(cropped.any(axis=other_axes))
        if not occupied.size:
            return (slice(0, 0),) * mask.ndim
        first = int(occupied[0])
        last = int(occupied[-1])
        box[axis] = slice(first, last + 1)
    return tuple(box)


def memory_order(mask: Mask) -> Literal["C", "F"]:
    """Tell which axis runs fastest in memory: the last (C) or the first, as in NIfTI files (F)."""
    if mask.ndim and mask.strides[0] < mask.strides[-1]:
        return "F"
    return "C"


def check_spacing(spacing_mm: ArrayLike, *, ndim: int) -> FloatArray:
    """Check the size of a voxel in mm, one positive number per axis.

    Returns:
        (ndim,) the spacing as an array.

    Raises:
        ValueError: Another number of axes, or a size that is not positive and finite.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    is_size = np.isfinite(spacing) & (spacing > 0)
    if spacing.shape != (ndim,) or not is_size.all():
        raise ValueError(f"spacing_mm must be {ndim} positive numbers, got {spacing_mm!r}")
    return spacing
