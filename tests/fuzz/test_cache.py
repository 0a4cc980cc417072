"""A damaged cache entry is seen: a case from the cache is the case of the files."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.fuzzing import Edit, bounded, damages, edited, fuzz, rewrite, untouched
from helpers.oblique_cases import FLAIR, a_case
from helpers.odd_values import odd_json
from tversky_seg.data.case import Case
from tversky_seg.data.preprocessing.case_cache import load_cached, prepare
from tversky_seg.data.preprocessing.prepared_case import PreparedCase


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("cohort") / "files"
    folder.mkdir()
    return a_case(folder, shape=(9, 8, 7))


@pytest.fixture(scope="module")
def prepared(case: Case) -> PreparedCase:
    return prepare(case, FLAIR, cache_dir=cache_of(case))


def cache_of(case: Case) -> Path:
    return case.images["FLAIR"].parents[1] / "cache"


@fuzz(0.03)
@given(st.integers(0, 100), damages())
def test_an_entry_with_a_damaged_file_is_none(
    case: Case, prepared: PreparedCase, number: int, damage: Sequence[Edit]
) -> None:
    files = sorted(entry_of(prepared).iterdir())
    file = files[number % len(files)]
    check_entry(case, prepared, file, edited(file.read_bytes(), damage))


@fuzz(0.03)
@given(st.sampled_from(("facts", "files", "digest")), st.integers(0, 20), odd_json())
def test_an_entry_with_odd_facts_is_none(
    case: Case, prepared: PreparedCase, part: str, number: int, value: Any
) -> None:
    file = entry_of(prepared) / "meta.json"
    meta = json.loads(file.read_bytes())
    if isinstance(meta[part], dict):
        names = sorted(meta[part])
        meta[part][names[number % len(names)]] = value
    else:
        meta[part] = value
    check_entry(case, prepared, file, json.dumps(meta).encode())


@fuzz(0.002)
@given(st.integers(0, 100), damages())
def test_a_damaged_entry_is_made_again(
    case: Case, prepared: PreparedCase, number: int, damage: Sequence[Edit]
) -> None:
    files = sorted(entry_of(prepared).iterdir())
    file = files[number % len(files)]
    before = arrays_of(prepared)
    rewrite(file, edited(file.read_bytes(), damage))
    with untouched(case.images["FLAIR"].parent):
        again = prepare(case, FLAIR, cache_dir=cache_of(case))
    assert again.folder == prepared.folder
    assert_equal(arrays_of(again), before)


def entry_of(prepared: PreparedCase) -> Path:
    assert prepared.folder is not None
    return prepared.folder


def check_entry(case: Case, prepared: PreparedCase, file: Path, content: bytes) -> None:
    """Load a case whose entry has another file, which is put back afterwards."""
    whole = file.read_bytes()
    times = file.stat()
    before = arrays_of(prepared)
    rewrite(file, content)
    try:
        with bounded(), untouched(cache_of(case).parent):
            again = load_cached(case, FLAIR, cache_dir=cache_of(case))
        if again is not None:
            assert_equal(arrays_of(again), before)
    finally:
        rewrite(file, whole)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def arrays_of(prepared: PreparedCase) -> dict[str, Any]:
    return {
        "image": np.array(prepared.image),
        "foreground": np.array(prepared.foreground_voxels),
        "scale": prepared.image_scale,
        "affine": prepared.geometry.input_affine,
    }


def assert_equal(arrays: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, array in expected.items():
        assert np.array_equal(arrays[name], array), name
