"""The trainer: steps, validation, and settings that are refused."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers.trainers import Blobs, a_trainer, assert_same, fake_validation, rows, weights
from tversky_seg.config.messages import one_line
from tversky_seg.data.patches.batch import Batch, stack_samples
from tversky_seg.losses import BCELoss
from tversky_seg.models import UNet3D
from tversky_seg.runtime.checkpoints import load_checkpoint
from tversky_seg.training.validation import Validation, check_monitor


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    a_trainer(max_steps=40, log_every=10, checkpoint_every=40).fit(Blobs(), tmp_path)
    losses = rows(tmp_path, "loss")
    assert losses[40] < 0.6 * losses[10]


def test_steps_see_batches_in_order_once_each(tmp_path: Path) -> None:
    steps = []

    class Watched(Blobs):
        def __getitem__(self, step: int) -> Batch:
            steps.append(step)
            return super().__getitem__(step)

    a_trainer(max_steps=3).fit(Watched(), tmp_path)
    a_trainer(max_steps=3).fit(Watched(), tmp_path)  # finished: nothing is read again
    assert steps == [0, 1, 2]


def test_validation_disturbs_nothing(tmp_path: Path, whole: Path) -> None:
    a_trainer(validate_every=1).fit(Blobs(), tmp_path, validate=fake_validation(*[0.5] * 6))
    assert_same(
        weights(tmp_path / "checkpoints" / "last.pt"), weights(whole / "checkpoints" / "last.pt")
    )


def test_the_last_step_always_validates_and_checkpoints(tmp_path: Path) -> None:
    a_trainer(max_steps=5, validate_every=100, checkpoint_every=100).fit(
        Blobs(), tmp_path, validate=fake_validation(0.3)
    )
    assert rows(tmp_path, "val_dice") == {5: 0.3}
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt")["step"] == 5
    assert load_checkpoint(tmp_path / "checkpoints" / "best.pt")["step"] == 5


def test_the_best_checkpoint_is_the_highest_with_the_threshold_chosen_there(tmp_path: Path) -> None:
    best = a_trainer(validate_every=2).fit(
        Blobs(), tmp_path, validate=fake_validation(0.2, 0.9, 0.5)
    )
    checkpoint = load_checkpoint(best)
    assert checkpoint["step"] == 4
    assert checkpoint["best"] == 0.9
    assert checkpoint["threshold"] == pytest.approx(0.09)


def test_a_measure_that_is_never_defined_keeps_the_last(tmp_path: Path) -> None:
    best = a_trainer(validate_every=2).fit(
        Blobs(), tmp_path, validate=fake_validation(float("nan"), float("nan"), float("nan"))
    )
    assert load_checkpoint(best)["step"] == 6


def test_without_validation_the_best_is_the_last_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="tversky_seg"):
        best = a_trainer().fit(Blobs(), tmp_path)
    assert "no validation cases" in caplog.text
    assert load_checkpoint(best)["threshold"] == 0.5
    assert_same(weights(best), weights(tmp_path / "checkpoints" / "last.pt"))


def test_what_is_kept_stands_in_the_checkpoint(tmp_path: Path) -> None:
    best = a_trainer(max_steps=1).fit(Blobs(), tmp_path, keep={"config": {"seed": 5}})
    assert load_checkpoint(best)["config"] == {"seed": 5}
    assert {"model", "optimizer", "schedule", "step", "threshold"} <= load_checkpoint(best).keys()


def test_a_step_without_a_finite_gradient_is_skipped_and_counted(tmp_path: Path) -> None:
    constant = {
        "schedule": lambda step, max_steps: 1.0,
        "max_steps": 3,
        "log_every": 1,
        "checkpoint_every": 1,
    }
    a_trainer(**constant).fit(Blobs(spoiled=(1,)), tmp_path)
    assert rows(tmp_path, "skipped") == {1: 0, 2: 1, 3: 1}
    assert all(
        torch.isfinite(tensor).all()
        for tensor in weights(tmp_path / "checkpoints" / "last.pt").values()
    )
    steps_taken = load_checkpoint(tmp_path / "checkpoints" / "last.pt")["optimizer"]["state"][0][
        "step"
    ]
    assert steps_taken == 2


def test_a_skipped_step_leaves_no_trace_in_batch_norm_or_the_average() -> None:
    model = UNet3D(in_channels=1, out_channels=1, width=4, n_levels=2, norm="batch")
    trainer = a_trainer(model=model, ema_decay=0.9)
    trainer.train_step(1, Blobs()[1])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    average = trainer.average.network.state_dict()
    average_before = {name: tensor.clone() for name, tensor in average.items()}
    assert trainer.train_step(2, Blobs(spoiled=(2,))[2]).is_skipped
    assert_same(before, model.state_dict())
    assert_same(average_before, average)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("source", ["loss", "gradient"])
def test_infinity_and_nan_in_loss_or_gradient_change_no_weight(value: float, source: str) -> None:
    class Spoiled(nn.Module):
        def forward(
            self, logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None
        ) -> torch.Tensor:
            if source == "gradient":
                logits.register_hook(lambda gradient: gradient * value)
                return logits.mean()
            return logits.mean() * value

    trainer = a_trainer()
    trainer.loss = Spoiled()
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    result = trainer.train_step(1, Blobs()[0])
    assert_same(before, trainer.model.state_dict())
    assert result.is_skipped


def test_memory_that_runs_out_is_one_line_with_what_to_lower() -> None:
    faults = [
        torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"),
        MemoryError(),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ]
    for fault in faults:
        line = one_line(fault, config_name="train")
        assert line.startswith("trainer.batch_size: ")
        assert "sampler.patch_size" in line
        assert "\n" not in line


def test_a_run_of_skipped_steps_ends_the_training_and_names_the_batch(tmp_path: Path) -> None:
    trainer = a_trainer(max_skipped=3, max_steps=9)
    with pytest.raises(FloatingPointError) as fault:
        trainer.fit(Blobs(spoiled=(1, 3, 4, 5)), tmp_path)
    message = str(fault.value)
    assert message.startswith("step 6: ")
    assert "ann at [5, 0, 0], bob at [0, 1, 2]" in message
    assert "\n" not in message
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt")["step"] == 4


def test_the_schedule_sets_the_learning_rate_of_each_step(tmp_path: Path) -> None:
    halving = a_trainer(schedule=lambda step, max_steps: 0.5**step, log_every=1, max_steps=3)
    halving.fit(Blobs(), tmp_path)
    assert rows(tmp_path, "learning_rate") == pytest.approx({1: 0.02, 2: 0.01, 3: 0.005})


def test_the_gradient_is_clipped_to_its_norm() -> None:
    settings: dict[str, Any] = {"optimizer": partial(torch.optim.SGD, lr=1.0), "clip_norm": 0.125}
    trainer = a_trainer(**settings)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train_step(1, Blobs()[0])
    moved = torch.cat(
        [(a - b).flatten() for a, b in zip(trainer.model.parameters(), before, strict=True)]
    )
    assert moved.norm().item() == pytest.approx(0.125, rel=1e-3)


def test_voxel_weights_come_from_the_components() -> None:
    received = []

    class Loss(nn.Module):
        def forward(
            self, logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor
        ) -> torch.Tensor:
            received.append(weight)
            return logits.square().mean()

    trainer = a_trainer(weighting=lambda components: 1.0 + components)
    trainer.loss = Loss()
    trainer.train_step(1, Blobs()[0])
    assert received[0].unique().tolist() == [1.0, 2.0]


def test_the_weighting_gets_the_bound_that_the_batch_carries() -> None:
    bounds = []

    def weighting(components: torch.Tensor, n_labels: int) -> torch.Tensor:
        bounds.append(n_labels)
        return 1.0 + components

    trainer = a_trainer(weighting=weighting)
    trainer.train_step(1, replace(Blobs()[0], n_labels=7))
    assert bounds == [7]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_keeps_weights_in_float32(tmp_path: Path, precision: str) -> None:
    a_trainer(max_steps=2, precision=precision).fit(Blobs(), tmp_path)
    for tensor in weights(tmp_path / "checkpoints" / "last.pt").values():
        assert tensor.dtype == torch.float32
        assert torch.isfinite(tensor).all()


def test_a_measure_that_validation_does_not_give_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"monitor: f2.*dice"):
        a_trainer(monitor="f2").fit(Blobs(), tmp_path, validate=fake_validation(0.5))


def test_only_measures_of_which_more_is_better_can_be_monitored() -> None:
    check_monitor("pr_auc", classes=("lesion",))
    check_monitor("tumour/f2", classes=("liver", "tumour"))
    for monitor, classes in (
        ("lesion_fpr", ("lesion",)),
        ("lesion/dice", ("lesion",)),
        ("dise", ("lesion",)),
    ):
        with pytest.raises(ValueError, match=rf"trainer\.monitor: {monitor}.*dice"):
            check_monitor(monitor, classes=classes)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_steps": 0},
        {"batch_size": -1},
        {"n_workers": -1},
        {"seed": -1},
        {"clip_norm": 0.0},
        {"max_hours": 0.0},
        {"patience": 0},
        {"accumulate": 3},
        {"ema_decay": 1.0},
        {"threads": 0},
        {"device": "gpu"},
        {"precision": "fp8"},
    ],
)
def test_settings_out_of_range_are_refused_at_once(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=name) as error:
        a_trainer(**settings)
    assert f"got {value}" in str(error.value)


def test_a_batch_in_parts_gives_the_same_gradient_where_the_loss_is_a_mean(tmp_path: Path) -> None:
    results = []
    for accumulate in (1, 2):
        trainer = a_trainer(max_steps=3, accumulate=accumulate)
        trainer.loss = BCELoss()
        for part in trainer.model.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        trainer.fit(Blobs(), tmp_path / str(accumulate))
        results.append(weights(tmp_path / str(accumulate) / "checkpoints" / "last.pt"))
    assert all(torch.allclose(results[0][name], results[1][name], atol=1e-4) for name in results[0])


def test_the_average_of_the_weights_is_validated_and_kept_beside(tmp_path: Path) -> None:
    validated_networks = []

    def validate(network: nn.Module) -> Validation:
        validated_networks.append([parameter.clone() for parameter in network.parameters()])
        return Validation({"dice": 0.5 + len(validated_networks)})

    trainer = a_trainer(ema_decay=0.5)
    trainer.fit(Blobs(), tmp_path, validate=validate)
    best = load_checkpoint(tmp_path / "checkpoints" / "best.pt")
    last = load_checkpoint(tmp_path / "checkpoints" / "last.pt")
    assert_same(best["model"], last["model_average"])
    assert_same(best["model_last"], last["model"])
    assert all(
        torch.equal(a, b)
        for a, b in zip(validated_networks[-1], trainer.average.network.parameters(), strict=True)
    )
    assert any(not torch.equal(best["model"][name], last["model"][name]) for name in last["model"])


def test_a_training_that_no_longer_improves_ends_and_stays_ended(tmp_path: Path) -> None:
    settings = {"max_steps": 20, "validate_every": 2, "patience": 2}
    best = a_trainer(**settings).fit(
        Blobs(), tmp_path, validate=fake_validation(0.4, 0.6, 0.5, 0.6)
    )
    assert rows(tmp_path, "val_dice") == {2: 0.4, 4: 0.6, 6: 0.5, 8: 0.6}
    assert load_checkpoint(best)["step"] == 4
    assert a_trainer(**settings).fit(Blobs(), tmp_path, validate=fake_validation()) == best


def test_a_run_starts_from_the_weights_of_another(tmp_path: Path, whole: Path) -> None:
    source = whole / "checkpoints" / "best.pt"
    assert_same(weights(source), a_trainer(init_from=source).model.state_dict())


def test_a_training_logs_its_start_once_when_it_begins(
    tmp_path: Path, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = whole / "checkpoints" / "best.pt"
    with caplog.at_level(logging.INFO, logger="tversky_seg"):
        trainer = a_trainer(init_from=source, max_steps=2)
        assert "starting from" not in caplog.text  # the run has no log yet
        trainer.fit(Blobs(), tmp_path)
        assert caplog.text.count(f"starting from {source}") == 1
        a_trainer(init_from=source, max_steps=2).fit(Blobs(), tmp_path)
    assert caplog.text.count("starting from") == 1


def test_recomputing_blocks_changes_no_bit(tmp_path: Path) -> None:
    results = []
    for recompute in (False, True):
        run = tmp_path / str(recompute)
        a_trainer(recompute=recompute, max_steps=3).fit(Blobs(), run)
        results.append(weights(run / "checkpoints" / "last.pt"))
    assert_same(*results)


def test_timings_are_seconds_of_a_step(tmp_path: Path) -> None:
    a_trainer(max_steps=4, log_every=4).fit(Blobs(), tmp_path)
    names = {line.split(",")[1] for line in (tmp_path / "timings.csv").read_text().splitlines()[1:]}
    assert {"data_wait_s", "step_s"} <= names


def test_the_batches_of_tests_are_those_that_a_gpu_gets() -> None:
    batch = Blobs()[3]
    stacked = stack_samples(Blobs().samples(3), with_components=True)
    for name in ("image", "target", "components"):
        assert torch.equal(getattr(stacked, name), getattr(batch, name))
    assert (stacked.case_ids, stacked.starts) == (batch.case_ids, batch.starts)
