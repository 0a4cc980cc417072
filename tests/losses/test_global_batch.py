"""Several processes: the loss and its gradient are those of the whole batch."""

import pytest
import torch

from helpers.losses import LOSSES, random_case
from tversky_seg.losses import BlobLoss, BlobTerm, CellTerm, LargestProbabilityTerm


class OfStripes(torch.nn.Module):
    """A lesion term of cells that are stripes, as a loss without lesions among its arguments."""

    def __init__(self, term):
        super().__init__()
        self.term = term

    def forward(self, logits, target, weight):
        stripes = torch.arange(logits[0, 0].numel()).view(logits.shape[2:]) % 5
        return self.term(logits, target, stripes.expand(logits.shape), weight, n_labels=4)


SPLIT = {
    **LOSSES,
    "blob": BlobLoss(),
    "cells": OfStripes(CellTerm()),
    "largest probability": OfStripes(LargestProbabilityTerm()),
    "blob term": OfStripes(BlobTerm()),
}


def _loss_in_process(rank: int, store: str, results: dict) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    try:
        case = random_case((4, 2, 6, 5, 4))
        part = slice(0, 3) if rank == 0 else slice(3, 4)  # uneven shards
        for name, loss in SPLIT.items():
            if "per sample" in name or not getattr(loss, "over_batch", True):
                continue
            logits, target, weight = (values[part].detach() for values in case)
            scale = torch.ones((), dtype=torch.float64, requires_grad=True)
            value = loss(scale * logits, target, weight)
            value.backward()
            torch.distributed.all_reduce(scale.grad)
            results[rank, name] = (value.item(), scale.grad.item() / 2)  # DDP averages
    finally:
        torch.distributed.destroy_process_group()


def test_a_batch_split_over_two_processes_has_the_whole_batchs_loss_and_gradient(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        arguments = (str(tmp_path / "store"), results)
        torch.multiprocessing.spawn(_loss_in_process, arguments, nprocs=2)
        results = dict(results)
    assert len(results) >= 20
    for (_, name), (value, slope) in results.items():
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        logits, target, weight = (values.detach() for values in random_case((4, 2, 6, 5, 4)))
        expected = SPLIT[name](scale * logits, target, weight)
        (expected_slope,) = torch.autograd.grad(expected, scale)
        assert value == pytest.approx(expected.item(), rel=1e-12), name
        assert slope == pytest.approx(expected_slope.item(), rel=1e-10), name
