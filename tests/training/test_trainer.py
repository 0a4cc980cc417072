import copy
import csv
import logging
import resource
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers.trainers import Blobs, a_trainer, assert_same, weights
from tversky_seg.config.messages import one_line
from tversky_seg.data.patches.batches import Batch
from tversky_seg.losses import BCELoss
from tversky_seg.models import UNet3D
from tversky_seg.runtime.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from tversky_seg.training import run as training_run
from tversky_seg.training.validation import Validation, check_monitor


def judged(*values: float) -> Callable[[nn.Module], Validation]:
    """A validation that gives these values in turn, each with a threshold of a tenth of it, and draws at random."""
    left = iter(values)

    def validate(model: nn.Module) -> Validation:
        torch.rand(3)
        value = next(left)
        return Validation({"dice": value}, threshold=value / 10)

    return validate


def rows(run: Path, name: str) -> dict[int, float]:
    """Step -> value of one row of metrics.csv."""
    with (run / "metrics.csv").open() as file:
        found = [
            (int(row["step"]), float(row["value"]))
            for row in csv.DictReader(file)
            if row["name"] == name
        ]
    assert len(dict(found)) == len(found), "a step stands twice"
    return dict(found)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps that nothing stopped."""
    run = tmp_path_factory.mktemp("whole")
    a_trainer().fit(Blobs(), run, validate=judged(0.4, 0.8))
    return run


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    a_trainer(max_steps=40, log_every=10, checkpoint_every=40).fit(Blobs(), tmp_path)
    losses = rows(tmp_path, "loss")
    assert losses[40] < 0.6 * losses[10]


def test_steps_see_batches_in_order_once_each(tmp_path: Path) -> None:
    seen = []

    class Watched(Blobs):
        def __getitem__(self, step: int) -> Batch:
            seen.append(step)
            return super().__getitem__(step)

    a_trainer(max_steps=3).fit(Watched(), tmp_path)
    a_trainer(max_steps=3).fit(Watched(), tmp_path)  # finished: nothing is read again
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("stopped_at", [1, 2, 3, 5])
def test_a_stopped_training_goes_on_bit_for_bit(
    tmp_path: Path, whole: Path, stopped_at: int
) -> None:
    with pytest.raises(OSError, match="the disk is gone"):
        a_trainer().fit(Blobs(dies_at=stopped_at), tmp_path, validate=judged(0.4, 0.8))
    done = stopped_at // 2 * 2  # steps with a checkpoint
    a_trainer().fit(Blobs(), tmp_path, validate=judged(*([0.4, 0.8] if done < 3 else [0.8])))
    for name in ("last", "best"):
        there, here = (
            load_checkpoint(run / "checkpoints" / f"{name}.pt") for run in (whole, tmp_path)
        )
        assert_same(there["model"], here["model"])
        assert_same(there["optimizer"]["state"][0], here["optimizer"]["state"][0])
        assert (there["step"], there["best"], there["threshold"]) == (
            here["step"],
            here["best"],
            here["threshold"],
        )
    assert (tmp_path / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(
    tmp_path: Path, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "checkpoints" / "last.pt").write_bytes(b"half a ch")
    with caplog.at_level(logging.INFO, logger="tversky_seg"):
        a_trainer().fit(Blobs(), run, validate=judged(0.8))
    assert "last.pt: damaged" in caplog.text
    assert "resuming at step 4 of 6" in caplog.text
    assert_same(
        weights(run / "checkpoints" / "last.pt"), weights(whole / "checkpoints" / "last.pt")
    )
    assert (run / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


@pytest.mark.parametrize("has_validation", [True, False])
def test_a_repeated_best_checkpoint_is_the_same_file(tmp_path: Path, has_validation: bool) -> None:
    """predictions.json holds its checksum: other bytes would refuse the predictions there are."""
    validate = judged(0.4, 0.8, 0.8) if has_validation else None
    keep = {"config": {"optimizer": {"lr": 0.02, "betas": [0.9, 0.999]}, "step": "lr"}}
    best = a_trainer(ema_decay=0.9).fit(Blobs(), tmp_path, validate=validate, keep=keep)
    before = best.read_bytes()
    (tmp_path / "checkpoints" / "last.pt").write_bytes(b"half a ch")
    a_trainer(ema_decay=0.9).fit(Blobs(), tmp_path, validate=validate, keep=copy.deepcopy(keep))
    assert best.read_bytes() == before


def test_validation_disturbs_nothing(tmp_path: Path, whole: Path) -> None:
    a_trainer(validate_every=1).fit(Blobs(), tmp_path, validate=judged(*[0.5] * 6))
    assert_same(
        weights(tmp_path / "checkpoints" / "last.pt"), weights(whole / "checkpoints" / "last.pt")
    )


def test_a_finished_training_is_left_alone(tmp_path: Path, whole: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    best = a_trainer().fit(Blobs(), run, validate=judged())
    assert best == run / "checkpoints" / "best.pt"
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_the_last_step_always_validates_and_checkpoints(tmp_path: Path) -> None:
    a_trainer(max_steps=5, validate_every=100, checkpoint_every=100).fit(
        Blobs(), tmp_path, validate=judged(0.3)
    )
    assert rows(tmp_path, "val_dice") == {5: 0.3}
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt")["step"] == 5
    assert load_checkpoint(tmp_path / "checkpoints" / "best.pt")["step"] == 5


def test_the_best_checkpoint_is_the_highest_with_the_threshold_chosen_there(tmp_path: Path) -> None:
    best = a_trainer(validate_every=2).fit(Blobs(), tmp_path, validate=judged(0.2, 0.9, 0.5))
    kept = load_checkpoint(best)
    assert (kept["step"], kept["best"], kept["threshold"]) == (4, 0.9, pytest.approx(0.09))


def test_a_measure_that_is_never_defined_keeps_the_last(tmp_path: Path) -> None:
    best = a_trainer(validate_every=2).fit(
        Blobs(), tmp_path, validate=judged(float("nan"), float("nan"), float("nan"))
    )
    assert load_checkpoint(best)["step"] == 6


def test_a_second_training_in_the_same_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_run, "SECONDS_TO_WAIT", 0.0)
    refusals = []

    def validate(model: nn.Module) -> Validation:
        with pytest.raises(CheckpointError, match=tmp_path.name) as refusal:
            a_trainer().fit(Blobs(), tmp_path)
        refusals.append(str(refusal.value))
        return Validation({"dice": 0.5})

    a_trainer(max_steps=3).fit(Blobs(), tmp_path, validate=validate)
    assert len(refusals) == 1
    assert rows(tmp_path, "loss").keys() == {2, 3}


def test_what_a_killed_process_left_of_a_checkpoint_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / ".scratch-0123.pt").write_bytes(b"half a ch")
    a_trainer(max_steps=1).fit(Blobs(), tmp_path)
    assert {path.name for path in folder.iterdir()} == {"best.pt", "last.pt"}


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
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_infinity_and_nan_in_loss_or_gradient_change_no_weight(value: float, where: str) -> None:
    class Spoiled(nn.Module):
        def forward(
            self, logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None
        ) -> torch.Tensor:
            if where == "gradient":
                logits.register_hook(lambda gradient: gradient * value)
                return logits.mean()
            return logits.mean() * value

    trainer = a_trainer()
    trainer.loss = Spoiled()
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    result = trainer.train_step(1, Blobs()[0])
    assert_same(before, trainer.model.state_dict())
    assert result.is_skipped


def test_a_disk_that_fills_during_a_checkpoint_costs_only_the_steps_since_the_one_before(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def save_on_a_small_disk(path: Path, content: dict[str, Any], **settings: Any) -> None:
        if content["step"] == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        save_checkpoint(path, content, **settings)

    monkeypatch.setattr(training_run, "save_checkpoint", save_on_a_small_disk)
    try:
        with pytest.raises(CheckpointError, match=r"last\.pt.*File too large"):
            a_trainer().fit(Blobs(), run, validate=judged(0.4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        monkeypatch.undo()
    assert load_checkpoint(run / "checkpoints" / "last.pt")["step"] == 2
    assert not list((run / "checkpoints").glob(".*"))
    a_trainer().fit(Blobs(), run, validate=judged(0.4, 0.8))
    assert_same(*(weights(each / "checkpoints" / "last.pt") for each in (whole, run)))


def test_memory_that_runs_out_is_one_line_with_what_to_lower() -> None:
    for fault in (torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"), MemoryError()):
        said = one_line(fault, config_name="train")
        assert said.startswith("trainer.batch_size: ")
        assert "sampler.patch_size" in said
        assert "\n" not in said


def test_a_run_of_skipped_steps_ends_the_training_and_names_the_batch(tmp_path: Path) -> None:
    trainer = a_trainer(max_skipped=3, max_steps=9)
    with pytest.raises(FloatingPointError) as fault:
        trainer.fit(Blobs(spoiled=(1, 3, 4, 5)), tmp_path)
    said = str(fault.value)
    assert said.startswith("step 6: ")
    assert "ann at [5, 0, 0], bob at [0, 1, 2]" in said
    assert "\n" not in said
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt")["step"] == 4


def test_the_count_of_skipped_steps_survives_a_stop(tmp_path: Path) -> None:
    spoiled = (1, 3, 4, 5)
    with pytest.raises(OSError, match="gone"):
        a_trainer(max_skipped=3).fit(Blobs(spoiled=spoiled, dies_at=5), tmp_path)
    with pytest.raises(FloatingPointError, match=r"step 6: .*3 steps"):
        a_trainer(max_skipped=3).fit(Blobs(spoiled=spoiled), tmp_path)


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
    seen = []

    class Loss(nn.Module):
        def forward(
            self, logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor
        ) -> torch.Tensor:
            seen.append(weight)
            return logits.square().mean()

    trainer = a_trainer(weighting=lambda components: 1.0 + components)
    trainer.loss = Loss()
    trainer.train_step(1, Blobs()[0])
    assert seen[0].unique().tolist() == [1.0, 2.0]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_keeps_weights_in_float32(tmp_path: Path, precision: str) -> None:
    a_trainer(max_steps=2, precision=precision).fit(Blobs(), tmp_path)
    kept = weights(tmp_path / "checkpoints" / "last.pt")
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())


def test_a_measure_that_validation_does_not_give_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"monitor: f2.*dice"):
        a_trainer(monitor="f2").fit(Blobs(), tmp_path, validate=judged(0.5))


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
    found = []
    for accumulate in (1, 2):
        trainer = a_trainer(max_steps=3, accumulate=accumulate)
        trainer.loss = BCELoss()
        for part in trainer.model.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        trainer.fit(Blobs(), tmp_path / str(accumulate))
        found.append(weights(tmp_path / str(accumulate) / "checkpoints" / "last.pt"))
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-4) for name in found[0])


def test_the_average_of_the_weights_is_judged_and_kept_beside(tmp_path: Path) -> None:
    judged_networks = []

    def validate(network: nn.Module) -> Validation:
        judged_networks.append([parameter.clone() for parameter in network.parameters()])
        return Validation({"dice": 0.5 + len(judged_networks)})

    trainer = a_trainer(ema_decay=0.5)
    trainer.fit(Blobs(), tmp_path, validate=validate)
    best = load_checkpoint(tmp_path / "checkpoints" / "best.pt")
    last = load_checkpoint(tmp_path / "checkpoints" / "last.pt")
    assert_same(best["model"], last["model_average"])
    assert_same(best["model_last"], last["model"])
    assert all(
        torch.equal(a, b)
        for a, b in zip(judged_networks[-1], trainer.average.network.parameters(), strict=True)
    )
    assert any(not torch.equal(best["model"][name], last["model"][name]) for name in last["model"])


@pytest.mark.parametrize("stopped_at", [3, 5])
def test_an_average_goes_on_bit_for_bit(tmp_path: Path, stopped_at: int) -> None:
    a_trainer(ema_decay=0.9).fit(Blobs(), tmp_path / "whole")
    with pytest.raises(OSError, match="gone"):
        a_trainer(ema_decay=0.9).fit(Blobs(dies_at=stopped_at), tmp_path / "run")
    a_trainer(ema_decay=0.9).fit(Blobs(), tmp_path / "run")
    for name in ("last", "best"):
        assert_same(
            *(weights(tmp_path / run / "checkpoints" / f"{name}.pt") for run in ("whole", "run"))
        )


def test_a_training_that_no_longer_improves_ends_and_stays_ended(tmp_path: Path) -> None:
    settings = {"max_steps": 20, "validate_every": 2, "patience": 2}
    best = a_trainer(**settings).fit(Blobs(), tmp_path, validate=judged(0.4, 0.6, 0.5, 0.6))
    assert rows(tmp_path, "val_dice") == {2: 0.4, 4: 0.6, 6: 0.5, 8: 0.6}
    assert load_checkpoint(best)["step"] == 4
    assert a_trainer(**settings).fit(Blobs(), tmp_path, validate=judged()) == best


def test_a_run_starts_from_the_weights_of_another(tmp_path: Path, whole: Path) -> None:
    source = whole / "checkpoints" / "best.pt"
    assert_same(weights(source), a_trainer(init_from=source).model.state_dict())


def test_recomputing_blocks_changes_no_bit(tmp_path: Path) -> None:
    found = []
    for recompute in (False, True):
        run = tmp_path / str(recompute)
        a_trainer(recompute=recompute, max_steps=3).fit(Blobs(), run)
        found.append(weights(run / "checkpoints" / "last.pt"))
    assert_same(*found)


def test_timings_are_seconds_of_a_step(tmp_path: Path) -> None:
    a_trainer(max_steps=4, log_every=4).fit(Blobs(), tmp_path)
    names = {line.split(",")[1] for line in (tmp_path / "timings.csv").read_text().splitlines()[1:]}
    assert {"data_wait_s", "step_s"} <= names
