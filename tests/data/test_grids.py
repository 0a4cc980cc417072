import itertools
import json

import nibabel as nib
import numpy as np
import pytest
from nibabel.processing import resample_from_to
from scipy import ndimage

from tversky_seg.data.affines import spacing_of
from tversky_seg.data.grids import Geometry, crop_or_pad, network_grid, resample, to_input_grid

RNG = np.random.default_rng(0)
OBLIQUE = np.array([[0.9, 0.2, -0.1, 40], [-0.2, 1.1, 0.1, -20], [0.1, -0.1, 2.8, 7], [0, 0, 0, 1]])
ORIENTATIONS = [
    np.diag([*signs, 1.0])[:, [*order, 3]]
    for order in itertools.permutations(range(3))
    for signs in itertools.product((-1, 1), repeat=3)
]


def ramp(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """A function of the place in mm that linear interpolation reproduces: 2 R - A + 3 S + 1."""
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return ((voxels @ affine[:3, :3].T + affine[:3, 3]) @ [2, -1, 3] + 1).astype(np.float32)


@pytest.mark.parametrize("turn", ORIENTATIONS, ids=lambda turn: "".join(nib.aff2axcodes(turn)))
def test_every_orientation_comes_back_voxel_by_voxel(turn: np.ndarray) -> None:
    data = RNG.integers(0, 100, (5, 6, 7)).astype(np.int16)
    affine = OBLIQUE @ turn
    shape, network_affine = network_grid(data.shape, affine, spacing_mm=None)
    moved = resample(data, affine, network_affine, shape)
    expected = nib.as_closest_canonical(nib.Nifti1Image(data, affine))
    assert np.array_equal(moved, np.asarray(expected.dataobj))
    assert np.allclose(network_affine, expected.affine)
    assert np.array_equal(resample(moved, network_affine, affine, data.shape), data)
    assert moved.dtype == data.dtype


def test_the_network_grid_has_the_spacing_asked_for_and_the_same_centre() -> None:
    shape, affine = (40, 50, 31), OBLIQUE @ ORIENTATIONS[10]
    own = spacing_of(network_grid(shape, affine, spacing_mm=None)[1])
    wanted = (own[0] * 1.009, own[1] * 2, own[2] / 3)
    ras_shape = network_grid(shape, affine, spacing_mm=None)[0]
    found_shape, found = network_grid(shape, affine, spacing_mm=wanted)
    assert spacing_of(found) == pytest.approx((own[0], *wanted[1:]))
    assert found_shape == (ras_shape[0], -(-ras_shape[1] // 2), ras_shape[2] * 3)
    centres = [
        a[:3, :3] @ ((np.array(s) - 1) / 2) + a[:3, 3]
        for s, a in ((shape, affine), (found_shape, found))
    ]
    assert np.allclose(*centres)


def test_a_single_slice_stays_one_slice() -> None:
    assert network_grid((30, 30, 1), np.eye(4), spacing_mm=(1, 1, 3))[0] == (30, 30, 1)


@pytest.mark.parametrize("target_spacing", [0.7, 1.0])
def test_a_linear_ramp_in_space_is_kept_whatever_the_grids(target_spacing: float) -> None:
    source_affine = OBLIQUE @ ORIENTATIONS[7]
    tilted = np.eye(4)
    angle = 0.3
    tilted[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    target_affine = tilted @ np.diag([target_spacing] * 3 + [1])
    source_shape, target_shape = (40, 40, 40), (11, 12, 13)
    centre = source_affine @ [20, 20, 20, 1]
    target_affine[:3, 3] += centre[:3] - target_affine[:3] @ [5, 5, 5, 1]
    found = resample(
        ramp(source_shape, source_affine), source_affine, target_affine, target_shape, fill=np.nan
    )
    assert np.allclose(found, ramp(target_shape, target_affine), atol=2e-3)


def test_values_agree_with_nibabels_resampling() -> None:
    data = ndimage.gaussian_filter(RNG.random((20, 22, 18), dtype=np.float32), 1)
    image = nib.Nifti1Image(data, np.diag([2, 2, 2, 1.0]))
    target = (
        (24, 25, 26),
        np.array([[1.5, 0.1, 0, 2], [-0.1, 1.4, 0, 3], [0, 0.1, 1.3, 1], [0, 0, 0, 1]]),
    )
    expected = np.asarray(resample_from_to(image, target, order=1, cval=np.nan).dataobj)
    found = resample(data, image.affine, target[1], target[0], fill=np.nan)
    assert np.isfinite(expected).mean() > 0.5
    assert np.allclose(found[np.isfinite(expected)], expected[np.isfinite(expected)], atol=1e-5)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_a_constant_stays_constant_up_to_the_border(scale: float) -> None:
    shape, affine = network_grid((9, 10, 11), np.eye(4), spacing_mm=(scale,) * 3)
    found = resample(np.full((9, 10, 11), 3, np.int16), np.eye(4), affine, shape, fill=np.nan)
    assert np.allclose(found, 3)


def test_beyond_the_field_of_view_stands_the_fill() -> None:
    affine = np.diag([0.5, 0.5, 0.5, 1])
    affine[:3, 3] = -5
    found = resample(np.ones((10, 10, 10)), np.eye(4), affine, (40, 40, 40), fill=-7)
    assert set(np.unique(found)) == {-7, 1}
    assert (
        18 <= (found[:, 20, 20] == 1).sum() <= 24
    )  # 20 half voxels and up to one voxel at each end


def test_coarser_voxels_average_what_they_cover() -> None:
    noise = RNG.standard_normal((48, 48, 48)).astype(np.float32)
    affine = np.diag([3.0, 3, 3, 1])
    affine[:3, 3] = 1
    smoothed = resample(noise, np.eye(4), affine, (16, 16, 16))
    assert smoothed[2:-2, 2:-2, 2:-2].std() < 0.3  # of 27 voxels averaged: 0.19; of one picked: 1
    sigma = np.sqrt(3**2 - 1) / 2.3548
    expected = ndimage.gaussian_filter(noise, sigma)[1::3, 1::3, 1::3]
    assert np.allclose(smoothed[2:-2, 2:-2, 2:-2], expected[2:-2, 2:-2, 2:-2], atol=0.01)


@pytest.mark.parametrize(
    "start", [(0, 0, 0), (-2, 1, 3), (3, 4, 5), (-9, 0, 0), (9, 9, 9), (-2, -2, -2)]
)
@pytest.mark.parametrize("shape", [(3, 3, 3), (9, 10, 11)])
def test_a_window_overhangs_with_fill(
    start: tuple[int, int, int], shape: tuple[int, int, int]
) -> None:
    data = RNG.integers(1, 9, (2, 5, 6, 7))
    padded = np.pad(data, ((0, 0), *[(20, 20)] * 3), constant_values=-1)
    box = tuple(slice(20 + first, 20 + first + n) for first, n in zip(start, shape, strict=True))
    assert np.array_equal(crop_or_pad(data, start, shape, fill=-1), padded[(slice(None), *box)])


def test_inputs_are_not_changed() -> None:
    data, affine = RNG.random((6, 6, 6), dtype=np.float32), np.diag([-1.0, 1, 1, 1])
    before = data.copy(), affine.copy()
    resample(data, affine, np.diag([2.0, 2, 2, 1]), (3, 3, 3))
    crop_or_pad(data, (-1, 0, 0), (4, 4, 4))
    assert np.array_equal(data, before[0])
    assert np.array_equal(affine, before[1])


def test_a_geometry_survives_json_bit_by_bit() -> None:
    geometry = Geometry((4, 5, 6), OBLIQUE / 3, (4, 5, 6), OBLIQUE / 7, (1, 0, 2), (2, 3, 3))
    again = Geometry.from_dict(json.loads(json.dumps(geometry.as_dict())))
    assert again.as_dict() == geometry.as_dict()
    assert np.array_equal(again.network_affine, geometry.network_affine)
    assert again.spacing_mm == geometry.spacing_mm
    assert again.shape == (2, 3, 3)


def test_a_crop_comes_back_at_its_place() -> None:
    shape, affine = network_grid((8, 9, 10), OBLIQUE @ ORIENTATIONS[5], spacing_mm=None)
    geometry = Geometry((8, 9, 10), OBLIQUE @ ORIENTATIONS[5], shape, affine, (2, 1, 3), (3, 4, 5))
    crop = RNG.random((3, 4, 5), dtype=np.float32)
    full = np.zeros(shape, dtype=np.float32)
    full[2:5, 1:5, 3:8] = crop
    back = to_input_grid(crop, geometry)
    assert back.shape == (8, 9, 10)
    assert np.array_equal(back, resample(full, affine, geometry.input_affine, (8, 9, 10)))
    assert back.sum() == pytest.approx(crop.sum())
