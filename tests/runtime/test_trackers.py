"""Trackers: the numbers of metrics.csv, in one run after a stop, no step twice."""

import json
import logging
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.recorders import record
from helpers.trainers import a_trainer
from tversky_seg.runtime import trackers
from tversky_seg.runtime.recorder import Recorder, record_results

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the packages


class FakeRun:
    """What wandb.init gives: rows, in the order in which they came."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.ends = 0
        self.summary: dict[str, float] = {}
        self.files: list[str] = []

    def log(self, values: dict[str, Any], *, step: int) -> None:
        self.rows.append((step, values))

    def save(self, file: str, *, base_path: str, policy: str) -> None:
        self.files.append(f"{policy} {Path(file).relative_to(base_path).as_posix()}")

    def finish(self) -> None:
        self.ends += 1


@pytest.fixture
def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeRun]:
    """A wandb that keeps its runs by id."""
    runs: dict[str, FakeRun] = {}
    module = types.ModuleType("wandb")
    module.__spec__ = types.SimpleNamespace(name="wandb")  # type: ignore[assignment]
    module.Image = lambda picture: picture.shape  # type: ignore[attr-defined]
    module.init = lambda *, id, **_: runs.setdefault(id, FakeRun())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def recorded(folder: Path, steps: range, *, names: tuple[str, ...], from_step: int = 0) -> None:
    recorder = Recorder(folder, from_step=from_step, trackers=names)
    for step in steps:
        recorder.metrics(step, {"loss": 1 / step})
    recorder.pictures(steps[-1], {"case/axial": np.zeros((5, 7, 3), np.uint8)})
    recorder.close()


def test_a_run_that_goes_on_sends_no_step_twice_and_what_was_not_sent(
    tmp_path: Path, fake_wandb: dict[str, FakeRun]
) -> None:
    record(tmp_path, range(1, 3))  # without the tracker
    recorded(tmp_path, range(3, 6), names=("wandb",), from_step=2)
    recorded(
        tmp_path, range(4, 8), names=("wandb",), from_step=3
    )  # stopped after 5, its last checkpoint at 3
    (run,) = fake_wandb.values()
    losses = [(step, values["loss"]) for step, values in run.rows if "loss" in values]
    assert losses == [(step, 1 / step) for step in range(1, 8)]
    assert [values for _, values in run.rows if "case/axial" in values] == [
        {"case/axial": (5, 7, 3)}
    ] * 2
    assert run.ends == 2


def test_the_results_the_report_and_the_checkpoint_follow(
    tmp_path: Path, fake_wandb: dict[str, FakeRun]
) -> None:
    recorded(tmp_path, range(1, 3), names=("wandb",))
    for name in ("evaluation/report.html", "checkpoints/best.pt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    metrics = {"mean": {"dice": 0.5, "assd_mm": None}}
    record_results(tmp_path, metrics, step=1, trackers=("wandb",))
    (run,) = fake_wandb.values()
    assert run.summary == {"test/dice": 0.5}
    assert run.files == ["now evaluation/report.html", "now checkpoints/best.pt"]
    assert run.ends == 2


def test_a_tracker_that_cannot_be_opened_is_named_and_costs_no_results(
    tmp_path: Path, fake_wandb: dict[str, FakeRun], caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(**_: object) -> None:
        raise RuntimeError("No API key configured")

    sys.modules["wandb"].init = refuse  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"^trainer.trackers: wandb cannot be opened \(No API key"):
        Recorder(tmp_path, trackers=("wandb",))
    record_results(tmp_path, {"mean": {"dice": 0.5}}, step=1, trackers=("wandb",))
    assert "wandb cannot be opened" in caplog.text


@pytest.mark.parametrize("store", ["file", pytest.param("sqlite", marks=pytest.mark.slow)])
def test_mlflow_goes_on_in_the_same_run(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip(
        "mlflow", reason="needs the extra: pip install 'tversky-seg[mlflow]'"
    )
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "store").as_uri() if store == "file" else f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(uri)
    folder = tmp_path / "run"
    (folder / "evaluation").mkdir(parents=True)
    (folder / "evaluation" / "report.html").touch()
    (folder / "config.yaml").write_text("seed: 3\nmodel: {width: 16}\n")
    recorded(folder, range(1, 4), names=("mlflow",))
    recorded(folder, range(2, 6), names=("mlflow",), from_step=1)
    client = mlflow.MlflowClient()
    (experiment,) = [each for each in client.search_experiments() if each.name == "tversky-seg"]
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [
        (step, 1 / step) for step in range(1, 6)
    ]
    assert run.data.params == {"seed": "3", "model.width": "16"}
    assert run.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(run.info.run_id, "pictures/case/axial")]
    record_results(folder, {"mean": {"dice": 0.5}}, step=5, trackers=("mlflow",))
    assert client.get_run(run.info.run_id).data.metrics["test/dice"] == 0.5
    assert [file.path for file in client.list_artifacts(run.info.run_id, "evaluation")]


def test_wandb_writes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs the extra: pip install 'tversky-seg[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    recorded(tmp_path, range(1, 4), names=("wandb",))
    recorded(tmp_path, range(2, 6), names=("wandb",), from_step=1)
    note = json.loads((tmp_path / "trackers" / "wandb.json").read_text())
    assert note["last"] == {"loss": 5}
    written = list((tmp_path / "trackers" / "wandb").glob("offline-run-*/*.wandb"))
    assert written
    assert {file.stem for file in written} == {f"run-{note['run_id']}"}


def test_training_goes_on_without_a_tracker_that_fails(
    tmp_path: Path, fake_wandb: dict[str, FakeRun], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("the server is gone\nand more")

    recorder = Recorder(tmp_path, trackers=("wandb",))
    recorder.metrics(1, {"loss": 1.0})
    (run,) = fake_wandb.values()
    run.log = fail  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING, logger="tversky_seg"):
        for step in (2, 3):
            recorder.metrics(step, {"loss": 1.0})
    recorder.close()
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "WeightsAndBiases" in warning
    assert "the server is gone" in warning
    assert "\n" not in warning
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 4
    recorded(tmp_path, range(4, 5), names=("wandb",), from_step=3)


def test_an_unknown_tracker_or_one_that_is_not_installed_is_named_before_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ValueError, match=r"trackers.*neptune"):
        a_trainer(trackers=["neptune"])
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        ValueError,
        match=r"trackers.*pip install 'tversky-seg\[mlflow\]'",
    ):
        a_trainer(trackers=["mlflow"])
