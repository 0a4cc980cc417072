"""Validation: what is chosen on the cases, and what the network is worth with that."""

import math
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.cohorts import AFFINE, save, scan
from helpers.cuda import on_gpu
from helpers.networks import FirstChannel
from tversky_seg.data.case import Case
from tversky_seg.data.preprocessing.pipeline import Preprocessing, preprocess
from tversky_seg.data.preprocessing.prepared_case import PreparedCase
from tversky_seg.inference.settings import Inference
from tversky_seg.inference.sliding_window import predict_volume
from tversky_seg.metrics import compute_metrics
from tversky_seg.metrics.score_histogram import to_levels
from tversky_seg.runtime.overlap import OneBehind, read_ahead
from tversky_seg.training import validation
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
    result = validate(FirstChannel(), cases=cases, classes=("lesion",), inference=WHOLE)
    rows = []
    for case in cases:
        assert case.target is not None
        probability = predict_volume(
            FirstChannel(), case.image, image_scale=case.image_scale, patch_size="whole"
        )[0]
        levels = to_levels(probability.numpy()) / 65535
        settings = {
            "threshold": result.threshold,
            "min_volume_mm3": result.min_volume_mm3,
            "min_peak": result.min_peak,
        }
        rows.append(
            compute_metrics(levels, case.target[0], spacing_mm=np.diag(AFFINE)[:3], **settings)
        )
    for name in MONITORED:
        assert result.measures[name] == pytest.approx(
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

    result = validate(Both(), cases=[double], classes=("a", "b"), inference=WHOLE)
    assert isinstance(result.threshold, dict)
    assert set(result.threshold) == {"a", "b"}
    assert result.measures["a/dice"] > result.measures["b/dice"]
    assert result.measures["dice"] == pytest.approx(
        (result.measures["a/dice"] + result.measures["b/dice"]) / 2
    )


def test_without_any_lesion_measures_are_undefined_at_one_half(tmp_path: Path) -> None:
    result = validate(
        FirstChannel(),
        cases=[a_case(tmp_path, 0, is_empty=True)],
        classes=("lesion",),
        inference=WHOLE,
    )
    assert result.threshold == 0.5
    assert math.isnan(result.measures["sensitivity"])


def test_cases_read_and_scored_in_threads_give_the_same_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [a_case(tmp_path, seed) for seed in range(4)]
    settings = {"cases": cases, "classes": ("lesion",), "inference": WHOLE}
    expected = validate(FirstChannel(), **settings)  # type: ignore[arg-type]
    threads = set()
    score = validation._score

    def scored(*arguments: object) -> object:
        threads.add(threading.current_thread().name)
        return score(*arguments)  # type: ignore[arg-type]

    def one_behind(*, in_thread: bool) -> OneBehind:
        return OneBehind(in_thread=True)

    def ahead(items: object, read: object, *, in_thread: bool) -> object:
        return read_ahead(items, read, in_thread=True)  # type: ignore[arg-type]

    monkeypatch.setattr(validation, "OneBehind", one_behind)
    monkeypatch.setattr(validation, "read_ahead", ahead)
    monkeypatch.setattr(validation, "_score", scored)
    found = validate(FirstChannel(), **settings)  # type: ignore[arg-type]
    assert len(threads) == 4
    np.testing.assert_equal(dict(found.measures), dict(expected.measures))
    assert (found.threshold, found.min_volume_mm3) == (expected.threshold, expected.min_volume_mm3)
    for caption, picture in expected.pictures.items():
        np.testing.assert_array_equal(found.pictures[caption], picture)


@on_gpu
def test_a_gpu_measures_what_the_cpu_does(tmp_path: Path) -> None:
    cases = [a_case(tmp_path, seed) for seed in range(3)]
    settings = {"cases": cases, "classes": ("lesion",), "inference": WHOLE}
    expected = validate(FirstChannelOfWeight(), **settings)  # type: ignore[arg-type]
    found = validate(FirstChannelOfWeight().cuda(), **settings)  # type: ignore[arg-type]
    for name in MONITORED:
        assert found.measures[name] == pytest.approx(expected.measures[name], abs=1e-3), name


class FirstChannelOfWeight(FirstChannel):
    """A weight tells on which device the network is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image) * self.weight


def test_the_temperature_is_fitted_unless_threshold_or_temperature_is_set(tmp_path: Path) -> None:
    case = a_case(tmp_path, 0)

    class Sure(FirstChannel):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, image):  # type: ignore[no-untyped-def]
            return self.factor * super().forward(image)

    def temperature(network: nn.Module, **settings: float) -> float:
        inference = Inference(patch_size="whole", **settings)  # type: ignore[arg-type]
        fitted = validate(network, cases=[case], classes=("lesion",), inference=inference)
        assert isinstance(fitted.temperature, float)
        return fitted.temperature

    fitted = temperature(Sure(3))
    assert fitted > 1
    assert temperature(Sure(6)) == pytest.approx(2 * fitted, rel=0.01)
    assert temperature(Sure(1)) == 1, "not sure enough, and left as it is"
    assert temperature(Sure(3), threshold=0.3) == 1
    assert temperature(Sure(3), temperature=3.0) == 3


def test_without_any_lesion_the_temperature_is_1(tmp_path: Path) -> None:
    empty = a_case(tmp_path, 0, is_empty=True)
    result = validate(FirstChannel(), cases=[empty], classes=("lesion",), inference=WHOLE)
    assert result.temperature == 1


def test_ignored_voxels_do_not_move_a_validation(tmp_path: Path) -> None:
    image, label = scan(1)
    region = (slice(4, 12), slice(4, 22), slice(4, 18))
    measured = []
    # What the network sees as lesion in the region: nothing, or all of it.
    for brightness in (0, 60):
        shown, drawn = image.copy(), label.copy()
        shown[region] += brightness
        drawn[region] = 2
        files = [
            save(tmp_path / f"{brightness}.nii", shown),
            save(tmp_path / f"{brightness}_label.nii", drawn),
        ]
        settings = Preprocessing(("FLAIR",), normalization="window", limits=(0, 300), ignore=(2,))
        case = Case("c", "c", {"FLAIR": files[0]}, (files[1],))
        prepared = preprocess(case, settings)
        results = []
        for goal in ("dice", "lesion_f1", "recall=0.9"):
            inference = Inference(patch_size="whole", goal=goal)
            result = validate(
                FirstChannel(), cases=[prepared], classes=("lesion",), inference=inference
            )
            results.append(
                (result.measures, result.threshold, result.min_volume_mm3, result.temperature)
            )
        measured.append(results)
    for one, other in zip(*measured, strict=True):
        assert one[1:] == pytest.approx(other[1:])
        assert one[0] == pytest.approx(other[0], nan_ok=True)
