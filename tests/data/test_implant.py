"""Implanted lesions: where they lie, what they look like, and that nothing else changes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from helpers.batches import as_bytes
from tversky_seg.data.grids import Geometry
from tversky_seg.data.patches import Augmentation, Implant, LesionSampler, PatchBatches
from tversky_seg.data.patches.batch import stack_samples
from tversky_seg.data.patches.donor import cut_donor, make_blob
from tversky_seg.data.preprocessing.labels import list_lesions
from tversky_seg.data.preprocessing.prepared_case import PreparedCase

SHAPE = (40, 40, 40)
SCALE = np.array([1e-3, 1e-3], np.float32)
CONTRAST = (3.0, -2.0)
BALL = ((np.indices(SHAPE) - 19.5) ** 2).sum(axis=0) < 18**2
ALWAYS = Implant(probability=1.0, contrast=(1.0, 1.0), synthetic_share=0.0, size_mm3=(1, 500))
NOTHING = Augmentation(
    flip_axes=(),
    rotation_axes=(),
    gamma_probability=0,
    contrast_probability=0,
    scale_probability=0,
    shift_probability=0,
    noise_probability=0,
)


def a_brain(case_id: str, *, boxes: Sequence[tuple[slice, ...]], level: float) -> PreparedCase:
    """A ball of even tissue with some noise, and lesions of one contrast in each modality."""
    rng = np.random.default_rng(len(case_id))
    values = level + 0.05 * rng.standard_normal((2, *SHAPE))
    target = np.zeros((1, *SHAPE), bool)
    for box in boxes:
        target[0][box] = True
    for channel, contrast in zip(values, CONTRAST, strict=True):
        channel[target[0]] += contrast
    lesions, n_lesions = list_lesions(target)
    return PreparedCase(
        case_id=case_id,
        subject_id=case_id,
        geometry=Geometry(SHAPE, np.eye(4), SHAPE, np.eye(4), (0, 0, 0), SHAPE),
        image_scale=SCALE,
        n_lesions=n_lesions,
        arrays={
            "image": np.rint(values * BALL / SCALE[:, None, None, None]).astype(np.int16),
            "foreground_voxels": np.flatnonzero(BALL).astype(np.int32),
            **lesions,
        },
    )


def a_cube(corner: int, side: int) -> tuple[slice, ...]:
    return (slice(corner, corner + side),) * 3


DONOR = a_brain("donor", boxes=[a_cube(12, 2), a_cube(22, 3)], level=1.0)
HOST = a_brain("host case", boxes=[a_cube(18, 3)], level=-4.0)


def implanted(
    settings: Implant, *, seed: int, as_components: bool = True
) -> tuple[np.ndarray, np.ndarray, int]:
    """Image, labels and number of implanted lesions of the host's whole volume."""
    image = HOST.intensities((0, 0, 0), SHAPE)
    labels = HOST.labels((0, 0, 0), SHAPE, components=as_components).astype(np.int32)
    n = settings.apply(
        image,
        labels,
        cases=[DONOR, HOST],
        case=HOST,
        rng=np.random.default_rng(seed),
        as_components=as_components,
    )
    return image, labels, n


def batches_of(settings: Implant | None, **more: object) -> PatchBatches:
    augmentation = Augmentation(implant=settings)
    sampler = LesionSampler(patch_size=28)
    cases = [DONOR, HOST]
    return PatchBatches(cases, sampler, more.pop("augmentation", augmentation), seed=3, **more)


def test_a_lesion_keeps_its_contrast_to_the_tissue_around_it_in_each_modality() -> None:
    for seed in range(5):
        image, labels, n = implanted(ALWAYS, seed=seed)
        assert n >= 1
        for channel, contrast in zip(image, CONTRAST, strict=True):
            inside = channel[labels[0] > 1].mean()
            assert inside == pytest.approx(-4.0 + contrast, abs=0.1)


def test_the_factor_scales_the_contrast() -> None:
    settings = Implant(probability=1, contrast=(0.5, 0.5), synthetic_share=0, size_mm3=(1, 500))
    image, labels, _ = implanted(settings, seed=0)
    assert image[0][labels[0] > 1].mean() == pytest.approx(-4.0 + 1.5, abs=0.1)


def test_lesions_lie_inside_the_brain_and_apart_from_others() -> None:
    own = HOST.target[0] > 0
    distance_to_own = ndimage.distance_transform_edt(~own)
    depth = ndimage.distance_transform_edt(BALL)
    n_seen = 0
    for seed in range(20):
        image, labels, n = implanted(ALWAYS, seed=seed)
        n_seen += n
        new = labels[0] > HOST.n_lesions[0]
        assert np.array_equal(labels[0][own], HOST.components[0][own])
        assert distance_to_own[new].min() > 2
        assert depth[new].min() > 2
        assert (image[:, ~BALL] == 0).all()
        _, n_parts = ndimage.label(labels[0] > 0, np.ones((3, 3, 3)))
        assert n_parts == HOST.n_lesions[0] + n
    assert n_seen > 20


def test_each_lesion_is_one_component_with_the_next_number_and_the_size_of_a_donor() -> None:
    for seed in range(10):
        _, labels, n = implanted(ALWAYS, seed=seed)
        sizes = np.bincount(labels.ravel())[2:]
        assert len(sizes) == n
        assert set(sizes.tolist()) <= {8, 27}


def test_a_target_gets_ones() -> None:
    _, components, _ = implanted(ALWAYS, seed=1)
    _, target, _ = implanted(ALWAYS, seed=1, as_components=False)
    assert np.array_equal(target, components > 0)


def test_voxels_far_from_implants_stay_as_they_are() -> None:
    image, labels, _ = implanted(ALWAYS, seed=2)
    new = labels[0] > HOST.n_lesions[0]
    far = ndimage.distance_transform_edt(~new) > 4
    assert np.array_equal(image[:, far], HOST.intensities((0, 0, 0), SHAPE)[:, far])


def test_the_border_fades_into_the_tissue() -> None:
    image, labels, _ = implanted(ALWAYS, seed=2)
    new = labels[0] > HOST.n_lesions[0]
    next_to_it = ndimage.binary_dilation(new) & ~new
    excess = image[0][next_to_it].mean() + 4.0
    # The donor's own rim is sharp in this test, so only its share of the tissue is seen.
    assert abs(excess) < 0.2


def test_a_small_lesion_is_preferred() -> None:
    counts = {}
    for power in (0.0, 2.0):
        settings = Implant(
            probability=1, small_power=power, synthetic_share=0, max_lesions=1, size_mm3=(1, 500)
        )
        drawn = [settings._draw_lesion(DONOR, HOST, np.random.default_rng(i)) for i in range(200)]
        counts[power] = drawn.count(0)
    assert 75 < counts[0.0] < 125
    assert counts[2.0] > 170  # 8^-2 against 27^-2: 92 %


@pytest.mark.parametrize("volume_mm3", [1.0, 30.0, 200.0])
def test_a_blob_has_the_volume_and_the_contrast_that_were_asked_for(volume_mm3: float) -> None:
    donor = cut_donor(DONOR, 1)
    rng = np.random.default_rng(0)
    blob = make_blob(donor, volume_mm3, spacing_mm=(1, 1, 1), rng=rng)
    assert blob.mask.sum() == volume_mm3
    assert blob.classes.sum() == volume_mm3
    np.testing.assert_allclose(blob.contrast.reshape(2, -1).T[0], CONTRAST, atol=0.1)


def test_a_lesion_of_the_same_subject_is_taken_only_if_no_other_has_any() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        donor = ALWAYS._draw_donor([DONOR, HOST], HOST, rng)
        assert donor.mask.sum() in (8, 27)
        sizes = {ALWAYS._draw_donor([HOST], HOST, rng).mask.sum()}
        assert sizes == {27}


def test_donors_have_the_voxel_of_the_patch() -> None:
    affine = np.diag([1, 1, 3, 1.0])
    geometry = Geometry(SHAPE, affine, SHAPE, affine, (0, 0, 0), SHAPE)
    thick = PreparedCase(
        "thick", "thick", geometry, SCALE, n_lesions=DONOR.n_lesions, arrays=DONOR.arrays
    )
    assert thick.spacing_mm == (1, 1, 3)
    assert ALWAYS._draw_donor([thick], HOST, np.random.default_rng(0)) is None


def test_batches_are_a_function_of_seed_and_step() -> None:
    once, again = batches_of(ALWAYS), batches_of(ALWAYS)
    again[5]  # the order of the calls decides nothing
    assert [as_bytes(once[k]) for k in range(3)] == [as_bytes(again[k]) for k in range(3)]
    assert as_bytes(once[0]) != as_bytes(batches_of(None)[0])


def test_never_implanting_gives_the_batches_without_it() -> None:
    never = Implant(probability=0.0)
    for k in range(2):
        assert as_bytes(batches_of(never)[k]) == as_bytes(batches_of(None)[k])


def test_patches_lie_where_they_lie_without_implants() -> None:
    with_implants = batches_of(ALWAYS, batch_size=6)[0]
    without = batches_of(None, batch_size=6)[0]
    assert with_implants.starts == without.starts
    assert with_implants.target.sum() > without.target.sum()


def test_a_gpu_gets_the_same_patches_but_for_the_rounding_of_the_cache() -> None:
    batches = batches_of(ALWAYS, augmentation=Augmentation(**vars(NOTHING) | {"implant": ALWAYS}))
    deferred = [sample.augment() for sample in batches.samples(0)]
    ahead = stack_samples(deferred, with_components=False)
    torch.testing.assert_close(ahead.image, batches[0].image, atol=1e-3, rtol=0)
    assert torch.equal(ahead.target, batches[0].target)


def test_components_and_their_bound_count_implanted_lesions() -> None:
    for k in range(4):
        batch = batches_of(ALWAYS, with_components=True)[k]
        assert batch.components.max() <= batch.n_labels
        assert torch.equal(batch.components > 0, batch.target > 0)


def test_missing_modalities_stay_blank_and_lend_nothing() -> None:
    incomplete = a_brain("incomplete", boxes=[a_cube(18, 3)], level=-4.0)
    incomplete.arrays["image"][1] = 0
    image = incomplete.intensities((0, 0, 0), SHAPE)
    labels = incomplete.labels((0, 0, 0), SHAPE).astype(np.int32)
    n = ALWAYS.apply(
        image,
        labels,
        cases=[DONOR, incomplete],
        case=incomplete,
        rng=np.random.default_rng(0),
        as_components=False,
    )
    assert n > 0
    assert not image[1].any()
    donor = cut_donor(incomplete, 0)
    assert donor.lacks_a_modality_of(HOST.intensities((0, 0, 0), SHAPE))
    assert not donor.lacks_a_modality_of(image)


def test_all_raters_have_drawn_an_implanted_lesion() -> None:
    host = replace(HOST, n_raters=3, arrays={**HOST.arrays, "votes": 2 * HOST.target})
    donor = replace(DONOR, n_raters=3, arrays={**DONOR.arrays, "votes": 2 * DONOR.target})
    plain = Augmentation(**vars(NOTHING) | {"implant": ALWAYS})
    batch = PatchBatches([donor, host], LesionSampler(patch_size=28), plain, seed=3)[0]
    shares = batch.target.unique()
    torch.testing.assert_close(shares, torch.tensor([0.0, 2 / 3, 1.0]))


def test_implants_keep_away_from_ignored_voxels() -> None:
    image = HOST.intensities((0, 0, 0), SHAPE)
    labels = np.full((1, *SHAPE), -1, np.int32)
    rng = np.random.default_rng(0)
    n = ALWAYS.apply(image, labels, cases=[DONOR], case=HOST, rng=rng, as_components=False)
    assert n == 0


def test_without_room_the_patch_stays_as_it_is() -> None:
    image = HOST.intensities((18, 18, 18), (4, 4, 4))
    labels = HOST.labels((18, 18, 18), (4, 4, 4)).astype(np.int32)
    before = image.copy(), labels.copy()
    n = ALWAYS.apply(
        image,
        labels,
        cases=[DONOR],
        case=HOST,
        rng=np.random.default_rng(0),
        as_components=False,
    )
    assert n == 0
    assert np.array_equal(image, before[0])
    assert np.array_equal(labels, before[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probability": 1.5}, "probability must lie in"),
        ({"max_lesions": 0}, "max_lesions must be >= 1"),
        ({"size_mm3": (9, 3)}, "size_mm3 must be two numbers above 0"),
        ({"contrast": (0, 1)}, "contrast must be two numbers above 0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Implant(**settings)
