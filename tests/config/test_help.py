"""The help pages: every group with its choices, and no key that does not exist."""

import re

import pytest
import yaml
from omegaconf import OmegaConf

from helpers.command_line import CONFIGS, call, choices, composed
from tversky_seg.config.config_files import known_keys
from tversky_seg.config.key_help import described_keys

COMMANDS = ["train", "predict", "evaluate"]
FILLED_IN = ("predictions", "cases", "output_dir", "classes", "command")
HIDDEN = {f"evaluation.{name}" for name in FILLED_IN}
"""Arguments of `evaluate` that the command fills in itself."""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_reads_as_a_manual_page(command: str) -> None:
    outcome = call(command, "--help")
    assert outcome.status == 0
    assert outcome.stdout.startswith(f"python {command}.py ")
    assert "Exit status: 0 done, 1 some cases failed" in outcome.stdout
    assert max(map(len, outcome.stdout.splitlines())) <= 120


def test_help_names_every_group_with_a_line_for_each_choice() -> None:
    page = call("train", "--help").stdout
    for folder in sorted(CONFIGS.iterdir()):
        if folder.is_dir() and folder.name not in ("hydra", "experiment"):
            assert f"  {folder.name} (default: " in page
            for choice in choices(folder.name):
                assert re.search(rf"^    {choice}  +\S", page, re.MULTILINE), choice
    assert "    tversky           Tversky loss (Salehi 2017)\n" in page
    assert "b07" not in page


def test_the_rows_of_papers_have_a_page_of_their_own() -> None:
    page = call("train", "--help", "experiments").stdout
    for file in (CONFIGS / "experiment").rglob("*.yaml"):
        assert f"    {file.stem}  " in page
    assert re.search(r"  salehi2017/\n(    .*\n)*    tversky_b07 +alpha 0.3, beta 0.7\n", page)


def test_a_group_is_described_with_the_keys_of_each_choice() -> None:
    page = call("train", "--help", "loss").stdout
    assert page.startswith("loss=CHOICE (tversky_ce by default)")
    assert re.search(r"  loss.alpha=null +weight of false positives", page)
    page = call("train", "--help", "lesion_term").stdout
    assert "lesion_term.max_distance_mm=5.0" in page
    assert "lesion_term.lesion_term" not in page  # none is no object
    refused = call("train", "--help", "losss").error
    assert refused == "--help losss: no such page; did you mean loss?"


def test_the_file_that_data_sets_share_is_no_choice() -> None:
    assert (CONFIGS / "data" / "_common.yaml").is_file()
    assert "_common" not in call("train", "--help").stdout
    assert "_common" not in call("train", "data=phantm").error


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_help_describes_every_key_by_the_comment_of_its_file(command: str) -> None:
    page = call(command, "--help").stdout
    blocks = {"evaluation", "inference", "evaluation.rule", "evaluation.by_lesion"}
    for key in known_keys(command) - blocks:
        is_argument_of_the_file = not key.rpartition(".")[2].startswith("_")
        if is_argument_of_the_file and key not in HIDDEN:
            assert f"  {key}=" in page, key
    assert "_target_" not in page
    assert "_partial_" not in page


def test_a_line_of_yaml_is_read_with_its_comment() -> None:
    text = """
defaults:
  - _self_
input: ???     # the cases, or
               # a folder
# above
rule:          # of lesions
  _target_: a.B
  overlap: 0.5
hydra: {run: 1}
"""
    assert list(described_keys(text)) == [
        ("input", "???", "the cases, or a folder"),
        ("rule", "", "above of lesions"),
        ("rule.overlap", "0.5", ""),
    ]


def test_every_key_on_the_help_page_exists_and_has_the_default_of_the_files() -> None:
    page = call("train", "--help").stdout.split("Keys you may want")[1].split("Examples")[0]
    cfg = composed("data=manifest", "data.manifest=my.csv")
    keys = known_keys("train")
    compared = 0
    for key, value in re.findall(r"(\w+\.\w+)=(\S+?);?(?=\s)", page):
        if key.split(".")[0] in keys:
            assert key in keys
        if key.split(".")[0] in ("trainer", "optimizer", "inference", "sampler", "model"):
            assert yaml.safe_load(value) == OmegaConf.select(cfg, key), key
            compared += 1
    assert compared >= 12
