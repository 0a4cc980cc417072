"""The buffers of a network before a step, to put back if the step is skipped."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SavedBuffers:
    """Copies of a network's buffers.

    Batch norm updates its running statistics in the forward pass, before it is known whether the
    gradient is finite.

    Args:
        network: Network whose buffers to copy now.
    """

    def __init__(self, network: nn.Module) -> None:
        # Many small tensors, so those of one type are joined: a GPU gets a few calls, not hundreds.
        self._by_type: dict[torch.dtype, list[Tensor]] = {}
        for buffer in network.buffers():
            self._by_type.setdefault(buffer.dtype, []).append(buffer)
        self._before = {dtype: _joined(group) for dtype, group in self._by_type.items()}

    @torch.no_grad()
    def put_back(self, condition: Tensor | None = None) -> None:
        """Give the buffers their values of before.

        Args:
            condition: Boolean scalar on the device, which the host does not read: only where it
                holds. None: always.
        """
        for dtype, group in self._by_type.items():
            chosen = self._before[dtype]
            if condition is not None:
                chosen = torch.where(condition, chosen, _joined(group))
            parts = torch.split(chosen, [buffer.numel() for buffer in group])
            values = [part.view(buffer.shape) for part, buffer in zip(parts, group, strict=True)]
            torch._foreach_copy_(group, values)


def _joined(tensors: list[Tensor]) -> Tensor:
    """Copy all values into one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
