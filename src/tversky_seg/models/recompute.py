"""Activation checkpointing: parts of a network that are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def recompute_blocks(network: nn.Module) -> None:
    """Have each block of a network keep only its inputs for the backward pass.

    The numbers stay the same, bit for bit; a step needs less memory and about a third more time.

    Args:
        network: Any network; the `forward` of its blocks is replaced in place. Blocks are the
            children that have children themselves, and likewise the members of lists of modules.
    """
    for block in _blocks(network):
        block.forward = partial(recomputed, block, block.forward)


def recomputed(block: nn.Module, forward: Callable[..., Any], *features: Any) -> Any:
    """Call `forward(*features)` and keep only its inputs for a backward pass.

    Args:
        block: The module that holds the batch normalisations of `forward`.
        forward: Function to call.
        features: Its arguments.
    """
    if not torch.is_grad_enabled():
        return forward(*features)
    if torch.compiler.is_compiling():
        # torch.compile takes no context function, and updates running statistics once by itself.
        return checkpoint(forward, *features, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), frozen_statistics(block)  # of the first pass, of the second

    return checkpoint(forward, *features, use_reentrant=False, context_fn=contexts)


@contextmanager
def frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Leave running means, variances and the number of batches of batch norm as they are.

    A block that is computed twice counts its batch once.
    """
    norms = [module for module in block.modules() if isinstance(module, BATCH_NORMS)]
    momenta = [norm.momentum for norm in norms]
    n_batches = [norm.num_batches_tracked for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # the share of the new batch in the running statistics
        if norm.num_batches_tracked is not None:
            # Count in a copy: SyncBatchNorm needs a tensor here.
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, momentum, n in zip(norms, momenta, n_batches, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked = n


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    for child in network.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _blocks(child)
        elif len(list(child.children())) > 0:
            yield child
