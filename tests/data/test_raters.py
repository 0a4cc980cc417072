"""Targets made of several raters' labels: their mean, and their consensus by STAPLE."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from helpers.cohorts import SHAPE, save, scan
from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.patches.augmentation import Augmentation
from tversky_seg.data.patches.batches import PatchBatches
from tversky_seg.data.patches.samplers import LesionSampler
from tversky_seg.data.preprocessing.case_cache import prepare
from tversky_seg.data.preprocessing.pipeline import Preprocessing, preprocess
from tversky_seg.data.preprocessing.rater_votes import majority, staple

MEAN = Preprocessing(("FLAIR",), rater="mean")


def masks_of(n: int, *, seed: int = 3) -> list[np.ndarray]:
    """Masks of n raters who agree on most of two lesions."""
    rng = np.random.default_rng(seed)
    true = np.zeros(SHAPE, bool)
    true[8:13, 8:13, 8:13] = true[15:18, 15:18, 15:18] = True
    masks = []
    for _ in range(n):
        missed, added = rng.random((2, *SHAPE))
        masks.append((true & (missed > 0.25)) | (~true & (added > 0.998)))
    return masks


def a_case(folder: Path, masks: Sequence[np.ndarray]) -> Case:
    image, _ = scan(0)
    labels = []
    for number, mask in enumerate(masks):
        labels.append(save(folder / f"label_{number}.nii", mask.astype(np.uint8)))
    return Case("c", "s", {"FLAIR": save(folder / "f.nii", image)}, tuple(labels))


def brute_force_staple(masks: Sequence[np.ndarray]) -> np.ndarray:
    """Expectation-maximisation as Warfield et al. 2004 write it, voxel by voxel in float64."""
    decisions = np.stack([mask.ravel() for mask in masks]).astype(float)  # (raters, voxels)
    prior = decisions.mean()
    p = np.full(len(masks), 0.99)
    q = np.full(len(masks), 0.99)
    for _ in range(500):
        drawn, not_drawn = decisions, 1 - decisions
        a = prior * np.prod(p[:, None] ** drawn * (1 - p[:, None]) ** not_drawn, axis=0)
        b = (1 - prior) * np.prod(q[:, None] ** not_drawn * (1 - q[:, None]) ** drawn, axis=0)
        w = a / (a + b)
        p = (decisions * w).sum(1) / w.sum()
        q = ((1 - decisions) * (1 - w)).sum(1) / (1 - w).sum()
    return w.reshape(masks[0].shape) >= 0.5


def test_the_mean_of_raters_is_a_soft_target(tmp_path: Path) -> None:
    masks = masks_of(3)
    case = preprocess(a_case(tmp_path, masks), MEAN)
    assert case.n_raters == 3
    x, y, z = case.geometry.crop_start
    i, j, k = case.geometry.shape
    votes = np.sum(masks, axis=0)[x : x + i, y : y + j, z : z + k]
    np.testing.assert_array_equal(case.votes[0], votes)
    # Lesions, for sampling and weights: what at least half of them drew.
    np.testing.assert_array_equal(case.target[0], votes >= 2)


@pytest.mark.parametrize("with_components", [False, True])
def test_batches_hold_the_mean_as_their_target(tmp_path: Path, with_components: bool) -> None:
    case = prepare(a_case(tmp_path, masks_of(3)), MEAN, cache_dir=tmp_path / "cache")
    settings = {"batch_size": 2, "with_components": with_components}
    batch = PatchBatches([case], LesionSampler(patch_size=12), **settings)[0]
    for number, (x, y, z) in enumerate(batch.starts):
        votes = case.votes[:, x : x + 12, y : y + 12, z : z + 12]
        np.testing.assert_allclose(batch.target[number], votes / 3, rtol=1e-6)
    if with_components:
        assert batch.components.shape == batch.target.shape
        assert not (batch.components > 0)[batch.target < 0.5].any()
    everything = Augmentation(tilt_probability=1.0, elastic_probability=1.0, growth_probability=1.0)
    moved = PatchBatches([case], LesionSampler(patch_size=12), everything, **settings)[1]
    assert set(np.rint(moved.target.unique().numpy() * 3)) <= {0, 1, 2, 3}


def test_of_two_raters_one_is_half(tmp_path: Path) -> None:
    one, other = masks_of(2)
    case = preprocess(a_case(tmp_path, [one, other]), MEAN)
    assert case.target.sum() == (one | other).sum()
    by_majority = Preprocessing(("FLAIR",), rater="majority")
    assert (
        preprocess(a_case(tmp_path, [one, other]), by_majority).target.sum() == (one & other).sum()
    )


def test_one_label_is_its_own_mean(tmp_path: Path) -> None:
    (mask,) = masks_of(1)
    case = preprocess(a_case(tmp_path, [mask]), MEAN)
    np.testing.assert_array_equal(case.target, case.votes)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_staple_is_that_of_the_paper(n: int) -> None:
    pytest.importorskip("SimpleITK")
    masks = masks_of(n)
    np.testing.assert_array_equal(
        staple([mask[None] for mask in masks])[0], brute_force_staple(masks)
    )


def test_staple_believes_the_better_raters() -> None:
    pytest.importorskip("SimpleITK")
    true = masks_of(1)[0]
    nothing = np.zeros_like(true)
    # Two of five see it, and always together: STAPLE sides with them, the majority does not.
    masks = [mask[None] for mask in (true, true, nothing, nothing, true & (np.arange(22) < 12))]
    assert not majority(masks)[0][..., 12:].any()
    assert staple(masks).sum() > majority(masks).sum()


def test_staple_of_nothing_and_of_one_rater(tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK")
    (mask,) = masks_of(1)
    both = np.stack([mask, np.zeros_like(mask)])
    np.testing.assert_array_equal(staple([both]), both)
    np.testing.assert_array_equal(staple([both, both]), both)
    case = preprocess(a_case(tmp_path, masks_of(3)), Preprocessing(("FLAIR",), rater="staple"))
    assert case.target.sum() == staple([each[None] for each in masks_of(3)]).sum()


def test_without_simple_itk_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(DataError, match=r"data.rater: staple needs SimpleITK; pip install"):
        staple([mask[None] for mask in masks_of(2)])
