"""CUDA graphs: all kernels of a network's forward and backward pass started by one call each.

An eager step of a small network keeps the host busier than the GPU: it launches some 400 kernels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tversky_seg.runtime.devices import autocast, image_to_device
from tversky_seg.runtime.distributed import world_size
from tversky_seg.runtime.one_line import message_lines
from tversky_seg.training.saved_buffers import SavedBuffers

logger = logging.getLogger("tversky_seg")

KNOWN_PACKAGES = ("torch.nn.", "tversky_seg.models.")
"""Where the modules come from that are known to do the same in each pass."""

LARGEST_SHARE = 0.5
"""Share of a GPU's memory that a graph may keep for itself, from step to step. Validation predicts
with what remains."""


class GraphedNetwork(nn.Module):
    """A network in training mode, recorded once for images of one shape and replayed since.

    Numbers, dropout and running statistics are those of the network, whose weights it shares.
    Images of another shape go through the network itself.

    Args:
        model: Network on a CUDA device. Its forward pass may neither depend on values nor on
            anything that changes on the host, and never wait for the device.
        image: Images as in a step, (B, C, X, Y, Z).
        precision: Precision of the forward pass.

    Raises:
        RuntimeError: CUDA cannot record the network.
    """

    def __init__(self, model: nn.Module, image: Tensor, *, precision: str) -> None:
        super().__init__()
        self.model = model
        self.shape = image.shape
        # torch replaces the `forward` of the module that it records; not that of the model itself,
        # with which validation predicts.
        recorded = nn.Sequential(model)
        # Buffers change in the passes before the recording.
        buffers = SavedBuffers(model)
        try:
            with autocast(image.device, precision), _calls_of_other_threads():
                # A cached copy of a weight would be of the step that was recorded.
                torch.set_autocast_cache_enabled(False)
                # The copy is where each step puts its image. Heads without a loss have no gradient.
                self.replay: Callable[..., Any] = torch.cuda.make_graphed_callables(
                    recorded, (image.clone(),), allow_unused_input=True
                )
        finally:
            torch.set_autocast_cache_enabled(True)
            buffers.put_back()

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Compute the network's logits."""
        if image.shape != self.shape:
            return self.model(image)  # type: ignore[no-any-return]
        logits: Tensor | tuple[Tensor, ...] = self.replay(image)
        return logits


@contextmanager
def _calls_of_other_threads() -> Iterator[None]:
    """Allow other threads to call CUDA during a recording.

    The loader pins the memory of its next batches meanwhile, which would be an error by default.
    `make_graphed_callables` has no argument for it.
    """
    # Gradients arrive in the stream of the recording, of which torch 2.10 and later warn.
    if hasattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch"):
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    record = torch.cuda.graph
    tolerant = partial(record, capture_error_mode="thread_local")
    torch.cuda.graph = tolerant  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        torch.cuda.graph = record  # type: ignore[misc]


def check_cuda_graph(setting: bool | str) -> None:
    """Check a setting of `Trainer.cuda_graph`.

    Raises:
        ValueError: It is neither a boolean nor "auto".
    """
    if not isinstance(setting, bool) and setting != "auto":
        raise ValueError(f"cuda_graph must be auto, true or false, got {setting}")


def graphed(
    model: nn.Module, image: Tensor, device: torch.device, *, precision: str, setting: bool | str
) -> GraphedNetwork | None:
    """Record the passes of a network, if that is possible and wanted.

    Weights, gradients and buffers stay as they are.

    Args:
        model: Network, in training mode.
        image: Images as in a step, (B, C, X, Y, Z), on any device.
        device: Device of the network.
        precision: Precision of a step.
        setting: True, False or "auto": on CUDA in one process, for networks of this project whose
            pass needs at most half of the GPU's memory.

    Returns:
        None where there is no graph; a warning says so if CUDA refused.
    """
    if setting is False or device.type != "cuda" or world_size() > 1:
        return None
    image = image_to_device(image, device)
    if setting == "auto":
        needed = _bytes_of_a_pass(model, image, precision=precision)
        limit = LARGEST_SHARE * torch.cuda.get_device_properties(device).total_memory
        if not _is_known(model) or needed > limit:
            return None
    try:
        return GraphedNetwork(model, image, precision=precision)
    except RuntimeError as error:
        first_line = message_lines(error)[0]
        logger.warning("no CUDA graph of the network: %s", first_line)
        torch.cuda.synchronize(device)
        return None


def _is_known(model: nn.Module) -> bool:
    """Tell whether all modules are torch's or ours, none of which computes anything twice."""
    for module in model.modules():
        if not f"{type(module).__module__}.".startswith(KNOWN_PACKAGES):
            return False
        if getattr(module, "checkpointing", False):
            return False
    return True


def _bytes_of_a_pass(model: nn.Module, image: Tensor, *, precision: str) -> int:
    """Measure the memory of one forward pass and its activations, in bytes."""
    buffers = SavedBuffers(model)
    torch.cuda.reset_peak_memory_stats(image.device)
    before = torch.cuda.memory_allocated(image.device)
    with autocast(image.device, precision):
        model(image)
    buffers.put_back()
    needed = torch.cuda.max_memory_allocated(image.device) - before
    # What torch keeps of this pass is of no use to the recording, which has a pool of its own.
    torch.cuda.empty_cache()
    return needed
