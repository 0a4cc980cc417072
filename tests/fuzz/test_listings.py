"""Odd listings of downloaded data sets are refused in one line, or list cases of their folder."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.fuzzing import Edit, damages, edited, fuzz, result_or_refusal, rewrite, untouched
from helpers.odd_values import odd_json
from tversky_seg.data.case import Case
from tversky_seg.data.datasets.decathlon import find_decathlon
from tversky_seg.data.datasets.nnunet import find_nnunet

DECATHLON = {
    "modality": {"0": "FLAIR", "1": "T1"},
    "training": [{"image": "./imagesTr/a_0000.nii.gz", "label": "./labelsTr/a.nii.gz"}],
    "test": ["./imagesTr/b_0000.nii.gz"],
}
NNUNET = {
    "channel_names": {"0": "FLAIR"},
    "labels": {"background": 0, "lesion": 1},
    "file_ending": ".nii.gz",
}
NNUNET_1 = {"modality": {"0": "FLAIR"}, "labels": {"0": "background", "1": "lesion"}}
LISTED = {**NNUNET, "dataset": {"a": {"images": ["imagesTr/a_0000.nii.gz"], "label": "labelsTr/a"}}}
LISTINGS = [
    (find_decathlon, DECATHLON),
    (find_nnunet, NNUNET),
    (find_nnunet, NNUNET_1),
    (find_nnunet, LISTED),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("download")
    for name in ("imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz", "labelsTr/a.nii.gz"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no image")
    return folder


def places(node: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the keys and positions that lead to every entry."""
    entries: list[tuple[Any, Any]] = []
    if isinstance(node, dict):
        entries = list(node.items())
    elif isinstance(node, list):
        entries = list(enumerate(node))
    found = []
    for key, value in entries:
        found += [(*place, key), *places(value, (*place, key))]
    return found


@fuzz(0.03)
@given(
    st.sampled_from(LISTINGS),
    st.integers(0, 100),
    odd_json(),
    st.one_of(st.just([]), damages()),
)
def test_an_odd_listing_is_refused_or_lists_cases(
    folder: Path,
    listing: tuple[Callable[[Path], list[Case]], dict[str, Any]],
    number: int,
    value: Any,
    damage: Sequence[Edit],
) -> None:
    find, whole = listing
    content = json.loads(json.dumps(whole))
    all_places = places(content)
    *above, key = all_places[number % len(all_places)]
    node = content
    for name in above:
        node = node[name]
    node[key] = value
    rewrite(folder / "dataset.json", edited(json.dumps(content).encode(), damage))
    with untouched(folder):
        cases = result_or_refusal(lambda: find(folder), named=[folder, "dataset.json"])
    for case in cases or ():
        assert all(isinstance(path, Path) for path in case.paths)
