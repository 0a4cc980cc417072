"""Results that arrive while the next step runs, as from a GPU: rows, skips and messages stay exact.

The CPU stands in for the GPU: its results are known at once, but are treated as late ones.
"""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers.trainers import Blobs, a_trainer, assert_same, fake_validation, weights
from tversky_seg.models import UNet3D
from tversky_seg.runtime.checkpoints import load_checkpoint
from tversky_seg.runtime.preemption import Preempted
from tversky_seg.training import run as training_run
from tversky_seg.training import trainer as training
from tversky_seg.training.step_result import StepResult
from tversky_seg.training.trainer import Trainer


class LateResult(StepResult):
    """A result that says that reading it has to wait."""

    @property
    def is_late(self) -> bool:
        return True


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """All results of this test are late."""
    monkeypatch.setattr(training, "StepResult", LateResult)


def metrics_of(run: Path) -> bytes:
    return (run / "metrics.csv").read_bytes()


def test_late_results_change_no_row_and_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"max_steps": 8, "log_every": 2, "checkpoint_every": 5, "validate_every": 4}
    for name, kind in (("known", StepResult), ("late", LateResult)):
        monkeypatch.setattr(training, "StepResult", kind)
        validate = fake_validation(0.4, 0.8)
        a_trainer(**settings).fit(Blobs(spoiled=(1, 4, 5)), tmp_path / name, validate=validate)
    assert metrics_of(tmp_path / "late") == metrics_of(tmp_path / "known")
    for file in ("last.pt", "previous.pt", "best.pt"):
        known, after = (
            load_checkpoint(tmp_path / name / "checkpoints" / file) for name in ("known", "late")
        )
        assert_same(known["model"], after["model"])
        for entry in ("step", "n_skipped", "n_skipped_in_a_row", "best"):
            assert after[entry] == known[entry]
        assert str(after["losses"]) == str(known["losses"])  # NaN equals NaN here
    timings = (tmp_path / "late" / "timings.csv").read_text().splitlines()
    names = {line.split(",")[1] for line in timings}
    assert {"data_wait_s", "step_s", "validation_s", "checkpoint_s"} <= names


def test_a_result_is_read_after_the_next_step_began(
    tmp_path: Path, late: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    take_step = Trainer.train_step
    add_scalars = training_run.Recorder.metrics

    def train_step(self: Trainer, step: int, batch: Any) -> StepResult:
        events.append(f"step {step}")
        return take_step(self, step, batch)

    def metrics(self: Any, step: int, values: Any) -> None:
        events.append(f"row {step}")
        add_scalars(self, step, values)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    monkeypatch.setattr(training_run.Recorder, "metrics", metrics)
    a_trainer(max_steps=5, log_every=1, checkpoint_every=3, validate_every=9).fit(Blobs(), tmp_path)
    assert events == [
        *("step 1", "step 2", "row 1", "step 3", "row 2", "row 3"),  # step 3 writes a checkpoint
        *("step 4", "step 5", "row 4", "row 5"),
    ]


@pytest.mark.parametrize("checkpoint_every", [2, 4])
def test_the_message_names_the_step_that_was_skipped_last_and_its_patches(
    tmp_path: Path, late: None, checkpoint_every: int
) -> None:
    trainer = a_trainer(max_skipped=3, max_steps=9, checkpoint_every=checkpoint_every)
    with pytest.raises(FloatingPointError) as fault:
        trainer.fit(Blobs(spoiled=(1, 3, 4, 5)), tmp_path)
    assert str(fault.value).startswith("step 6: no finite gradient in 3 steps in a row")
    assert "ann at [5, 0, 0], bob at [0, 1, 2]" in str(fault.value)
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt")["step"] == 4


def test_a_run_that_is_stopped_reads_all_results_before_it_saves(
    tmp_path: Path, whole: Path, late: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def reason_to_stop(max_hours: float | None) -> str | None:
        asked.append(1)
        return "SIGTERM" if len(asked) == 5 else None

    monkeypatch.setattr(training_run, "reason_to_stop", reason_to_stop)
    validations = fake_validation(0.4, 0.8)
    with pytest.raises(Preempted, match="SIGTERM after step 5 of 6"):
        a_trainer().fit(Blobs(), tmp_path, validate=validations)
    state = load_checkpoint(tmp_path / "checkpoints" / "last.pt")
    assert (state["step"], len(state["losses"])) == (5, 1)
    a_trainer().fit(Blobs(), tmp_path, validate=validations)
    assert metrics_of(tmp_path) == metrics_of(whole)
    file = Path("checkpoints") / "last.pt"
    assert_same(weights(tmp_path / file), weights(whole / file))


# Steps that the device skips by itself

FUSED = {
    "AdamW": partial(torch.optim.AdamW, lr=0.02, fused=True),
    "Adam": partial(torch.optim.Adam, lr=0.02, fused=True, amsgrad=True),
    "SGD": partial(torch.optim.SGD, lr=0.02, momentum=0.9, nesterov=True, fused=True),
    "plain SGD": partial(torch.optim.SGD, lr=0.02, fused=True),
}


@pytest.mark.parametrize("optimizer", FUSED.values(), ids=FUSED.keys())
@pytest.mark.parametrize("spoiled", [(3,), (1, 2)])
def test_a_device_skips_a_step_as_the_host_does(
    monkeypatch: pytest.MonkeyPatch, optimizer: Any, spoiled: tuple[int, ...]
) -> None:
    states: list[list[dict[str, Any]]] = []
    for is_on_device in (False, True):
        if is_on_device:
            # As `can_skip_on_device`, but on the CPU.
            monkeypatch.setattr(training, "can_skip_on_device", lambda made: bool(made.state))
        torch.manual_seed(0)
        model = UNet3D(in_channels=1, out_channels=1, width=4, n_levels=2, norm="batch")
        trainer = a_trainer(model=model, ema_decay=0.9, optimizer=optimizer)
        states.append([])
        for step in range(1, 6):
            result = trainer.train_step(step, Blobs(spoiled=spoiled)[step])
            assert result.is_skipped is (step in spoiled)
            states[-1].append(copied(trainer))
    for step, (by_host, by_device) in enumerate(zip(*states, strict=True), 1):
        assert_same(by_host["model"], by_device["model"])
        assert_same(by_host["moments"], by_device["moments"])
        # The average moves by other operations, but in a skipped step not at all.
        for name, tensor in by_host["average"].items():
            assert torch.allclose(tensor.double(), by_device["average"][name].double(), atol=1e-6)
        if step in spoiled and step > 1:
            assert_same(states[1][step - 2]["average"], by_device["average"])


def copied(trainer: Trainer) -> dict[str, dict[str, torch.Tensor]]:
    """Everything that a step changes."""
    moments = {}
    for number, entries in trainer.torch_optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if value is not None:
                moments[f"{number}.{name}"] = value.clone()
    networks = {"model": trainer.model, "average": trainer.average.network}
    state = {"moments": moments}
    for name, network in networks.items():
        state[name] = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    return state


class Counter(nn.Module):
    """Buffers of several types and shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("table", torch.arange(6.0).view(2, 3))
        self.register_buffer("count", torch.tensor(7))


@pytest.mark.parametrize(
    ("condition", "is_put_back"),
    [(None, True), (torch.tensor(True), True), (torch.tensor(False), False)],
)
def test_buffers_are_put_back_where_the_condition_holds(
    condition: torch.Tensor | None, is_put_back: bool
) -> None:
    network = Counter()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    saved = training.SavedBuffers(network)
    for buffer in network.buffers():
        buffer.add_(1)
    network.mean.fill_(torch.nan)
    changed = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    saved.put_back(condition)
    state = network.state_dict()
    if is_put_back:
        assert_same(state, before)
    else:
        assert torch.equal(state["table"], changed["table"])
        assert torch.equal(state["count"], changed["count"])
        assert torch.isnan(state["mean"]).all()
