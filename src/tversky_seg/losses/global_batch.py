"""Sums and means over the global batch: over all processes, where torch.distributed runs.

Every process gets the same value, so each must call its loss in every step. Gradients are scaled
for DistributedDataParallel, which averages them over the processes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def n_processes() -> int:
    """Return the number of processes that share the batch; 1 without torch.distributed."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return 1


def sum_over_processes(values: Tensor) -> Tensor:
    """Add up a small tensor over all processes; with one process it stays as it is."""
    if n_processes() == 1:
        return values
    return _SumOverProcesses.apply(values)  # type: ignore[no-any-return, no-untyped-call]


def mean_over_batch(total: Tensor, *, n_voxels: int) -> Tensor:
    """Divide a sum over voxels by their number, both added up over all processes.

    Args:
        total: Sum over the voxels of this process, a scalar.
        n_voxels: Number of voxels of this process.
    """
    if n_processes() == 1:
        return total / n_voxels
    n = torch.full_like(total, float(n_voxels))
    sums = sum_over_processes(torch.stack([total, n]))
    return sums[0] / sums[1]


class _SumOverProcesses(torch.autograd.Function):
    """The sum over all processes, its gradient multiplied by their number: DDP divides by it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * n_processes()
