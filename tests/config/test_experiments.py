"""The experiment files: every row of the papers is valid, builds, says its claim, and is what its name says."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from helpers.command_line import ROOT, composed
from tversky_seg.config import build, check_config, check_network
from tversky_seg.config.config_files import known_keys
from tversky_seg.data.patches.sampling import patch_sides

FOLDER = ROOT / "configs" / "experiment"
PARTS = {
    "base",
    "small",
    "small_selection",
    "small_network",
    "msseg",
    "isbi",
    "lits",
    "luna16",
}  # of rows, no rows themselves
ROWS = sorted(
    f"{path.parent.name}/{path.stem}" for path in FOLDER.glob("*2*/*.yaml") if path.stem not in PARTS
)  # fmt: skip
COMPOSED = [
    name for name in ROWS if "luna16" not in name or name.endswith("iwdl")
]  # the others: two lines each
LOSSES = ("bce", "iwbce", "dl", "iwdl", "asl", "iwasl", "fl", "iwfl", "wce", "gdl")


@cache
def row(name: str) -> DictConfig:
    cfg = composed(f"experiment={name}", "data.root=somewhere")
    check_config(cfg, config_name="train")
    return cfg


@pytest.fixture(autouse=True)
def fast_yaml() -> Iterator[None]:
    with mock.patch.object(yaml, "SafeLoader", yaml.CSafeLoader):
        yield


def differing(a: Any, b: Any, key: str = "") -> set[str]:
    """Dotted keys at which two nodes differ."""
    if isinstance(a, DictConfig) and isinstance(b, DictConfig):
        return {
            found
            for name in {*a, *b}
            for found in differing(a.get(name), b.get(name), f"{key}.{name}".strip("."))
        }
    return set() if a == b else {key}


@pytest.mark.parametrize("name", COMPOSED)
def test_every_row_is_valid_and_its_objects_build(name: str) -> None:
    cfg = row(name)
    for key in (
        "data",
        "sampler",
        "augmentation",
        "loss",
        "weighting",
        "optimizer",
        "schedule",
        "inference",
    ):
        build(cfg, key)
    build(cfg, "evaluation")


@pytest.mark.parametrize("name", ["salehi2017/tversky_b07", "hashemi2018/msseg_asl_b15", "hashemi2018/msseg_patch64",
                                  "hashemi2018/msseg_released", "hashemi2018/isbi_unet_asl_b15",
                                  "shirokikh2020/iwdl"])  # fmt: skip
def test_the_networks_take_the_patches_of_training(name: str) -> None:
    cfg = row(name)
    model, sampler = build(cfg, "model", in_channels=3, out_channels=1), build(cfg, "sampler")
    check_network(model, (cfg.trainer.batch_size, 3, *patch_sides(sampler.patch_size)), n_classes=1)


@pytest.mark.parametrize("name", ROWS)
def test_every_row_says_what_it_claims_and_how_it_is_run(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text()
    lines = text.splitlines()
    assert lines[0] == "# @package _global_"
    assert f"experiment={name} " in text
    assert "Paper" in text or "Authors' notebooks" in text
    assert max(map(len, lines)) <= 120
    assert len(yaml.safe_load(text)) <= 6, "a row holds differences only"


def test_the_rows_of_salehi_differ_in_beta_alone() -> None:
    rows = [row(f"salehi2017/tversky_b{beta}") for beta in ("05", "06", "07", "08", "09")]
    assert [build(cfg, "loss").alpha for cfg in rows] == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1])
    assert [build(cfg, "loss").beta for cfg in rows] == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])
    assert differing(rows[0], rows[1]) == {"loss.beta"}


@pytest.mark.parametrize("loss", ["bce", "dl", "asl", "fl"])
def test_inverse_weighting_is_all_that_a_weighted_row_changes(loss: str) -> None:
    base, weighted = row(f"shirokikh2020/lits_{loss}"), row(f"shirokikh2020/lits_iw{loss}")
    assert differing(base, weighted) == {"weighting"}
    assert weighted.weighting.w_max == 2e5


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("data", ["lits", "luna16"])
def test_a_row_on_a_data_set_is_the_loss_and_the_data_set(data: str, name: str) -> None:
    content = yaml.safe_load((FOLDER / "shirokikh2020" / f"{data}_{name}.yaml").read_text())
    assert content == {
        "defaults": [f"/experiment/shirokikh2020/{part}" for part in (name, data)] + ["_self_"]
    }


def test_the_data_sets_are_split_as_there() -> None:
    of_lits, of_luna16 = row("shirokikh2020/lits_iwdl"), row("shirokikh2020/luna16_iwdl")
    assert {key.split(".")[0] for key in differing(of_lits, of_luna16)} == {"data"}
    assert of_lits.data.importer.split == of_luna16.data.importer.split == "shirokikh2020"


def test_ablations_take_away_one_part_each() -> None:
    whole = row("hashemi2018/msseg_asl_b15")
    changed = {
        part: {
            key.split(".")[0] for key in differing(whole, row(f"hashemi2018/msseg_without_{part}"))
        }
        for part in ("selection", "fusion", "rotations")
    }
    assert changed == {
        "selection": {"sampler"}, "fusion": {"inference"}, "rotations": {"augmentation", "inference"}
    }  # fmt: skip


def test_the_hippocampus_has_two_classes_in_patches_of_most_of_a_volume() -> None:
    cfg = row("hippocampus")
    assert [*build(cfg, "data").classes] == ["anterior", "posterior"]
    assert build(cfg, "inference").tta == ["none", "x"]
    assert (FOLDER / "hippocampus.yaml").read_text().count("experiment=hippocampus ") == 1
    check_network(
        build(cfg, "model", in_channels=1, out_channels=2),
        (cfg.trainer.batch_size, 1, *patch_sides(build(cfg, "sampler").patch_size)),
        n_classes=2,
    )


def test_a_file_of_ones_own_starts_from_a_row() -> None:
    assert (
        "/experiment/salehi2017/base"
        in Path(FOLDER / "salehi2017" / "tversky_b07.yaml").read_text()
    )


def test_every_key_that_the_conformance_page_names_exists() -> None:
    text = (ROOT / "docs" / "conformance.md").read_text()
    words = [
        word for code in re.findall(r"`([^`\n]+)`", text) for word in code.split() if "=" in word
    ]
    known, groups = (
        known_keys("train"),
        {"experiment", *(path.name for path in (ROOT / "configs").iterdir())},
    )
    for key, _, value in (word.partition("=") for word in words):
        if "." in key:
            assert key in known, key
        elif key in groups - {"experiment"}:
            assert (ROOT / "configs" / key / f"{value}.yaml").exists(), f"{key}={value}"
    assert len(words) > 60


def test_the_conformance_page_gives_the_values_of_the_files() -> None:
    text = (ROOT / "docs" / "conformance.md").read_text()
    salehi, _, rest = text.partition("## Hashemi")
    hashemi, _, shirokikh = rest.partition("## Shirokikh")
    for page, name in ((salehi, "salehi2017/tversky_b07"), (hashemi, "hashemi2018/msseg_asl_b15"),
                       (shirokikh, "shirokikh2020/lits_dl")):  # fmt: skip
        cfg = row(name)
        for key in ("trainer.max_steps", "trainer.batch_size", "trainer.clip_norm"):
            for value in re.findall(rf"`[^`]*{re.escape(key)}=([\d.]+)", page):
                assert OmegaConf.select(cfg, key) == float(value), f"{name}: {key}"
