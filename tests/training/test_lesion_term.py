"""A term that counts each lesion, in a step: added to the loss, at full resolution, in parts."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from helpers.trainers import Blobs, a_trainer
from tversky_seg.losses import BCELoss, CellTerm, DeepSupervision, LargestProbabilityTerm
from tversky_seg.models import UNet3D
from tversky_seg.training.step import forward_backward

TERM = LargestProbabilityTerm(weight=0.5)


class Levels(nn.Module):
    """Image as logits, at full and at half resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.gain * image
        return logits, logits[..., ::2, ::2, ::2]


def loss_of_step(network: nn.Module, loss: nn.Module, batch, **settings) -> torch.Tensor:
    return forward_backward(
        network,
        loss,
        batch,
        weighting=None,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        device=torch.device("cpu"),
        precision="fp32",
        **settings,
    )


def test_a_term_is_added_at_full_resolution() -> None:
    batch = Blobs()[1]
    loss = DeepSupervision(BCELoss())
    without = loss_of_step(Levels(), loss, batch)
    with_term = loss_of_step(Levels(), loss, batch, lesion_term=TERM)
    of_term = TERM(batch.image, batch.target, batch.components)
    torch.testing.assert_close(with_term - without, of_term)


def test_cells_are_used_where_a_batch_has_them() -> None:
    batch = Blobs()[1]
    cells = torch.ones_like(batch.components)
    term = CellTerm()
    results = []
    for each in (batch, replace(batch, cells=cells)):
        results.append(loss_of_step(Levels(), DeepSupervision(BCELoss()), each, lesion_term=term))
    of_cells = term(batch.image, batch.target, cells)
    of_components = term(batch.image, batch.target, batch.components)
    torch.testing.assert_close(results[1] - results[0], of_cells - of_components)


def test_a_term_of_parts_is_the_mean_of_its_parts() -> None:
    batch = Blobs()[1]
    settings = {"lesion_term": TERM, "n_parts": 2}
    parts = loss_of_step(Levels(), DeepSupervision(BCELoss()), batch, **settings)
    singles = []
    for number in range(2):
        one = replace(
            batch,
            image=batch.image[[number]],
            target=batch.target[[number]],
            components=batch.components[[number]],
        )
        singles.append(loss_of_step(Levels(), DeepSupervision(BCELoss()), one, lesion_term=TERM))
    torch.testing.assert_close(parts, torch.stack(singles).mean())


def test_a_batch_without_components_is_refused() -> None:
    batch = replace(Blobs()[1], components=None)
    with pytest.raises(ValueError, match="with_components=True"):
        loss_of_step(Levels(), DeepSupervision(BCELoss()), batch, lesion_term=TERM)


def test_a_trainer_tells_what_its_batches_must_hold() -> None:
    assert not a_trainer().needs_components
    assert a_trainer(lesion_term=TERM).needs_components
    assert a_trainer(lesion_term=TERM).reach_of_cells_mm is None
    assert a_trainer(lesion_term=CellTerm(max_distance_mm=4)).reach_of_cells_mm == 4


def test_a_term_of_a_trainer_learns() -> None:
    model = UNet3D(in_channels=1, out_channels=1, width=4, n_levels=2)
    trainer = a_trainer(model=model, lesion_term=CellTerm(), max_steps=30)
    losses = [trainer.train_step(step, Blobs()[step]).loss for step in range(1, 31)]
    assert losses[-1] < 0.7 * losses[0]
