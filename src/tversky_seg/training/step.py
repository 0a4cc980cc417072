"""The forward and backward pass of one batch, whole or in parts that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tversky_seg.data.patches.batch import Batch
from tversky_seg.runtime.devices import autocast, image_to_device
from tversky_seg.runtime.distributed import all_gather_list, no_sync_until_last, world_size


def check_parts(n_parts: int, *, batch_size: int) -> None:
    """Check that every process can split its share of the batch into `n_parts` equal parts.

    Raises:
        ValueError: It cannot, or the batch has fewer patches than there are processes.
    """
    n_processes = world_size()
    if batch_size < n_processes:
        raise ValueError(
            f"batch_size must be at least the {n_processes} processes, got {batch_size}"
        )
    # Whole batches need not be divisible: shares may differ by one patch.
    if n_parts == 1:
        return
    if n_parts < 1 or batch_size % (n_parts * n_processes) != 0:
        of_each = ""
        if n_processes > 1:
            of_each = f" for each of {n_processes} processes"
        raise ValueError(
            f"accumulate must divide batch_size={batch_size} evenly{of_each}, got {n_parts}"
        )


def forward_backward(
    network: nn.Module,
    loss: nn.Module,
    batch: Batch,
    *,
    weighting: Callable[..., Tensor] | None,
    scaler: torch.amp.GradScaler,
    device: torch.device,
    precision: str,
    n_parts: int = 1,
    lesion_term: nn.Module | None = None,
) -> Tensor:
    """Add the gradient of a batch's loss, scaled by `scaler`, to that of the parameters.

    Args:
        network: Network from images (B, C, X, Y, Z) to logits (B, K, X, Y, Z).
        loss: `(logits, target, weight) -> scalar`.
        batch: Patches, with their components where there is a weighting or a lesion term, and with
            cells where that needs them.
        weighting: Function from components to voxel weights, both (B, K, X, Y, Z); also gets
            `n_labels=batch.n_labels` where that is known, and `ignored` where voxels are.
        scaler: Scaler of the loss, which keeps small gradients above the range of fp16.
        device: Device to compute on.
        precision: Precision of the forward pass.
        n_parts: Number of equal parts in which the batch goes through the network. The losses of
            the parts are averaged, so that a loss which is a ratio of counts (the Tversky family)
            becomes one ratio for each part, not one for the batch.
        lesion_term: Term that counts each lesion (`losses.lesion_terms`), added to the loss; with
            deep supervision at full resolution alone.

    Returns:
        The loss, a scalar on the device, which need not have computed it yet.
    """
    images = batch.image.chunk(n_parts)
    targets = batch.target.chunk(n_parts)
    losses = []
    for part in range(n_parts):
        image = image_to_device(images[part], device)
        target = targets[part].to(device, non_blocking=True)
        weight = _weight(batch, part, n_parts, weighting=weighting, device=device)
        # Processes exchange gradients once a batch, with those of the last part.
        with no_sync_until_last(network, is_last=part == n_parts - 1):
            with autocast(device, precision):
                logits = network(image)
            # Losses stay outside autocast: sums of voxels overflow in fp16.
            loss_of_part = loss(logits, target, weight)
            if lesion_term is not None:
                finest = logits if isinstance(logits, Tensor) else logits[0]
                lesions = lesions_of(batch).chunk(n_parts)[part].to(device, non_blocking=True)
                of_lesions = lesion_term(finest, target, lesions, weight, n_labels=batch.n_labels)
                loss_of_part = loss_of_part + of_lesions
            if n_parts > 1:
                loss_of_part = loss_of_part / n_parts
            scaler.scale(loss_of_part).backward()
        losses.append(loss_of_part.detach())
    return torch.stack(losses).sum()


def lesions_of(batch: Batch) -> Tensor:
    """Look up the lesion of each voxel of a batch: its cell, or its component where there is none.

    Raises:
        ValueError: The batch has neither.
    """
    lesions = batch.components if batch.cells is None else batch.cells
    if lesions is None:
        raise ValueError("a lesion term needs batches with_components=True")
    return lesions


def _weight(
    batch: Batch,
    part: int,
    n_parts: int,
    *,
    weighting: Callable[..., Tensor] | None,
    device: torch.device,
) -> Tensor | None:
    """Weigh the voxels of one part of a batch, ignored ones by 0; None: all weigh 1."""
    known: dict[str, Any] = {}
    if batch.n_labels is not None:
        known["n_labels"] = batch.n_labels
    if batch.ignored is not None:
        ignored = batch.ignored.chunk(n_parts)[part].to(device, non_blocking=True)
        known["ignored"] = ignored
    if weighting is not None and batch.components is not None:
        components = batch.components.chunk(n_parts)[part]
        return weighting(components.to(device, non_blocking=True), **known)
    if batch.ignored is not None:
        return ignored.logical_not().float()
    return None


def patch_names(batch: Batch) -> list[str]:
    """Name the patches of a batch: "case at [10, 20, 30]"."""
    names = []
    for case_id, start in zip(batch.case_ids, batch.starts, strict=True):
        names.append(f"{case_id} at {start}")
    return names


def no_finite_gradient(step: int, patches: Sequence[str], *, n_in_a_row: int) -> FloatingPointError:
    """Make the error that ends a training whose steps are all skipped.

    Args:
        step: Last of the skipped steps.
        patches: Names of its patches in this process. Those of all processes are named.
        n_in_a_row: Number of skipped steps.
    """
    return FloatingPointError(
        f"step {step}: no finite gradient in {n_in_a_row} steps in a row "
        f"(patches: {', '.join(all_gather_list(patches))}); "
        "lower optimizer.lr or use trainer.precision=fp32"
    )
