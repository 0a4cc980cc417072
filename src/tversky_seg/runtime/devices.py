"""Where the arithmetic runs, and how wide its numbers are."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

import torch
from torch import nn

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
CUDNN_OUT_OF_MEMORY = (
    "unable to find an engine",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""Texts of RuntimeErrors: near full memory no algorithm of cuDNN gets the workspace that it needs."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str) -> torch.device:
    """The device that a setting names: `auto` is CUDA where there is one, else the CPU.

    Raises:
        ValueError: For another name, or for CUDA on a machine without it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda") and not name.startswith("cuda:"):
        raise ValueError(f"device must be auto, cpu or cuda, got {name}")
    if name != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"device must be cpu or auto where torch finds no CUDA device, got {name}")
    if (
        name == "cuda" and "LOCAL_RANK" in os.environ
    ):  # torchrun: each process of a machine has its own
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = torch.device(name)
    if device.index is not None:
        torch.cuda.set_device(device)
    return device


def to_device(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to a device, laid out as its convolutions run fastest there; numbers differ by rounding only.

    On two CPU cores a training step of the default U-Net at 64^3 takes 0.6 of the time: a third is channels_last_3d
    weights, the rest that freed activations are kept by the process (docs/benchmarks/networks.md).
    """
    if device.type != "cpu":
        return network.to(device)
    _keep_freed_memory()
    return network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload, no-any-return]


def for_training(network: nn.Module, *, compile: bool, deterministic: bool) -> nn.Module:
    """The network with what makes its training faster or repeatable; weights and their names are shared.

    Args:
        network: Any network.
        compile: Have torch compile it; the first step takes a minute.
        deterministic: Have CUDA use deterministic algorithms; an operation without one is an error.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    return torch.compile(network) if compile else network  # type: ignore[return-value]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a network runs in fp32, bf16 or fp16; weights stay in float32.

    Raises:
        ValueError: For another precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision}")
    return torch.autocast(device.type, dtype=PRECISIONS[precision], enabled=precision != "fp32")


def _keep_freed_memory() -> None:
    """Tell glibc to reuse freed blocks of any size instead of returning them and faulting each page in again."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            allocator = ctypes.CDLL(None)
            allocator.mallopt(M_MMAP_MAX, 0)
            allocator.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def use_threads(n_threads: int | None) -> None:
    """Use that many CPU threads; None leaves OMP_NUM_THREADS, or torch's own choice, in force."""
    if n_threads is not None:
        if n_threads < 1:
            raise ValueError(f"threads must be >= 1, got {n_threads}")
        os.environ["OMP_NUM_THREADS"] = str(n_threads)
        torch.set_num_threads(n_threads)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that the device or the host is out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        text in str(error) for text in CUDNN_OUT_OF_MEMORY
    )
