from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from helpers.recorders import record
from tversky_seg.runtime import recorder as recording
from tversky_seg.runtime.recorder import Recorder, Stopwatch, record_results


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_scalars_stand_in_the_table_and_in_tensorboard(tmp_path: Path) -> None:
    record(tmp_path, range(1, 4))
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[:3] == ["step,name,value", "1,loss,1.0", "1,learning_rate,0.001"]
    assert scalars(tmp_path, "train/loss") == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert scalars(tmp_path, "time/step_s")


def test_clocks_stand_apart(tmp_path: Path) -> None:
    record(tmp_path, range(1, 3))
    assert "step_s" not in (tmp_path / "metrics.csv").read_text()
    assert "step_s" in (tmp_path / "timings.csv").read_text()


@pytest.mark.parametrize("broken_row", ["", "4,lo", "4", "4,loss,0."])
def test_a_resumed_table_is_that_of_an_uninterrupted_run(tmp_path: Path, broken_row: str) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        folder.mkdir()
    record(whole, range(1, 6))
    record(stopped, range(1, 4))
    with (stopped / "metrics.csv").open("a") as file:
        file.write(broken_row)  # a kill in the middle of a row
    record(stopped, range(3, 6), from_step=2)
    assert (stopped / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    steps = [step for step, _ in scalars(stopped, "train/loss")]
    assert steps == [1, 2, 3, 4, 5]


def test_pictures_are_there_to_look_at(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.pictures(2, {"case/axial": np.zeros((5, 7, 3), np.uint8)})
    recorder.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    image = events.Images("case/axial")[0]
    assert (image.step, image.height, image.width) == (2, 5, 7)


def test_tensorboard_has_the_settings_and_the_results_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("loss: {beta: 0.7}\nseed: 3\nthreads: null\n")
    record(tmp_path, range(1, 3))
    metrics = {"mean": {"liver": {"dice": 0.5, "hd95_mm": None}}}
    record_results(tmp_path, metrics, step=2)
    assert scalars(tmp_path, "test/liver.dice") == [(2, 0.5)]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    started = HParamsPluginData.FromString(content).session_start_info.hparams
    assert started["loss.beta"].number_value == 0.7
    assert started["threads"].string_value == "None"


def test_a_stopwatch_adds_up_by_name_and_starts_anew_when_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([0.0, 1.0, 3.0, 3.5])
    monkeypatch.setattr(recording.time, "perf_counter", lambda: next(clock))
    watch = Stopwatch()
    for name in ("wait", "step", "wait"):
        watch.lap(name)
    assert watch.read() == {"wait": 1.5, "step": 2.0}
    assert watch.read() == {}


def test_a_lap_is_split_into_a_measured_part_and_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 3.0, 4.0])
    monkeypatch.setattr(recording.time, "perf_counter", lambda: next(clock))
    watch = Stopwatch()
    watch.split_lap("step", 2.0, rest="wait")
    watch.split_lap("step", 1.5, rest="wait")  # the clock of a GPU may be ahead of the host's
    assert watch.read() == {"step": 3.0, "wait": 1.0}
