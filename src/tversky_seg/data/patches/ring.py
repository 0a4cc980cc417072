"""Ring: shared memory that worker processes fill with batches in turn, and that a GPU reads.

A new piece of shared memory for each batch would cost more than the batch: all of its pages are
zeroed for the worker and mapped again for the process that trains, which then copies them to
page-locked memory. The pages of a ring are mapped and page-locked once.
"""

from __future__ import annotations

import logging
import mmap
import multiprocessing
import os
from contextlib import suppress

import torch
from torch import Tensor

from tversky_seg.runtime.host_memory import free_host_memory

logger = logging.getLogger("tversky_seg")

HEAD_BYTES = 4096  # one page, so that the slots begin at a page
LARGEST_SHARE = 0.25
"""Share of the machine's free memory that the rings of all processes may take."""


class Ring:
    """Slots of equal size, of which step k uses number k modulo their number.

    Processes that are forked later share the memory. It is anonymous, so that the size of /dev/shm
    does not matter.

    Args:
        n_slots: Number of slots.
        slot_bytes: Size of a slot.
        first_step: First step that will use one.

    Raises:
        OSError: There is not so much memory.
    """

    def __init__(self, *, n_slots: int, slot_bytes: int, first_step: int) -> None:
        self.n_slots = n_slots
        self.slot_bytes = -(-slot_bytes // HEAD_BYTES) * HEAD_BYTES
        memory = mmap.mmap(-1, HEAD_BYTES + n_slots * self.slot_bytes)
        self.buffer = torch.frombuffer(memory, dtype=torch.uint8)
        self._first_unread = self.buffer[:8].view(torch.int64)
        self._first_unread.fill_(first_step)

    def slot(self, step: int) -> Tensor:
        """Look at the slot of a step, (slot_bytes,) uint8."""
        start = HEAD_BYTES + step % self.n_slots * self.slot_bytes
        return self.buffer[start : start + self.slot_bytes]

    def free_slot(self, step: int) -> Tensor | None:
        """Look at the slot of a step; None while the step that had it before may still be read."""
        if step >= int(self._first_unread) + self.n_slots:
            return None
        return self.slot(step)

    def free_until(self, step: int) -> None:
        """Free the slots of a step and of all before it: they were read."""
        self._first_unread.fill_(step + 1)

    def lock_pages(self) -> bool:
        """Lock the pages, so that a GPU reads them without a copy on the host; False: refused."""
        cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        code = cudart.cudaHostRegister(self.buffer.data_ptr(), self.buffer.nbytes, 0)
        if int(code) == 0:
            return True
        logger.warning(
            "page-locking of the loader's memory failed (CUDA error %d): copies are slower",
            int(code),
        )
        # CUDA reports the error again, by the next kernel.
        with suppress(RuntimeError):
            torch.zeros(1, device="cuda")
        return False

    def unlock_pages(self) -> None:
        """Unlock the pages. No copy may be under way."""
        cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        cudart.cudaHostUnregister(self.buffer.data_ptr())


def make_ring(
    *, n_slots: int, slot_bytes: int, first_step: int, has_workers: bool = True
) -> Ring | None:
    """Make a ring; None where workers are not forked, or where it would take too much memory."""
    if has_workers and multiprocessing.get_start_method() != "fork":
        return None
    # The processes of torchrun share the memory of a machine.
    n_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if n_slots * slot_bytes * n_processes > LARGEST_SHARE * free_host_memory():
        return None
    try:
        return Ring(n_slots=n_slots, slot_bytes=slot_bytes, first_step=first_step)
    except OSError:
        return None
