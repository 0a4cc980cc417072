import logging

import numpy as np
import pytest
from scipy import ndimage

from tversky_seg.inference.operating_point import (
    SIZES_MM3,
    ScoredCase,
    check_goal,
    choose_operating_point,
)
from tversky_seg.metrics.lesion_rule import lesion_counts
from tversky_seg.metrics.lesions import remove_small_lesions
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


def masks_at(
    cases: list[ScoredCase], threshold: float, size: float
) -> list[tuple[np.ndarray, ScoredCase]]:
    masks = [case.levels >= threshold * 65535 for case in cases]
    return [
        (remove_small_lesions(mask, spacing_mm=case.spacing_mm, min_volume_mm3=size), case)
        for mask, case in zip(masks, cases, strict=True)
    ]


def value(name: str, cases: list[ScoredCase], threshold: float, size: float) -> float:
    """The goal by the evaluator's own functions, in the mean over cases."""
    pairs = masks_at(cases, threshold, size)
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
def test_the_threshold_is_the_exact_best_and_the_size_the_best_of_ten(goal: str) -> None:
    point = choose_operating_point(CASES, goal=goal)
    histograms = [score_histogram(case.levels / 65535, case.reference) for case in CASES]
    assert point.threshold == choose_threshold(histograms, goal)
    by_size = {size: value(goal, CASES, point.threshold, size) for size in SIZES_MM3}
    best = max(by_size.values())
    assert point.min_volume_mm3 == min(
        size for size, objective in by_size.items() if objective >= best - 0.001
    )


@pytest.mark.parametrize("goal", ["dice", "lesion_f1", "recall=0.9", "lesion_recall=0.5"])
def test_specks_as_sure_as_the_lesion_are_left_out_by_their_size(goal: str) -> None:
    reference, levels = np.zeros((10, 10, 10), bool), np.zeros((10, 10, 10), np.uint16)
    reference[1:4, 1:4, 1:4] = True
    levels[reference] = 50000
    levels[6, 2::3, 2::3] = 60000
    point = choose_operating_point([ScoredCase(levels, reference, (1, 1, 1))], goal=goal)
    assert point.min_volume_mm3 == 2, "the smallest of the sizes between 1 and 27 mm3"
    assert point.threshold <= 50000 / 65535


def test_lesion_f1_is_the_best_of_all_pairs() -> None:
    point = choose_operating_point(CASES, goal="lesion_f1")
    thresholds = [(round(step / 20 * 65535) - 0.5) / 65535 for step in range(1, 20)]
    best = max(value("lesion_f1", CASES, t, s) for t in thresholds for s in SIZES_MM3)
    assert value("lesion_f1", CASES, point.threshold, point.min_volume_mm3) == pytest.approx(
        best, abs=0.001
    )


@pytest.mark.parametrize("goal", ["recall", "lesion_recall"])
def test_a_recall_is_reached_and_not_at_any_price(goal: str) -> None:
    low, high = (choose_operating_point(CASES, goal=f"{goal}={target}") for target in (0.3, 0.6))
    for point, target in ((low, 0.3), (high, 0.6)):
        assert value(goal, CASES, point.threshold, point.min_volume_mm3) >= target
    if goal == "recall":
        assert high.threshold < low.threshold
        assert value(goal, CASES, low.threshold + 0.002, 0) < 0.3, (
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
    fixed = choose_operating_point(CASES, goal="lesion_f1", threshold=0.3, min_volume_mm3=2)
    assert (fixed.threshold, fixed.min_volume_mm3) == (0.3, 2)


def test_cases_without_lesion_decide_nothing_but_the_lesions_f1() -> None:
    healthy = a_case(3, with_lesions=False)
    for goal in ("dice", "f2", "recall=0.5"):
        assert choose_operating_point([*CASES, healthy], goal=goal) == choose_operating_point(
            CASES, goal=goal
        )
        assert choose_operating_point([healthy], goal=goal).threshold == 0.5
        assert choose_operating_point([healthy], goal=goal).min_volume_mm3 == 0
    strict = choose_operating_point([CASES[0], *[healthy] * 5], goal="lesion_f1")
    assert not (healthy.levels >= strict.threshold * 65535).any() or strict.min_volume_mm3 > 0


@pytest.mark.parametrize(
    "goal", ["jaccard", "recall", "recall=0", "recall=1.5", "dice=0.5", "recall=high", ""]
)
def test_goals_that_are_none_are_refused(goal: str) -> None:
    with pytest.raises(ValueError, match=r"goal must be one of dice, f2, lesion_f1, recall=0\.9"):
        check_goal(goal)
