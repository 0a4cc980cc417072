"""Surface distances against brute force, MONAI and masks drawn by hand."""

import itertools
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.distance import cdist

from tversky_seg.metrics.surface import surface, surface_distances

SPACINGS = [(1.0, 1.0, 1.0), (0.8, 0.47, 3.0)]


def blobs(seed, shape=(22, 18, 15)):
    """Two overlapping blobs that touch the border of the volume."""
    rng = np.random.default_rng(seed)
    shared, *own = ndimage.gaussian_filter(rng.normal(size=(3, *shape)), (0, 2, 2, 2))
    return [shared + noise > 0.05 for noise in own]


def brute_force(prediction, reference, spacing_mm):
    cross = ndimage.generate_binary_structure(prediction.ndim, 1)
    points = [
        np.argwhere(m & ~ndimage.binary_erosion(m, cross)) * spacing_mm
        for m in (prediction, reference)
    ]
    distances = cdist(*points)
    to_reference, to_prediction = distances.min(1), distances.min(0)
    assd_mm = np.concatenate([to_reference, to_prediction]).mean()
    return assd_mm, max(np.percentile(to_reference, 95), np.percentile(to_prediction, 95))


@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_distances_equal_brute_force(seed, spacing_mm):
    prediction, reference = blobs(seed)
    distances = surface_distances(prediction, reference, spacing_mm=spacing_mm)
    expected = brute_force(prediction, reference, spacing_mm)
    assert (distances.assd_mm, distances.hd95_mm) == pytest.approx(expected, abs=1e-9)


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
def test_distances_equal_monai():
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    prediction, reference = blobs(6)
    tensors = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, reference)]
    settings = {"include_background": True, "spacing": SPACINGS[1]}
    hd95 = compute_hausdorff_distance(*tensors, percentile=95, **settings)
    directed = [
        float(compute_average_surface_distance(*pair, **settings))
        for pair in (tensors, tensors[::-1])
    ]
    distances = surface_distances(prediction, reference, spacing_mm=SPACINGS[1])
    assert distances.hd95_mm == pytest.approx(float(hd95), abs=1e-5)
    weights = [surface(mask).sum() for mask in (prediction, reference)]
    assert distances.assd_mm == pytest.approx(np.average(directed, weights=weights), abs=1e-5)


def test_single_voxels_are_as_far_apart_as_their_centres():
    prediction, reference = np.zeros((2, 8, 8, 8), bool)
    prediction[1, 2, 3] = reference[1, 2, 5] = True
    distances = surface_distances(prediction, reference, spacing_mm=(3, 2, 1.5))
    assert (distances.assd_mm, distances.hd95_mm) == (3, 3)


def test_distances_worked_by_hand():
    prediction, reference = np.zeros((2, 1, 1, 6), bool)
    reference[0, 0, 1:4] = prediction[0, 0, 1:5] = True  # lines: every voxel is surface
    distances = surface_distances(prediction, reference, spacing_mm=(1, 1, 2))
    assert distances.assd_mm == pytest.approx(2 / 7)  # one of seven surface voxels is 2 mm away
    assert distances.hd95_mm == pytest.approx(np.percentile([0, 0, 0, 2], 95))


def test_identical_masks_are_zero_apart_and_order_does_not_matter():
    prediction, reference = blobs(3)
    same = surface_distances(reference, reference, spacing_mm=(1, 1, 1))
    assert (same.assd_mm, same.hd95_mm) == (0, 0)
    forth, back = (
        surface_distances(*pair, spacing_mm=(1, 2, 3))
        for pair in ((prediction, reference), (reference, prediction))
    )
    assert (forth.assd_mm, forth.hd95_mm) == pytest.approx((back.assd_mm, back.hd95_mm))


def test_distances_scale_with_the_spacing():
    masks = blobs(4)
    once, twice = (surface_distances(*masks, spacing_mm=(s, s, s)) for s in (1, 2))
    assert (2 * once.assd_mm, 2 * once.hd95_mm) == pytest.approx((twice.assd_mm, twice.hd95_mm))


@pytest.mark.parametrize("empty", [(True, False), (False, True), (True, True)])
def test_distances_to_an_empty_mask_are_nan(empty):
    masks = [
        np.zeros((4, 4, 4), bool) if is_empty else np.ones((4, 4, 4), bool) for is_empty in empty
    ]
    distances = surface_distances(*masks, spacing_mm=(1, 1, 1))
    assert math.isnan(distances.assd_mm)
    assert math.isnan(distances.hd95_mm)


@pytest.mark.parametrize("shape", [(9, 8, 7), (9, 8), (1, 5, 5), (3, 3, 3)])
def test_surface_is_the_voxels_with_a_face_neighbour_outside(shape):
    mask = np.random.default_rng(0).random(shape) < 0.8
    expected = np.zeros(shape, bool)
    for voxel in np.argwhere(mask):
        for axis, side in itertools.product(range(len(shape)), (-1, 1)):
            neighbour = voxel.copy()
            neighbour[axis] += side
            is_inside = ((neighbour >= 0) & (neighbour < shape)).all()
            if not is_inside or not mask[tuple(neighbour)]:
                expected[tuple(voxel)] = True
    np.testing.assert_array_equal(surface(mask), expected)
    np.testing.assert_array_equal(surface(np.asfortranarray(mask)), expected)


def test_inputs_are_left_as_they_were():
    masks = blobs(5)
    copies = [mask.copy() for mask in masks]
    surface_distances(*masks, spacing_mm=(1, 1, 1))
    np.testing.assert_array_equal(masks, copies)


def test_a_negative_spacing_is_an_error():
    with pytest.raises(ValueError, match=r"spacing_mm.*\(1, 1, -1\)"):
        surface_distances(*blobs(0), spacing_mm=(1, 1, -1))


def all_distances(prediction, reference, spacing_mm):
    cross = ndimage.generate_binary_structure(prediction.ndim, 1)
    points = [
        np.argwhere(m & ~ndimage.binary_erosion(m, cross)) * spacing_mm
        for m in (prediction, reference)
    ]
    distances = cdist(*points)
    return np.concatenate([distances.min(1), distances.min(0)])


@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("tolerance_mm", [0, 0.8, 1.0, 2.5])
def test_largest_distance_and_surface_dice_equal_brute_force(spacing_mm, tolerance_mm):
    masks = blobs(2)
    distances = surface_distances(*masks, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
    expected = all_distances(*masks, spacing_mm)
    assert distances.hd_mm == pytest.approx(expected.max(), abs=1e-9)
    assert distances.surface_dice == pytest.approx(
        (expected <= tolerance_mm + 1e-9).mean(), abs=1e-12
    )


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
def test_hausdorff_distance_equals_monai():
    from monai.metrics import compute_hausdorff_distance

    masks = blobs(6)
    tensors = [torch.from_numpy(mask)[None, None].float() for mask in masks]
    expected = compute_hausdorff_distance(*tensors, include_background=True, spacing=SPACINGS[1])
    assert surface_distances(*masks, spacing_mm=SPACINGS[1]).hd_mm == pytest.approx(
        float(expected), abs=1e-5
    )


def test_surface_dice_worked_by_hand():
    prediction, reference = np.zeros((2, 1, 1, 9), bool)
    # Lines, of which every voxel is surface: one of 3 and one of 5 voxels lie on the other line.
    reference[0, 0, 1:4] = True
    prediction[0, 0, 3:8] = True

    def surface_dice(tolerance_mm):
        distances = surface_distances(
            prediction, reference, spacing_mm=(1, 1, 2), tolerance_mm=tolerance_mm
        )
        return distances.surface_dice

    assert surface_dice(0) == 2 / 8
    assert surface_dice(2) == 4 / 8
    assert surface_dice(8) == 1


def test_surface_dice_and_hausdorff_distance_of_empty_masks():
    empty, lesion = np.zeros((2, 4, 4, 4), bool)
    lesion[1, 1, 1] = True
    for pair in ((empty, lesion), (lesion, empty)):
        distances = surface_distances(*pair, spacing_mm=(1, 1, 1))
        assert distances.surface_dice == 0
        assert math.isnan(distances.hd_mm)
    assert math.isnan(surface_distances(empty, empty, spacing_mm=(1, 1, 1)).surface_dice)


@pytest.mark.parametrize("orders", ["CF", "FC", "FF"])
def test_distances_do_not_depend_on_the_order_in_memory(orders):
    masks = blobs(8)
    expected = surface_distances(*masks, spacing_mm=SPACINGS[1])
    turned = [np.asarray(mask, order=order) for mask, order in zip(masks, orders, strict=True)]
    distances = surface_distances(*turned, spacing_mm=SPACINGS[1])
    assert asdict(distances) == pytest.approx(asdict(expected), rel=1e-12)


def test_far_lesions_are_as_far_as_they_are():
    prediction, reference = np.zeros((2, 40, 30, 20), bool)
    prediction[2:4, 2:4, 2:4] = reference[30:35, 20:25, 10:15] = reference[2, 2, 2] = True
    distances = surface_distances(prediction, reference, spacing_mm=(1, 2, 0.5))
    expected = all_distances(prediction, reference, (1, 2, 0.5))
    assert (distances.assd_mm, distances.hd_mm) == pytest.approx((expected.mean(), expected.max()))


@pytest.mark.parametrize("wrong", [-1, math.nan, math.inf])
def test_a_tolerance_out_of_range_is_an_error(wrong):
    with pytest.raises(ValueError, match="tolerance_mm"):
        surface_distances(*blobs(0), spacing_mm=(1, 1, 1), tolerance_mm=wrong)
