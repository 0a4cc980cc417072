"""Memory of a training: of an optimiser step, of a loader worker, and free on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tversky_seg.runtime.host_memory import free_host_memory

GIB = 2**30
MIB = 2**20
COPIES_IN_LOADER = 4
"""Copies of a patch while it is read and augmented."""
N_PREFETCHED = 2
"""Batches that a loader worker holds ready."""
N_WORKSPACES = {"cpu": 3, "cuda": 1}
"""Largest tensors that fit into what a step takes besides the tensors kept.

As measured: a GPU gives back each tensor as soon as its gradient is computed
(docs/benchmarks/gpu.md), convolutions of the CPU copy theirs into other layouts.
"""


def step_bytes(
    network: nn.Module, shape: Sequence[int], *, precision: str = "fp32", device: str = "cpu"
) -> int:
    """Estimate the memory of one optimiser step, without Python and torch themselves.

    What autograd keeps for the backward pass is counted on torch's meta device, without computing
    anything. Added are weights, gradients and Adam's two moments, and room for the gradients on
    their way and for a convolution's workspace: see `N_WORKSPACES`.

    Args:
        network: Network (B, C, X, Y, Z) -> logits.
        shape: (B, C, X, Y, Z) of a batch.
        precision: "fp32" or "tf32", or "bf16" or "fp16", in which activations take half.
        device: Type of the device, "cpu" or "cuda".
    """
    # Tensors on the meta device have shapes and no numbers, so this takes no memory.
    state: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        state[name] = tensor.detach().to("meta")
    parameter_names = dict(network.named_parameters()).keys() & state.keys()
    for name in parameter_names:
        state[name].requires_grad_()

    # Several saved tensors may share one storage: it is counted once.
    saved_bytes: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        saved_bytes[_storage_key(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    image = torch.empty(*shape, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        logits = functional_call(network, state, image, tie_weights=False)
    # Weights that autograd saves are counted with the weights below.
    for tensor in state.values():
        saved_bytes.pop(_storage_key(tensor), None)

    workspace = N_WORKSPACES[device] * max(saved_bytes.values(), default=0)
    loss = 4 * logits.untyped_storage().nbytes()
    kept = sum(saved_bytes.values())
    activations = kept + workspace + loss
    # Half precision halves what is kept, but weights stay float32.
    if precision in ("bf16", "fp16"):
        activations //= 2
    weights = 0
    for name in parameter_names:
        weights += state[name].untyped_storage().nbytes()
    # Weights, gradients, and Adam's two moments.
    return int(activations + 4 * weights)


def _storage_key(tensor: Tensor) -> int:
    """Identify the storage of a tensor.

    A tensor on the meta device has no address, so this is the one place that uses torch's private
    handle of a storage.
    """
    return int(tensor.untyped_storage()._cdata)


def loader_bytes(shape: Sequence[int], *, n_classes: int) -> int:
    """Estimate the memory of a loader worker, without Python and torch themselves.

    Args:
        shape: (B, C, X, Y, Z) of a batch.
        n_classes: Number of classes K.
    """
    batch_size, n_channels, *sides = shape
    n_volumes = n_channels + 2 * n_classes  # image, target and lesion components
    patch = math.prod(sides) * 4 * n_volumes
    n_patches = N_PREFETCHED * batch_size + batch_size + COPIES_IN_LOADER
    return patch * n_patches


def free_memory(device: torch.device) -> int:
    """Return the free bytes of a GPU, or of this machine within the limits of its container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return free_host_memory()


def format_bytes(n_bytes: float) -> str:
    """Write bytes in MiB or GiB."""
    if n_bytes >= GIB:
        return f"{n_bytes / GIB:.1f} GiB"
    return f"{n_bytes / MIB:.0f} MiB"
