"""The experiment files: each row of the papers is valid, builds, and is what its name says."""

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
from tversky_seg.config.config_files import known_keys, read_yaml
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
}
"""Files that are added to rows, and are no rows themselves."""

ROWS = [
    f"{path.parent.name}/{path.stem}"
    for path in sorted(FOLDER.glob("*/*.yaml"))
    if path.stem not in PARTS
]


@cache
def row(*names: str) -> DictConfig:
    """Compose the config of a row, or of a row and files added to it."""
    cfg = composed(f"experiment=[{','.join(names)}]", "data.root=somewhere")
    check_config(cfg, config_name="train")
    return cfg


@pytest.fixture(autouse=True)
def fast_yaml() -> Iterator[None]:
    with mock.patch.object(yaml, "SafeLoader", yaml.CSafeLoader):
        yield


def differing_keys(a: Any, b: Any, key: str = "") -> set[str]:
    """List the dotted keys at which two nodes differ."""
    if not (isinstance(a, DictConfig) and isinstance(b, DictConfig)):
        return set() if a == b else {key}
    keys: set[str] = set()
    for name in {*a, *b}:
        keys |= differing_keys(a.get(name), b.get(name), f"{key}.{name}".strip("."))
    return keys


def differing_groups(a: DictConfig, b: DictConfig) -> set[str]:
    return {key.split(".")[0] for key in differing_keys(a, b)}


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_valid_and_its_objects_build(name: str) -> None:
    cfg = row(name)
    for group in (
        "data",
        "sampler",
        "augmentation",
        "loss",
        "lesion_term",
        "weighting",
        "optimizer",
        "schedule",
        "inference",
        "evaluation",
    ):
        build(cfg, group)


@pytest.mark.parametrize(
    "name",
    [
        "salehi2017/tversky_b07",
        "hashemi2018/msseg_asl_b15",
        "hashemi2018/msseg_patch64",
        "hashemi2018/msseg_released",
        "hashemi2018/isbi_unet_asl_b15",
        "shirokikh2020/iwdl",
    ],
)
def test_the_networks_take_the_patches_of_training(name: str) -> None:
    cfg = row(name)
    model = build(cfg, "model", in_channels=3, out_channels=1)
    sides = patch_sides(build(cfg, "sampler").patch_size)
    check_network(model, (cfg.trainer.batch_size, 3, *sides), n_classes=1)


@pytest.mark.parametrize("name", ROWS)
def test_every_row_says_what_it_claims_and_how_it_is_run(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert lines[0] == "# @package _global_"
    assert f"experiment={name} " in text
    assert "Paper" in text or "Authors' notebooks" in text
    assert max(len(line) for line in lines) <= 100
    assert len(yaml.safe_load(text)) <= 6, "a row holds differences only"


def test_the_rows_of_salehi_differ_in_beta_alone() -> None:
    rows = [row(f"salehi2017/tversky_b{beta}") for beta in ("05", "06", "07", "08", "09")]
    assert [build(cfg, "loss").alpha for cfg in rows] == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1])
    assert [build(cfg, "loss").beta for cfg in rows] == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])
    assert differing_keys(rows[0], rows[1]) == {"loss.beta"}


@pytest.mark.parametrize("loss", ["bce", "dl", "asl", "fl"])
def test_inverse_weighting_is_all_that_a_weighted_row_changes(loss: str) -> None:
    base = row(f"shirokikh2020/{loss}")
    weighted = row(f"shirokikh2020/iw{loss}")
    assert differing_keys(base, weighted) == {"weighting"}
    assert weighted.weighting.w_max == 2e5


@pytest.mark.parametrize("dataset", ["lits", "luna16"])
def test_a_row_and_a_data_set_of_shirokikh_stand_side_by_side(dataset: str) -> None:
    cfg = row("shirokikh2020/iwdl", f"shirokikh2020/{dataset}")
    differing = differing_groups(cfg, row("shirokikh2020/iwdl"))
    assert differing <= {"data", "trainer", "augmentation", "inference"}
    assert cfg.data.importer.split == "shirokikh2020"
    assert cfg.trainer.max_steps == 10_000
    assert differing_keys(cfg, row("shirokikh2020/dl", f"shirokikh2020/{dataset}")) == {"weighting"}


def test_the_data_sets_of_shirokikh_differ_in_nothing_else() -> None:
    lits = row("shirokikh2020/iwdl", "shirokikh2020/lits")
    luna16 = row("shirokikh2020/iwdl", "shirokikh2020/luna16")
    # LiTS is tested on the box of the liver label, LUNA16 in the mask of the lungs.
    assert differing_groups(lits, luna16) == {"data", "inference"}
    assert lits.inference.crop_labelled
    assert "crop_labelled" not in luna16.inference


@pytest.mark.parametrize(
    ("part", "changed_groups"),
    [
        ("selection", {"sampler"}),
        ("fusion", {"inference"}),
        ("rotations", {"augmentation", "inference"}),
    ],
)
def test_ablations_take_away_one_part_each(part: str, changed_groups: set[str]) -> None:
    whole = row("hashemi2018/msseg_asl_b15")
    ablated = row(f"hashemi2018/msseg_without_{part}")
    assert differing_groups(whole, ablated) == changed_groups


def test_the_hippocampus_has_two_classes_in_patches_of_most_of_a_volume() -> None:
    cfg = row("hippocampus")
    assert list(build(cfg, "data").classes) == ["anterior", "posterior"]
    assert build(cfg, "inference").tta == ["none", "x"]
    assert "experiment=hippocampus " in (FOLDER / "hippocampus.yaml").read_text(encoding="utf-8")
    model = build(cfg, "model", in_channels=1, out_channels=2)
    sides = patch_sides(build(cfg, "sampler").patch_size)
    check_network(model, (cfg.trainer.batch_size, 1, *sides), n_classes=2)


def test_a_patch_of_the_nodules_holds_a_whole_crop() -> None:
    cfg = composed("experiment=nodules", "data.manifest=nodules.csv")
    assert build(cfg, "data").val_fraction == 0
    assert cfg.trainer.init_from is None
    assert "experiment=nodules " in (FOLDER / "nodules.yaml").read_text(encoding="utf-8")
    model = build(cfg, "model", in_channels=1, out_channels=1)
    sides = patch_sides(build(cfg, "sampler").patch_size)
    assert sides == (48, 48, 16)
    check_network(model, (cfg.trainer.batch_size, 1, *sides), n_classes=1)


def test_a_file_of_ones_own_can_start_from_a_row(tmp_path: Path) -> None:
    defaults = read_yaml(FOLDER / "salehi2017" / "tversky_b07.yaml")["defaults"]
    assert "/experiment/salehi2017/base" in defaults


CONFORMANCE_PAGE = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")


def settings_of_file(path: Path) -> list[str]:
    """List the settings of an experiment file, as ["loss=focal", "loss.alpha"]."""
    content = read_yaml(path)
    settings = []
    for default in content.pop("defaults", []):
        # A default is "_self_", another experiment file, or {"override /loss": "focal"}.
        if isinstance(default, dict):
            (group, choice), *_ = default.items()
            settings.append(f"{group.removeprefix('override /')}={choice}")
    return settings + leaf_keys(content)


def leaf_keys(node: dict[str, Any], parent: str = "") -> list[str]:
    """List the dotted keys of a nested dict. data.classes is one setting, whatever its classes."""
    keys = []
    for name, child in node.items():
        key = f"{parent}.{name}".lstrip(".")
        if isinstance(child, dict) and key != "data.classes":
            keys += leaf_keys(child, key)
        else:
            keys.append(key)
    return keys


PAPER_FILES = [path for path in FOLDER.glob("*/*.yaml") if not path.stem.startswith("small")]


@pytest.mark.parametrize("path", PAPER_FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_conformance_page_names_every_setting_of_an_experiment_file(path: Path) -> None:
    for setting in settings_of_file(path):
        if setting not in ("trainer=default", "augmentation=default"):
            assert setting in CONFORMANCE_PAGE


def test_every_key_that_the_conformance_page_names_exists() -> None:
    # `model.norm=null` names the key model.norm; `model=unet3d` names a file of configs/model/.
    keys = re.findall(r"\b([a-z_]+\.[a-z0-9_.]+)=", CONFORMANCE_PAGE)
    assert set(keys) <= set(known_keys("train"))
    choices = re.findall(r"\b(?<![.\w])([a-z]+)=([a-z0-9_]+)", CONFORMANCE_PAGE)
    groups = [path.name for path in (ROOT / "configs").iterdir() if path.is_dir()]
    for group, choice in choices:
        if group in groups and group != "experiment":
            assert (ROOT / "configs" / group / f"{choice}.yaml").exists(), f"{group}={choice}"


@pytest.mark.parametrize(
    ("heading", "names"),
    [
        ("Salehi", ["salehi2017/tversky_b07"]),
        ("Hashemi", ["hashemi2018/msseg_asl_b15"]),
        ("Shirokikh", ["shirokikh2020/dl", "shirokikh2020/lits"]),
    ],
)
def test_the_conformance_page_gives_the_values_of_the_files(heading: str, names: list[str]) -> None:
    section = CONFORMANCE_PAGE.partition(f"## {heading}")[2].partition("\n## ")[0]
    cfg = row(*names)
    for key in ("trainer.max_steps", "trainer.batch_size", "trainer.clip_norm"):
        for value in re.findall(rf"`[^`]*{re.escape(key)}=([\d.]+)", section):
            assert OmegaConf.select(cfg, key) == float(value), key
