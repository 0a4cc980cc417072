"""scripts/reproduce.py: how it runs the trainings of a paper's table, and what it writes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from helpers.command_line import call
from tversky_seg.analysis.cross_validation import evaluate_folds
from tversky_seg.analysis.paper_runs import PlannedRun
from tversky_seg.commands import paper_report, reproduce
from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.manifest import read_manifest


@pytest.fixture(autouse=True)
def fast_yaml() -> Iterator[None]:
    with mock.patch.object(yaml, "SafeLoader", yaml.CSafeLoader):
        yield


def exit_status(*arguments: str) -> int:
    """Call the script in this process."""
    try:
        return int(reproduce.main(arguments))
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1


# Arguments


def test_a_dry_run_prints_a_command_for_each_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output_dir = tmp_path / "out"
    arguments = ["--seeds", "3,4", "trainer.threads=1", "--output", str(output_dir), "--dry-run"]
    assert exit_status("salehi2017", "--rows", "tversky_b07", *arguments) == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == 4
    for command in commands:
        assert "train.py 'experiment=[salehi2017/tversky_b07" in command
        assert " trainer.threads=1 " in command
    folders = [command.rpartition("output_dir=")[2] for command in commands]
    assert folders == [
        f"{output_dir}/tversky_b07/fold{fold}_seed{seed}" for seed in (3, 4) for fold in (0, 1)
    ]
    assert not output_dir.exists()


def test_lists_may_have_commas_or_spaces_and_name_each_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = "tversky_b07,tversky_b07"
    assert exit_status("salehi2017", "--rows", rows, "--seeds", "0,1, 1", "--dry-run") == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_the_scale_follows_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("salehi2017", "--dry-run") == 0
    assert "salehi2017/small" in capsys.readouterr().out
    assert exit_status("salehi2017", "--data", str(tmp_path), "--dry-run") == 0
    assert "salehi2017/small" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nobody2030"], "nobody2030"),
        (["salehi2017", "--data", "/none"], "/none"),
        (["salehi2017", "--scale", "huge"], "huge"),
        (["salehi2017", "--rows", "luck"], "luck"),
        (["salehi2017", "--seeds", "0 a"], "0 a"),
        (["salehi2017", "--jobs", "many"], "many"),
        (["salehi2017", "seed=3"], "seed=3"),
        (["salehi2017", "-m"], "-m"),
    ],
)
def test_arguments_that_cannot_be_used_end_in_one_line(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(*arguments) == 2
    errors = capsys.readouterr().err
    assert named in errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1


def test_a_folder_that_cannot_be_used_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "plan.json").write_text("{")
    for output_dir, named in ((file, file), (damaged, damaged / "plan.json")):
        assert exit_status("salehi2017", "--output", str(output_dir)) == 2
        errors = capsys.readouterr().err
        assert errors.startswith(f"error: {named}: ")
        assert errors.count("\n") == 1


# The trainings


def made_up_runs(folder: Path, n: int) -> list[PlannedRun]:
    return [PlannedRun("row", number, folder / f"seed{number}", ()) for number in range(n)]


def test_an_interrupt_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch.object(reproduce, "run_all", side_effect=KeyboardInterrupt):
        assert exit_status("salehi2017", "--output", str(tmp_path / "out")) == 130
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1


def test_runs_at_the_same_time_share_the_cores(tmp_path: Path) -> None:
    n_threads = []

    def note_threads(runs: list[PlannedRun], *, n_jobs: int) -> list[PlannedRun]:
        n_threads.append(os.environ.get("OMP_NUM_THREADS"))
        return runs

    with (
        mock.patch.dict(os.environ),
        mock.patch.object(os, "cpu_count", return_value=8),
        mock.patch.object(reproduce, "run_all", note_threads),
    ):
        os.environ.pop("OMP_NUM_THREADS", None)
        for n_jobs in ("1", "3"):
            arguments = ["--jobs", n_jobs, "--output", str(tmp_path / n_jobs)]
            assert exit_status("salehi2017", *arguments) == 2, "no row is complete"
    assert n_threads == [None, "2"]


def test_a_failed_run_stops_no_other_and_jobs_run_at_the_same_time(tmp_path: Path) -> None:
    a = str(tmp_path / "a")
    b = str(tmp_path / "b")
    wait_for_the_other = (
        "import pathlib, sys, time\n"
        "mine, other = map(pathlib.Path, sys.argv[1:])\n"
        "mine.touch()\n"
        "while not other.exists(): time.sleep(0.01)"
    )
    programs = [
        ["-c", wait_for_the_other, a, b],
        ["-c", wait_for_the_other, b, a],
        ["-c", "raise SystemExit(2)"],
        ["-c", ""],
    ]
    runs = made_up_runs(tmp_path, len(programs))

    def train_command(run: PlannedRun) -> list[str]:
        return [sys.executable, "-S", *programs[run.seed]]

    with mock.patch.object(reproduce, "train_command", train_command):
        assert reproduce.run_all(runs, n_jobs=2) == [runs[2]]


def test_sigterm_reaches_the_running_training_and_no_other_begins(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    training = (
        f"import pathlib, time\npathlib.Path({str(begun)!r}).open('a').write('x')\ntime.sleep(60)"
    )
    watcher = (
        "import os, pathlib, time\n"
        f"while not pathlib.Path({str(begun)!r}).exists(): time.sleep(0.01)\n"
        f"os.kill({os.getpid()}, 15)"
    )
    killer = subprocess.Popen([sys.executable, "-S", "-c", watcher])
    command = [sys.executable, "-S", "-c", training]
    with (
        mock.patch.object(reproduce, "train_command", return_value=command),
        pytest.raises(SystemExit, match="143"),
    ):
        reproduce.run_all(made_up_runs(tmp_path, 3), n_jobs=1)
    assert killer.wait() == 0
    assert begun.read_text() == "x"


# What is written


class TrainingInThisProcess:
    """Stands for the process of a training; that of row tversky_b07 fails."""

    def __init__(self, command: list[str]) -> None:
        settings = command[4:]  # after "python -m tversky_seg train"
        if "tversky_b07" in settings[0]:
            self.status = 2
        else:
            self.status = call("train", *settings).status

    def wait(self) -> int:
        return self.status


@pytest.fixture(scope="module")
def table_of_two_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rows of Salehi in two folds of four tiny synthetic subjects; a third row fails."""
    folder = tmp_path_factory.mktemp("reproduce")
    arguments = [
        "salehi2017",
        "--rows=tversky_b05,tversky_b07,tversky_b09",
        f"--output={folder / 'out'}",
        f"data.root={folder / 'phantom'}",
        "data.importer.n_train=4",
        "data.importer.spacing_mm=6",
        "data.importer.n_workers=0",
        f"data.cache_dir={folder / 'cache'}",
        "model.width=4",
        "model.n_levels=2",
        "sampler.patch_size=16",
        "trainer.max_steps=2",
        "trainer.validate_every=2",
        "inference.overlap=0",
        "evaluation.n_bootstrap=50",
        "evaluation.viewer=none",
    ]
    popen = mock.Mock(side_effect=lambda command: nullcontext(TrainingInThisProcess(command)))
    with mock.patch.object(reproduce, "subprocess", SimpleNamespace(Popen=popen)):
        assert exit_status(*arguments) == 1
        assert popen.call_count == 6
        assert exit_status(*arguments) == 1
        assert popen.call_count == 8, "only the failed runs are run again"
    return folder / "out"


def test_the_table_has_the_papers_numbers_and_ours(table_of_two_rows: Path) -> None:
    text = (table_of_two_rows / "table.md").read_text(encoding="utf-8")
    assert "| tversky_b05 | paper | 53.42 | 49.85 | 99.93 | 51.77 | 52.57 |" in text
    assert "| tversky_b09 | ours | " in text
    assert "tversky_b07" not in text, "its runs failed"
    assert "--scale small" in text
    assert "4 cases" in text
    for name in (
        "plan.json",
        "table.csv",
        "cohorts/seed0/tversky_b05/evaluation/report.html",
        "tversky_b09/fold1_seed0/evaluation/metrics.json",
        "comparison/pr_curves.png",
        "summary/frontier.png",
    ):
        assert (table_of_two_rows / name).exists(), name


def test_folds_are_evaluated_as_one_cohort_with_the_numbers_of_each(
    table_of_two_rows: Path, tmp_path: Path
) -> None:
    runs = [table_of_two_rows / "tversky_b05" / f"fold{fold}_seed0" for fold in (0, 1)]
    cohort = tmp_path / "cohort"
    joined = evaluate_folds(runs, cohort)
    cases = {}
    for run in runs:
        metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
        cases |= {case["case_id"]: case for case in metrics["cases"]}
    assert joined["n_cases"] == 4 == len(cases)
    for case in joined["cases"]:
        for name in ("dice", "pr_auc", "lesion_tpr", "assd_mm"):
            assert case[name] == cases[case["case_id"]][name], name
    assert joined["pooled"]["pr_auc"] is not None
    assert [case.split for case in read_manifest(cohort / "manifest.csv")] == [None] * 4

    written = cohort / "evaluation" / "metrics.json"
    time_before = written.stat().st_mtime_ns
    evaluate_folds(runs, cohort)
    assert written.stat().st_mtime_ns == time_before, "a complete cohort is not evaluated again"


def test_a_duplicate_or_unfinished_fold_is_refused(table_of_two_rows: Path, tmp_path: Path) -> None:
    run = table_of_two_rows / "tversky_b05" / "fold0_seed0"
    with pytest.raises(DataError):
        evaluate_folds([run, run], tmp_path / "a")
    with pytest.raises(DataError, match="none"):
        evaluate_folds([run, tmp_path / "none"], tmp_path / "b")


# The submission to the ISBI site


def test_the_submission_names_all_folds_whatever_the_folder_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output_dir = tmp_path / "beta=1.5, [Bob's]"
    output_dir.mkdir()
    options = reproduce.make_parser().parse_args(["hashemi2018_isbi", "--output", str(output_dir)])
    request = reproduce.read_request(options)
    runs = [
        PlannedRun("asl_b15", 0, output_dir / "asl_b15" / f"fold{fold}_seed0", ())
        for fold in (0, 1)
    ]
    called: list[list[str]] = []
    scan = Case("c", "s", {"FLAIR": output_dir}, ())
    monkeypatch.setattr(paper_report, "find_isbi2015", lambda _: [scan])
    monkeypatch.setattr(subprocess, "run", lambda words, check: called.append(words))
    paper_report.write_submissions(request, runs, ["asl_b15"], download=tmp_path)
    predict, pack = called
    checkpoint = next(word for word in predict if word.startswith("checkpoint"))
    override = OverridesParser.create().parse_override(checkpoint)
    assert [str(name) for name in override.value()] == [str(run.folder) for run in runs]
    assert pack[-1] == str(output_dir / "submissions" / "asl_b15.zip")
