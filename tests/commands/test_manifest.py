"""`tversky-seg manifest`: what it shows, writes and refuses."""

import csv
from pathlib import Path
from unittest import mock

import pytest

from helpers.cohorts import MODALITIES, add_case, touch
from helpers.scripts import run_script
from tversky_seg.data import read_manifest

SCRIPT = "make_manifest.py"


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of six cases with FLAIR, T1 and label, beside which the command runs."""
    for number in range(6):
        add_case(tmp_path / "raw" / f"p{number}", f"p{number}", seed=number)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "raw"


def test_patterns_give_a_manifest(raw: Path) -> None:
    here = "raw/{subject}/{subject}"
    words = (f"FLAIR={here}_flair.nii*", f"T1={here}_T1*", f"label={here}_label*", "output=my.csv")
    outcome = run_script(SCRIPT, *words)
    assert (outcome.status, outcome.stderr) == (0, "")
    assert "6 cases of 6 subjects, 6 with a label" in outcome.stdout
    assert outcome.stdout.endswith(
        "my.csv written\nnext: python scripts/check_data.py data=manifest data.manifest=my.csv\n"
    )
    with Path("my.csv").open(encoding="utf-8") as file:
        first = next(csv.DictReader(file))
    assert first == {
        "case_id": "p0",
        "subject_id": "p0",
        "FLAIR": "raw/p0/p0_FLAIR.nii.gz",
        "T1": "raw/p0/p0_T1.nii.gz",
        "label": "raw/p0/p0_label.nii.gz",
    }
    again = run_script(SCRIPT, *words)
    assert "my.csv is there already, and equal" in again.stdout
    assert [list(case.images) for case in read_manifest("my.csv")] == 6 * [["FLAIR", "T1"]]


def test_a_folder_is_shown_and_written_with_yes(raw: Path) -> None:
    shown = run_script(SCRIPT, "raw")
    assert shown.status == 0
    for name in (*MODALITIES, "label"):
        assert f"*_{name}.nii*" in shown.stdout
    assert shown.stdout.endswith("Nothing is written yet. Add --yes to write manifest.csv.\n")
    assert not Path("manifest.csv").exists()
    assert run_script(SCRIPT, "raw", "--yes", "T1=").status == 0
    assert Path("manifest.csv").read_text().startswith("case_id,subject_id,FLAIR,label\n")
    touch(raw, "p9/p9_FLAIR.nii.gz")
    changed = run_script(SCRIPT, "raw", "--yes", "T1=")
    assert changed.error == (
        "manifest.csv: exists and differs; choose another output=, or move it away first"
    )


def test_an_ambiguous_case_is_left_out_and_the_status_says_so(raw: Path) -> None:
    touch(raw, "p3/p3_FLAIR.nii")
    outcome = run_script(SCRIPT, "raw", "--yes")
    assert outcome.status == 1
    assert "  p3, FLAIR: p3_FLAIR.nii, p3_FLAIR.nii.gz" in outcome.stdout
    assert "p3," not in Path("manifest.csv").read_text()


def test_a_modality_that_some_lack_is_not_in_the_next_command(raw: Path) -> None:
    (raw / "p2" / "p2_T1.nii.gz").unlink()
    outcome = run_script(SCRIPT, "raw", "--yes")
    assert "without T1: p2" in outcome.stdout
    next_command, advice = outcome.stdout.splitlines()[-2:]
    assert next_command.endswith("data.manifest=manifest.csv 'data.modalities=[FLAIR]'")
    assert advice.startswith("to use T1 where a case has it, write data.require=[FLAIR] ")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere"], "nowhere: no such folder; expected a folder, or COLUMN=PATTERN"),
        (["raw", "raw"], "raw: a second folder beside raw; expected one"),
        (["raw", "output=my"], "output: 'my'; expected a name that ends in .csv"),
        (["raw", "seg=*x*"], "seg: would be an image to train on; did you mean label=?"),
    ],
)
def test_faults_are_one_line(raw: Path, words: list[str], line: str) -> None:
    assert run_script(SCRIPT, *words).error == line


def test_the_next_command_is_the_program_s_own(raw: Path, capsys) -> None:
    from tversky_seg import cli

    with (
        mock.patch("sys.argv", ["tversky-seg", "manifest", "raw", "--yes"]),
        pytest.raises(SystemExit, match="0"),
    ):
        cli.main()
    assert "next: tversky-seg check data=manifest" in capsys.readouterr().out
