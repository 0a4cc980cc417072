"""The directory of a run: its name, when it is another run's, and the names in a sweep."""

from pathlib import Path

import pytest

from helpers.command_line import call
from tversky_seg.config.sweep import job_directory, sweep_directory
from tversky_seg.runtime.run_settings import differences, fingerprint

SETTINGS = {
    "seed": 0,
    "output_dir": None,
    "trainer": {"n_workers": 0, "lr": 1.0},
    "data": {"cache_dir": "a"},
}
FREE = {
    "seed": 0,
    "output_dir": "x",
    "trainer": {"n_workers": 4, "lr": 1.0},
    "data": {"cache_dir": "b"},
}


def test_the_fingerprint_changes_only_with_what_decides_the_numbers() -> None:
    other = {**SETTINGS, "seed": 1}
    assert len(fingerprint(SETTINGS)) == 8
    assert fingerprint(SETTINGS) == fingerprint(FREE) != fingerprint(other)
    assert differences(SETTINGS, FREE) == []
    assert differences(SETTINGS, other) == ["seed was 0, now 1"]
    assert differences(SETTINGS, {"seed": 0}) == ["trainer.lr was 1.0, now null"]


def test_a_jobs_directory_is_named_by_what_varies_alone() -> None:
    words = ["data=manifest", "data.manifest=/a/b.csv", "loss.beta=0.5", "trainer.threads=1"]
    fixed = ["data", "data.manifest", "trainer.threads"]
    assert job_directory(words, fixed) == "loss.beta=0.5"
    assert job_directory(words, ["data"]) == "loss.beta=0.5,data.manifest=_a_b.csv"
    assert job_directory(["experiment=a"]) != job_directory(["experiment=b"])
    assert job_directory([]) == "default"


def test_long_names_stay_apart() -> None:
    names = [job_directory([f"data.root={'x' * 300}", f"seed={seed}"]) for seed in (1, 2)]
    assert names[0] != names[1]
    for name in names:
        assert len(name) <= 200
        assert "/" not in name


def test_a_sweep_without_output_dir_is_named_by_what_does_not_vary() -> None:
    words = ["data=lits", "loss.beta=0.5", "trainer.n_workers=0"]
    first = sweep_directory(None, words, ["data"])
    assert first.startswith("runs/sweep_")
    assert first == sweep_directory(None, ["data=lits", "loss.beta=0.7"], ["data"])
    assert first != sweep_directory(None, ["data=luna16", "loss.beta=0.5"], ["data"])
    assert sweep_directory(None, ["loss.beta=0.5"]) == "runs/sweep"
    assert sweep_directory("mine", words, ["data"]) == "mine"


@pytest.mark.parametrize(
    ("command", "words", "where"),
    [
        ("train", ["data=manifest", "data.manifest=~/none.csv"], "none.csv"),
        ("train", ["data=lesjak2017", "data.root=~/none"], "none"),
        ("predict", ["checkpoint=~/none.pt", "input=x", "output_dir=y"], "none.pt"),
        ("predict", ["checkpoint=['~/none.pt']", "input=x", "output_dir=y"], "none.pt"),
        ("evaluate", ["predictions=a", "manifest=~/none.csv", "output_dir=c"], "none.csv"),
    ],
)
def test_a_tilde_is_the_home_directory(
    command: str, words: list[str], where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert call(command, *words).error.startswith(f"{tmp_path / where}: ")


@pytest.mark.parametrize(
    "folder", ["loss.beta=0.5,seed=1", "it's (here)", "größe", "a b", "a[1]", "50%", "007", "1e3"]
)
def test_names_need_no_quotes_for_hydra(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = call("predict", f"checkpoint={folder}", "input=x", "output_dir=y")
    assert outcome.error.startswith(f"{folder}: ")
    Path(folder).write_text("in the way")
    words = ["data=manifest", "data.manifest=x", "data.modalities=[a]"]
    outcome = call("train", *words, f"output_dir={folder}")
    assert outcome.error.startswith(f"output_dir: {folder} ")
