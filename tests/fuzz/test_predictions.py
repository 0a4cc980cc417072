"""Odd folders of predictions are refused in one line, or read as what is stored."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
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
from helpers.odd_values import odd_json
from tversky_seg.data.case import Case
from tversky_seg.data.nifti import PROBABILITY_SCALE, read_label, write_volume
from tversky_seg.evaluation.saved_predictions import open_predictions
from tversky_seg.inference.case_records import CaseRecords
from tversky_seg.inference.lesion_table import write_lesion_table
from tversky_seg.inference.prediction_folder import claim_folder
from tversky_seg.metrics.lesions import remove_small_lesions, remove_weak_lesions

SHAPE = (6, 5, 4)
SETTINGS = {
    "checkpoint": "0" * 64,
    "classes": {"lesion": [1]},
    "background_values": None,
    "threshold": 0.4,
    "min_volume_mm3": 2.0,
    "min_peak": 0.6,
    "probability_scale": PROBABILITY_SCALE,
    "patch_size": [16, 16, 16],
}
RECORD = {
    "inputs": {"FLAIR": ["/data/c_FLAIR.nii.gz", 100, 10**18]},
    "sizes": {"c_mask.nii.gz": 100},
    "lesions": [{"case_id": "c", "lesion": 1, "volume_mm3": 3.0}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one prediction, beside the case's label."""
    folder = tmp_path_factory.mktemp("run") / "predictions"
    probability = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    write_volume(folder / "c_probability.nii.gz", probability, np.eye(4), scale=PROBABILITY_SCALE)
    write_volume(folder / "c_mask.nii.gz", probability >= 0.4, np.eye(4))
    write_volume(folder.parent / "label.nii.gz", probability >= 0.5, np.eye(4))
    (folder / ".cases").mkdir()
    return folder


def changed(content: dict[str, Any], key: str, value: Any, damage: Sequence[Edit]) -> bytes:
    """Write a JSON file with another value, and perhaps damaged."""
    return edited(json.dumps({**content, key: value}).encode(), damage)


def no_damage_or_some() -> st.SearchStrategy[list[Edit]]:
    return st.one_of(st.just([]), damages())


@fuzz(0.06)
@given(st.sampled_from([*SETTINGS]), odd_json(), no_damage_or_some())
def test_odd_settings_are_refused_or_make_the_mask_that_they_say(
    folder: Path, key: str, value: Any, damage: Sequence[Edit]
) -> None:
    content = changed(SETTINGS, key, value, damage)
    file = rewrite(folder / "predictions.json", content)
    case = Case("c", "c", {}, (folder.parent / "label.nii.gz",))
    reference = read_label(case.labels[0])
    with untouched(folder):
        source = result_or_refusal(lambda: open_predictions(folder), named=[folder])
        is_ours = result_or_refusal(lambda: claim_folder(folder, SETTINGS), named=[file])
    if is_ours:
        saved = json.loads(content)
        assert {key: saved.get(key) for key in SETTINGS} == SETTINGS
    if source is None:
        return
    for name in source.classes:
        prediction = result_or_refusal(
            lambda name=name: source.read(case, name, reference=reference), named=[folder]
        )
        if prediction is not None and source.classes.keys() == {"lesion"}:
            check_mask(prediction.mask, folder, json.loads(content))


def check_mask(mask: np.ndarray, folder: Path, settings: dict[str, Any]) -> None:
    """Compare a mask with the saved one, or with the probability where nothing says a threshold."""
    threshold = settings.get("threshold")
    expected = np.asarray(nib.load(folder / "c_mask.nii.gz").dataobj) == 1
    if threshold is None:
        probability = np.asarray(nib.load(folder / "c_probability.nii.gz").dataobj)
        peak = settings.get("min_peak") or 0
        expected = remove_weak_lesions(probability >= 0.5, probability, min_score=peak)
    minimum = settings.get("min_volume_mm3") or 0
    if isinstance(minimum, dict):
        minimum = minimum["lesion"]
    expected = remove_small_lesions(expected, spacing_mm=(1, 1, 1), min_volume_mm3=minimum)
    assert np.array_equal(mask, expected)


@fuzz(0.03)
@given(st.sampled_from(["c_mask.nii.gz", "c_probability.nii.gz"]), damages())
def test_a_damaged_prediction_is_never_evaluated(
    folder: Path, name: str, damage: Sequence[Edit]
) -> None:
    rewrite(folder / "predictions.json", json.dumps(SETTINGS).encode())
    case = Case("c", "c", {}, (folder.parent / "label.nii.gz",))
    reference = read_label(case.labels[0])
    source = open_predictions(folder)
    whole = source.read(case, "lesion", reference=reference)
    file = folder / name
    content = file.read_bytes()
    try:
        rewrite(file, edited(content, damage))
        prediction = result_or_refusal(
            lambda: source.read(case, "lesion", reference=reference), named=[file]
        )
    finally:
        rewrite(file, content)
    if prediction is not None:
        assert np.array_equal(prediction.mask, whole.mask)
        assert np.array_equal(prediction.probability, whole.probability)


@fuzz(0.02)
@given(st.sampled_from([*RECORD]), odd_json(), no_damage_or_some())
def test_an_odd_record_of_a_case_never_stops_a_prediction(
    folder: Path, key: str, value: Any, damage: Sequence[Edit]
) -> None:
    rewrite(folder / ".cases" / "c.json", changed(RECORD, key, value, damage))
    records = CaseRecords(folder)
    table = folder.parent / "lesions.csv"
    with bounded(), untouched(folder):
        record = records.read("c")
        if record is not None:
            records.is_complete(record)
        write_lesion_table(table, records.lesions(), case_ids=["c"], n_classes=1)
