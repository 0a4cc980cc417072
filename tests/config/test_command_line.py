"""The command line: options anywhere, several values only in a sweep, names without quotes."""

from pathlib import Path

import pytest

from helpers.command_line import call
from tversky_seg.config import ConfigError
from tversky_seg.config.command_line import read_command_line


def test_options_may_stand_anywhere() -> None:
    words = ["data=manifest", "--config-dir=mine", "loss=dice", "-m", "seed=0,1", "--resolve"]
    line = read_command_line(words)
    assert line.options == ("--config-dir=mine", "--multirun", "--resolve")
    assert line.settings == ("data=manifest", "loss=dice", "seed=0,1")
    assert line.words_for_hydra[: len(line.options)] == list(line.options)


def test_a_group_of_ones_own_is_found_wherever_the_option_stands(tmp_path: Path) -> None:
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").write_text("_target_: tversky_seg.losses.DiceLoss\n")
    outcome = call("train", "data=manifest", f"--config-dir={tmp_path}", "loss=mine")
    assert outcome.error.startswith("data.manifest: ")


def test_a_sweep_knows_what_varies_and_how_many_jobs_there_are() -> None:
    line = read_command_line(["-m", "data=lits", "loss.beta=0.5,0.7,0.9", "data.fold=range(2)"])
    assert line.fixed_keys == ("data",)
    assert line.n_jobs == 6
    assert read_command_line(["-m", "optimizer.lr=interval(1e-4,1e-2)"]).n_jobs is None


@pytest.mark.parametrize("word", ["data.modalities=FLAIR,T1", "seed=0,1", "seed=choice(0,1)"])
def test_several_values_need_brackets_or_a_sweep(word: str) -> None:
    key, _, values = word.partition("=")
    with pytest.raises(ConfigError) as fault:
        read_command_line([word])
    assert str(fault.value).startswith(f"{key}: {values} ")
    assert f"{key}=[" in str(fault.value)
    assert read_command_line([word, "-m"]).n_jobs == 2


@pytest.mark.parametrize("words", [["--bogus"], ["--cfg", "jobb"], ["--experimental-rerun=a.pkl"]])
def test_an_unknown_option_is_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="command line: "):
        read_command_line(words)
