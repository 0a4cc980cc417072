"""Memory of a prediction: how many windows at once, what fits on the device, the way back."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tversky_seg.runtime.devices import is_out_of_memory

AUTO = "auto"
N_ON_THE_CPU = 2
"""Windows at once on the CPU: torch is slow with a single small one, more gain nothing."""

MOST_WINDOWS = 16
MOST_VOXELS = 2**23
"""A GPU is busy with this many voxels at once; more of them only take memory."""

BYTES_PER_VOXEL = 2048
"""Memory of the features of a voxel at their most, as a rule: the U-Net of 16 features at full
resolution takes 400 bytes in float32, FC-DenseNet about 1500. A network that takes more runs out
of memory once, and continues with half the windows."""

MOST_PINNED_BYTES = 2**28
"""Page-locked memory stays with the process for its next copies, so large volumes get none."""


def windows_at_once(
    batch_size: int | str, n_windows: int, sides: Sequence[int], device: torch.device
) -> int:
    """Tell how many windows pass the network together.

    "auto" is 2 on the CPU. On CUDA it is as many as the free memory suggests, up to 16 windows or
    eight million voxels, in batches of about equal size: 27 windows of 96^3 in three batches of 9.

    Args:
        batch_size: Number of windows, or "auto".
        n_windows: Number of all windows, or views of them.
        sides: Sides of a window in voxels.
        device: Device of the network.

    Returns:
        A number from 1 to `n_windows`.
    """
    if not isinstance(batch_size, str):
        return min(batch_size, n_windows)
    if device.type != "cuda":
        return min(N_ON_THE_CPU, n_windows)
    n_voxels = math.prod(sides)
    most = min(MOST_WINDOWS, MOST_VOXELS // n_voxels)
    n_bytes = BYTES_PER_VOXEL * n_voxels
    most = max(1, min(most, _free_bytes(device, enough=most * n_bytes) // n_bytes))
    n_batches = math.ceil(n_windows / most)
    return math.ceil(n_windows / n_batches)


def is_room_for(n_bytes: int, device: torch.device) -> bool:
    """Tell whether new tensors of this size fit on a GPU, as far as it says; on the CPU they do."""
    return device.type != "cuda" or n_bytes <= _free_bytes(device, enough=n_bytes)


def pinned_memory(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """Take page-locked memory of the host: copies between it and a GPU are fast, without a wait.

    Returns:
        An uninitialised tensor on the CPU; None if it would be large, or the host has no more.
    """
    if math.prod(shape) * dtype.itemsize > MOST_PINNED_BYTES:
        return None
    try:
        # A new thread is on the first GPU, and must not open that for a process on another.
        with torch.cuda.device(device):
            return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None


def to_gpu(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a GPU, by way of page-locked memory: all cores copy to that."""
    if not tensor.is_pinned():
        pinned = pinned_memory(tensor.shape, tensor.dtype, device)
        if pinned is not None:
            tensor = pinned.copy_(tensor)
    # torch keeps the page-locked memory until the copy is over.
    return tensor.to(device, non_blocking=True)


def to_host(tensor: Tensor) -> Tensor:
    """Copy a tensor to the host when its device has computed it; on the CPU it is itself."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    pinned = pinned_memory(tensor.shape, tensor.dtype, tensor.device)
    if pinned is None:
        return tensor.cpu()
    # Several times faster than to new memory, each page of which the system must fetch.
    pinned.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return pinned


def _free_bytes(device: torch.device, *, enough: float = math.inf) -> int:
    """Count the bytes that new tensors may take: free, or kept by torch for reuse.

    Args:
        device: The GPU.
        enough: Number from which on no more are counted, to save time.
    """
    free, _ = torch.cuda.mem_get_info(device)
    if free >= enough:
        return free
    statistics = torch.cuda.memory_stats(device)
    reserved = statistics.get("reserved_bytes.all.current", 0)
    allocated = statistics.get("allocated_bytes.all.current", 0)
    return int(free + reserved - allocated)
