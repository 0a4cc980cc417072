from dataclasses import replace

import numpy as np
import pytest

from tversky_seg.data.channels import lesion_arrays
from tversky_seg.data.grids import Geometry
from tversky_seg.data.prepared import PreparedCase
from tversky_seg.data.sampling import LesionSampler


def a_case(target: np.ndarray, brain: np.ndarray | None = None) -> PreparedCase:
    """A case in memory, made from one class's mask (X, Y, Z)."""
    arrays, n_lesions = lesion_arrays(target[None] > 0)
    brain = np.ones(target.shape) if brain is None else brain
    return PreparedCase(
        case_id="a",
        subject_id="a",
        geometry=Geometry(target.shape, np.eye(4), target.shape, np.eye(4), (0, 0, 0), target.shape),
        image_scale=np.ones(1, np.float32),
        n_lesions=n_lesions,
        arrays={"foreground_voxels": np.flatnonzero(brain).astype(np.int32), **arrays},
    )


def two_lesions() -> np.ndarray:
    target = np.zeros((60, 50, 40), np.uint8)
    target[30, 25, 20] = 1
    target[40:50, 30:40, 10:20] = 1
    return target


def draws(sampler: LesionSampler, cases: list, n: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    drawn = [sampler.draw(cases, np.random.default_rng([0, i])) for i in range(n)]
    return np.array([index for index, _ in drawn]), np.array([start for _, start in drawn])


def test_a_one_voxel_lesion_is_drawn_as_often_as_one_of_a_thousand_voxels() -> None:
    _, starts = draws(LesionSampler(patch_size=1, lesion_probability=1, jitter=0), [a_case(two_lesions())])
    assert np.mean((starts == (30, 25, 20)).all(axis=1)) == pytest.approx(0.5, abs=0.04)


def test_lesions_of_all_classes_are_drawn_alike() -> None:
    nested = np.zeros((2, 30, 30, 30), bool)
    nested[0, 5:25, 5:25, 5:25] = nested[1, 10, 10, 10] = nested[1, 20, 20, 20] = True
    arrays, n_lesions = lesion_arrays(nested)
    case = a_case(np.zeros((30, 30, 30), np.uint8))
    case = replace(case, n_lesions=n_lesions, arrays={**case.arrays, **arrays})
    _, starts = draws(LesionSampler(patch_size=1, lesion_probability=1, jitter=0), [case])
    assert np.mean([(start == 10).all() or (start == 20).all() for start in starts]) == pytest.approx(2 / 3, abs=0.04)


def test_voxels_of_a_lesion_are_drawn_uniformly() -> None:
    target = np.zeros((9, 9, 9), np.uint8)
    target[2:4, 5, 5:7] = 1
    _, starts = draws(LesionSampler(patch_size=1, lesion_probability=1, jitter=0), [a_case(target)])
    voxels, counts = np.unique(starts, axis=0, return_counts=True)
    np.testing.assert_array_equal(voxels, np.argwhere(target))
    np.testing.assert_allclose(counts / 2000, 0.25, atol=0.04)


def test_lesion_probability_is_the_share_of_lesion_patches_though_most_cases_have_none() -> None:
    empty = a_case(np.zeros((40, 40, 40), np.uint8))
    index, _ = draws(LesionSampler(patch_size=8, lesion_probability=0.6), [empty, empty, a_case(two_lesions()), empty])
    assert np.mean(index == 2) == pytest.approx(0.6 + 0.4 / 4, abs=0.04)
    assert set(index) == {0, 1, 2, 3}


def test_cases_with_lesions_are_drawn_uniformly_whatever_their_load() -> None:
    one = np.zeros((20, 20, 20), np.uint8)
    one[10, 10, 10] = 1
    index, _ = draws(LesionSampler(patch_size=8, lesion_probability=1), [a_case(one), a_case(two_lesions())])
    assert np.mean(index) == pytest.approx(0.5, abs=0.04)


def test_jitter_spreads_the_lesion_over_its_share_of_the_patch() -> None:
    target = np.zeros((64, 64, 64), np.uint8)
    target[32, 32, 32] = 1
    for jitter, low, high in ((0.0, 8, 8), (0.5, 4, 11), (1.0, 0, 15)):
        _, starts = draws(LesionSampler(patch_size=16, lesion_probability=1, jitter=jitter), [a_case(target)])
        place = 32 - starts
        assert (place.min(axis=0) == low).all()
        assert (place.max(axis=0) == high).all()
    np.testing.assert_allclose(np.apply_along_axis(np.bincount, 0, place) / 2000, 1 / 16, atol=0.025)


@pytest.mark.parametrize("corner", [(0, 0, 0), (59, 49, 39), (0, 49, 20)])
def test_next_to_the_border_the_patch_stays_inside_and_holds_the_lesion(corner: tuple[int, int, int]) -> None:
    target = np.zeros((60, 50, 40), np.uint8)
    target[corner] = 1
    _, starts = draws(LesionSampler(patch_size=(32, 16, 8), lesion_probability=1), [a_case(target)], n=200)
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
    _, starts = draws(LesionSampler(patch_size=1, lesion_probability=0), [a_case(two_lesions(), brain)], n=200)
    assert brain[tuple(starts.T)].all()


def test_without_any_lesion_or_brain_there_are_still_patches() -> None:
    blank = a_case(np.zeros((20, 20, 20), np.uint8), brain=np.zeros((20, 20, 20), bool))
    _, starts = draws(LesionSampler(patch_size=8, lesion_probability=1), [blank], n=50)
    assert ((starts >= 0) & (starts <= 12)).all()


def test_the_same_generator_draws_the_same_patch() -> None:
    cases = [a_case(two_lesions())] * 3
    first, second = (LesionSampler().draw(cases, np.random.default_rng([1, 2, 3])) for _ in range(2))
    assert first == second
    assert all(isinstance(number, int) for number in (first[0], *first[1]))


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
        LesionSampler().draw([], np.random.default_rng(0))
