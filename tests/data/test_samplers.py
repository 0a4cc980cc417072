import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tversky_seg.data.grids import Geometry
from tversky_seg.data.patches.draw_shares import draw_shares, log_draw_shares
from tversky_seg.data.patches.paper_samplers import Hashemi2018Sampler, Shirokikh2020Sampler
from tversky_seg.data.patches.samplers import (
    ForegroundSampler,
    GridSampler,
    LesionSampler,
    SizeTemperedSampler,
    UniformSampler,
)
from tversky_seg.data.patches.sampling import Sampler, draw_patch
from tversky_seg.data.preprocessing.labels import list_lesions
from tversky_seg.data.preprocessing.prepared_case import PreparedCase


def a_case(target: np.ndarray, brain: np.ndarray | None = None) -> PreparedCase:
    """A case in memory, made from one class's mask (X, Y, Z)."""
    arrays, n_lesions = list_lesions(target[None] > 0)
    brain = np.ones(target.shape) if brain is None else brain
    return PreparedCase(
        case_id="a",
        subject_id="a",
        geometry=Geometry(
            target.shape, np.eye(4), target.shape, np.eye(4), (0, 0, 0), target.shape
        ),
        image_scale=np.ones(1, np.float32),
        n_lesions=n_lesions,
        arrays={"foreground_voxels": np.flatnonzero(brain).astype(np.int32), **arrays},
    )


def two_lesions() -> np.ndarray:
    target = np.zeros((60, 50, 40), np.uint8)
    target[30, 25, 20] = 1
    target[40:50, 30:40, 10:20] = 1
    return target


def draws(sampler: Sampler, cases: list, n: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Case indices (n,) and first voxels (n, 3) of the patches that a sampler draws."""
    indices, starts = [], []
    for number in range(n):
        aim, start = draw_patch(sampler, cases, np.random.default_rng([0, number]))
        indices.append(aim.case_index)
        starts.append(start)
    return np.array(indices), np.array(starts)


def test_a_one_voxel_lesion_is_drawn_as_often_as_one_of_a_thousand_voxels() -> None:
    _, starts = draws(
        LesionSampler(patch_size=1, lesion_probability=1, jitter=0), [a_case(two_lesions())]
    )
    assert np.mean((starts == (30, 25, 20)).all(axis=1)) == pytest.approx(0.5, abs=0.04)


def test_lesions_of_all_classes_are_drawn_alike() -> None:
    nested = np.zeros((2, 30, 30, 30), bool)
    nested[0, 5:25, 5:25, 5:25] = nested[1, 10, 10, 10] = nested[1, 20, 20, 20] = True
    arrays, n_lesions = list_lesions(nested)
    case = a_case(np.zeros((30, 30, 30), np.uint8))
    case = replace(case, n_lesions=n_lesions, arrays={**case.arrays, **arrays})
    _, starts = draws(LesionSampler(patch_size=1, lesion_probability=1, jitter=0), [case])
    assert np.mean(
        [(start == 10).all() or (start == 20).all() for start in starts]
    ) == pytest.approx(2 / 3, abs=0.04)


def test_voxels_of_a_lesion_are_drawn_uniformly() -> None:
    target = np.zeros((9, 9, 9), np.uint8)
    target[2:4, 5, 5:7] = 1
    _, starts = draws(LesionSampler(patch_size=1, lesion_probability=1, jitter=0), [a_case(target)])
    voxels, counts = np.unique(starts, axis=0, return_counts=True)
    np.testing.assert_array_equal(voxels, np.argwhere(target))
    np.testing.assert_allclose(counts / 2000, 0.25, atol=0.04)


def test_lesion_probability_is_the_share_of_lesion_patches_though_most_cases_have_none() -> None:
    empty = a_case(np.zeros((40, 40, 40), np.uint8))
    index, _ = draws(
        LesionSampler(patch_size=8, lesion_probability=0.6),
        [empty, empty, a_case(two_lesions()), empty],
    )
    assert np.mean(index == 2) == pytest.approx(0.6 + 0.4 / 4, abs=0.04)
    assert set(index) == {0, 1, 2, 3}


def test_cases_with_lesions_are_drawn_uniformly_whatever_their_load() -> None:
    one = np.zeros((20, 20, 20), np.uint8)
    one[10, 10, 10] = 1
    index, _ = draws(
        LesionSampler(patch_size=8, lesion_probability=1), [a_case(one), a_case(two_lesions())]
    )
    assert np.mean(index) == pytest.approx(0.5, abs=0.04)


def test_jitter_spreads_the_lesion_over_its_share_of_the_patch() -> None:
    target = np.zeros((64, 64, 64), np.uint8)
    target[32, 32, 32] = 1
    for jitter, low, high in ((0.0, 8, 8), (0.5, 4, 11), (1.0, 0, 15)):
        _, starts = draws(
            LesionSampler(patch_size=16, lesion_probability=1, jitter=jitter), [a_case(target)]
        )
        place = 32 - starts
        assert (place.min(axis=0) == low).all()
        assert (place.max(axis=0) == high).all()
    np.testing.assert_allclose(
        np.apply_along_axis(np.bincount, 0, place) / 2000, 1 / 16, atol=0.025
    )


@pytest.mark.parametrize("corner", [(0, 0, 0), (59, 49, 39), (0, 49, 20)])
def test_next_to_the_border_the_patch_stays_inside_and_holds_the_lesion(
    corner: tuple[int, int, int],
) -> None:
    target = np.zeros((60, 50, 40), np.uint8)
    target[corner] = 1
    _, starts = draws(
        LesionSampler(patch_size=(32, 16, 8), lesion_probability=1), [a_case(target)], n=200
    )
    assert (starts >= 0).all()
    assert (starts <= np.array(target.shape) - np.array((32, 16, 8))).all()
    assert (starts <= corner).all()
    assert (np.array(corner) < starts + np.array((32, 16, 8))).all()


def test_a_volume_smaller_than_the_patch_lies_wholly_inside_it() -> None:
    _, starts = draws(LesionSampler(patch_size=64), [a_case(two_lesions())], n=200)
    assert (starts <= 0).all()
    assert (starts + 64 >= (60, 50, 40)).all()
    assert len(np.unique(starts, axis=0)) > 20


def test_brain_patches_hold_a_brain_voxel() -> None:
    brain = np.zeros((60, 50, 40), bool)
    brain[10:20, 30:40, 5:15] = True
    _, starts = draws(
        LesionSampler(patch_size=1, lesion_probability=0), [a_case(two_lesions(), brain)], n=200
    )
    assert brain[tuple(starts.T)].all()


def test_without_any_lesion_or_brain_there_are_still_patches() -> None:
    blank = a_case(np.zeros((20, 20, 20), np.uint8), brain=np.zeros((20, 20, 20), bool))
    _, starts = draws(LesionSampler(patch_size=8, lesion_probability=1), [blank], n=50)
    assert ((starts >= 0) & (starts <= 12)).all()


def test_the_same_generator_draws_the_same_patch() -> None:
    cases = [a_case(two_lesions())] * 3
    aim, start = draw_patch(LesionSampler(), cases, np.random.default_rng([1, 2, 3]))
    assert draw_patch(LesionSampler(), cases, np.random.default_rng([1, 2, 3])) == (aim, start)
    assert all(isinstance(number, int) for number in (aim.case_index, *aim.voxel, *start))


def test_bad_settings_are_refused_with_the_value() -> None:
    with pytest.raises(ValueError, match=r"patch_size.*0"):
        LesionSampler(patch_size=0)
    with pytest.raises(ValueError, match=r"patch_size"):
        LesionSampler(patch_size=(64, 64))
    with pytest.raises(ValueError, match=r"lesion_probability=1.5"):
        LesionSampler(lesion_probability=1.5)
    with pytest.raises(ValueError, match=r"jitter=-0.1"):
        LesionSampler(jitter=-0.1)
    with pytest.raises(ValueError, match=r"at least one case"):
        draw_patch(LesionSampler(), [], np.random.default_rng(0))


SAMPLERS = [
    UniformSampler(patch_size=16),
    ForegroundSampler(patch_size=16, lesion_probability=1.0),
    LesionSampler(patch_size=16, lesion_probability=1.0),
    SizeTemperedSampler(patch_size=16, lesion_probability=1.0),
    Hashemi2018Sampler(patch_size=16, jitter_voxels=4, min_voxels=(1, 1), min_case_voxels=(10, 1)),
    Shirokikh2020Sampler(patch_size=16),
    GridSampler(patch_size=16, overlap=0.5),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: type(sampler).__name__)
def test_every_lesion_voxel_can_be_drawn_the_borders_too(sampler: Sampler) -> None:
    target = np.zeros((20, 18, 19), np.uint8)
    for corner in ((0, 0, 0), (19, 17, 18), (0, 17, 9)):
        target[tuple(slice(max(c - 1, 0), c + 2) for c in corner)] = 1
    seen = np.zeros(target.shape, bool)
    for k in range(200):
        rng = np.random.default_rng([0, k])
        _, start = draw_patch(sampler, [a_case(target)], rng, patch_number=k)
        assert all(0 <= first <= n - 16 for first, n in zip(start, target.shape, strict=True))
        seen[tuple(slice(first, first + 16) for first in start)] = True
    assert seen[target > 0].all()


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: type(sampler).__name__)
def test_every_sampler_copes_with_small_volumes_and_with_cases_without_lesion(
    sampler: Sampler,
) -> None:
    small = a_case(np.zeros((10, 40, 12), np.uint8))
    for k in range(30):
        _, start = draw_patch(sampler, [small], np.random.default_rng([0, k]), patch_number=k)
        assert -6 <= start[0] <= 0
        assert 0 <= start[1] <= 24
        assert -4 <= start[2] <= 0


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_size_tempering_goes_from_lesions_to_voxels(power: float) -> None:
    sampler = SizeTemperedSampler(patch_size=1, lesion_probability=1, jitter=0, power=power)
    _, starts = draws(sampler, [a_case(two_lesions())])
    expected = 1 / (1 + 1000**power)
    assert np.mean((starts == (30, 25, 20)).all(axis=1)) == pytest.approx(expected, abs=0.04)


def test_shirokikh_draws_cases_by_their_number_of_lesions_and_half_the_patches_on_one() -> None:
    one = np.zeros((60, 50, 40), np.uint8)
    one[10, 10, 10] = 1
    cases = [a_case(one), a_case(np.zeros((60, 50, 40), np.uint8)), a_case(two_lesions())]
    aims = [
        Shirokikh2020Sampler(patch_size=8).aim(cases, np.random.default_rng([0, k]))
        for k in range(2000)
    ]
    assert np.mean([aim.case_index == 2 for aim in aims]) == pytest.approx(2 / 3, abs=0.04)
    assert all(aim.case_index != 1 for aim in aims)
    assert np.mean([aim.lesion is not None for aim in aims]) == pytest.approx(0.5, abs=0.04)


def test_hashemi_patches_hold_enough_lesion_voxels_in_their_middle_fewer_later_on() -> None:
    target = np.zeros((64, 64, 64), np.uint8)
    target[10:16, 10:16, 10:16] = target[40, 40, 40:50] = 1
    case = a_case(target)
    sampler = Hashemi2018Sampler(patch_size=32)
    n_in_middle = {0: [], 1000: []}
    for first, counts in n_in_middle.items():
        for k in range(60):
            rng = np.random.default_rng([0, k])
            _, (x, y, z) = draw_patch(sampler, [case], rng, patch_number=first + k)
            middle = target[x + 8 : x + 24, y + 8 : y + 24, z + 8 : z + 24]
            counts.append(middle.sum())
    assert min(n_in_middle[0]) >= 50
    assert 5 <= min(n_in_middle[1000]) < 50


def test_hashemi_skips_cases_with_few_lesion_voxels_at_first() -> None:
    few = np.zeros((40, 40, 40), np.uint8)
    few[20, 20, 5:30] = 1
    cases = [a_case(few), a_case(two_lesions())]
    sampler = Hashemi2018Sampler(patch_size=16, jitter_voxels=4, min_voxels=(1, 1))
    for number, expected in ((99, {1}), (100, {0, 1})):
        drawn = set()
        for k in range(40):
            aim = sampler.aim(cases, np.random.default_rng([0, k]), patch_number=number)
            drawn.add(aim.case_index)
        assert drawn == expected


def test_the_grid_covers_every_voxel_of_every_case_once_a_round() -> None:
    cases = [a_case(np.zeros((40, 17, 16), np.uint8)), a_case(np.zeros((10, 16, 32), np.uint8))]
    sampler = GridSampler(patch_size=16)
    n_patches = 3 * 2 * 1 + 1 * 1 * 2
    for in_round in range(2):
        counts = Counter()
        for k in range(n_patches):
            number = in_round * n_patches + k
            aim, start = draw_patch(sampler, cases, np.random.default_rng(0), patch_number=number)
            counts[aim.case_index, start] += 1
        assert set(counts.values()) == {1}
        of_first = {start for index, start in counts if index == 0}
        of_second = {start for index, start in counts if index == 1}
        assert of_first == {(x, y, 0) for x in (0, 12, 24) for y in (0, 1)}
        assert of_second == {(-3, 0, 0), (-3, 0, 16)}


def test_the_grid_draws_nothing_from_the_generator_of_the_augmentation() -> None:
    rng = np.random.default_rng(0)
    draw_patch(GridSampler(patch_size=16), [a_case(two_lesions())], rng)
    assert rng.random() == np.random.default_rng(0).random()


def test_draw_shares_count_what_was_drawn() -> None:
    target = np.zeros((40, 40, 40), np.uint8)
    for i, size in enumerate((1, 2, 4, 8)):
        target[5 + 9 * i, 20, 10 : 10 + size] = 1
    cases = [a_case(target)]
    by_lesion = draw_shares(LesionSampler(patch_size=8, lesion_probability=0.5, jitter=0), cases)
    assert by_lesion.n_lesions == 4
    np.testing.assert_allclose(by_lesion.shares, 0.25, atol=0.05)
    assert by_lesion.lesion_share == pytest.approx(0.5, abs=0.04)
    assert by_lesion.off_centre == pytest.approx(
        (0.125, 0.125)
    )  # half a voxel: a patch of 8 has no middle voxel
    by_voxel = draw_shares(ForegroundSampler(patch_size=8, lesion_probability=1), cases)
    np.testing.assert_allclose(by_voxel.shares, np.array([1, 2, 4, 8]) / 15, atol=0.04)
    assert draw_shares(UniformSampler(patch_size=8), cases).lesion_share == 0


def test_the_log_says_which_lesions_are_drawn(caplog: pytest.LogCaptureFixture) -> None:
    target = np.zeros((40, 40, 40), np.uint8)
    for i, size in enumerate((1, 2, 4, 8)):
        target[5 + 9 * i, 20, 10 : 10 + size] = 1
    with caplog.at_level(logging.DEBUG, logger="tversky_seg"):
        log_draw_shares(LesionSampler(patch_size=8, lesion_probability=1.0), [a_case(target)])
        log_draw_shares(UniformSampler(patch_size=8), [a_case(target)])
    shares, place, uniform = caplog.records
    assert "100 %" in shares.getMessage()
    assert "<= 2, <= 3, <= 5, > 5 voxels" in shares.getMessage()
    assert place.levelno == logging.DEBUG
    assert "4 lesions" in uniform.getMessage()


@pytest.mark.slow
def test_on_real_masks_small_lesions_get_their_half_of_the_draws(real_data: Path) -> None:
    cases = []
    for file in sorted(
        (real_data / "open_ms_data/cross_sectional/MNI").glob("patient*/GOLD_STANDARD*.nii.gz")
    ):
        mask = np.asarray(nib.load(file).dataobj) > 0.5
        box = tuple(slice(on.min(), on.max() + 1) for on in np.nonzero(mask))
        arrays, n_lesions = list_lesions(mask[box][None])
        case = a_case(np.zeros((2, 2, 2), np.uint8))
        shape = mask[box].shape
        geometry = Geometry(shape, np.eye(4), shape, np.eye(4), (0, 0, 0), shape)
        cases.append(replace(case, n_lesions=n_lesions, geometry=geometry, arrays=arrays))
    sizes = np.concatenate([np.diff(case.lesion_offsets) for case in cases])
    by_volume = np.sort(sizes).cumsum() / sizes.sum()
    assert by_volume[len(sizes) // 2 - 1] == pytest.approx(
        0.021, abs=0.001
    )  # voxels drawn from all cases together
    shares = {
        name: draw_shares(sampler, cases, n_draws=800).shares
        for name, sampler in {
            "lesion": LesionSampler(patch_size=32, lesion_probability=1),
            "tempered": SizeTemperedSampler(patch_size=32, lesion_probability=1),
            "foreground": ForegroundSampler(patch_size=32, lesion_probability=1),
        }.items()
    }
    halves = {name: sum(share[:2]) for name, share in shares.items()}
    assert halves["lesion"] == pytest.approx(0.49, abs=0.05)
    assert halves["foreground"] == pytest.approx(0.049, abs=0.025)  # a case first, then its voxels
    assert halves["foreground"] < halves["tempered"] < halves["lesion"]


def test_bad_settings_of_every_sampler_are_refused_with_the_value() -> None:
    for kind in {type(sampler) for sampler in SAMPLERS}:
        with pytest.raises(ValueError, match=r"patch_size.*0"):
            kind(patch_size=0)
        with pytest.raises(ValueError, match="at least one case"):
            draw_patch(kind(), [], np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"power=2"):
        SizeTemperedSampler(power=2)
    with pytest.raises(ValueError, match=r"overlap=1"):
        GridSampler(overlap=1)
    with pytest.raises(ValueError, match=r"min_voxels=\(1,\)"):
        Hashemi2018Sampler(min_voxels=(1,))
