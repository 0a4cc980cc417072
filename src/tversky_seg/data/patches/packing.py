"""Packing: the tensors of a value in one buffer, to be shared, page-locked and copied at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

ALIGNMENT = 256  # bytes; as torch and CUDA align whole tensors, so that kernels read them as fast

Value = TypeVar("Value")
Part = TypeVar("Part")


@dataclass(frozen=True)
class Slot:
    """Where in a buffer a tensor lies.

    Attributes:
        start: First byte.
        shape: Shape of the tensor.
        dtype: Type of its elements.
    """

    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def end(self) -> int:
        """One past the last byte."""
        return self.start + math.prod(self.shape) * self.dtype.itemsize

    def view(self, buffer: Tensor) -> Tensor:
        """Look at the tensor in its buffer."""
        return buffer[self.start : self.end].view(self.dtype).view(self.shape)


@dataclass(frozen=True, eq=False)
class Packed(Generic[Value]):
    """A value whose tensors lie in one buffer.

    Each tensor apart that a worker hands over costs a file of shared memory, and each that goes to
    a GPU a copy. One buffer for the tens of tensors of a batch costs one of both.

    Attributes:
        outline: The value, with a `Slot` in place of each tensor.
        buffer: (n,) uint8.
    """

    outline: Value
    buffer: Tensor

    def unpack(self, device: torch.device) -> Value:
        """Move the buffer to a device, and look at the tensors in it.

        A copy to a GPU does not wait if the buffer is page-locked.
        """
        buffer = self.buffer.to(device, non_blocking=True)
        return map_parts(self.outline, Slot, lambda slot: slot.view(buffer))


def pack(value: Value, *, is_shared: bool = False) -> Packed[Value]:
    """Copy the tensors of a value, inside dataclasses and tuples, into one buffer.

    Args:
        value: The value.
        is_shared: Whether the buffer lies in shared memory, for another process.

    Raises:
        RuntimeError: The shared memory is full.
    """
    tensors: list[Tensor] = []
    slots: list[Slot] = []

    def reserve(tensor: Tensor) -> Slot:
        # The first multiple of the alignment behind the slots so far.
        end = slots[-1].end if slots else 0
        slot = Slot(-(-end // ALIGNMENT) * ALIGNMENT, tuple(tensor.shape), tensor.dtype)
        tensors.append(tensor)
        slots.append(slot)
        return slot

    outline = map_tensors(value, reserve)
    buffer = torch.empty(slots[-1].end if slots else 0, dtype=torch.uint8)
    if is_shared:
        # Before it is filled, so that the tensors are copied once.
        buffer.share_memory_()  # type: ignore[no-untyped-call]
    for tensor, slot in zip(tensors, slots, strict=True):
        slot.view(buffer).copy_(tensor)
    return Packed(outline, buffer)


def map_tensors(value: Value, function: Callable[[Tensor], Any]) -> Value:
    """Copy a value with `function` applied to its tensors, inside dataclasses and tuples too."""
    return map_parts(value, Tensor, function)


def map_parts(value: Value, kind: type[Part], function: Callable[[Part], Any]) -> Value:
    """Copy a value with `function` applied to parts of a kind, inside dataclasses and tuples."""
    changed: Any = value
    if isinstance(value, kind):
        changed = function(value)
    elif isinstance(value, tuple):
        changed = tuple(map_parts(part, kind, function) for part in value)
    elif is_dataclass(value) and not isinstance(value, type):  # is_dataclass takes classes too
        parts: dict[str, Any] = {}
        for field in fields(value):
            parts[field.name] = map_parts(getattr(value, field.name), kind, function)
        changed = replace(value, **parts)
    return cast(Value, changed)
