import json
import logging
import os
import platform
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.recorders import record
from tversky_seg.runtime import recorder as recording
from tversky_seg.runtime.recorder import (
    Recorder,
    Stopwatch,
    data_fingerprint,
    environment,
    read_json,
    record_environment,
    write_json,
)


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_scalars_stand_in_the_table_and_in_tensorboard(tmp_path: Path) -> None:
    record(tmp_path, range(1, 4))
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[:3] == ["step,name,value", "1,loss,1.0", "1,learning_rate,0.001"]
    assert scalars(tmp_path, "loss") == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert scalars(tmp_path, "step_s")


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
    steps = [step for step, _ in scalars(stopped, "loss")]
    assert steps == [1, 2, 3, 4, 5]


def test_pictures_are_there_to_look_at(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.pictures(2, {"case/axial": np.zeros((5, 7, 3), np.uint8)})
    recorder.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    image = events.Images("case/axial")[0]
    assert (image.step, image.height, image.width) == (2, 5, 7)


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


def test_the_environment_is_plain_and_names_versions_threads_and_commit() -> None:
    found = json.loads(json.dumps(environment()))
    assert {
        "command",
        "python",
        "versions",
        "threads",
        "device",
        "git_commit",
        "git_dirty",
    } <= found.keys()
    assert found["versions"]["torch"]


def test_going_on_with_other_threads_or_another_torch_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "environment.json"
    record_environment(path)
    with caplog.at_level(logging.WARNING, logger="tversky_seg"):
        record_environment(path)
    assert not caplog.records
    threads = read_json(path)["threads"]
    monkeypatch.setattr(recording.torch, "get_num_threads", lambda: threads + 1)
    with caplog.at_level(logging.WARNING, logger="tversky_seg"):
        record_environment(path)
    assert f"threads was {threads}, now {threads + 1}" in caplog.text
    assert read_json(path)["threads"] == threads + 1


def test_json_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["facts.json"]


def test_the_environment_tells_what_a_rerun_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording.sys, "argv", ["train.py", "seed=3"])
    answers = {"rev-parse": "0123abcd", "status": " M train.py"}
    monkeypatch.setattr(recording, "_git", lambda *words: answers[words[0]])
    (tmp_path / "image.nii.gz").write_bytes(b"voxels")
    record_environment(tmp_path / "environment.json", data=[tmp_path / "image.nii.gz"])
    found = read_json(tmp_path / "environment.json")
    assert (found["git_commit"], found["git_dirty"]) == ("0123abcd", True)
    assert found["command"] == [sys.executable, "train.py", "seed=3"]
    assert found["versions"].keys() == {"tversky-seg", *recording.VERSIONED}
    assert found["versions"]["numpy"] == np.__version__
    assert (found["python"], found["processes"], found["cpus"]) == (
        platform.python_version(),
        1,
        os.cpu_count(),
    )
    assert found["device"]
    assert found["platform"]
    assert found["data"] == data_fingerprint([tmp_path / "image.nii.gz"])
    answers["status"] = ""
    assert environment()["git_dirty"] is False


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert environment()["git_commit"] is None


def test_a_fingerprint_is_of_contents_not_of_places(tmp_path: Path) -> None:
    large = bytes(range(256)) * 64
    contents = {"a": large, "b": b"short"}
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        for name, content in contents.items():
            (tmp_path / folder / name).write_bytes(content)
    here, there = ([tmp_path / folder / name for name in contents] for folder in ("here", "there"))
    first = data_fingerprint(here)
    assert re.fullmatch(r"[0-9a-f]{16}", first)
    assert data_fingerprint(there) == first
    assert data_fingerprint(here[::-1]) != first
    assert data_fingerprint(here[:1]) != first
    for changed in (
        b"\xff" + large[1:],
        large[:-1] + b"\x00",
        large + large[:256],
    ):  # beginning, end, length
        there[0].write_bytes(changed)
        assert data_fingerprint(there) != first


def test_going_on_with_other_data_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = tmp_path / "image.nii.gz"
    for content in (b"voxels", b"others"):
        image.write_bytes(content)
        with caplog.at_level(logging.WARNING, logger="tversky_seg"):
            record_environment(tmp_path / "environment.json", data=[image])
    assert len(caplog.records) == 1
    assert "the numbers may differ from those of an uninterrupted run: data was " in caplog.text
