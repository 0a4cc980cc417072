"""A run that stops, fails and resumes: to the same bits, and never twice at a time."""

import copy
import logging
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from helpers.trainers import Blobs, a_trainer, assert_same, fake_validation, rows, weights
from tversky_seg.runtime.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from tversky_seg.training import run as training_run
from tversky_seg.training.training_state import TrainingState
from tversky_seg.training.validation import Validation


@pytest.mark.parametrize("stopped_at", [1, 2, 3, 5])
def test_a_stopped_training_resumes_bit_for_bit(
    tmp_path: Path, whole: Path, stopped_at: int
) -> None:
    with pytest.raises(OSError, match="the disk is gone"):
        a_trainer().fit(Blobs(dies_at=stopped_at), tmp_path, validate=fake_validation(0.4, 0.8))
    last_checkpoint = stopped_at // 2 * 2
    # The validation after step 3 is repeated only if no checkpoint was written after it.
    remaining_values = [0.4, 0.8] if last_checkpoint < 3 else [0.8]
    a_trainer().fit(Blobs(), tmp_path, validate=fake_validation(*remaining_values))
    for name in ("last", "best"):
        expected = load_checkpoint(whole / "checkpoints" / f"{name}.pt")
        resumed = load_checkpoint(tmp_path / "checkpoints" / f"{name}.pt")
        assert_same(expected["model"], resumed["model"])
        assert_same(expected["optimizer"]["state"][0], resumed["optimizer"]["state"][0])
        for entry in ("step", "best", "threshold"):
            assert expected[entry] == resumed[entry]
    assert (tmp_path / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(
    tmp_path: Path, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "checkpoints" / "last.pt").write_bytes(b"half a ch")
    with caplog.at_level(logging.INFO, logger="tversky_seg"):
        a_trainer().fit(Blobs(), run, validate=fake_validation(0.8))
    assert "last.pt: damaged" in caplog.text
    assert "resuming at step 4 of 6" in caplog.text
    assert_same(
        weights(run / "checkpoints" / "last.pt"), weights(whole / "checkpoints" / "last.pt")
    )
    assert (run / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


@pytest.mark.parametrize("has_validation", [True, False])
def test_a_repeated_best_checkpoint_is_the_same_file(tmp_path: Path, has_validation: bool) -> None:
    """predictions.json holds its checksum: other bytes would refuse the predictions there are."""
    validate = fake_validation(0.4, 0.8, 0.8) if has_validation else None
    keep = {"config": {"optimizer": {"lr": 0.02, "betas": [0.9, 0.999]}, "step": "lr"}}
    best = a_trainer(ema_decay=0.9).fit(Blobs(), tmp_path, validate=validate, keep=keep)
    before = best.read_bytes()
    (tmp_path / "checkpoints" / "last.pt").write_bytes(b"half a ch")
    a_trainer(ema_decay=0.9).fit(Blobs(), tmp_path, validate=validate, keep=copy.deepcopy(keep))
    assert best.read_bytes() == before


def test_a_finished_training_is_left_alone(tmp_path: Path, whole: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    best = a_trainer().fit(Blobs(), run, validate=fake_validation())
    assert best == run / "checkpoints" / "best.pt"
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


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
            a_trainer().fit(Blobs(), run, validate=fake_validation(0.4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        monkeypatch.undo()
    assert load_checkpoint(run / "checkpoints" / "last.pt")["step"] == 2
    assert not list((run / "checkpoints").glob(".*"))
    a_trainer().fit(Blobs(), run, validate=fake_validation(0.4, 0.8))
    assert_same(*(weights(each / "checkpoints" / "last.pt") for each in (whole, run)))


def test_the_count_of_skipped_steps_survives_a_stop(tmp_path: Path) -> None:
    spoiled = (1, 3, 4, 5)
    with pytest.raises(OSError, match="gone"):
        a_trainer(max_skipped=3).fit(Blobs(spoiled=spoiled, dies_at=5), tmp_path)
    with pytest.raises(FloatingPointError, match=r"step 6: .*3 steps"):
        a_trainer(max_skipped=3).fit(Blobs(spoiled=spoiled), tmp_path)


@pytest.mark.parametrize("stopped_at", [3, 5])
def test_an_average_resumes_bit_for_bit(tmp_path: Path, stopped_at: int) -> None:
    a_trainer(ema_decay=0.9).fit(Blobs(), tmp_path / "whole")
    with pytest.raises(OSError, match="gone"):
        a_trainer(ema_decay=0.9).fit(Blobs(dies_at=stopped_at), tmp_path / "run")
    a_trainer(ema_decay=0.9).fit(Blobs(), tmp_path / "run")
    for name in ("last", "best"):
        assert_same(
            *(weights(tmp_path / run / "checkpoints" / f"{name}.pt") for run in ("whole", "run"))
        )


def test_the_state_keeps_the_entries_of_older_checkpoints() -> None:
    state = TrainingState(step=4, best=0.8, last_validation=3, losses=[0.5])
    entries = state.entries()
    assert entries["judged"] == 3
    assert entries.keys() == {
        "step",
        "best",
        "threshold",
        "min_volume_mm3",
        "min_peak",
        "temperature",
        "judged",
        "n_without_gain",
        "n_skipped",
        "n_skipped_in_a_row",
        "losses",
    }
    assert TrainingState.from_checkpoint(entries) == state
    del entries["temperature"]
    assert TrainingState.from_checkpoint(entries) == state, "of an earlier version"
    assert state.min_peak == 0.9, "without validation cases"
    del entries["min_peak"]
    assert TrainingState.from_checkpoint(entries).min_peak == 0, "as it predicted"
