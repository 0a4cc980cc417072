"""Metrics that count each lesion alike: by hand, by brute force, and against published code."""

import itertools
import math

import numpy as np
import pytest
from scipy import ndimage

from helpers.lesions import draw
from tversky_seg.metrics import LESION_METRICS, LesionRule, LesionSettings, compute_metrics
from tversky_seg.metrics.by_lesion import measure_by_lesion
from tversky_seg.metrics.components import find_components
from tversky_seg.metrics.lesion_cells import find_cells
from tversky_seg.metrics.lesion_rule import ANY_OVERLAP
from tversky_seg.metrics.surface import surface_distances

UNIT = (1.0, 1.0, 1.0)
SHAPE = (30, 24, 20)
REFERENCE = draw(
    np.s_[3:7, 3:7, 3:7],
    np.s_[3:6, 14:17, 4:6],
    np.s_[15:20, 5:8, 10:13],
    np.s_[24, 20, 3],
    np.s_[20:22, 18:20, 10:12],  # these two merge when they are dilated
    np.s_[20:22, 18:20, 13:15],
    np.s_[27:29, 2:4, 17:19],  # missed
    shape=SHAPE,
)
PREDICTION = draw(
    np.s_[4:8, 3:7, 3:7],
    np.s_[3:5, 14:17, 4:6],
    np.s_[14:20, 5:8, 10:14],
    np.s_[10:12, 20:22, 16:18],  # false
    np.s_[20:22, 18:20, 10:15],
    np.s_[25, 20, 3],  # touches the lesion of one voxel only once that is dilated
    shape=SHAPE,
)


def measure(prediction, reference, *, spacing_mm=UNIT, rule=ANY_OVERLAP, **settings):
    return measure_by_lesion(
        prediction, reference, spacing_mm=spacing_mm, rule=rule, settings=LesionSettings(**settings)
    ).metrics()


def noisy_case(seed, shape=(20, 18, 14)):
    rng = np.random.default_rng(seed)
    shared, own = ndimage.gaussian_filter(rng.normal(size=(2, *shape)), (0, 1.3, 1.3, 1.3))
    return shared + 0.4 * own > 0.14, shared > 0.13


# Numbers of the authors' code


def test_numbers_of_the_cc_metrics_package():
    # CCMetrics 0.0.3 with MONAI 1.6.1, class_thresholds=[1], worst HD95 the diagonal, 43.3 mm.
    metrics = measure(PREDICTION, REFERENCE)
    assert metrics["cc_dice"] == pytest.approx(0.5408424908424908)
    assert metrics["cc_nsd"] == pytest.approx(0.8054806590080261, abs=1e-6)
    assert metrics["cc_hd95_mm"] == pytest.approx(8.405202865600586, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "dice", "hd95_mm"),
    [
        # metrics.py of BraTS-2023-Metrics with BraTS-MET, then BraTS-GLI.
        ({}, 0.5346866096866097, 125.33333333333333),
        ({"brats_dilations": 3, "brats_min_volume_mm3": 50.0}, 0.375, 187.5),
    ],
)
def test_numbers_of_the_brats_2023_code(settings, dice, hd95_mm):
    metrics = measure(PREDICTION, REFERENCE, **settings)
    assert metrics["lesion_dice_brats"] == pytest.approx(dice)
    assert metrics["lesion_hd95_brats_mm"] == pytest.approx(hd95_mm)


@pytest.mark.parametrize(
    ("min_iou", "pq", "rq", "sq"),
    [
        # panoptica 2.1.7, NaiveThresholdMatching with this threshold.
        (0.5, 0.29102564102564105, 0.46153846153846156, 0.6305555555555555),
        (0.2, 0.3525641025641026, 0.6153846153846154, 0.5729166666666666),
    ],
)
def test_numbers_of_panoptica(min_iou, pq, rq, sq):
    metrics = measure(PREDICTION, REFERENCE, min_iou=min_iou)
    assert (metrics["pq"], metrics["rq"], metrics["sq"]) == pytest.approx((pq, rq, sq))


# Brute force


def label(mask):
    return ndimage.label(mask, np.ones((3, 3, 3)))


def brute_cells(prediction, reference, *, spacing_mm, tolerance_mm=1.0):
    """CC-Metrics with a distance transform for each lesion, lower numbers first."""
    numbers, n = label(reference)
    nearest = np.full(reference.shape, math.inf)
    cells = np.zeros(reference.shape, int)
    for k in range(1, n + 1):
        distance = ndimage.distance_transform_edt(numbers != k, sampling=spacing_mm)
        is_nearer = distance < nearest - 1e-6
        nearest[is_nearer] = distance[is_nearer]
        cells[is_nearer] = k
    dice, nsd, hd95 = [], [], []
    diagonal_mm = math.sqrt(sum((a * b) ** 2 for a, b in zip(cells.shape, spacing_mm, strict=True)))
    for k in range(1, n + 1):
        mask, lesion = prediction & (cells == k), numbers == k
        dice.append(2 * (mask & lesion).sum() / (mask.sum() + lesion.sum()))
        distances = surface_distances(
            mask, lesion, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm
        )
        nsd.append(distances.surface_dice)
        hd95.append(diagonal_mm if not mask.any() else distances.hd95_mm)
    return {"cc_dice": np.mean(dice), "cc_nsd": np.mean(nsd), "cc_hd95_mm": np.mean(hd95)}


def brute_brats(prediction, reference, *, spacing_mm, n_dilations, min_volume_mm3):
    """Lesion by lesion on whole volumes, as the text of the challenge says."""
    predicted, n_predicted = label(prediction)
    around = ndimage.generate_binary_structure(3, 2)
    dilated = reference
    for _ in range(n_dilations):
        dilated = ndimage.binary_dilation(dilated, around)
    groups, n = label(dilated)
    dice, hd95, matched = [], [], set()
    for k in range(1, n + 1):
        lesion = reference & (groups == k)
        grown = lesion
        for _ in range(n_dilations):
            grown = ndimage.binary_dilation(grown, around)
        partners = set(np.unique(predicted[grown])) - {0}
        matched |= partners
        if lesion.sum() * np.prod(spacing_mm) <= min_volume_mm3:
            continue
        mask = np.isin(predicted, list(partners))
        dice.append(2 * (mask & lesion).sum() / (mask.sum() + lesion.sum()))
        distances = surface_distances(mask, lesion, spacing_mm=spacing_mm)
        hd95.append(distances.hd95_mm if partners else 374)
    n_false = n_predicted - len(matched)
    n_all = len(dice) + n_false
    return {
        "lesion_dice_brats": sum(dice) / n_all,
        "lesion_hd95_brats_mm": (sum(hd95) + 374 * n_false) / n_all,
    }


def brute_panoptic(prediction, reference, *, min_iou):
    """All pairs of lesions above an IoU of 0.5: no lesion is in two of them."""
    predicted, n_predicted = label(prediction)
    true, n_true = label(reference)
    iou = []
    for i, j in itertools.product(range(1, n_predicted + 1), range(1, n_true + 1)):
        a, b = predicted == i, true == j
        iou.append((a & b).sum() / (a | b).sum())
    matched = [value for value in iou if value > min_iou]
    rq = 2 * len(matched) / (n_predicted + n_true)
    return {"pq": rq * np.mean(matched), "rq": rq, "sq": np.mean(matched)}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spacing_mm", [UNIT, (0.9, 0.7, 2.5)])
def test_metrics_equal_brute_force(seed, spacing_mm):
    prediction, reference = noisy_case(seed)
    metrics = measure(prediction, reference, spacing_mm=spacing_mm, brats_dilations=2)
    expected = brute_cells(prediction, reference, spacing_mm=spacing_mm)
    expected |= brute_brats(
        prediction, reference, spacing_mm=spacing_mm, n_dilations=2, min_volume_mm3=2
    )
    expected |= brute_panoptic(prediction, reference, min_iou=0.5)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)


def test_order_in_memory_does_not_matter():
    prediction, reference = noisy_case(3)
    expected = measure(prediction, reference)
    columns_first = [np.asfortranarray(mask) for mask in (prediction, reference)]
    for masks in (columns_first, (prediction, columns_first[1])):
        assert measure(*masks) == pytest.approx(expected, nan_ok=True)


# By hand


def test_of_lesions_at_the_same_distance_the_first_has_the_voxel():
    reference = draw(np.s_[2, 2, 2], np.s_[6, 2, 2])
    prediction = draw(np.s_[3:6, 2, 2])  # 4 is as near to 2 as to 6
    for order in ("C", "F"):
        true = find_components(reference, connectivity=26, order=order)
        predicted = find_components(prediction, connectivity=26, order=order)
        cells = find_cells(predicted, true, spacing_mm=np.ones(3))
        assert np.bincount(cells).tolist() == [2, 1]


def test_a_small_missed_lesion_costs_half_of_two_lesions():
    reference = draw(np.s_[1:7, 1:7, 1:7], np.s_[10, 10, 10])
    prediction = draw(np.s_[1:7, 1:7, 1:7])
    metrics = measure(prediction, reference, brats_min_volume_mm3=0.0)
    assert (metrics["cc_dice"], metrics["cc_nsd"]) == (0.5, 0.5)
    assert metrics["cc_hd95_mm"] == pytest.approx(math.sqrt(3 * 12**2) / 2)
    assert (metrics["lesion_dice_brats"], metrics["lesion_hd95_brats_mm"]) == (0.5, 187)
    assert (metrics["rq"], metrics["sq"], metrics["pq"]) == pytest.approx((2 / 3, 1, 2 / 3))


def test_a_false_lesion_costs_its_nearest_lesion_and_counts_in_brats():
    reference = draw(np.s_[2:4, 2:4, 2:4])
    prediction = reference | draw(np.s_[8:10, 8:10, 8:10])
    metrics = measure(prediction, reference)
    assert metrics["cc_dice"] == pytest.approx(2 * 8 / (16 + 8))
    assert (metrics["lesion_dice_brats"], metrics["lesion_hd95_brats_mm"]) == (0.5, 187)


def test_a_predicted_lesion_over_two_cells_is_cut_between_them():
    reference = draw(np.s_[2, 2, 1:4], np.s_[2, 2, 8:11])
    prediction = draw(np.s_[2, 2, 1:11])  # 4, 5 belong to the first lesion, 6, 7 to the second
    metrics = measure(prediction, reference)
    assert metrics["cc_dice"] == pytest.approx(2 * 3 / (5 + 3))
    # Distances of the five voxels to the lesion: 0, 0, 0, 1, 2.
    assert metrics["cc_hd95_mm"] == pytest.approx(np.percentile([0, 0, 0, 1, 2], 95))
    assert metrics["cc_nsd"] == pytest.approx(7 / 8)


def test_an_iou_of_one_half_does_not_match():
    reference = draw(np.s_[2, 2, 2:4])
    assert measure(draw(np.s_[2, 2, 2]), reference)["rq"] == 0
    assert measure(draw(np.s_[2, 2, 2]), reference, min_iou=0.4999999)["rq"] == 1


def test_pairs_of_lesions_are_one_to_one_below_an_iou_of_one_half():
    reference = draw(np.s_[2, 2, 2:12])
    prediction = draw(np.s_[2, 2, 2:6], np.s_[2, 2, 7:12])
    metrics = measure(prediction, reference, min_iou=0.1)
    assert (metrics["rq"], metrics["sq"]) == pytest.approx((2 / 3, 5 / 10))


def test_the_rule_decides_which_lesions_have_cells():
    reference = draw(np.s_[2:4, 2:4, 2:4], np.s_[8, 8, 8])
    prediction = draw(np.s_[2:4, 2:4, 2:4])
    rule = LesionRule(min_volume_mm3=2)
    metrics = measure(prediction, reference, rule=rule)
    assert (metrics["cc_dice"], metrics["pq"]) == (1, 1)
    # Two lesions that touch at a corner are one of 26 neighbours, for BraTS in any case.
    reference = draw(np.s_[2:4, 2:4, 2:4], np.s_[4:6, 4:6, 4:6])
    metrics = measure(prediction, reference, rule=LesionRule(connectivity=6))
    assert metrics["cc_dice"] == 0.5
    assert metrics["lesion_dice_brats"] == pytest.approx(2 * 8 / (8 + 16))


@pytest.mark.parametrize(
    ("is_predicted", "is_lesion", "expected"),
    [
        # cc_dice, cc_nsd, cc_hd95_mm, BraTS Dice and HD95, pq, rq, sq, recall80_mm3
        (False, True, (0, 0, 10, 0, 374, 0, 0, math.nan, math.nan)),
        (True, False, (*[math.nan] * 3, 0, 374, 0, 0, math.nan, math.nan)),
        (False, False, [math.nan] * 9),
        (True, True, (1, 1, 0, 1, 0, 1, 1, 1, 8)),
    ],
)
def test_empty_masks_give_what_the_documentation_says(is_predicted, is_lesion, expected):
    cube = draw(np.s_[4:6, 4:6, 4:6])
    metrics = compute_metrics(
        cube & is_predicted, cube & is_lesion, spacing_mm=UNIT, by_lesion=LesionSettings(10.0)
    )
    lesions = [metrics[name] for name in LESION_METRICS]
    assert lesions == pytest.approx(expected, nan_ok=True)


def test_lesions_at_the_border_of_the_volume_are_measured_as_elsewhere():
    inside = [np.pad(mask, 3) for mask in (PREDICTION, REFERENCE)]
    box = np.s_[3:8, 3:8, 3:8]
    at_border = (PREDICTION[box], REFERENCE[box])
    expected = [np.pad(mask, 3) for mask in at_border]
    settings = {"cc_penalty_mm": 10.0}
    assert measure(*at_border, **settings) == pytest.approx(
        measure(*expected, **settings), nan_ok=True
    )
    assert measure(*inside, **settings) == pytest.approx(
        measure(PREDICTION, REFERENCE, **settings), nan_ok=True
    )


def test_pooled_cases_count_each_lesion_once():
    first = measure_by_lesion(PREDICTION, REFERENCE, spacing_mm=UNIT)
    second = measure_by_lesion(REFERENCE, REFERENCE, spacing_mm=UNIT)
    pooled = (first + second).metrics()
    # Seven lesions with cells in each case.
    assert pooled["cc_dice"] == pytest.approx((first.cells.dice * 7 + 7) / 14)
    assert pooled["pq"] == pytest.approx((first.panoptic.iou_sum + 7) / (3 + 1.5 + 2 + 7))


@pytest.mark.parametrize(
    "settings",
    [
        {"cc_penalty_mm": -1.0},
        {"brats_dilations": -1},
        {"brats_min_volume_mm3": math.inf},
        {"brats_penalty_mm": math.nan},
        {"min_iou": 1.0},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"{name} must"):
        LesionSettings(**settings)
