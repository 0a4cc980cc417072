"""Devices, number formats and threads that a network runs on."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

import torch
from torch import nn

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Near full memory no algorithm of cuDNN gets the workspace that it needs. It then raises a
# RuntimeError with one of these texts, not torch's OutOfMemoryError.
CUDNN_OUT_OF_MEMORY = (
    "unable to find an engine",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)

# Parameters of glibc's mallopt, from malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def pick_device(name: str) -> torch.device:
    """Return the device that a setting names.

    Args:
        name: "auto" (CUDA if there is a card, otherwise the CPU), "cpu", "cuda" or "cuda:1".

    Raises:
        ValueError: For another name, or for CUDA on a machine without it.
    """
    has_cuda = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if has_cuda else "cpu"
    if name not in ("cpu", "cuda") and not name.startswith("cuda:"):
        raise ValueError(f"device must be auto, cpu or cuda, got {name}")
    if name != "cpu" and not has_cuda:
        raise ValueError(f"device must be cpu or auto where torch finds no CUDA device, got {name}")
    # torchrun gives each process of a machine a card of its own.
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = torch.device(name)
    # Otherwise NCCL and new tensors without a device would use the first card.
    if device.index is not None:
        torch.cuda.set_device(device)
    return device


def to_device(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to a device, in the memory layout that is fastest there.

    The layout changes numbers by rounding only. On two CPU cores a training step of the default
    U-Net at 64^3 takes 0.6 of the time: a third of the gain is channels_last_3d weights, the rest
    that freed activations are kept by the process (docs/benchmarks/networks.md).
    """
    if device.type != "cpu":
        return network.to(device)
    _keep_freed_memory()
    # torch's annotations do not know the memory formats of a whole network.
    layout = torch.channels_last_3d
    moved: nn.Module = network.to(device, memory_format=layout)  # type: ignore[call-overload]
    return moved


def use_deterministic_algorithms() -> None:
    """Make CUDA repeat its bits; from now on an operation without such an algorithm is an error."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # The fastest algorithm of a benchmark may be another one after a restart.
    torch.backends.cudnn.benchmark = False


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which a network computes in fp32, bf16 or fp16.

    Weights stay in float32.

    Raises:
        ValueError: For another precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision}")
    return torch.autocast(device.type, dtype=PRECISIONS[precision], enabled=precision != "fp32")


def use_threads(n_threads: int | None) -> None:
    """Use this many CPU threads; None leaves OMP_NUM_THREADS, or torch's own choice, in force."""
    if n_threads is None:
        return
    if n_threads < 1:
        raise ValueError(f"threads must be >= 1, got {n_threads}")
    # Processes that are started later read the variable.
    os.environ["OMP_NUM_THREADS"] = str(n_threads)
    torch.set_num_threads(n_threads)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that the device or the host is out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return any(text in str(error) for text in CUDNN_OUT_OF_MEMORY)


def _keep_freed_memory() -> None:
    """Make glibc reuse freed blocks of any size.

    By default it returns large blocks to the system and faults each of their pages in again.
    """
    if sys.platform != "linux":
        return
    # Other C libraries, as Alpine's, have no mallopt.
    with suppress(OSError, AttributeError):
        allocator = ctypes.CDLL(None)
        allocator.mallopt(M_MMAP_MAX, 0)
        allocator.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
