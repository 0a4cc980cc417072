"""Validation: what is chosen on the cases, and what the network is worth with that."""

import math
from pathlib import Path

import numpy as np
import pytest

from helpers.cohorts import AFFINE, save, scan
from helpers.networks import FirstChannel
from tversky_seg.data.case import Case
from tversky_seg.data.preprocessing.pipeline import Preprocessing, preprocess
from tversky_seg.data.preprocessing.prepared_case import PreparedCase
from tversky_seg.inference.settings import Inference
from tversky_seg.inference.sliding_window import predict_volume
from tversky_seg.metrics import compute_metrics
from tversky_seg.metrics.score_histogram import to_levels
from tversky_seg.training.validation import MONITORED, validate

WHOLE = Inference(patch_size="whole")


def a_case(folder: Path, seed: int, *, is_empty: bool = False) -> PreparedCase:
    image, label = scan(seed)
    files = [
        save(folder / f"{seed}_image.nii", image),
        save(folder / f"{seed}_label.nii", label * (not is_empty)),
    ]
    return preprocess(
        Case(f"c{seed}", f"c{seed}", {"FLAIR": files[0]}, (files[1],)), Preprocessing(("FLAIR",))
    )


def test_measures_are_means_over_cases_at_what_was_chosen(tmp_path: Path) -> None:
    cases = [a_case(tmp_path, seed) for seed in range(3)]
    validation = validate(FirstChannel(), cases=cases, classes=("lesion",), inference=WHOLE)
    rows = []
    for case in cases:
        assert case.target is not None
        probability = predict_volume(
            FirstChannel(), case.image, image_scale=case.image_scale, patch_size="whole"
        )[0]
        levels = to_levels(probability.numpy()) / 65535
        settings = {"threshold": validation.threshold, "min_volume_mm3": validation.min_volume_mm3}
        rows.append(
            compute_metrics(levels, case.target[0], spacing_mm=np.diag(AFFINE)[:3], **settings)
        )
    for name in MONITORED:
        assert validation.measures[name] == pytest.approx(
            np.mean([row[name] for row in rows]), abs=1e-4
        ), name


def test_several_classes_are_named_and_averaged(tmp_path: Path) -> None:
    case = a_case(tmp_path, 0)
    twice = {name: np.repeat(case.arrays[name], 2, axis=0) for name in ("image", "target")}
    double = PreparedCase(
        "a",
        "a",
        case.geometry,
        np.repeat(case.image_scale, 2),
        case.n_lesions * 2,
        arrays={**case.arrays, **twice},
    )

    class Both(FirstChannel):
        def forward(self, image):  # type: ignore[no-untyped-def]
            return image * image.new_tensor([1.0, -1.0]).view(1, 2, 1, 1, 1)

    validation = validate(Both(), cases=[double], classes=("a", "b"), inference=WHOLE)
    assert isinstance(validation.threshold, dict)
    assert set(validation.threshold) == {"a", "b"}
    assert validation.measures["a/dice"] > validation.measures["b/dice"]
    assert validation.measures["dice"] == pytest.approx(
        (validation.measures["a/dice"] + validation.measures["b/dice"]) / 2
    )


def test_without_any_lesion_measures_are_undefined_at_one_half(tmp_path: Path) -> None:
    validation = validate(
        FirstChannel(),
        cases=[a_case(tmp_path, 0, is_empty=True)],
        classes=("lesion",),
        inference=WHOLE,
    )
    assert validation.threshold == 0.5
    assert math.isnan(validation.measures["sensitivity"])
