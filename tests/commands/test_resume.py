"""Runs that are stopped or killed end in the same bits when they are resumed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.cohorts import MODALITIES, write_rows
from helpers.command_line import ROOT, SMALL, train
from helpers.runs import Run, assert_same_results, contents, rows_of
from tversky_seg.evaluation import evaluation_folder as evaluation
from tversky_seg.inference import case_predictor as inference
from tversky_seg.runtime import checkpoints
from tversky_seg.training import validation
from tversky_seg.training.trainer import Trainer


class Killed(BaseException):
    """Ends a command as a signal does: no handler of the library catches it."""


def at_call(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, killed instead of its n-th call."""
    left = [number]

    def counted(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return function(*args, **kwargs)

    return counted


def signalled_at_call(
    number: int, function: Callable[..., Any], *, signal_number: int = signal.SIGTERM
) -> Callable[..., Any]:
    """The function; before its n-th call the process gets a signal."""
    left = [number]

    def counted(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal_number)
        return function(*args, **kwargs)

    return counted


@pytest.mark.parametrize(
    ("owner", "name", "number"),
    [
        (Trainer, "train_step", 4),
        (validation, "_choose_point", 2),
        (checkpoints.torch, "save", 2),
        (inference, "write_prediction", 2),
        (evaluation, "write_report", 1),
    ],
    ids=["in a step", "in a validation", "in a checkpoint", "in a prediction", "in the evaluation"],
)
def test_a_stopped_run_goes_on_to_the_same_bits(
    finished: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    number: int,
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, at_call(number, getattr(owner, name)))
        with pytest.raises(Killed):
            train(finished.manifest, tmp_path / "run")
    assert not (tmp_path / "run" / "evaluation" / "metrics.json").exists()
    outcome = train(finished.manifest, tmp_path / "run")
    assert outcome.status == 0, outcome.stderr
    assert_same_results(finished.folder, tmp_path / "run")
    assert not list((tmp_path / "run").rglob(".scratch-*"))


@pytest.mark.parametrize(
    ("owner", "name", "number", "said"),
    [
        (Trainer, "train_step", 3, "SIGTERM after step 3 of 4, checkpoint written"),
        (validation, "_choose_point", 2, "SIGTERM after step 4 of 4, checkpoint written"),
        (checkpoints.torch, "save", 2, "SIGTERM after step 3 of 4, checkpoint written"),
        (inference, "write_prediction", 2, "SIGTERM"),
    ],
    ids=["in a step", "in a validation", "in a checkpoint", "in a prediction"],
)
def test_a_scheduler_stops_a_run_with_status_75_and_it_goes_on_to_the_same_bits(
    finished: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    number: int,
    said: str,
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, signalled_at_call(number, getattr(owner, name)))
        outcome = train(finished.manifest, tmp_path / "run")
    assert (outcome.status, outcome.stderr) == (
        75,
        f"stopped: {said}; run the same command again to resume\n",
    )
    assert not (tmp_path / "run" / "evaluation" / "metrics.json").exists()
    assert train(finished.manifest, tmp_path / "run").status == 0
    assert_same_results(finished.folder, tmp_path / "run")


@pytest.mark.parametrize(
    ("owner", "name"),
    [(Trainer, "train_step"), (inference, "write_prediction"), (evaluation, "write_report")],
    ids=["in a step", "in a prediction", "in the evaluation"],
)
def test_ctrl_c_stops_a_run_with_status_130_and_it_resumes_to_the_same_bits(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    with monkeypatch.context() as patched:
        function = getattr(owner, name)
        interrupted = signalled_at_call(1, function, signal_number=signal.SIGINT)
        patched.setattr(owner, name, interrupted)
        outcome = train(finished.manifest, tmp_path / "run")
    assert outcome.status == 130
    assert outcome.stderr.startswith("stopped: Ctrl-C")
    assert "run the same command again to resume" in outcome.stderr
    assert not (tmp_path / "run" / "evaluation" / "metrics.json").exists()
    assert not list((tmp_path / "run").rglob(".scratch-*"))
    assert train(finished.manifest, tmp_path / "run").status == 0
    assert_same_results(finished.folder, tmp_path / "run")


def test_hours_that_are_over_stop_a_run_likewise(finished: Run, tmp_path: Path) -> None:
    outcome = train(finished.manifest, tmp_path / "run", "trainer.max_hours=1e-9")
    assert outcome.status == 75
    assert outcome.stderr.startswith(
        "stopped: trainer.max_hours=1e-09 after step 1 of 4, checkpoint written; "
    )
    assert train(finished.manifest, tmp_path / "run", "trainer.max_hours=1").status == 0
    assert_same_results(finished.folder, tmp_path / "run")


def test_only_what_is_missing_is_done_again(finished: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.folder, run)
    (run / "evaluation" / "metrics.json").unlink()
    (run / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace(str(finished.folder), str(run))
    )
    before = contents(run / "checkpoints", run / "predictions")
    events = contents(run / "tensorboard")
    assert train(finished.manifest, run).status == 0
    assert contents(run / "checkpoints", run / "predictions") == before
    # The results of the new evaluation go into a file of their own.
    assert events.items() <= contents(run / "tensorboard").items()
    assert_same_results(finished.folder, run)


@pytest.mark.parametrize("name", ["environment.json", "evaluation/metrics.json"])
def test_a_file_that_a_power_cut_emptied_is_made_again(
    finished: Run, tmp_path: Path, name: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.folder, run)
    config_file = run / "config.yaml"
    text = config_file.read_text(encoding="utf-8")
    config_file.write_text(text.replace(str(finished.folder), str(run)), encoding="utf-8")
    (run / "evaluation" / "metrics.json").write_bytes(b"")
    (run / name).write_bytes(b"")
    assert train(finished.manifest, run).status == 0
    assert json.loads((run / name).read_text(encoding="utf-8"))
    assert_same_results(finished.folder, run)


@pytest.mark.slow
def test_a_run_killed_three_times_ends_in_the_same_bits(finished: Run, tmp_path: Path) -> None:
    words = [
        "data=manifest",
        f"data.manifest={finished.manifest}",
        f"data.cache_dir={tmp_path / 'cache'}",
        *SMALL,
    ]
    command = [sys.executable, str(ROOT / "train.py"), *words, f"output_dir={tmp_path / 'run'}"]
    started = time.monotonic()
    while not (tmp_path / "run" / "train.log").exists():  # until it works on the data
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(1)
        process.send_signal(signal.SIGKILL) if (tmp_path / "run").exists() else process.wait()
        process.wait()
        assert time.monotonic() - started < 300
    for name in ("checkpoints/last.pt", "predictions/predictions.json"):
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not (tmp_path / "run" / name).exists():
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, cwd=tmp_path, check=False, capture_output=True).returncode == 0
    assert_same_results(finished.folder, tmp_path / "run")


def test_a_run_is_not_continued_on_other_cases(finished: Run, tmp_path: Path) -> None:
    run, manifest = tmp_path / "run", tmp_path / "manifest.csv"
    folder = finished.manifest.parent
    rows = [
        row | {n: str(folder / row[n]) for n in (*MODALITIES, "label")}
        for row in rows_of(finished.manifest)
    ]
    write_rows(manifest, rows[:-1])
    words = ["trainer.max_steps=2", "trainer.checkpoint_every=1"]
    assert train(manifest, run, *words).status == 0
    (run / "evaluation" / "metrics.json").unlink()
    before = contents(run / "checkpoints", run / "predictions")
    write_rows(manifest, rows)
    assert (
        f"{run / 'manifest.csv'}: the run was started on other cases than these "
        in train(manifest, run, *words).error
    )
    assert contents(run / "checkpoints", run / "predictions") == before


def test_a_run_never_replaces_the_users_own_manifest(finished: Run) -> None:
    before = finished.manifest.read_bytes()
    outcome = train(finished.manifest, finished.manifest.parent)
    assert "holds data.manifest" in outcome.error
    assert finished.manifest.read_bytes() == before
    for name in ("config.yaml", "train.log", "environment.json"):
        (finished.manifest.parent / name).unlink(missing_ok=True)
