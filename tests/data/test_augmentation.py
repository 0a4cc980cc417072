from collections import Counter
from dataclasses import fields
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Affine
from omegaconf import OmegaConf
from scipy import ndimage
from scipy.interpolate import BSpline

from tversky_seg.data.patches.augmentation import Augmentation
from tversky_seg.data.patches.packing import pack

GEOMETRY_ONLY = {
    f"{name}_probability": 0.0 for name in ("gamma", "contrast", "scale", "shift", "noise")
}
NOTHING = {**GEOMETRY_ONLY, "flip_axes": (), "rotation_axes": ()}
INTENSITIES_ONLY = {"flip_axes": (), "rotation_axes": ()}


def a_patch(
    shape: tuple[int, int, int] = (12, 12, 12), seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise in a ball with 0 around; target and components are functions of the image."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij"))
    ball = (grid**2).sum(axis=0) < 0.9
    image = np.where(ball, rng.standard_normal((2, *shape), dtype=np.float32), np.float32(0))
    return image, (image[:1] > 1).astype(np.uint8), (image[:1] * 1000).astype(np.int32)


Patch = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def augmented(
    settings: Augmentation,
    image: np.ndarray,
    target: np.ndarray,
    components: np.ndarray | None,
    rng: np.random.Generator,
    *,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Patch:
    """Draw a change and apply it as a training does; around the patch there is background."""
    size = image.shape[1:]
    change = settings.draw(rng, n_channels=len(image), size=size, spacing_mm=spacing_mm)
    labels = target if components is None else np.concatenate([target, components])
    moved_image, moved_labels = change.at((0, 0, 0)).apply(
        torch.tensor(image), torch.tensor(labels)
    )
    moved_target = moved_labels.numpy()[: len(target)].astype(target.dtype)
    moved_components = None if components is None else moved_labels.numpy()[len(target) :]
    return moved_image.numpy(), moved_target, moved_components


def rngs(n: int = 60) -> list[np.random.Generator]:
    return [np.random.default_rng([7, i]) for i in range(n)]


def test_switched_off_it_changes_nothing() -> None:
    patch = a_patch()
    for before, after in zip(
        patch, augmented(Augmentation(**NOTHING), *patch, np.random.default_rng(0)), strict=True
    ):
        np.testing.assert_array_equal(before, after)


def test_target_and_components_follow_the_image() -> None:
    patch = a_patch()
    for rng in rngs():
        image, target, components = augmented(Augmentation(**GEOMETRY_ONLY), *patch, rng)
        np.testing.assert_array_equal(target, image[:1] > 1)
        np.testing.assert_array_equal(components, (image[:1] * 1000).astype(np.int32))
        assert image.flags.c_contiguous


def test_flips_and_quarter_turns_reach_all_48_symmetries_of_a_cube() -> None:
    image, target, _ = a_patch((3, 3, 3))
    seen = {
        augmented(Augmentation(**GEOMETRY_ONLY), image, target, None, rng)[0].tobytes()
        for rng in rngs(1500)
    }
    symmetries = {
        np.ascontiguousarray(
            np.flip(image.transpose(0, *axes), axis=[a + 1 for a in range(3) if mirrored[a]])
        ).tobytes()
        for axes in permutations((1, 2, 3))
        for mirrored in product((False, True), repeat=3)
    }
    assert seen == symmetries


@pytest.mark.parametrize(
    ("shape", "spacing_mm"),
    [((8, 8, 8), (1.0, 1.0, 3.0)), ((8, 8, 6), (1.0, 1.0, 1.0)), ((8, 8, 6), (1.0, 1.0, 3.0))],
)
def test_only_square_planes_of_equal_spacing_are_turned_by_90_degrees(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]
) -> None:
    image, target, _ = a_patch(shape)
    z = np.broadcast_to(np.arange(shape[2], dtype=np.float32), (1, *shape))
    augmentation = Augmentation(**GEOMETRY_ONLY)
    moved = [
        augmented(
            augmentation, np.concatenate([image, z + 1]), target, None, rng, spacing_mm=spacing_mm
        )[0]
        for rng in rngs()
    ]
    assert all(m.shape[1:] == shape for m in moved)
    assert all(len(np.unique(m[2, :, :, 0])) == 1 for m in moved), "the z axis stayed the z axis"
    in_plane = {m[0].max(axis=2).tobytes() for m in moved}
    assert len(in_plane) == 8, "the x-y plane took its 8 symmetries"


def test_without_quarter_turns_only_180_degrees_remain() -> None:
    image, target, _ = a_patch((4, 4, 4))
    augmentation = Augmentation(**{**GEOMETRY_ONLY, "flip_axes": (), "quarter_turns": False})
    seen = {augmented(augmentation, image, target, None, rng)[0].tobytes() for rng in rngs(200)}
    pairs = [(), (1, 2), (1, 3), (2, 3)]
    assert seen == {np.ascontiguousarray(np.flip(image, axis=pair)).tobytes() for pair in pairs}


def test_only_the_axes_asked_for_are_mirrored() -> None:
    image, target, _ = a_patch()
    augmentation = Augmentation(**{**GEOMETRY_ONLY, "flip_axes": (0,), "rotation_axes": ()})
    seen = {augmented(augmentation, image, target, None, rng)[0].tobytes() for rng in rngs()}
    assert seen == {image.tobytes(), np.ascontiguousarray(image[:, ::-1]).tobytes()}


def test_intensities_change_inside_the_brain_only() -> None:
    patch = a_patch()
    background = ~patch[0].any(axis=0)
    changed = [augmented(Augmentation(**INTENSITIES_ONLY), *patch, rng)[0] for rng in rngs()]
    assert all((image[:, background] == 0).all() for image in changed)
    assert all(image.dtype == np.float32 for image in changed)
    assert sum(not np.array_equal(image, patch[0]) for image in changed) > 50


def test_channels_change_independently() -> None:
    image, target, _ = a_patch()
    image[1] = image[0]
    augmentation = Augmentation(**{**NOTHING, "scale": 0.5, "scale_probability": 1.0})
    changed = augmented(augmentation, image, target, None, np.random.default_rng(0))[0]
    assert not np.array_equal(changed[0], changed[1])


def test_scale_and_shift_are_what_they_say() -> None:
    image, target, _ = a_patch()
    brain = image[0] != 0
    scaling = Augmentation(**{**NOTHING, "scale": 0.3, "scale_probability": 1.0})
    shifting = Augmentation(**{**NOTHING, "shift": 0.3, "shift_probability": 1.0})
    for rng in rngs(20):
        scaled = augmented(scaling, image, target, None, rng)[0]
        factor = scaled[0][brain] / image[0][brain]
        assert np.ptp(factor) < 1e-5
        assert 0.7 <= factor[0] <= 1.3
        shifted = augmented(shifting, image, target, None, rng)[0]
        offset = shifted[0][brain] - image[0][brain]
        assert np.ptp(offset) < 1e-5
        assert abs(offset[0]) <= 0.3


def test_noise_has_at_most_the_standard_deviation_asked_for() -> None:
    image, target, _ = a_patch((32, 32, 32))
    brain = image[0] != 0
    augmentation = Augmentation(**{**NOTHING, "noise_sd": 0.2, "noise_probability": 1.0})
    sds = [
        np.std((augmented(augmentation, image, target, None, rng)[0] - image)[0][brain])
        for rng in rngs(40)
    ]
    assert max(sds) < 0.21
    assert np.mean(sds) == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize(
    "strongest",
    [{"gamma": 1.0, "gamma_probability": 1.0}, {"contrast": 1.0, "contrast_probability": 1.0}],
)
def test_gamma_and_contrast_keep_order_and_range(strongest: dict[str, float]) -> None:
    image, target, _ = a_patch()
    for rng in rngs(20):
        bent = augmented(Augmentation(**{**NOTHING, **strongest}), image, target, None, rng)[0]
        order = np.argsort(image[0], axis=None)
        assert (np.diff(bent[0].ravel()[order][image[0].ravel()[order] != 0]) >= -1e-5).all()
        np.testing.assert_allclose((bent.min(), bent.max()), (image.min(), image.max()), rtol=1e-5)


def test_the_contrast_curve_by_hand() -> None:
    image = np.array([0.0, 1, 2, 3, 4], np.float32).reshape(1, 5, 1, 1)
    target = np.zeros((1, 5, 1, 1), np.uint8)
    rng = np.random.default_rng(3)
    bending = Augmentation(**{**NOTHING, "contrast": 1.0, "contrast_probability": 1.0})
    bent = augmented(bending, image, target, None, rng)[0]
    c = (bent[0, 1, 0, 0] / 4 - 0.25) / (0.25 * 0.75 * 0.5)
    assert -1 <= c <= 1
    np.testing.assert_allclose(bent.ravel(), [0, 1 + c * 0.375, 2, 3 - c * 0.375, 4], atol=1e-6)


def test_blank_and_constant_patches_pass_through() -> None:
    target = np.zeros((1, 8, 8, 8), np.uint8)
    for rng in rngs(20):
        blank = np.zeros((2, 8, 8, 8), np.float32)
        assert not augmented(Augmentation(), blank, target, None, rng)[0].any()
        constant = np.ones((2, 8, 8, 8), np.float32)
        assert np.isfinite(augmented(Augmentation(), constant, target, None, rng)[0]).all()


def test_the_same_generator_gives_the_same_patch() -> None:
    patch = a_patch()
    first = augmented(Augmentation(), *patch, np.random.default_rng(5))
    second = augmented(Augmentation(), *patch, np.random.default_rng(5))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "bad",
    [
        {"flip_axes": (3,)},
        {"noise_probability": 1.2},
        {"gamma": -0.1},
        {"contrast": 1.5},
        {"scale": 2.0},
        {"zoom": (1.2, 0.8)},
        {"elastic_mm": 20.0},
        {"low_resolution": 0.5},
        {"blur_mm": -1},
    ],
)
def test_bad_settings_are_refused_with_name_and_value(bad: dict) -> None:
    (name, value), *_ = bad.items()
    with pytest.raises(ValueError, match=name) as caught:
        Augmentation(**bad)
    assert str(value) in str(caught.value)


def test_channels_drop_out_but_never_all() -> None:
    image = np.ones((3, 4, 4, 4), dtype=np.float32)
    target = np.zeros((1, 4, 4, 4), dtype=np.uint8)
    settings = Augmentation(**GEOMETRY_ONLY, dropout_probability=0.5)
    counts = [0, 0, 0, 0]  # of patches with 0 to 3 remaining channels
    for seed in range(400):
        changed, _, _ = augmented(settings, image, target, None, np.random.default_rng(seed))
        counts[changed.any(axis=(1, 2, 3)).sum()] += 1
    # where none would be left (1 of 8 patches), all are
    np.testing.assert_allclose(np.array(counts) / 400, [0, 3 / 8, 3 / 8, 2 / 8], atol=0.08)


DEFORMING = {
    **NOTHING,
    **{f"{name}_probability": 1.0 for name in ("tilt", "zoom", "stretch", "shear", "elastic")},
    "zoom": (0.7, 1.4),
    "elastic_spacing_mm": 12.0,
}


def smooth_volume(shape: tuple[int, int, int] = (70, 64, 60)) -> tuple[np.ndarray, np.ndarray]:
    """An image and labels in it, (1, X, Y, Z), as large as a patch and its surroundings."""
    rng = np.random.default_rng(3)
    image = ndimage.gaussian_filter(rng.standard_normal(shape), 3).astype(np.float32)[None]
    return image / image.std(), ndimage.label(image[0] > image.std())[0][None].astype(np.int32)


@pytest.mark.parametrize("elastic", [False, True])
def test_a_deformed_patch_is_the_volume_at_the_mapped_places(elastic: bool) -> None:
    volume, labels = smooth_volume()
    start, size, spacing_mm = (26, 24, 19), (20, 16, 18), (1.0, 1.0, 1.5)
    settings = Augmentation(
        **{**DEFORMING, "elastic_probability": float(elastic), "flip_axes": (0, 1, 2)}
    )
    for rng in rngs(10):
        change = settings.draw(rng, n_channels=1, size=size, spacing_mm=spacing_mm)
        first, n = change.box(start, volume.shape[1:])
        box = (slice(None), *(slice(a, a + k) for a, k in zip(first, n, strict=True)))
        image, label = change.at(np.subtract(first, start)).apply(
            torch.tensor(volume[box]), torch.tensor(labels[box])
        )
        offsets = np.stack(np.meshgrid(*(np.arange(k) - (k - 1) / 2 for k in size), indexing="ij"))
        if elastic:
            for axis, bumps in enumerate(change.deformation.displacement):
                by_axis = [
                    BSpline.design_matrix(
                        np.arange(k) / h, np.arange(-3, m + 1), 3, extrapolate=True
                    ).toarray()
                    for k, h, m in zip(
                        size, change.deformation.knot_distance, bumps.shape, strict=True
                    )
                ]
                offsets[axis] += np.einsum("ijk,xi,yj,zk->xyz", bumps, *by_axis)
        centre = np.add(start, (np.array(size) - 1) / 2)
        places = np.tensordot(change.deformation.matrix, offsets, 1) + centre[:, None, None, None]
        np.testing.assert_allclose(
            image[0], ndimage.map_coordinates(volume[0], places, order=1), atol=1e-4
        )
        expected = ndimage.map_coordinates(labels[0], places, order=0)
        assert np.mean(label[0].numpy() == expected) > 0.9995  # halves may round either way


def test_the_box_that_is_read_is_no_larger_than_the_drawn_deformation_needs() -> None:
    shape, size = (200, 200, 200), (32, 32, 32)
    sizes = {}
    for zoom in (0.5, 1.0, 2.0):
        settings = Augmentation(**{**NOTHING, "zoom": (zoom, zoom), "zoom_probability": 1.0})
        change = settings.draw(
            np.random.default_rng(0), n_channels=1, size=size, spacing_mm=(1, 1, 1)
        )
        sizes[zoom] = change.box((50, 50, 50), shape)
    assert sizes == {
        0.5: ((34,) * 3, (64,) * 3),
        1.0: ((50,) * 3, (32,) * 3),
        2.0: ((57,) * 3, (18,) * 3),
    }


def test_a_tilted_and_zoomed_patch_is_monais_affine() -> None:
    volume, _ = smooth_volume((40, 40, 40))
    settings = Augmentation(**{**DEFORMING, "elastic_probability": 0.0})
    for rng in rngs(5):
        change = settings.draw(rng, n_channels=1, size=(40, 40, 40), spacing_mm=(1, 1, 1))
        matrix = np.eye(4)
        matrix[:3, :3] = change.deformation.matrix
        expected = Affine(affine=matrix, padding_mode="zeros", image_only=True)(
            torch.tensor(volume)
        )
        image, _ = change.at((0, 0, 0)).apply(
            torch.tensor(volume), torch.zeros((1, 40, 40, 40), dtype=torch.uint8)
        )
        torch.testing.assert_close(image, torch.as_tensor(expected), atol=1e-3, rtol=0)


def test_the_elastic_displacement_never_folds() -> None:
    settings = Augmentation(
        **{**NOTHING, "elastic_probability": 1.0, "elastic_mm": 9.6, "elastic_spacing_mm": 24.0}
    )
    for rng in rngs(20):
        change = settings.draw(rng, n_channels=1, size=(40, 40, 40), spacing_mm=(1, 1, 1))
        places = change.deformation.places((40, 40, 40)).coordinates()
        gradient = np.stack(
            [np.stack(np.gradient(place.numpy(), axis=(0, 1, 2))) for place in places]
        )
        assert np.linalg.det(np.moveaxis(gradient, (0, 1), (-2, -1))).min() > 0


def test_hashemis_turns_come_in_the_shares_of_the_released_code() -> None:
    settings = Augmentation(
        **{**NOTHING, "rotation_axes": (2, 1, 0)},
        rotation_probability=0.25,
        quarter_turns=False,
        at_most_one_turn=True,
    )
    turns = Counter(
        settings.draw(
            np.random.default_rng(i), n_channels=1, size=(8, 8, 8), spacing_mm=(1, 1, 1)
        ).turn.mirrored
        for i in range(2000)
    )
    for mirrored, share in (((0, 0, 0), 27), ((1, 1, 0), 16), ((1, 0, 1), 12), ((0, 1, 1), 9)):
        assert turns[tuple(map(bool, mirrored))] / 2000 == pytest.approx(share / 64, abs=0.03)


def test_a_change_that_is_off_leaves_the_draws_of_the_others_alone() -> None:
    patch = a_patch()
    one = augmented(Augmentation(elastic_mm=4.0), *patch, np.random.default_rng(3))
    other = augmented(Augmentation(elastic_mm=1.0), *patch, np.random.default_rng(3))
    np.testing.assert_array_equal(one[0], other[0])


@pytest.mark.parametrize("name", ["none", "light", "default", "strong", "hashemi2018"])
def test_every_choice_gives_finite_patches_that_depend_on_the_generator_alone(name: str) -> None:
    settings = OmegaConf.to_container(
        OmegaConf.load(Path(__file__).parents[2] / f"configs/augmentation/{name}.yaml")
    )
    augmentation = Augmentation(
        **{key: value for key, value in settings.items() if key != "_target_"}
    )
    patch = a_patch()
    for i in range(15):
        first = augmented(augmentation, *patch, np.random.default_rng(i))
        second = augmented(augmentation, *patch, np.random.default_rng(i))
        assert np.isfinite(first[0]).all()
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_computes_what_the_cpu_does() -> None:
    volume, labels = smooth_volume()
    probabilities = {
        field.name: 1.0 for field in fields(Augmentation) if field.name.endswith("_probability")
    }
    # Lesions grow on the CPU only.
    probabilities |= {"dropout_probability": 0.3, "growth_probability": 0.0}
    settings = Augmentation(**probabilities, zoom=(0.7, 1.4))
    for rng in rngs(10):
        change = settings.draw(rng, n_channels=1, size=volume.shape[1:], spacing_mm=(1.0, 1.0, 1.5))
        change = change.at((0, 0, 0))
        on_cpu = change.apply(torch.tensor(volume), torch.tensor(labels))
        moved = pack(change).unpack(torch.device("cuda"))
        on_cuda = moved.apply(torch.tensor(volume).cuda(), torch.tensor(labels).cuda())
        torch.testing.assert_close(on_cuda[0].cpu(), on_cpu[0], atol=1e-4, rtol=0)
        assert (on_cuda[1].cpu() == on_cpu[1]).float().mean() > 0.9999


THICK_SLICES = (1.0, 1.0, 5.0)
DEFORMING = NOTHING | {
    f"{name}_probability": 1.0 for name in ("tilt", "zoom", "stretch", "shear", "elastic")
}


def test_thick_slices_are_deformed_within_the_slice_alone() -> None:
    settings = Augmentation(**DEFORMING, within_slices_above=3)
    image = np.zeros((1, 24, 24, 8), np.float32)
    image[:, :, :, 3] = 1.0  # one bright slice
    labels = (image > 0).astype(np.uint8)
    for rng in rngs(10):
        moved, moved_labels, _ = augmented(
            settings, image, labels, None, rng, spacing_mm=THICK_SLICES
        )
        others = np.delete(moved, 3, axis=3)
        assert abs(others).max() < 1e-5
        assert not np.delete(moved_labels, 3, axis=3).any()
        assert moved[0, 8:16, 8:16, 3].min() > 0.99  # the middle of the slice stays lit


def test_slices_are_turned_by_the_angle_that_was_drawn() -> None:
    only_tilt = NOTHING | {"tilt_probability": 1.0}
    change = Augmentation(**only_tilt, within_slices_above=3).draw(
        np.random.default_rng(0), n_channels=1, size=(8, 8, 4), spacing_mm=THICK_SLICES
    )
    matrix = change.deformation.matrix
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    assert matrix[2, 2] == 1.0
    assert matrix[0, 1] != 0.0


def test_voxels_below_the_ratio_change_as_without_the_rule() -> None:
    image, target, _ = a_patch()
    for spacing_mm in [(1.0, 1.0, 1.0), (1.0, 1.0, 2.9)]:
        drawn = []
        for limit in (None, 3):
            settings = Augmentation(**DEFORMING, within_slices_above=limit)
            rng = np.random.default_rng(3)
            drawn.append(augmented(settings, image, target, None, rng, spacing_mm=spacing_mm)[0])
        assert np.array_equal(*drawn)


def test_the_resolution_across_thick_slices_is_kept() -> None:
    settings = Augmentation(**NOTHING | {"low_resolution_probability": 1.0}, within_slices_above=3)
    change = settings.draw(
        np.random.default_rng(1), n_channels=1, size=(12, 12, 6), spacing_mm=THICK_SLICES
    )
    along_x, _, along_z = change.channels[0].low_resolution
    assert torch.equal(along_z, torch.eye(6))
    assert not torch.equal(along_x, torch.eye(12))
