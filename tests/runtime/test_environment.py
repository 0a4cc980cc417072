"""environment.json: complete, plain, and compared with that of the command before."""

import json
import logging
import os
import platform
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tversky_seg.runtime import environment
from tversky_seg.runtime.environment import (
    data_fingerprint,
    describe_environment,
    record_computation,
    record_environment,
)
from tversky_seg.runtime.files import read_json


def test_the_environment_is_plain_and_names_versions_threads_and_commit() -> None:
    recorded = json.loads(json.dumps(describe_environment()))
    assert {
        "command",
        "python",
        "versions",
        "threads",
        "device",
        "git_commit",
        "git_dirty",
    } <= recorded.keys()
    assert recorded["versions"]["torch"]


def test_a_source_tree_on_pythonpath_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "tversky-seg-of-a-source-tree"))
    versions = describe_environment()["versions"]
    assert versions["tversky-seg-of-a-source-tree"] is None
    assert versions["torch"]


def test_going_on_with_other_threads_or_another_torch_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "environment.json"
    record_environment(path)
    with caplog.at_level(logging.WARNING, logger="tversky_seg"):
        record_environment(path)
    assert not caplog.records
    threads = read_json(path)["threads"]
    monkeypatch.setattr(environment.torch, "get_num_threads", lambda: threads + 1)
    with caplog.at_level(logging.WARNING, logger="tversky_seg"):
        record_environment(path)
    assert f"threads was {threads}, now {threads + 1}" in caplog.text
    assert read_json(path)["threads"] == threads + 1


def test_the_environment_tells_what_a_rerun_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment.sys, "argv", ["train.py", "seed=3"])
    answers = {"rev-parse": "0123abcd", "status": " M train.py"}
    monkeypatch.setattr(environment, "_git", lambda *words: answers[words[0]])
    (tmp_path / "image.nii.gz").write_bytes(b"voxels")
    record_environment(tmp_path / "environment.json", data=[tmp_path / "image.nii.gz"])
    recorded = read_json(tmp_path / "environment.json")
    assert (recorded["git_commit"], recorded["git_dirty"]) == ("0123abcd", True)
    assert recorded["command"] == [sys.executable, "train.py", "seed=3"]
    assert recorded["versions"].keys() == set(environment.PACKAGES)
    assert recorded["versions"]["numpy"] == np.__version__
    assert (recorded["python"], recorded["processes"], recorded["cpus"]) == (
        platform.python_version(),
        1,
        os.cpu_count(),
    )
    assert recorded["device"]
    assert recorded["platform"]
    assert recorded["data"] == data_fingerprint([tmp_path / "image.nii.gz"])
    answers["status"] = ""
    assert describe_environment()["git_dirty"] is False


def test_an_environment_that_a_power_cut_emptied_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    path.touch()
    record_environment(path)
    assert read_json(path)["threads"]


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert describe_environment()["git_commit"] is None


def test_a_fingerprint_is_of_contents_not_of_places(tmp_path: Path) -> None:
    large = bytes(range(256)) * 64
    contents = {"a": large, "b": b"short"}
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        for name, content in contents.items():
            (tmp_path / folder / name).write_bytes(content)
    files = [tmp_path / "here" / name for name in contents]
    copies = [tmp_path / "there" / name for name in contents]
    first = data_fingerprint(files)
    assert re.fullmatch(r"[0-9a-f]{16}", first)
    assert data_fingerprint(copies) == first
    assert data_fingerprint(files[::-1]) != first
    assert data_fingerprint(files[:1]) != first
    for changed in (
        b"\xff" + large[1:],
        large[:-1] + b"\x00",
        large + large[:256],
    ):  # beginning, end, length
        copies[0].write_bytes(changed)
        assert data_fingerprint(copies) != first


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


def test_how_steps_are_computed_is_added_and_outlives_the_next_command(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    record_computation(path, {"precision": "bf16"})
    assert not path.exists()
    record_environment(path)
    record_computation(path, {"precision": "bf16"})
    record_environment(path)
    assert read_json(path)["computation"] == {"precision": "bf16"}
    assert read_json(path)["threads"]


@pytest.mark.parametrize(
    "text",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:09:41 UTC 2025",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build",
    ],
)
def test_the_version_of_the_driver_is_read(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path, encoding: text)
    assert describe_environment()["driver"] == "580.65.06"
