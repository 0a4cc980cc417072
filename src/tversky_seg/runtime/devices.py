"""Devices, number formats and threads that a network runs on."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

logger = logging.getLogger("tversky_seg")

PRECISIONS = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""Type of the activations, by the word of a setting."""

FIRST_CAPABILITY = {"bf16": (8, 0), "fp16": (7, 0)}
"""CUDA compute capability from which a GPU has units for a type."""

# Whether convolutions may use TF32, as this process last set it; None: never set.
_allows_tf32: bool | None = None

# Memory that runs out is not always torch's OutOfMemoryError, but also a RuntimeError with one of
# these texts: near full memory no algorithm of cuDNN gets the workspace that it needs.
OUT_OF_MEMORY_TEXTS = (
    "unable to find an engine",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "DefaultCPUAllocator: can't allocate memory",
)
FIRST_FAULTY_CUDNN = 90800
FIRST_MENDED_CUDNN = 91500

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
    """Move a network to a device, in the memory layout that is fastest there: channels last.

    The layout changes numbers by rounding only. On two CPU cores a training step of the default
    U-Net at 64^3 takes 0.6 of the time: a third of the gain is channels_last_3d weights, the rest
    that freed activations are kept by the process (docs/benchmarks/networks.md). On a GPU it is the
    layout of tensor cores: in another one, each convolution would copy its input and output.

    A network that is there already keeps its memory, of which a CUDA graph knows the addresses.
    """
    if device.type == "cpu":
        keep_freed_memory()
    # torch itself would copy weights (K, 1, 1, 1, 1), whose layout it cannot tell.
    numbered_device = torch.empty(0, device=device).device  # "cuda" leaves its number open
    tensors = (*network.parameters(), *network.buffers())
    if all(_is_placed(tensor, numbered_device) for tensor in tensors):
        return network
    # torch's annotations do not know the memory formats of a whole network.
    layout = torch.channels_last_3d
    moved: nn.Module = network.to(device, memory_format=layout)  # type: ignore[call-overload]
    return moved


def _is_placed(tensor: Tensor, device: torch.device) -> bool:
    """Tell whether a tensor is on a device, in the layout of networks there."""
    has_layout = tensor.ndim != 5 or tensor.is_contiguous(memory_format=torch.channels_last_3d)
    return tensor.device == device and has_layout


def image_to_device(image: Tensor, device: torch.device) -> Tensor:
    """Move images (B, C, X, Y, Z) to a device, in the layout in which its networks take them."""
    image = image.to(device, non_blocking=True)
    if device.type == "cpu":
        return image
    return image.contiguous(memory_format=torch.channels_last_3d)


def use_fastest_algorithms() -> None:
    """Let cuDNN try its algorithms for each new shape of a convolution, and keep the fastest."""
    torch.backends.cudnn.benchmark = True


@contextmanager
def without_trials() -> Iterator[None]:
    """Let cuDNN choose its algorithms by rule within the block.

    For inputs of many shapes, as the last batch of windows of each case: to try the algorithms for
    each takes longer than the batch.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def warn_of_faulty_cudnn() -> None:
    """Warn of the versions of cuDNN that compute convolutions of large volumes wrongly."""
    version = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    if version is not None and FIRST_FAULTY_CUDNN <= version < FIRST_MENDED_CUDNN:
        logger.warning(
            "cuDNN %d may compute convolutions of large volumes wrongly "
            "(github.com/pytorch/pytorch/issues/163539); install a torch with cuDNN 9.15 or later",
            version,
        )


def use_deterministic_algorithms() -> None:
    """Make CUDA repeat its bits; from now on an operation without such an algorithm is an error."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # The fastest algorithm of a benchmark may be another one after a restart.
    torch.backends.cudnn.benchmark = False


def resolve_precision(name: str, device: torch.device) -> str:
    """Return the precision that a setting means on a device.

    Args:
        name: "auto", or one of `PRECISIONS`, which is returned as it is.
        device: Device of the network.

    Returns:
        For "auto": "bf16" on a GPU of compute capability 8.0 or higher, "fp16" from 7.0, and "fp32"
        on older ones and on the CPU.

    Raises:
        ValueError: For another name.
    """
    if name != "auto":
        _check_precision(name, choices=("auto", *PRECISIONS))
        return name
    for word in ("bf16", "fp16"):
        if computes_fast(word, device):
            return word
    return "fp32"


def log_precision(precision: str, device: torch.device) -> None:
    """Log the precision of a training on a GPU, and everywhere if `auto` would be another."""
    fastest = resolve_precision("auto", device)
    if precision != fastest:
        logger.info("training on %s in %s; auto would be %s", device, precision, fastest)
    elif device.type == "cuda":
        logger.info("training on %s in %s", device, precision)


def computes_fast(precision: str, device: torch.device) -> bool:
    """Tell whether a device has units for a precision, and need not emulate it.

    A GPU that is not in this machine, for which a training is only planned, is taken for a new one.
    """
    if precision in ("fp32", "tf32"):
        return True
    if device.type != "cuda":
        return False
    if not torch.cuda.is_available():
        return True
    return torch.cuda.get_device_capability(device) >= FIRST_CAPABILITY[precision]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which a network computes in fp32, tf32, bf16 or fp16.

    Weights stay in float32. On CUDA this also allows convolutions of float32 to round their inputs
    to TF32 (10 bits of mantissa) if the precision is "tf32", and only then. That holds for the
    whole process, because a backward pass runs in threads of its own.

    Raises:
        ValueError: For another precision.
    """
    _check_precision(precision, choices=tuple(PRECISIONS))
    if device.type == "cuda":
        _allow_tf32(precision == "tf32")
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def _check_precision(name: str, *, choices: tuple[str, ...]) -> None:
    if name not in choices:
        raise ValueError(f"precision must be one of {', '.join(choices)}, got {name}")


def _allow_tf32(is_allowed: bool) -> None:
    """Set whether cuDNN may compute in TF32; torch's own default is that it may.

    Products of matrices stay in full float32 in any case: they resample patches and volumes, where
    TF32 would lose up to a thousandth and save nothing.
    """
    global _allows_tf32
    if _allows_tf32 == is_allowed:
        return
    # Some versions of torch announce another interface, which others do not have.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = is_allowed
    _allows_tf32 = is_allowed


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
    return any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)


def keep_freed_memory() -> None:
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
