"""The help pages: every group with its choices, and no key that does not exist."""

import pytest

from helpers.command_line import CONFIGS, call, choices
from tversky_seg.config.config_files import known_keys

COMMANDS = ["train", "predict", "evaluate"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_reads_as_a_manual_page(command: str) -> None:
    outcome = call(command, "--help")
    assert outcome.status == 0
    assert outcome.stdout.startswith(f"python {command}.py ")
    assert "Exit status: 0 done, 1 some cases failed" in outcome.stdout
    assert max(map(len, outcome.stdout.splitlines())) <= 120


def test_help_names_every_group_with_its_choices() -> None:
    page = call("train", "--help").stdout
    for folder in sorted(CONFIGS.iterdir()):
        if folder.is_dir() and folder.name != "hydra" and choices(folder.name):
            assert f"{folder.name}: {', '.join(choices(folder.name))}" in page


def test_every_key_on_the_help_page_exists() -> None:
    page = call("train", "--help").stdout
    keys = known_keys("train")
    for word in page.split():
        key, _, value = word.partition("=")
        if value and "." in key and key.split(".")[0] in keys:
            assert key in keys
