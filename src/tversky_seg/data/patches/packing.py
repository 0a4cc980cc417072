"""Packing: the tensors of a value in one buffer, to be shared, page-locked and copied at once."""

from __future__ import annotations

import io
import math
import pickle
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

ALIGNMENT = 256  # bytes; as CUDA aligns what it allocates, so that kernels read as fast

Value = TypeVar("Value")


class Slot(NamedTuple):
    """Where in a buffer a tensor lies: its first byte, its shape and the type of its elements."""

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
        outline: The value as `pickle` writes it, but for its tensors.
        buffer: (n,) uint8.
    """

    outline: bytes
    buffer: Tensor

    def pin_memory(self) -> Packed[Value]:
        """Copy the buffer to page-locked memory."""
        return replace(self, buffer=self.buffer.pin_memory())

    def unpack(self, device: torch.device) -> Value:
        """Move the buffer to a device, and make the value of views of it.

        A copy from page-locked memory to a GPU does not wait.
        """
        buffer = self.buffer
        if device != buffer.device:
            # Few sizes: memory of one that is new to torch's allocator would hold up the device.
            n_bytes = buffer.numel()
            memory = torch.empty(1 << n_bytes.bit_length(), dtype=torch.uint8, device=device)
            buffer = memory[:n_bytes].copy_(buffer, non_blocking=True)
        value: Value = _Unpickler(self.outline, buffer).load()
        return value


class Room:
    """Memory for one packed value, whose large tensors may be made in it.

    Args:
        memory: (n,) uint8.
    """

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        self.n_bytes = 0
        """Bytes that are taken, from the first on."""

    def empty(self, shape: tuple[int, ...], *, dtype: torch.dtype) -> Tensor:
        """Make a tensor behind those so far, without values; elsewhere where it does not fit."""
        slot = Slot(_aligned(self.n_bytes), shape, dtype)
        if slot.end > len(self.memory):
            return torch.empty(shape, dtype=dtype)
        self.n_bytes = slot.end
        return slot.view(self.memory)

    def slot_of(self, tensor: Tensor) -> Slot | None:
        """Find the slot of a tensor that lies here; None: it lies elsewhere."""
        start = tensor.data_ptr() - self.memory.data_ptr()
        if 0 <= start < self.n_bytes and tensor.is_contiguous():
            return Slot(start, tuple(tensor.shape), tensor.dtype)
        return None


def pack(value: Value, *, is_shared: bool = False, room: Room | None = None) -> Packed[Value]:
    """Copy the tensors of a value, wherever in it they are, into one buffer.

    Args:
        value: A value that can be pickled.
        is_shared: Whether the buffer lies in shared memory, for another process.
        room: Memory whose first bytes become the buffer if there is room; tensors that were made in
            it stay where they are. None: the buffer is new.

    Raises:
        RuntimeError: The shared memory is full.
    """
    pickler = _Pickler(room)
    pickler.dump(value)
    if room is not None and pickler.n_bytes <= len(room.memory):
        buffer = room.memory[: pickler.n_bytes]
    else:
        buffer = torch.empty(pickler.n_bytes, dtype=torch.uint8)
        if is_shared:
            # Before it is filled, so that the tensors are copied once.
            buffer.share_memory_()  # type: ignore[no-untyped-call]
    for slot, tensor in pickler.tensors:
        place = buffer[slot.start : slot.end]
        if place.data_ptr() != tensor.data_ptr():
            # As bytes: torch copies uint16 one by one.
            place.copy_(tensor.contiguous().view(-1).view(torch.uint8))
    return Packed(pickler.outline.getvalue(), buffer)


class _Pickler(pickle.Pickler):
    """Writes a slot in place of each tensor."""

    def __init__(self, room: Room | None) -> None:
        self.outline = io.BytesIO()
        self.tensors: list[tuple[Slot, Tensor]] = []
        self.room = room
        self.n_bytes = 0 if room is None else room.n_bytes
        super().__init__(self.outline, protocol=pickle.HIGHEST_PROTOCOL)

    def persistent_id(self, value: Any) -> Slot | None:
        """Reserve the slot of a tensor; None: other values are pickled."""
        if not isinstance(value, Tensor):
            return None
        slot = None if self.room is None else self.room.slot_of(value)
        if slot is None:
            slot = Slot(_aligned(self.n_bytes), tuple(value.shape), value.dtype)
            self.n_bytes = slot.end
        self.tensors.append((slot, value))
        return slot


class _Unpickler(pickle.Unpickler):
    """Reads a view of a buffer for each slot."""

    def __init__(self, outline: bytes, buffer: Tensor) -> None:
        self.buffer = buffer
        super().__init__(io.BytesIO(outline))

    def persistent_load(self, slot: Slot) -> Tensor:
        """Look at the tensor of a slot."""
        return slot.view(self.buffer)


def _aligned(n_bytes: int) -> int:
    """Round up to a multiple of the alignment."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT
