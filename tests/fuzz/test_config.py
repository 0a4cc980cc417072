"""Odd words, values and files of a config: each fault is one line, and none needs a traceback."""

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from helpers.command_line import CONFIGS, composed
from helpers.fuzzing import Edit, bounded, damages, edited, fuzz, rewrite
from helpers.odd_values import ODD_VALUES, odd_json
from tversky_seg import config
from tversky_seg.config.command_line import read_command_line
from tversky_seg.config.composed_config import check_config
from tversky_seg.config.config_files import read_yaml
from tversky_seg.config.messages import one_line
from tversky_seg.runtime.allocation_limit import AllocationLimit, TooLarge
from tversky_seg.runtime.one_line import printable_line
from tversky_seg.runtime.run_settings import flatten

VERBS = ("train", "predict", "evaluate")
KEYS = (
    *(
        "loss",
        "loss.alpha",
        "data.root",
        "data.classes",
        "trainer.max_steps",
        "output_dir",
        "input",
    ),
    *("experiment", "+loss.beta", "~loss", "++a.b", "a", "", "seed", "hydra.run.dir", "trust"),
    *("loss._target_", "é", "--config-dir", "-m", "--cfg", "-h", "--info", "data.modalities"),
)
VALUES = (
    *("dice", "0.3", "0,1", "[a,b]", "{a: 1}", "'a b'", '"', "'", "null", "???", "${seed}", "${a"),
    *("$(id)", "range(3)", "choice(a,b)", "interval(0,1)", "1e9999", "0x1f", "[[", "]", "{", "@x"),
    *("../x", "~", "a=b", "a b", "é", "\\", "a,b,", "sort(3,1)", "int(x)", "job", "tag(a,1)"),
)


def words() -> st.SearchStrategy[str]:
    key = st.one_of(st.sampled_from(KEYS), st.text(max_size=6))
    value = st.one_of(st.sampled_from(VALUES), st.text(max_size=8))
    return st.builds("{}{}{}".format, key, st.sampled_from(("=", "=", "=", "", "==")), value)


def said_of(function: Callable[[], Any], *, verb: str = "train") -> tuple[Any, str]:
    """Return what a function gives and "", or None and the line that a command would print."""
    try:
        with bounded():
            return function(), ""
    except Exception as fault:
        line = one_line(fault, config_name=verb)
        assert "HYDRA_FULL_ERROR" not in line, line
        assert printable_line(line).isprintable()
        return None, line


@fuzz(0.07)
@given(st.lists(words(), min_size=1, max_size=3), st.sampled_from(VERBS))
def test_words_of_a_command_line_are_read_or_named(typed: list[str], verb: str) -> None:
    line, _ = said_of(lambda: read_command_line(typed), verb=verb)
    if line is not None:
        assert len(line.options) + len(line.settings) <= len(typed)


@fuzz(0.008)
@given(st.lists(words(), min_size=1, max_size=2), st.sampled_from(("predict", "evaluate")))
def test_a_config_of_odd_words_is_composed_or_refused(typed: list[str], verb: str) -> None:
    given = {"predict": ["checkpoint=a", "output_dir=b"], "evaluate": ["predictions=a"]}

    def compose() -> None:
        line = read_command_line([*given[verb], *typed])
        if not line.is_sweep and not line.wants_help and not line.options:
            check_config(composed(*line.settings, verb=verb), config_name=verb)

    said_of(compose, verb=verb)


BUILT = ("data", "sampler", "augmentation", "model", "loss", "optimizer", "schedule", "inference")
PARTS = {"model": {"in_channels": 1, "out_channels": 1}}


@cache
def default_settings() -> Any:
    """Compose the settings of a training."""
    return OmegaConf.to_container(composed("weighting=inverse"))


@fuzz(0.05)
@given(st.integers(0, 1000), st.one_of(st.sampled_from(ODD_VALUES), odd_json()))
def test_an_odd_value_is_used_or_named_by_its_key(number: int, value: Any) -> None:
    settings = default_settings()
    keys = [key for key, _ in flatten(settings) if key != "trust" and not key.endswith("_")]
    key = keys[number % len(keys)]
    group = key.partition(".")[0]

    def use() -> None:
        cfg = OmegaConf.create(settings)
        OmegaConf.update(cfg, key, value, force_add=True)
        check_config(cfg, config_name="train")
        if group in BUILT:
            # A network that is too large for this machine is no fault.
            with suppress(TooLarge), AllocationLimit(2**26):
                config.build(cfg, group, **PARTS.get(group, {}))

    _, line = said_of(use)
    assert not line or group in line, line


@fuzz(0.05)
@given(st.sampled_from(sorted(CONFIGS.rglob("*.yaml"))), damages())
def test_a_damaged_file_of_a_config_is_read_or_named(
    folder: Path, source: Path, damage: list[Edit]
) -> None:
    content = edited(source.read_bytes(), damage)
    file = rewrite(folder / "mine.yaml", content)
    read, line = said_of(lambda: read_yaml(file))
    if line:
        assert str(file) in line
    else:
        # A tag alone, "!", is an empty word in one reader and nothing in the other.
        assert (read or None) == (yaml.safe_load(content.decode()) or None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("configs")
