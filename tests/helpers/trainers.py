"""A trainer of seconds, and batches to train it on."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tversky_seg.data.patches.batch import Batch, Sample
from tversky_seg.data.patches.packing import Room
from tversky_seg.losses import TverskyLoss
from tversky_seg.models import UNet3D
from tversky_seg.runtime.checkpoints import load_checkpoint
from tversky_seg.training import Trainer
from tversky_seg.training.validation import Validation


@dataclass(frozen=True)
class Blobs:
    """Batch k, drawn from k alone: bright cubes in noise."""

    spoiled: tuple[int, ...] = ()
    dies_at: int | None = None
    with_components: bool = True
    with_cells: bool = False

    def __getitem__(self, step: int) -> Batch:
        if step == self.dies_at:
            raise OSError(f"step {step}: the disk is gone")
        rng = np.random.default_rng(step)
        target = np.zeros((2, 1, 8, 8, 8), np.float32)
        target[:, :, 2:5, 2:5, 2:5] = 1
        image = target + rng.normal(0, 0.3, target.shape).astype(np.float32)
        if step in self.spoiled:
            image[0, 0, 0, 0, 0] = np.nan
        return Batch(
            image=torch.from_numpy(image),
            target=torch.from_numpy(target),
            components=torch.from_numpy(target.astype(np.int32)),
            case_ids=["ann", "bob"],
            starts=[[step, 0, 0], [0, 1, 2]],
        )

    def samples(self, step: int, *, room: Room | None = None) -> list[Sample]:
        """The same batch as a GPU gets it."""
        batch = self[step]
        assert batch.components is not None
        samples = []
        for number, (x, y, z) in enumerate(batch.starts):
            sample = Sample(
                image=batch.image[number],
                scale=None,
                labels=batch.components[number],
                change=None,
                has_lesion=True,
                has_ignored=False,
                n_labels=1,
                n_raters=0,
                case_id=batch.case_ids[number],
                start=(x, y, z),
            )
            samples.append(sample)
        return samples


def a_trainer(**settings: Any) -> Trainer:
    torch.manual_seed(0)
    model = UNet3D(in_channels=1, out_channels=1, width=4, n_levels=2, dropout=0.2)
    defaults = {
        "max_steps": 6,
        "checkpoint_every": 2,
        "validate_every": 3,
        "log_every": 2,
        "seed": 5,
    }
    adamw = partial(torch.optim.AdamW, lr=0.02)
    parts = {"model": model, "loss": TverskyLoss(), "optimizer": adamw, "device": "cpu"}
    return Trainer(**{**parts, **defaults, **settings})


def weights(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_checkpoint(path)["model"]
    return state


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def fake_validation(*values: float) -> Callable[[nn.Module], Validation]:
    """Make a validation that gives these values in turn, each with a tenth of it as threshold."""
    remaining = iter(values)

    def validate(model: nn.Module) -> Validation:
        torch.rand(3)  # a validation that draws at random must not disturb the training
        value = next(remaining)
        return Validation({"dice": value}, threshold=value / 10)

    return validate


def rows(run: Path, name: str) -> dict[int, float]:
    """Read the values of a name in metrics.csv, by step."""
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        table = [row for row in csv.DictReader(file) if row["name"] == name]
    values = {int(row["step"]): float(row["value"]) for row in table}
    assert len(values) == len(table), "duplicate step"
    return values
