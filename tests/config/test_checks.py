"""Checks of plain settings: types, and the nearest right key."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tversky_seg.config import ConfigError
from tversky_seg.config.checks import check_type, nearest


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (1, int),
        (1, float),
        (float("inf"), float),
        (True, bool),
        (None, float | None),
        ("a", Path | None),
        ([1, 2], tuple[int, int] | int),
        (None, tuple[int, ...]),
        ({"a": 1}, dict[str, int]),
        ({"_target_": "x"}, torch.nn.Module),
        (3, Any),
    ],
)
def test_a_value_that_fits_its_annotation_passes(value: Any, annotation: Any) -> None:
    check_type("key", value, annotation)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (True, int),
        (1.5, int),
        ("1", float),
        (1, bool),
        (None, float),
        (3, Path),
        ("ab", tuple[str, ...]),
        ([1], dict[str, int]),
        (3, torch.nn.Module),
    ],
)
def test_a_value_of_another_type_is_refused(value: Any, annotation: Any) -> None:
    with pytest.raises(ConfigError, match=r"^key: .*; expected "):
        check_type("key", value, annotation)


def test_the_nearest_key_is_named_or_all_are_listed() -> None:
    assert "loss.alpha" in nearest("loss.alhpa", ["loss.alpha", "loss.beta"])
    assert "loss.beta" not in nearest("loss.alhpa", ["loss.alpha", "loss.beta"])
    assert "alpha, beta" in nearest("zzz", ["alpha", "beta"])
