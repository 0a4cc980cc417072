"""One batch through a network and back, whole or in parts that fit into memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tversky_seg.data.patches.batches import Batch
from tversky_seg.runtime.devices import autocast
from tversky_seg.runtime.distributed import all_gather_list, no_sync_until_last, world_size


def check_positive(**numbers: float | None) -> None:
    """Refuse numbers by name that are not above 0; None passes.

    Raises:
        ValueError: With the first.
    """
    for name, value in numbers.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be > 0, got {value}")


def check_parts(n_parts: int, *, batch_size: int) -> None:
    """Refuse a number of parts into which each process's share of the batch does not fall evenly.

    Raises:
        ValueError: With both numbers; or for a batch smaller than the number of processes.
    """
    if batch_size < world_size():
        raise ValueError(
            f"batch_size must be at least the {world_size()} processes, got {batch_size}"
        )
    if n_parts < 1 or (n_parts > 1 and batch_size % (n_parts * world_size())):
        per = f" for each of {world_size()} processes" if world_size() > 1 else ""
        raise ValueError(
            f"accumulate must divide batch_size={batch_size} evenly{per}, got {n_parts}"
        )


def loss_and_gradient(
    network: nn.Module,
    loss: nn.Module,
    batch: Batch,
    *,
    weighting: Callable[[Tensor], Tensor] | None,
    scaler: torch.amp.GradScaler,
    device: torch.device,
    precision: str,
    n_parts: int = 1,
) -> float:
    """Add the (scaled) gradient of a batch's loss to the parameters'.

    Args:
        network: Images (B, C, X, Y, Z) -> logits (B, K, X, Y, Z).
        loss: `(logits, target, weight) -> scalar`.
        batch: Patches; for weighting with their components.
        weighting: Makes voxel weights from the components.
        scaler: Of fp16.
        device: Where to compute.
        precision: Of the forward pass.
        n_parts: The batch goes through in so many equal parts. Their losses are averaged, so that one which is a ratio
            of counts (the Tversky family) is then one ratio for each part, not one for the batch.

    Returns:
        The loss.
    """
    whole = [batch.image, batch.target]
    if weighting and batch.components is not None:
        whole.append(batch.components)
    parts = zip(*(tensor.chunk(n_parts) for tensor in whole), strict=True)
    losses = []
    for number, tensors in enumerate(parts, 1):
        image, target, *components = (tensor.to(device, non_blocking=True) for tensor in tensors)
        weight = weighting(components[0]) if weighting else None
        with no_sync_until_last(network, is_last=number == n_parts):
            with autocast(device, precision):
                logits = network(image)
            value = loss(logits, target, weight) / n_parts
            scaler.scale(value).backward()
        losses.append(value.detach())
    return float(torch.stack(losses).sum().item())


def no_finite_gradient(step: int, batch: Batch, *, n_in_a_row: int) -> FloatingPointError:
    """What ends a training whose steps are all skipped: names the step and the patches of the global batch."""
    mine = [f"{case} at {start}" for case, start in zip(batch.case_ids, batch.starts, strict=True)]
    return FloatingPointError(
        f"step {step}: no finite gradient in {n_in_a_row} steps in a row (patches: {', '.join(all_gather_list(mine))}); "
        "lower optimizer.lr or use trainer.precision=fp32"
    )
