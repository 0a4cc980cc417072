"""Limits of YAML files and of a checkpoint's settings."""

import io
from pathlib import Path

import pytest
import yaml

from tversky_seg.config import ConfigError, build_network
from tversky_seg.config.config_files import read_yaml
from tversky_seg.config.yaml_size import check_values, check_yaml


def check(text: str) -> None:
    check_yaml(io.StringIO(text), "a.yaml", yaml.SafeLoader)


def test_files_of_usual_size_pass() -> None:
    check("")
    check("a: [1, 2, {b: &c [3]}]\nd: *c\n")
    check_values({"a": [1, {"b": None}]}, "a.yaml")


def test_aliases_count_as_what_they_stand_for() -> None:
    many = ", ".join(["x"] * 1000)
    check(f"a: &a [{many}]\nb: [{', '.join(['*a'] * 90)}]\n")
    with pytest.raises(ConfigError, match=r"a\.yaml"):
        check(f"a: &a [{many}]\nb: [{', '.join(['*a'] * 100)}]\n")


def test_merged_keys_count_too() -> None:
    keys = "\n".join(f"  k{i}: 1" for i in range(1000))
    with pytest.raises(ConfigError, match=r"a\.yaml"):
        check(f"a: &a\n{keys}\nb: {{<<: [{', '.join(['*a'] * 100)}]}}\n")


def test_a_list_that_contains_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a\.yaml"):
        check("a: &a [1, *a]\n")


def test_a_checkpoint_cannot_hold_a_network_of_endless_lists() -> None:
    endless: list[object] = []
    endless.append(endless)
    shared: list[object] = ["x"] * 10
    for _ in range(10):
        shared = [shared] * 10
    for model in ({"_target_": "torch.nn.Identity", "a": value} for value in (endless, shared)):
        with pytest.raises(ConfigError, match=r"^model: "):
            build_network({"model": model}, in_channels=1, out_channels=1)


@pytest.mark.parametrize("content", [b"a: \x03", b"a: \xff", b"a: 2026-13-01"])
def test_what_is_no_text_and_no_value_is_named_by_its_file(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"/a\.yaml: .*; expected"):
        read_yaml(file)
