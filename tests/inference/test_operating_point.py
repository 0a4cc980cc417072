import logging

import numpy as np
import pytest
from scipy import ndimage

from tversky_seg.inference.operating_point import (
    DEFAULT_PEAK,
    PEAKS,
    SIZES_MM3,
    OperatingPoint,
    ScoredCase,
    as_settings,
    check_goal,
    choose_operating_point,
)
from tversky_seg.metrics.lesion_rule import lesion_counts
from tversky_seg.metrics.overlap import overlap_counts
from tversky_seg.metrics.score_histogram import choose_threshold, score_histogram, to_levels


def a_case(seed: int, *, with_lesions: bool = True) -> ScoredCase:
    """Make blobs, predicted with varying confidence, next to false specks."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.random((24, 24, 24)), 1.5)
    reference = field > np.quantile(field, 0.98) if with_lesions else np.zeros(field.shape, bool)
    score = (
        ndimage.gaussian_filter(reference * rng.random(field.shape), 0.7)
        + 0.35 * rng.random(field.shape) ** 12
    )
    return ScoredCase(to_levels(np.clip(score, 0, 1)), reference, (1.0, 1.0, 2.0))


CASES = [a_case(0), a_case(1), a_case(2)]


def mask_of(case: ScoredCase, point: OperatingPoint) -> np.ndarray:
    """Make the mask at a point with scipy alone."""
    mask = case.levels >= point.threshold * 65535
    numbers, n = ndimage.label(mask, np.ones((3, 3, 3)))
    every = np.arange(1, n + 1)
    volumes_mm3 = ndimage.sum_labels(mask, numbers, every) * np.prod(case.spacing_mm)
    peaks = ndimage.maximum(case.levels, numbers, every) / 65535
    stays = (volumes_mm3 >= point.min_volume_mm3) & (np.asarray(peaks) >= point.min_peak)
    return np.isin(numbers, every[stays])


def value(name: str, cases: list[ScoredCase], point: OperatingPoint) -> float:
    """The goal by the evaluator's own functions, in the mean over cases."""
    pairs = [(mask_of(case, point), case) for case in cases]
    voxels = [overlap_counts(mask, case.reference) for mask, case in pairs]
    lesions = [
        lesion_counts(mask, case.reference, spacing_mm=case.spacing_mm) for mask, case in pairs
    ]
    values = {
        "dice": [counts.dice for counts in voxels],
        "f2": [counts.f(2) for counts in voxels],
        "recall": [counts.sensitivity for counts in voxels],
        "lesion_f1": [counts.f1 for counts in lesions],
        "lesion_recall": [counts.tpr for counts in lesions],
    }
    return float(np.mean(values[name]))


@pytest.mark.parametrize("goal", ["dice", "f2"])
def test_the_threshold_is_the_exact_best_and_so_are_size_and_peak(goal: str) -> None:
    point = choose_operating_point(CASES, goal=goal)
    histograms = [score_histogram(case.levels / 65535, case.reference) for case in CASES]
    assert point.threshold == choose_threshold(histograms, goal)
    values = {}
    for size in SIZES_MM3:
        for peak in PEAKS:
            if peak == 0 or peak > point.threshold:
                each = OperatingPoint(point.threshold, size, peak)
                values[size, peak] = value(goal, CASES, each)
    best = max(values.values())
    expected = min(pair for pair, reached in values.items() if reached >= best - 0.001)
    assert (point.min_volume_mm3, point.min_peak) == expected


@pytest.mark.parametrize("goal", ["dice", "lesion_f1", "recall=0.9", "lesion_recall=0.5"])
def test_specks_as_sure_as_the_lesion_are_left_out_by_their_size(goal: str) -> None:
    reference, levels = np.zeros((10, 10, 10), bool), np.zeros((10, 10, 10), np.uint16)
    reference[1:4, 1:4, 1:4] = True
    levels[reference] = 50000
    levels[6, 2::3, 2::3] = 60000
    point = choose_operating_point([ScoredCase(levels, reference, (1, 1, 1))], goal=goal)
    assert point.min_volume_mm3 == 2, "the smallest of the sizes between 1 and 27 mm3"
    assert point.threshold <= 50000 / 65535


@pytest.mark.parametrize("goal", ["dice", "f2", "lesion_f1", "recall=0.5", "lesion_recall=0.5"])
def test_a_weak_false_lesion_is_removed_by_its_peak(goal: str) -> None:
    reference, levels = np.zeros((12, 12, 12), bool), np.zeros((12, 12, 12), np.uint16)
    reference[1:3, 1:4, 1:4] = True
    levels[reference] = round(0.6 * 65535)
    levels[1, 1, 1] = 65535
    # As large as the lesion and as probable, except for one voxel: no size tells them apart.
    levels[7:9, 7:10, 7:10] = round(0.6 * 65535)
    case = ScoredCase(levels, reference, (1, 1, 1))
    point = choose_operating_point([case], goal=goal, threshold=0.5)
    assert (point.min_volume_mm3, point.min_peak) == (0, 0.7), "the lowest of those that do"
    np.testing.assert_array_equal(mask_of(case, point), reference)
    fixed = choose_operating_point([case], goal=goal, threshold=0.5, min_peak=0)
    assert fixed.min_peak == 0, "as it is set"


def test_a_peak_that_removes_no_false_lesion_is_not_taken() -> None:
    reference, levels = np.zeros((8, 8, 8), bool), np.zeros((8, 8, 8), np.uint16)
    reference[1:3, 1:4, 1:4] = True
    levels[reference] = 65000
    for threshold in (None, 0.5, 0.97):
        case = ScoredCase(levels, reference, (1, 1, 1))
        assert choose_operating_point([case], threshold=threshold).min_peak == 0


def test_lesion_f1_is_the_best_of_all_points() -> None:
    point = choose_operating_point(CASES, goal="lesion_f1")
    best = 0.0
    for step in range(1, 20):
        threshold = (round(step / 20 * 65535) - 0.5) / 65535
        for size in SIZES_MM3[::3]:
            for peak in PEAKS[::2]:
                each = OperatingPoint(threshold, size, peak)
                best = max(best, value("lesion_f1", CASES, each))
    assert value("lesion_f1", CASES, point) >= best - 0.001


@pytest.mark.parametrize("goal", ["recall", "lesion_recall"])
def test_a_recall_is_reached_and_not_at_any_price(goal: str) -> None:
    low, high = (choose_operating_point(CASES, goal=f"{goal}={target}") for target in (0.3, 0.6))
    for point, target in ((low, 0.3), (high, 0.6)):
        assert value(goal, CASES, point) >= target
    if goal == "recall":
        assert high.threshold < low.threshold
        assert value(goal, CASES, OperatingPoint(low.threshold + 0.002)) < 0.3, (
            "the highest threshold that reaches it"
        )


def test_a_recall_out_of_reach_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    reference = np.zeros((6, 6, 6), bool)
    reference[1:3, 1:3, 1:3] = reference[4, 4, 4] = True
    levels = np.where(reference, 40000, 100).astype(np.uint16)
    levels[4, 4, 4] = 0
    with caplog.at_level(logging.WARNING):
        point = choose_operating_point(
            [ScoredCase(levels, reference, (1, 1, 1))], goal="lesion_recall=1.0"
        )
    assert "lesion_recall=1.0" in caplog.text
    assert "0.500" in caplog.text
    assert 100 / 65535 < point.threshold < 40000 / 65535


def test_what_is_set_stays() -> None:
    assert choose_operating_point(CASES, threshold=0.123).threshold == 0.123
    assert choose_operating_point(CASES, min_volume_mm3=7).min_volume_mm3 == 7
    assert choose_operating_point(CASES, min_peak=0.83).min_peak == 0.83
    fixed = choose_operating_point(
        CASES, goal="lesion_f1", threshold=0.3, min_volume_mm3=2, min_peak=0.2
    )
    assert fixed == OperatingPoint(0.3, 2, 0.2)


def test_points_are_written_as_settings_of_one_class_or_of_several() -> None:
    core, rim = OperatingPoint(0.4, 3.0, 0.9), OperatingPoint(0.5)
    assert as_settings({"lesion": core}) == {
        "threshold": 0.4,
        "min_volume_mm3": 3.0,
        "min_peak": 0.9,
    }
    assert as_settings({"core": core, "rim": rim})["min_peak"] == {"core": 0.9, "rim": 0.0}


def test_cases_without_lesion_decide_nothing_but_the_lesions_f1() -> None:
    healthy = a_case(3, with_lesions=False)
    for goal in ("dice", "f2", "recall=0.5"):
        assert choose_operating_point([*CASES, healthy], goal=goal) == choose_operating_point(
            CASES, goal=goal
        )
        assert choose_operating_point([healthy], goal=goal) == OperatingPoint(0.5, 0, DEFAULT_PEAK)
    strict = choose_operating_point([CASES[0], *[healthy] * 5], goal="lesion_f1")
    assert not mask_of(healthy, strict).any()


@pytest.mark.parametrize(
    "goal", ["jaccard", "recall", "recall=0", "recall=1.5", "dice=0.5", "recall=high", ""]
)
def test_goals_that_are_none_are_refused(goal: str) -> None:
    with pytest.raises(ValueError, match=r"goal must be one of dice, f2, lesion_f1, recall=0\.9"):
        check_goal(goal)
