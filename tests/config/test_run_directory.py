"""The directory of a run: its name, when it is another run's, and the names in a sweep."""

from pathlib import Path

import pytest

from helpers.command_line import call
from tversky_seg.config.sweep import job_directory
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


def test_a_sweeps_directories_tell_settings_apart() -> None:
    words = ["data.manifest=/a/b.csv", "loss.beta=0.5", "trainer.threads=1"]
    assert job_directory(words) == "loss.beta=0.5,data.manifest=_a_b.csv"
    assert job_directory(["experiment=a"]) != job_directory(["experiment=b"])
    assert job_directory([]) == "default"
    long = [job_directory([f"data.root={'x' * 300}", f"seed={seed}"]) for seed in (1, 2)]
    assert long[0] != long[1]
    for name in long:
        assert len(name) <= 200
        assert "/" not in name


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
