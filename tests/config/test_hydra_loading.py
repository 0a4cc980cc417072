"""Config files set our keys: they neither configure Hydra nor fill the memory."""

import time
from pathlib import Path

import pytest

from helpers.command_line import call

CALLBACK = "callbacks: {log: {_target_: pathlib.Path.touch, self: {_target_: pathlib.Path}}}"
LOGGER = "job_logging: {version: 1, root: {}, handlers: {x: {(): pathlib.Path.cwd}}}"


def call_with_file(folder: Path, name: str, content: str, *words: str) -> str:
    """Write a config file into a folder of the user, train with it, and return the error."""
    file = folder / "configs" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    command = ["--config-dir", folder / "configs", "data=manifest", "data.manifest=none.csv"]
    return call("train", *command, *words).error


@pytest.mark.parametrize("setting", [CALLBACK, LOGGER, "job: {env_set: {PATH: .}}"])
def test_an_experiment_file_cannot_configure_hydra(setting: str, tmp_path: Path) -> None:
    content = f"# @package _global_\nhydra: {{{setting}}}\n"
    error = call_with_file(tmp_path, "experiment/nice.yaml", content, "experiment=nice")
    assert error.startswith("experiment/nice.yaml: sets hydra.")
    assert "trust=[hydra]" in error


def test_neither_can_it_in_a_sweep_or_by_the_header_of_a_package(tmp_path: Path) -> None:
    content = "# @package hydra.callbacks\nlog: {_target_: os.system, command: ls}\n"
    error = call_with_file(tmp_path, "loss/mine.yaml", content, "loss=mine")
    assert error.startswith("loss/mine.yaml: sets hydra.callbacks")

    content = "# @package _global_\nhydra: {launcher: {setup: [touch evidence]}}\n"
    words = ["-m", "seed=0,1", "experiment=nice"]
    error = call_with_file(tmp_path, "experiment/nice.yaml", content, *words)
    assert error.startswith("experiment/nice.yaml: sets hydra.launcher")


def test_the_command_line_can_trust_a_file(tmp_path: Path) -> None:
    content = "# @package _global_\nhydra: {job: {env_set: {MINE: a}}}\n"
    words = ["experiment=nice", "trust=[hydra]"]
    error = call_with_file(tmp_path, "experiment/nice.yaml", content, *words)
    assert error.startswith("none.csv: ")


def test_a_file_of_few_lines_that_stands_for_millions_is_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 12):
        aliases = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} [{aliases}]")
    content = "# @package _global_\n" + "\n".join(lines)
    started = time.monotonic()
    error = call_with_file(tmp_path, "experiment/bomb.yaml", content, "experiment=bomb")
    assert "bomb.yaml: is too large" in error
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("depth", [60, 20_000])
def test_a_file_nested_too_deeply_is_refused(depth: int, tmp_path: Path) -> None:
    content = f"# @package _global_\nloss: {'[' * depth}{']' * depth}\n"
    error = call_with_file(tmp_path, "experiment/deep.yaml", content, "experiment=deep")
    assert "deep.yaml: " in error


def test_a_setting_nested_too_deeply_is_refused() -> None:
    assert "nested too deeply" in call("train", f"data.classes={'[' * 5000}{']' * 5000}").error
