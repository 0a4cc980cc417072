"""Voxels that count neither in training nor in validation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.cohorts import AFFINE, SHAPE, save, scan
from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.patches.augmentation import Augmentation
from tversky_seg.data.patches.batches import PatchBatches
from tversky_seg.data.patches.samplers import LesionSampler, UniformSampler
from tversky_seg.data.preprocessing.case_cache import prepare
from tversky_seg.data.preprocessing.pipeline import Preprocessing, preprocess
from tversky_seg.data.preprocessing.prepared_case import PreparedCase
from tversky_seg.losses import TverskyLoss
from tversky_seg.training.step import forward_backward
from tversky_seg.weighting import inverse_weights

IGNORING = Preprocessing(("FLAIR",), ignore=(2,))
SEED = 1  # lesions inside and outside the region
REGION = (slice(4, 14), slice(4, 20), slice(4, 18))


def a_case(folder: Path, *, seed: int = SEED, value: int = 2, lesions_inside: bool = False) -> Case:
    """A case whose label has lesions of value 1, and another value in a region."""
    image, label = scan(seed)
    inside = np.zeros(SHAPE, bool)
    inside[REGION] = True
    if lesions_inside:
        label[inside & (image > 120)] = 1
    else:
        label[inside] = value
    folder.mkdir(exist_ok=True)
    return Case(
        f"c{seed}",
        f"s{seed}",
        {"FLAIR": save(folder / f"{seed}.nii", image.astype(np.float32))},
        (save(folder / f"{seed}_label.nii", label),),
    )


def ignore_mask(folder: Path) -> Path:
    mask = np.zeros(SHAPE, np.uint8)
    mask[REGION] = 1
    return save(folder / "ignore.nii", mask)


def batches_of(case: PreparedCase, **settings: object) -> PatchBatches:
    defaults = {"sampler": UniformSampler(patch_size=16), "batch_size": 3, "seed": 1}
    return PatchBatches(cases=[case], **(defaults | settings))


def test_an_ignored_value_is_no_lesion_and_never_aimed_at(tmp_path: Path) -> None:
    case = a_case(tmp_path)
    with pytest.raises(DataError, match=r"label values 2 that no class names.*data.ignore=\[2\]"):
        preprocess(case, Preprocessing(("FLAIR",)))
    prepared = preprocess(case, IGNORING)
    assert prepared.ignored is not None
    assert prepared.target is not None
    x, y, z = prepared.geometry.crop_start
    label = np.zeros(prepared.geometry.full_shape, bool)
    label[REGION] = True
    i, j, k = prepared.geometry.shape
    np.testing.assert_array_equal(prepared.ignored, label[x : x + i, y : y + j, z : z + k])
    assert not (prepared.target[0].astype(bool) & prepared.ignored).any()
    assert not prepared.ignored.reshape(-1)[prepared.counted_voxels].any()
    assert not prepared.ignored.reshape(-1)[prepared.lesion_voxels].any()
    assert len(prepared.counted_voxels) < len(prepared.foreground_voxels)


def test_what_the_label_says_below_an_ignore_mask_does_not_matter(tmp_path: Path) -> None:
    mask = ignore_mask(tmp_path)
    settings = Preprocessing(("FLAIR",))
    with_lesions = a_case(tmp_path / "a", lesions_inside=True)
    without = a_case(tmp_path / "b", value=0)
    one, other = (
        preprocess(replace(case, ignore_mask=mask), settings) for case in (with_lesions, without)
    )
    assert one.arrays.keys() == other.arrays.keys()
    for name, array in one.arrays.items():
        np.testing.assert_array_equal(array, other.arrays[name], err_msg=name)


def test_a_coarser_grid_keeps_lesions_and_ignored_regions(tmp_path: Path) -> None:
    image, label = scan(0)
    label[:] = 0
    label[10, 10, 10] = 1
    label[11, 10, 10] = 2
    label[5, 5, 5] = 2
    case = Case(
        "c",
        "s",
        {"FLAIR": save(tmp_path / "f.nii", image)},
        (save(tmp_path / "l.nii", label),),
    )
    prepared = preprocess(case, replace(IGNORING, spacing_mm=(5.0, 5.0, 5.0)))
    assert prepared.n_lesions == (1,)
    assert prepared.ignored is not None
    assert prepared.ignored.any()
    assert not (np.asarray(prepared.target[0], bool) & prepared.ignored).any()


def test_the_cache_keeps_ignored_voxels_and_earlier_entries(tmp_path: Path) -> None:
    case = a_case(tmp_path)
    cached = prepare(case, IGNORING, cache_dir=tmp_path / "cache")
    again = prepare(case, IGNORING, cache_dir=tmp_path / "cache")
    assert cached.folder == again.folder
    np.testing.assert_array_equal(again.ignored, preprocess(case, IGNORING).ignored)
    # Entries of versions that knew nothing of it keep their names.
    assert "ignore" not in Preprocessing(("FLAIR",)).as_dict()
    assert Preprocessing.from_dict(IGNORING.as_dict()) == IGNORING


@pytest.mark.parametrize("with_components", [False, True])
def test_a_batch_marks_ignored_voxels_where_the_patch_shows_them(
    tmp_path: Path, with_components: bool
) -> None:
    case = preprocess(a_case(tmp_path), IGNORING)
    batch = batches_of(case, with_components=with_components)[0]
    assert batch.ignored is not None
    assert batch.ignored.shape == (3, 1, 16, 16, 16)
    for number, (x, y, z) in enumerate(batch.starts):
        box = (slice(x, x + 16), slice(y, y + 16), slice(z, z + 16))
        np.testing.assert_array_equal(batch.ignored[number, 0], case.ignored[box])
        np.testing.assert_array_equal(batch.target[number, 0], case.target[0][box])
    if with_components:
        assert batch.components is not None
        assert int(batch.components.min()) == 0


def test_without_ignored_voxels_a_batch_has_none(tmp_path: Path) -> None:
    case = preprocess(a_case(tmp_path, value=0), IGNORING)
    assert not case.has_ignored
    assert batches_of(case)[0].ignored is None


def test_every_augmentation_moves_ignored_voxels_with_the_image(tmp_path: Path) -> None:
    case = preprocess(a_case(tmp_path), IGNORING)
    sizes = {"tilt_probability": 1.0, "elastic_probability": 1.0, "growth_probability": 1.0}
    sampler = LesionSampler(patch_size=16)
    batches = batches_of(case, augmentation=Augmentation(**sizes), sampler=sampler)
    n_with_both = 0
    for step in range(6):
        batch = batches[step]
        assert batch.ignored is not None
        assert not (batch.ignored & (batch.target > 0)).any()
        n_with_both += bool(batch.ignored.any() and batch.target.any())
    assert n_with_both > 0


class Shift(nn.Module):
    """Adds one learned number per voxel to the first channel."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(shape))

    def forward(self, image: Tensor) -> Tensor:
        return image[:, :1] + self.shift


@pytest.mark.parametrize("is_weighted", [False, True])
def test_no_gradient_comes_from_ignored_voxels(tmp_path: Path, is_weighted: bool) -> None:
    case = preprocess(a_case(tmp_path), IGNORING)
    batch = batches_of(case, with_components=is_weighted)[0]
    network = Shift(tuple(batch.target.shape))
    forward_backward(
        network,
        TverskyLoss(),
        batch,
        weighting=inverse_weights if is_weighted else None,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        device=torch.device("cpu"),
        precision="fp32",
    )
    assert batch.ignored is not None
    assert batch.ignored.any()
    assert not network.shift.grad[batch.ignored].any()
    assert network.shift.grad[~batch.ignored].all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ignore": (1,)}, "data.ignore: 1 is a label value of class lesion"),
        ({"ignore": (0,)}, "data.ignore.*0.*the background"),
        ({"ignore": "2"}, "data.ignore"),
        ({"ignore": 1.5}, "data.ignore"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Preprocessing(("FLAIR",), **settings)


def test_an_ignore_mask_lies_on_the_grid_of_the_image(tmp_path: Path) -> None:
    mask = save(tmp_path / "small.nii", np.ones((4, 4, 4), np.uint8), AFFINE)
    case = replace(a_case(tmp_path), ignore_mask=mask)
    with pytest.raises(DataError, match=r"small.nii.*shape \(4, 4, 4\)"):
        preprocess(case, IGNORING)
