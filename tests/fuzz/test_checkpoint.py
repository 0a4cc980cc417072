"""Damaged checkpoints, and those of strangers, are refused in one line or hold a whole network."""

import copy
import io
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.fuzzing import (
    Edit,
    bounded,
    damages,
    edited,
    fuzz,
    result_or_refusal,
    rewrite,
    untouched,
)
from tversky_seg.data.preprocessing.pipeline import Preprocessing
from tversky_seg.inference.settings import Inference
from tversky_seg.inference.trained_model import TrainedModel, build_ensemble, load_trained
from tversky_seg.models import UNet3D

VALUES = (
    *(None, True, False, 0, 1, -1, 3, 10**9, 10**30, 0.5, -0.0, float("nan"), float("inf")),
    *("", "x", "dice", "é", "\x1b[2J", "torch.nn.Linear", "os.system", "whole", "none", "1"),
    *([], [1], [1, 2, 3], [0, 0, 0], [10**6] * 3, [None], [[[]]], ["FLAIR"], ["FLAIR", "T1"]),
    *({}, {"a": 1}, {"lesion": 0.5}, {"lesion": [1]}, {1: 2}, {"_target_": "torch.nn.Identity"}),
    *(torch.zeros(0), torch.zeros(3, 1), torch.tensor(2.0), torch.full((2,), float("nan"))),
)


def whole_state() -> dict[str, Any]:
    torch.manual_seed(0)
    network = UNet3D(in_channels=1, out_channels=1, width=2, n_levels=2)
    model = {"_target_": "tversky_seg.models.UNet3D", "width": 2, "n_levels": 2}
    return {
        "model": network.state_dict(),
        "step": 3,
        "config": {"model": model, "augmentation": {"dropout_probability": 0.0}, "seed": 0},
        "preprocessing": Preprocessing(("FLAIR",)).as_dict(),
        "inference": asdict(Inference(patch_size=16)),
        "threshold": 0.4,
        "min_volume_mm3": 2.0,
        "min_peak": 0.9,
    }


def places(node: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the keys that lead to every entry of nested dicts."""
    found = []
    if isinstance(node, dict):
        for key, value in node.items():
            found.append((*place, key))
            found += places(value, (*place, key))
    return found


STATE = whole_state()


def saved(state: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


WHOLE = saved(STATE)


@fuzz(0.05)
@given(
    st.lists(
        st.tuples(st.sampled_from(places(STATE)), st.sampled_from(VALUES)), min_size=1, max_size=2
    ),
    st.booleans(),
)
def test_a_checkpoint_with_other_entries_is_refused_or_predicts(
    file: Path, changes: Sequence[tuple[tuple[Any, ...], Any]], is_removed: bool
) -> None:
    state = copy.deepcopy(STATE)
    for place, value in changes:
        change(state, place, value, is_removed=is_removed)
    check_file(file, saved(state))


@fuzz(0.03)
@given(damages())
def test_a_checkpoint_with_damaged_bytes_is_refused_or_whole(
    file: Path, damage: Sequence[Edit]
) -> None:
    model = check_file(file, edited(WHOLE, damage))
    if model is not None:
        assert_weights(model, STATE["model"])


@fuzz(0.04)
@given(damages())
def test_a_checkpoint_of_a_damaged_pickle_is_refused_or_predicts(
    file: Path, damage: Sequence[Edit]
) -> None:
    repacked = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(WHOLE)) as old, zipfile.ZipFile(repacked, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                content = edited(content, damage)
            new.writestr(name, content)  # with a checksum that is right
    check_file(file, repacked.getvalue())


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoint") / "best.pt"


def change(state: dict[str, Any], place: Sequence[Any], value: Any, *, is_removed: bool) -> None:
    """Replace or remove an entry of nested dicts, if it is still there."""
    *above, key = place
    node: Any = state
    for name in above:
        node = node.get(name) if isinstance(node, dict) else None
    if isinstance(node, dict) and key in node:
        node[key] = value
        if is_removed:
            del node[key]


def check_file(file: Path, content: bytes) -> TrainedModel | None:
    """Load a checkpoint as predict.py does, and predict with it."""
    rewrite(file, content)
    with untouched(file.parent):
        model: TrainedModel | None = result_or_refusal(lambda: load_trained(file), named=[file])
    if model is not None:
        with bounded():
            # Without a size of windows, predict.py asks for one.
            size = {"patch_size": 8} if model.inference.patch_size is None else {}
            _, inference = build_ensemble([model], overrides=size)
        for name in model.preprocessing.classes:
            assert 0 <= inference.threshold_of(name) <= 1
            assert inference.min_volume_of(name) >= 0
            assert 0 <= inference.min_peak_of(name) <= 1
    return model


def assert_weights(model: TrainedModel, weights: dict[str, torch.Tensor]) -> None:
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, weights[name])
