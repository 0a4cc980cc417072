"""Terminals that lack letters or go away, and other locales than UTF-8."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from helpers.cohorts import write_rows
from helpers.command_line import ROOT
from helpers.runs import Run, images_equal, unlabelled


@pytest.fixture
def evaluation_words(tmp_path: Path) -> list[str]:
    """A command that evaluates one mask against itself, and prints a table with a dash."""
    mask = np.zeros((9, 9, 9), np.uint8)
    mask[3:5, 3:5, 3:5] = 1
    (tmp_path / "masks").mkdir()
    for name in ("masks/x_mask.nii.gz", "label.nii.gz"):
        nib.save(nib.Nifti1Image(mask, np.eye(4)), tmp_path / name)
    row = {"case_id": "x", "subject_id": "s", "label": "label.nii.gz"}
    write_rows(tmp_path / "m.csv", [row])
    script = str(ROOT / "evaluate.py")
    return [sys.executable, script, "predictions=masks", "manifest=m.csv", "output_dir=out"]


def run(words: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        words, cwd=folder, env={**os.environ, **environment}, capture_output=True, check=False
    )


def test_a_terminal_without_a_letter_does_not_end_an_evaluation(
    evaluation_words: list[str], tmp_path: Path
) -> None:
    done = run(evaluation_words, tmp_path, PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "out" / "metrics.json").is_file()


def test_a_reader_that_goes_away_does_not_end_an_evaluation(
    evaluation_words: list[str], tmp_path: Path
) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run(
            evaluation_words, cwd=tmp_path, stdout=write_end, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "out" / "metrics.json").is_file()


@pytest.fixture
def manifest_words(tmp_path: Path) -> list[str]:
    """A command without Hydra that finds one image, and prints it."""
    image = tmp_path / "raw" / "Müller" / "flair.nii.gz"
    image.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), image)
    pattern = "FLAIR=raw/{subject}/flair.nii.gz"
    return [sys.executable, "-m", "tversky_seg", "manifest", pattern, "output=m.csv"]


def test_a_full_disk_behind_stdout_is_said_and_ends_nothing(
    manifest_words: list[str], tmp_path: Path
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            manifest_words, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 0
    assert done.stderr == b"warning: <stdout> shows no more: no space left on device\n"
    assert (tmp_path / "m.csv").is_file()


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_end_nothing(manifest_words: list[str], tmp_path: Path, closed: str) -> None:
    line = f"{shlex.join(manifest_words)} {closed}"
    done = run(["sh", "-c", line], tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "m.csv").is_file()


def test_names_in_utf8_are_listed_in_any_locale(manifest_words: list[str], tmp_path: Path) -> None:
    done = run(manifest_words, tmp_path, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert (done.returncode, done.stderr) == (0, b"")
    assert "raw/Müller/flair.nii.gz" in (tmp_path / "m.csv").read_text(encoding="utf-8")


def test_yaml_files_are_read_in_any_locale(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "train.py"), "data=manifest", "data.manifest=none.csv"]
    done = run(words, tmp_path, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: none.csv: ")
    assert done.stderr.count(b"\n") == 1


# As a shell sees it

Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Runs a command in a process of its own."""

    def run_command(name: str, *words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / f"{name}.py"), *map(str, words)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run_command


def test_a_shell_sees_one_line_and_status_2(shell: Shell) -> None:
    done = shell("train", "loss.alhpa=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: loss.alhpa: ")
    assert done.stderr.count("\n") == 1


def test_a_shell_can_predict(finished: Run, tmp_path: Path, shell: Shell) -> None:
    given = unlabelled(finished, tmp_path / "in", "flat folder")
    done = shell("predict", f"checkpoint={finished.best}", f"input={given}", "output_dir=out")
    assert (done.returncode, done.stderr) == (0, "")
    for case in finished.metrics["cases"]:
        name = f"{case['case_id']}_mask.nii.gz"
        assert images_equal(tmp_path / "out" / name, finished.folder / "predictions" / name)
