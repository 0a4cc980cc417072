import itertools
import json
import logging
import multiprocessing
import os
import pickle
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from tversky_seg.data.case import Case
from tversky_seg.data.dataset import Dataset
from tversky_seg.data.errors import DataError
from tversky_seg.data.grids import to_input_grid
from tversky_seg.data.preprocessing import case_cache
from tversky_seg.data.preprocessing.case_cache import prepare
from tversky_seg.data.preprocessing.note import HALF_VOXEL, OTHER_GRID, OUTSIDE_BRAIN
from tversky_seg.data.preprocessing.parallel import prepare_all
from tversky_seg.data.preprocessing.pipeline import (
    Preprocessing,
    preprocess,
    preprocessing_of,
    require_lesions,
)
from tversky_seg.data.preprocessing.prepared_case import PreparedCase, one_case_per_rater
from tversky_seg.data.preprocessing.spacing import common_spacing
from tversky_seg.data.split import split_cases

SHAPE = (24, 28, 20)
OBLIQUE = np.array([[0.9, 0.2, -0.1, 40], [-0.2, 1.1, 0.1, -20], [0.1, -0.1, 2.8, 7], [0, 0, 0, 1]])
FLAIR = Preprocessing(("FLAIR",))


def distance(shape: tuple[int, ...], centre: tuple[float, ...]) -> np.ndarray:
    grids = np.meshgrid(
        *(np.arange(n) - c for n, c in zip(shape, centre, strict=True)), indexing="ij"
    )
    return np.sqrt(sum(grid**2 for grid in grids))


def brain_of(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return distance(shape, tuple((n - 1) / 2 for n in shape)) < min(shape) / 2 - 2


def image_of(brain: np.ndarray, *, seed: int = 0, background: float = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(100, 15, brain.shape)
    return np.where(brain, noise, background).astype(np.float32)


def label_of(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Two lesions: a ball and one voxel."""
    label = (distance(shape, tuple(n / 2 for n in shape)) < 4).astype(np.uint8)
    label[tuple(n // 2 - 4 for n in shape)] = 1
    return label


def save(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), path)
    return path


def a_case(
    folder: Path,
    images: Mapping[str, np.ndarray] | None = None,
    *,
    label: np.ndarray | None = None,
    brain: np.ndarray | None = None,
    affine: np.ndarray | None = None,
    case_id: str = "a",
) -> Case:
    def stored(name: str, data: np.ndarray | None) -> Path | None:
        return None if data is None else save(folder / f"{case_id}_{name}.nii.gz", data, affine)

    images = {"FLAIR": image_of(brain_of())} if images is None else images
    paths = {name: stored(name, image) for name, image in images.items()}
    mask = stored("label", label)
    return Case(case_id, case_id, paths, (mask,) if mask else (), stored("brain", brain))


def values_of(prepared: PreparedCase) -> np.ndarray:
    return prepared.image * prepared.image_scale[:, None, None, None]


def test_a_case_is_cropped_normalised_and_listed(tmp_path: Path) -> None:
    brain, label = brain_of(), label_of()
    image = image_of(brain)
    images = {"FLAIR": image, "T1": 3 * image + 7 * brain}
    case = preprocess(a_case(tmp_path, images, label=label), Preprocessing(("FLAIR", "T1")))
    box = ndimage.find_objects(brain.astype(int))[0]
    start = tuple(side.start for side in box)
    assert case.geometry.crop_start == start
    assert np.array_equal(case.foreground, brain[box])
    assert np.array_equal(case.target, label[box][None])
    inside = values_of(case)[:, brain[box]]
    assert np.allclose(inside.mean(axis=1), 0, atol=1e-4)
    assert np.allclose(inside.std(axis=1), 1, atol=1e-4)
    assert np.allclose(inside[0], inside[1], atol=1e-3)
    expected = (image[box] - image[brain].mean()) / image[brain].std()
    assert (
        np.abs(values_of(case)[0] - expected * brain[box]).max() <= case.image_scale[0] / 2 + 1e-5
    )
    assert not case.image[:, ~brain[box]].any()
    assert (case.image.dtype, case.target.dtype, case.components.dtype) == (
        np.int16,
        np.uint8,
        np.int32,
    )
    assert case.n_lesions == (2,)
    assert case.notes == ()


def test_components_and_voxel_lists_agree_with_scipy(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    label = (rng.random(SHAPE) < 0.02).astype(np.uint8) + 2 * (rng.random(SHAPE) < 0.01).astype(
        np.uint8
    )
    settings = Preprocessing(("FLAIR",), classes={"any": [1, 2, 3], "two": [2], "none": [4]})
    case = preprocess(a_case(tmp_path, label=label), settings)
    masks = [label > 0, label == 2, label == 4]
    counts = [ndimage.label(mask, np.ones((3, 3, 3)))[1] for mask in masks]
    assert case.n_lesions == tuple(counts)
    assert counts[0] > 50
    assert len(case.lesion_offsets) == sum(counts) + 1
    assert np.array_equal(case.target, [mask[box_of(case)] for mask in masks])
    lesion = 0
    for k, count in enumerate(counts):
        for number in range(1, count + 1):
            first, end = case.lesion_offsets[lesion : lesion + 2]
            listed = case.lesion_voxels[first:end]
            assert np.array_equal(np.flatnonzero(case.components[k] == number), listed)
            lesion += 1
        assert np.array_equal(
            ndimage.label(case.target[k], np.ones((3, 3, 3)))[0] > 0, case.components[k] > 0
        )
    assert (case.lesion_voxels.dtype, case.lesion_offsets.dtype) == (np.int32, np.int64)


def box_arrays(
    case: PreparedCase, start: tuple[int, ...], size: tuple[int, ...]
) -> list[np.ndarray]:
    """Image, target and components of a box."""
    target = case.labels(start, size)
    components = case.labels(start, size, components=True)
    return [case.intensities(start, size), target, components]


def box_of(case: PreparedCase) -> tuple[slice, ...]:
    start, shape = case.geometry.crop_start, case.geometry.shape
    return tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))


def test_the_orientation_of_the_file_changes_nothing(tmp_path: Path) -> None:
    image, label = (
        nib.Nifti1Image(image_of(brain_of()), OBLIQUE),
        nib.Nifti1Image(label_of(), OBLIQUE),
    )
    cases = []
    for i, codes in enumerate(("RAS", "LPS", "SRA", "PIR")):
        turn = nib.orientations.axcodes2ornt(codes)
        paths = [tmp_path / f"{i}_{name}.nii" for name in ("image", "label")]
        for path, volume in zip(paths, (image, label), strict=True):
            nib.save(volume.as_reoriented(turn), path)
        cases.append(preprocess(Case(str(i), str(i), {"FLAIR": paths[0]}, (paths[1],)), FLAIR))
        back = to_input_grid(cases[-1].target[0].astype(np.float32), cases[-1].geometry)
        assert np.array_equal(back, nib.load(paths[1]).get_fdata())
    for case in cases[1:]:
        assert np.array_equal(case.image, cases[0].image)
        assert np.array_equal(case.components, cases[0].components)
        assert np.allclose(
            case.geometry.network_affine, cases[0].geometry.network_affine, atol=1e-5
        )
        assert case.spacing_mm == pytest.approx(cases[0].spacing_mm)


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (0.8, 0.8, 1.0), (1, 1, 3), (2, 1, 1)])
@pytest.mark.parametrize("codes", ["RAS", "PIL"])
def test_a_label_comes_back_through_resampling(
    tmp_path: Path, spacing: tuple[float, ...], codes: str
) -> None:
    shape = (48, 44, 20)
    label = np.zeros(shape, dtype=np.uint8)
    for centre in ((15, 15, 6), (30, 28, 12)):
        voxels = np.moveaxis(np.indices(shape), 0, -1) - centre
        label[np.linalg.norm(voxels @ OBLIQUE[:3, :3].T, axis=-1) < 9] = 1
    paths = [tmp_path / "image.nii", tmp_path / "label.nii"]
    for path, data in zip(paths, (image_of(np.ones(shape, dtype=bool)), label), strict=True):
        nib.save(
            nib.Nifti1Image(data, OBLIQUE).as_reoriented(nib.orientations.axcodes2ornt(codes)), path
        )
    case = preprocess(
        Case("a", "a", {"FLAIR": paths[0]}, (paths[1],)),
        Preprocessing(("FLAIR",), spacing_mm=spacing),
    )
    assert case.spacing_mm == pytest.approx(spacing, rel=0.011)
    assert case.n_lesions == (2,)
    stored = nib.load(paths[1]).get_fdata()
    back = to_input_grid(case.target[0].astype(np.float32), case.geometry)
    assert back.shape == stored.shape
    assert 2 * ((back > 0.5) & (stored > 0)).sum() / ((back > 0.5).sum() + stored.sum()) > 0.9


@pytest.mark.parametrize("spacing", [(3, 3, 3), (1.6, 1.6, 1.6), (0.6, 0.6, 0.6), (0.5, 0.5, 3)])
def test_no_lesion_is_lost_to_another_spacing(tmp_path: Path, spacing: tuple[float, ...]) -> None:
    label = np.zeros((40, 40, 40), dtype=np.uint8)
    label[4:36:8, 4:36:8, 4:36:8] = 1  # 64 lesions of one voxel
    label[18:22, 18:22, 18:22] = 1
    case = preprocess(
        a_case(tmp_path, {"FLAIR": image_of(label < 2)}, label=label),
        Preprocessing(("FLAIR",), spacing_mm=spacing),
    )
    assert case.n_lesions == (ndimage.label(label, np.ones((3, 3, 3)))[1],)
    kept = np.bincount(case.components.ravel())[1:] * np.prod(spacing)
    assert kept.max() == pytest.approx(64, rel=0.25)
    assert abs(np.median(kept) - 1) <= max(np.prod(spacing) / 2, np.prod(spacing) - 1)


def test_spacing_within_one_percent_is_left_alone(tmp_path: Path) -> None:
    case = a_case(tmp_path, affine=np.diag([1.005, 0.995, 1, 1]))
    asked = preprocess(case, Preprocessing(("FLAIR",), spacing_mm=(1, 1, 1)))
    assert np.array_equal(asked.image, preprocess(case, FLAIR).image)


def test_modalities_on_other_grids_are_brought_to_the_first(tmp_path: Path) -> None:
    def place(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
        voxels = np.moveaxis(np.indices(shape), 0, -1)
        return ((voxels @ affine[:3, :3].T + affine[:3, 3]) @ [1, 2, 3]).astype(np.float32)

    thick = np.array([[0, 0, -3, 40], [1.5, 0, 0, -10], [0, 1.5, 0, -10], [0, 0, 0, 1]])
    thick[:3, 3] += (OBLIQUE @ [25, 25, 25, 1] - thick @ [15, 15, 10, 1])[:3]
    flair = save(tmp_path / "flair.nii", place((30, 30, 20), thick), thick)
    t1 = save(tmp_path / "t1.nii", place((50, 50, 50), OBLIQUE), OBLIQUE)
    settings = Preprocessing(("T1", "FLAIR"), normalization="none")
    case = preprocess(Case("a", "a", {"T1": t1, "FLAIR": flair}), settings)
    (note,) = case.notes
    assert (note.kind, note.volume) == (OTHER_GRID, "FLAIR")
    values, seen = values_of(case), ndimage.binary_erosion(case.image[1] != 0, iterations=3)
    assert case.geometry.input_shape == (50, 50, 50)
    assert seen.sum() > 1000
    assert np.allclose(values[0][seen], values[1][seen], atol=2 * case.image_scale.max())
    assert to_input_grid(values[1], case.geometry).shape == (50, 50, 50)


def test_a_label_of_other_axes_on_the_same_voxels_is_named_so(tmp_path: Path) -> None:
    image = save(tmp_path / "f.nii", image_of(brain_of()), OBLIQUE)
    flips = np.array([[0, -1], [1, -1], [2, 1]])
    label = nib.Nifti1Image(label_of(), OBLIQUE).as_reoriented(flips)
    nib.save(label, tmp_path / "label.nii")
    case = Case("a", "a", {"FLAIR": image}, (tmp_path / "label.nii",))
    line = r"label\.nii: covers the voxels of FLAIR, .*\(LPS beside RAS\); store both in one"
    with pytest.raises(DataError, match=line):
        preprocess(case, FLAIR)


def test_images_that_do_not_overlap_are_refused(tmp_path: Path) -> None:
    away = np.eye(4)
    away[:3, 3] = 500
    images = {
        "FLAIR": save(tmp_path / "f.nii", image_of(brain_of())),
        "T1": save(tmp_path / "t.nii", image_of(brain_of()), away),
    }
    with pytest.raises(
        DataError,
        match=r"t\.nii.*T1.*FLAIR",
    ):
        preprocess(Case("a", "a", images), Preprocessing(("FLAIR", "T1")))


@pytest.mark.parametrize("kind", ["label", "brain mask"])
@pytest.mark.parametrize(
    ("shift", "noted"), [(0.005, []), (0.5, [HALF_VOXEL]), (0.7, None)], ids=str
)
def test_rounding_is_fine_half_a_voxel_noted_and_more_an_error(
    tmp_path: Path, shift: float, noted: list[str] | None, kind: str
) -> None:
    moved = OBLIQUE.copy()
    moved[:3, 3] += shift * OBLIQUE[:3, 1]
    image = save(tmp_path / "image.nii", image_of(brain_of()), OBLIQUE)
    mask = save(tmp_path / "mask.nii", label_of(), moved)
    case = Case("a", "a", {"FLAIR": image})
    if kind == "label":
        case = replace(case, labels=(mask,))
    else:
        case = replace(case, brain_mask=mask)
    if noted is None:
        with pytest.raises(DataError, match=rf"mask\.nii.*0\.7 voxels.*FLAIR.*{kind}"):
            preprocess(case, FLAIR)
        return
    prepared = preprocess(case, FLAIR)
    assert [note.kind for note in prepared.notes if note.volume == kind] == noted
    mask_of_case = prepared.target[0] if kind == "label" else prepared.foreground
    assert np.array_equal(mask_of_case, label_of()[box_of(prepared)])


def test_a_flipped_label_is_an_error(tmp_path: Path) -> None:
    flipped = np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = SHAPE[0] - 1
    case = a_case(tmp_path)
    label = save(tmp_path / "label.nii", label_of(), flipped)
    with pytest.raises(DataError, match=r"label\.nii: covers the voxels of FLAIR.*LAS beside RAS"):
        preprocess(Case("a", "a", case.images, (label,)), FLAIR)


@pytest.mark.parametrize("background", [0, -1, -1024, 5])
def test_the_background_may_be_any_constant(tmp_path: Path, background: float) -> None:
    brain = brain_of()
    case = preprocess(a_case(tmp_path, {"FLAIR": image_of(brain, background=background)}), FLAIR)
    assert np.array_equal(case.foreground, brain[box_of(case)])
    assert np.allclose(values_of(case)[0][case.foreground].mean(), 0, atol=1e-4)


def test_without_a_constant_around_it_everything_is_foreground(tmp_path: Path) -> None:
    case = preprocess(a_case(tmp_path, {"FLAIR": image_of(np.ones(SHAPE, dtype=bool))}), FLAIR)
    assert case.geometry.shape == SHAPE
    assert case.foreground.all()


def test_zeros_and_negative_values_inside_the_brain_are_brain(tmp_path: Path) -> None:
    brain = brain_of()
    image = image_of(brain)
    image[12, 14, 10], image[12, 14, 11] = -40, 0
    settings = Preprocessing(("FLAIR", "T1"))
    case = preprocess(a_case(tmp_path, {"FLAIR": image, "T1": image_of(brain, seed=1)}), settings)
    assert np.array_equal(case.foreground, brain[box_of(case)])
    place = tuple(np.array([12, 14, 11]) - case.geometry.crop_start)
    assert values_of(case)[(0, *place)] == pytest.approx(-100 / 15, rel=0.05)


def test_a_brain_mask_decides_and_lesions_outside_it_are_kept(tmp_path: Path) -> None:
    brain, label = brain_of(), label_of()
    label[1, 1, 1] = 1
    image = image_of(np.ones(SHAPE, dtype=bool))
    case = preprocess(
        a_case(tmp_path, {"FLAIR": image}, label=label, brain=brain.astype(np.float32)), FLAIR
    )
    full = np.zeros(SHAPE, dtype=bool)
    full[box_of(case)] = case.foreground
    assert np.array_equal(full, brain)
    assert case.target.sum() == label.sum()
    assert case.n_lesions == (3,)
    assert not case.image[:, ~case.foreground].any()
    assert values_of(case)[0][case.foreground].std() == pytest.approx(1, abs=1e-3)
    (note,) = case.notes
    assert (note.kind, note.volume) == (OUTSIDE_BRAIN, "label")


def test_robust_normalisation_is_moved_less_by_lesions(tmp_path: Path) -> None:
    brain = brain_of()
    clean = image_of(brain)
    sick = np.where(brain & (distance(SHAPE, (12, 14, 10)) < 5), 400, clean).astype(np.float32)
    moved = {}
    for name in ("zscore", "robust"):
        settings = Preprocessing(("FLAIR",), normalization=name)
        cases = [
            preprocess(a_case(tmp_path, {"FLAIR": image}, case_id=i), settings)
            for i, image in (("c", clean), ("s", sick))
        ]
        healthy = cases[0].image[0] != 0
        healthy &= distance(SHAPE, (12, 14, 10))[box_of(cases[0])] >= 5
        moved[name] = np.abs(values_of(cases[0])[0] - values_of(cases[1])[0])[healthy].mean()
    assert moved["robust"] < 0.5 * moved["zscore"]
    inside = values_of(cases[0])[0][cases[0].foreground]
    low, middle, high = np.percentile(inside, (25, 50, 75))
    assert middle == pytest.approx(0, abs=1e-3)
    assert high - low == pytest.approx(1.349, abs=1e-3)


def test_without_normalisation_the_files_values_stay(tmp_path: Path) -> None:
    image = image_of(brain_of())
    case = preprocess(
        a_case(tmp_path, {"FLAIR": image}), Preprocessing(("FLAIR",), normalization="none")
    )
    assert np.abs(values_of(case)[0] - image[box_of(case)]).max() <= case.image_scale[0] / 2 + 1e-5


def test_a_hot_voxel_does_not_coarsen_the_rest(tmp_path: Path) -> None:
    image = image_of(brain_of())
    image[12, 14, 10] = 1e6
    case = preprocess(
        a_case(tmp_path, {"FLAIR": image}), Preprocessing(("FLAIR",), normalization="robust")
    )
    assert case.image_scale[0] < 0.001
    assert values_of(case).max() == pytest.approx(20)


def test_a_case_without_label_can_be_prepared(tmp_path: Path) -> None:
    case = preprocess(a_case(tmp_path), FLAIR)
    assert (case.target, case.components, case.n_lesions) == (None, None, ())
    assert (len(case.lesion_voxels), case.lesion_offsets.tolist()) == (0, [0])
    with pytest.raises(ValueError, match="a has no label"):
        case.labels((0, 0, 0), (4, 4, 4))


def test_an_empty_label_is_a_case_without_lesions(tmp_path: Path) -> None:
    empty = preprocess(a_case(tmp_path, label=np.zeros(SHAPE, dtype=np.uint8)), FLAIR)
    full = preprocess(a_case(tmp_path, label=label_of()), FLAIR)
    assert (empty.n_lesions, empty.lesion_offsets.tolist(), empty.target.max()) == ((0,), [0], 0)
    require_lesions([empty, full])
    with pytest.raises(DataError, match=r"training set.*2 cases"):
        require_lesions([empty, empty])


@pytest.mark.parametrize("stored", [np.uint8, np.int16, np.float32, np.float64])
def test_any_number_type_gives_the_same_target(tmp_path: Path, stored: type) -> None:
    case = preprocess(a_case(tmp_path, label=label_of().astype(stored)), FLAIR)
    assert case.target.sum() == label_of().sum()


def test_patches_are_boxes_padded_with_zero(tmp_path: Path) -> None:
    case = prepare(a_case(tmp_path, label=label_of()), FLAIR, cache_dir=tmp_path / "cache")
    arrays = [values_of(case), case.target, case.components]
    padded = [np.pad(array, ((0, 0), *[(40, 40)] * 3)) for array in arrays]
    for start, size in itertools.product(
        [(0, 0, 0), (3, 2, 1), (-5, 2, -30), (10, 12, 8), (39, 0, 0)], [(4, 5, 6), (32, 32, 32)]
    ):
        box = tuple(slice(40 + first, 40 + first + n) for first, n in zip(start, size, strict=True))
        for found, whole in zip(box_arrays(case, start, size), padded, strict=True):
            expected = np.zeros((1, *size))
            expected[tuple(map(slice, whole[(slice(None), *box)].shape))] = whole[
                (slice(None), *box)
            ]
            assert np.array_equal(found, expected)
    assert [array.dtype for array in box_arrays(case, (0, 0, 0), (2, 2, 2))] == [
        np.float32,
        np.uint8,
        np.int32,
    ]


@pytest.mark.parametrize(
    ("change", "file", "value"),
    [
        ({"label": np.ones((5, 5, 5), np.uint8)}, "a_label", r"\(5, 5, 5\)"),
        ({"brain": np.ones((5, 5, 5), np.uint8)}, "a_brain", r"\(5, 5, 5\)"),
        ({"label": 2 * label_of()}, "a_label", r" 2 .*{lesion: \[1\]}"),
        ({"label": label_of() * 0.5}, "a_label", "252 voxels"),
        ({"images": {"FLAIR": np.zeros(SHAPE, np.float32)}}, "a_FLAIR", " 0;"),
        ({"images": {"FLAIR": np.full(SHAPE, np.nan, np.float32)}}, "a_FLAIR", "13440 .*NaN"),
        ({"images": {"FLAIR": brain_of().astype(np.float32)}}, "a_FLAIR", " 1 .*contrast"),
        ({"brain": np.zeros(SHAPE, np.uint8)}, "a_brain", "0.5"),
        ({"images": {"T1": image_of(brain_of())}}, "a", "FLAIR"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(
    tmp_path: Path, change: dict, file: str, value: str
) -> None:
    with pytest.raises(DataError, match=value) as error:
        preprocess(a_case(tmp_path, **change), FLAIR)
    assert Path(error.value.where).name.removesuffix(".nii.gz") == file
    assert "\n" not in str(error.value)


def test_settings_survive_a_checkpoint() -> None:
    settings = Preprocessing(
        ("FLAIR", "T1"), {"liver": (1, 2), "tumour": (2,)}, (1, 1, 3), "robust"
    )
    plain = json.loads(json.dumps(settings.as_dict()))
    assert Preprocessing.from_dict(plain) == settings
    for wrong in ({"modalities": ()}, {"modalities": ("T1",), "normalization": "max"}):
        with pytest.raises(DataError, match="expected"):
            Preprocessing(**wrong)


def test_a_spacing_that_makes_too_many_voxels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.spacing_mm.*0\.01"):
        preprocess(a_case(tmp_path), Preprocessing(("FLAIR",), spacing_mm=(0.01, 0.01, 0.01)))


def test_a_cached_case_is_the_case_and_is_prepared_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = a_case(tmp_path, label=label_of())
    cached, direct = prepare(case, FLAIR, cache_dir=tmp_path / "cache"), preprocess(case, FLAIR)
    for name, array in direct.arrays.items():
        found = getattr(cached, name)
        assert isinstance(found, np.memmap)
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)
    assert cached.geometry.as_dict() == direct.geometry.as_dict()
    assert np.array_equal(cached.image_scale, direct.image_scale)
    assert np.array_equal(cached.foreground, direct.foreground)
    monkeypatch.setattr(case_cache, "preprocess_quietly", None)
    again = prepare(case, FLAIR, cache_dir=tmp_path / "cache")
    assert np.array_equal(again.image, cached.image)
    assert len(pickle.dumps(again)) < 3000
    assert np.array_equal(pickle.loads(pickle.dumps(again)).target, cached.target)


def test_changed_files_and_settings_make_other_entries(tmp_path: Path) -> None:
    case, cache_dir = a_case(tmp_path, label=label_of()), tmp_path / "cache"
    first = prepare(case, FLAIR, cache_dir=cache_dir)
    assert (
        prepare(case, Preprocessing(("FLAIR",), normalization="robust"), cache_dir=cache_dir).folder
        != first.folder
    )
    save(case.labels[0], 0 * label_of())
    changed = prepare(case, FLAIR, cache_dir=cache_dir)
    assert changed.n_lesions == (0,)
    assert changed.folder != first.folder
    assert len(list(cache_dir.iterdir())) == 3


@pytest.mark.parametrize("name", ["image.npy", "target.npy", "lesion_voxels.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["cut", "emptied", "removed", "overwritten"])
def test_a_damaged_entry_is_built_anew(tmp_path: Path, name: str, damage: str) -> None:
    case = a_case(tmp_path, label=label_of())
    entry = prepare(case, FLAIR, cache_dir=tmp_path / "cache").folder
    expected = preprocess(case, FLAIR)
    content = (entry / name).read_bytes()
    time.sleep(0.01)
    damaged = {
        "cut": content[:-1],
        "emptied": b"",
        "overwritten": content.replace(b"0", b"1") + b"",
        "removed": None,
    }[damage]
    if damaged is None:
        (entry / name).unlink()
    else:
        (entry / name).write_bytes(damaged)
    again = prepare(case, FLAIR, cache_dir=tmp_path / "cache")
    assert again.folder == entry
    for array in expected.arrays:
        assert np.array_equal(getattr(again, array), expected.arrays[array])
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [entry.name]


@pytest.mark.parametrize("damage", ["deleted", "cut", "emptied"])
@pytest.mark.parametrize("is_opened", [True, False])
def test_an_entry_that_is_lost_during_a_run_is_made_again(
    tmp_path: Path, damage: str, is_opened: bool
) -> None:
    case = a_case(tmp_path, label=label_of())
    cached = prepare(case, FLAIR, cache_dir=tmp_path / "cache")
    expected = preprocess(case, FLAIR)
    if is_opened:
        assert np.array_equal(cached.image, expected.image)
    if damage == "deleted":
        shutil.rmtree(tmp_path / "cache")
    else:
        for file in cached.folder.glob("*.npy"):
            os.truncate(file, 10 if damage == "cut" else 0)
    elsewhere = pickle.loads(pickle.dumps(cached))
    for name in expected.arrays:
        assert np.array_equal(getattr(elsewhere, name), expected.arrays[name])
        assert np.array_equal(getattr(cached, name), expected.arrays[name])
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [cached.folder.name]


def test_an_entry_whose_files_changed_is_not_made_again(tmp_path: Path) -> None:
    case = a_case(tmp_path, label=label_of())
    cached = prepare(case, FLAIR, cache_dir=tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    save(case.labels[0], 0 * label_of())
    with pytest.raises(DataError, match=r"a-.*changed") as error:
        _ = cached.image
    assert error.value.case_id == "a"


def test_what_a_killed_run_left_is_no_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = a_case(tmp_path, label=label_of())

    def killed(path: Path, array: np.ndarray) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(case, FLAIR, cache_dir=tmp_path / "cache")
    assert prepare(case, FLAIR, cache_dir=tmp_path / "cache").target.sum() == label_of().sum()


def test_two_processes_share_a_cache(tmp_path: Path) -> None:
    case = a_case(tmp_path, label=label_of())
    with multiprocessing.get_context("fork").Pool(3) as pool:
        results = [
            pool.apply_async(prepare, (case, FLAIR), {"cache_dir": tmp_path / "cache"})
            for _ in range(6)
        ]
        folders = {result.get().folder for result in results}
    assert list((tmp_path / "cache").iterdir()) == list(folders)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(DataError, match=r"cache.*cache_dir"):
        prepare(a_case(tmp_path), FLAIR, cache_dir=tmp_path / "cache")


def test_an_unsafe_case_id_never_becomes_a_path(tmp_path: Path) -> None:
    case = a_case(tmp_path)
    with pytest.raises(DataError, match=r"case_id.*'\.\./a'"):
        prepare(Case("../a", "a", case.images), FLAIR, cache_dir=tmp_path / "cache")


def test_workers_prepare_what_one_process_does(tmp_path: Path) -> None:
    cases = [a_case(tmp_path, label=label_of(), case_id=f"c{i}") for i in range(3)]
    there = prepare_all(cases, FLAIR, cache_dir=tmp_path / "there", n_workers=2)
    here = prepare_all(cases, FLAIR, cache_dir=tmp_path / "here", n_workers=1)
    assert [case.case_id for case in there] == ["c0", "c1", "c2"]
    for a, b in zip(there, here, strict=True):
        files = sorted(path.name for path in a.folder.glob("*.npy"))
        assert len(files) == 6
        assert all(
            (a.folder / name).read_bytes() == (b.folder / name).read_bytes() for name in files
        )


class Deadly:
    """Ends the process that unpickles it, as the kernel ends one that takes too much memory."""

    def __reduce__(self) -> tuple:
        return os._exit, (9,)


def test_a_worker_that_dies_is_one_clear_line(tmp_path: Path) -> None:
    cases = [a_case(tmp_path, case_id=f"c{i}") for i in range(2)]
    cases[1].images["other"] = Deadly()
    with pytest.raises(DataError, match=r"preprocessing.*n_workers=1"):
        prepare_all(cases, FLAIR, cache_dir=tmp_path / "cache", n_workers=2)


def test_faults_of_all_cases_are_gathered_and_the_others_cached(tmp_path: Path) -> None:
    cases = [a_case(tmp_path, label=label_of() * (i + 1), case_id=f"c{i}") for i in range(3)]
    cases.append(Case("c3", "c3", {"FLAIR": tmp_path / "none.nii"}))
    with pytest.raises(DataError, match=r"c1_label.*2 more") as error:
        prepare_all(cases, FLAIR, cache_dir=tmp_path / "cache", n_workers=1)
    names = [Path(fault.where).name for fault in error.value.faults]
    assert names == ["c1_label.nii.gz", "c2_label.nii.gz", "none.nii"]
    assert [path.name[:2] for path in (tmp_path / "cache").iterdir()] == ["c0"]


def test_oddities_are_said_once_for_the_cohort(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outside = label_of()
    outside[0, 0, 0] = 1
    cases = [
        a_case(tmp_path, label=outside if i else label_of(), case_id=f"c{i}") for i in range(3)
    ]
    with caplog.at_level(logging.WARNING, logger="tversky_seg"):
        prepare_all(cases, FLAIR, cache_dir=tmp_path / "cache", n_workers=1)
    (message,) = [record.message for record in caplog.records]
    assert "outside the brain" in message
    assert "2 of 3" in message
    assert "c1, c2" in message


def test_a_warm_cache_is_only_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = a_case(tmp_path, label=label_of())
    cases = [Case(f"c{i}", "a", case.images, case.labels) for i in range(16)]
    prepare_all(cases, FLAIR, cache_dir=tmp_path / "cache", n_workers=1)
    monkeypatch.setattr(case_cache, "preprocess_quietly", None)
    start = time.process_time()
    assert len(prepare_all(cases, FLAIR, cache_dir=tmp_path / "cache")) == 16
    assert time.process_time() - start < 0.3


def test_many_cases_need_few_open_files(tmp_path: Path) -> None:
    case = a_case(tmp_path, label=label_of())
    cases = [Case(f"c{i}", "a", case.images, case.labels) for i in range(80)]
    prepared = prepare_all(cases, FLAIR, cache_dir=tmp_path / "cache", n_workers=1)
    for each in prepared:
        box_arrays(each, (0, 0, 0), (4, 4, 4))
        assert len(each.lesion_voxels)
    descriptors = Path("/proc/self/fd")
    if descriptors.is_dir():
        assert sum("/cache/" in str(link.resolve()) for link in descriptors.iterdir()) <= 96


def test_the_common_spacing_is_that_of_most_cases_along_ras(tmp_path: Path) -> None:
    affines = [
        np.diag([1.0, 1, 3, 1]),
        np.array([[0, 0, -1.001, 0], [1, 0, 0, 0], [0, -3, 0, 0], [0, 0, 0, 1.0]]),
        np.eye(4),
    ]
    cases = [a_case(tmp_path, affine=affine, case_id=f"c{i}") for i, affine in enumerate(affines)]
    assert common_spacing(cases[::-1]) == pytest.approx((1, 1, 3), abs=0.002)
    assert common_spacing(cases[2:]) == (1, 1, 1)
    with pytest.raises(DataError, match=r"none\.nii"):
        common_spacing([*cases, Case("x", "x", {"FLAIR": tmp_path / "none.nii"})])


def real_case(real_data: Path, patient: str) -> Case:
    folder = real_data / "open_ms_data" / "cross_sectional" / "MNI" / patient
    images = {name: next(folder.glob(f"{name}_*")) for name in ("FLAIR", "T1", "T2")}
    return Case(patient, patient, images, (next(folder.glob("GOLD_STANDARD*")),))


@pytest.mark.parametrize(
    ("patient", "n_lesions", "n_voxels"), [("patient07", 37, 1300), ("patient19", 98, 49769)]
)
def test_real_patients_keep_every_lesion_and_come_back(
    real_data: Path, patient: str, n_lesions: int, n_voxels: int
) -> None:
    case = real_case(real_data, patient)
    prepared = preprocess(case, Preprocessing(("FLAIR", "T1", "T2")))
    assert prepared.n_lesions == (n_lesions,)
    assert len(prepared.lesion_voxels) == n_voxels
    assert np.allclose(values_of(prepared)[:, prepared.foreground].std(axis=1), 1, atol=0.01)
    back = to_input_grid(prepared.target[0].astype(np.float32), prepared.geometry)
    assert np.array_equal(back, nib.load(case.label).get_fdata())


def test_a_real_patient_at_two_millimetres_keeps_every_lesion(real_data: Path) -> None:
    case = real_case(real_data, "patient07")
    one = Case("a", "a", {"FLAIR": case.images["FLAIR"]}, case.labels)
    prepared = preprocess(one, Preprocessing(("FLAIR",), spacing_mm=(2, 2, 2)))
    label = nib.load(case.label).get_fdata() > 0
    found = to_input_grid(prepared.target[0].astype(np.float32), prepared.geometry) > 0.1
    lesions, count = ndimage.label(label, np.ones((3, 3, 3)))
    assert np.unique(lesions[found & label]).tolist() == list(range(1, count + 1))
    assert 8 * int(prepared.target.sum()) == pytest.approx(1300, rel=0.1)


def test_two_organs_without_background_are_two_classes(real_data: Path) -> None:
    folder = real_data / "Task04_Hippocampus"
    settings = Preprocessing(("MRI",), classes={"anterior": (1,), "posterior": (2,)})
    for image in sorted((folder / "imagesTr").glob("*.nii.gz"))[:6]:
        prepared = preprocess(
            Case("a", "a", {"MRI": image}, (folder / "labelsTr" / image.name,)), settings
        )
        assert prepared.target.sum(axis=(1, 2, 3)).min() > 100
        assert prepared.geometry.shape == prepared.geometry.input_shape
        assert np.abs(values_of(prepared)).max() <= 20.001


def test_percentiles_and_window_map_to_zero_and_one(tmp_path: Path) -> None:
    brain = brain_of()
    case = a_case(tmp_path, {"FLAIR": image_of(brain)})
    inside = image_of(brain)[brain]
    low, high = np.percentile(inside, (1, 90))
    for normalization, limits in (("percentile", (1, 90)), ("window", (float(low), float(high)))):
        prepared = preprocess(
            case, Preprocessing(("FLAIR",), normalization=normalization, limits=limits)
        )
        values = values_of(prepared)[0]
        expected = np.clip((inside - low) / (high - low), 0, 1)
        assert np.sort(values[prepared.foreground]) == pytest.approx(np.sort(expected), abs=2e-5)
        assert (values[~prepared.foreground] == 0).all()
    assert Preprocessing(("CT",), normalization="window").limits == (-300, 300)


def test_the_range_of_each_crop_becomes_zero_to_one(tmp_path: Path) -> None:
    # The limits leave the lesion's box alone, so that the range is that of the crop.
    brain = brain_of()
    image = image_of(brain)
    image[0, 0, 1:3] = (-900, 2000)
    label = label_of()
    case = a_case(tmp_path, {"FLAIR": image}, label=label)
    settings = Preprocessing(
        ("FLAIR",), normalization="window_minmax", limits=(0, 500), crop_values=(1,), crop_margin=0
    )
    prepared = preprocess(case, settings)
    box = tuple(slice(side.min(), side.max() + 1) for side in np.nonzero(label))
    cut = np.clip(image[box][brain[box]], 0, 500)
    expected = (cut - cut.min()) / (cut.max() - cut.min())
    values = values_of(prepared)[0]
    assert (values.min(), values.max()) == (0, pytest.approx(1))
    assert np.sort(values[prepared.foreground]) == pytest.approx(np.sort(expected), abs=2e-4)
    # Without a label the whole scan has its own range: the limits.
    whole = preprocess(replace(case, labels=()), settings)
    expected = np.clip(image[image != 0] / 500, 0, 1)
    found = values_of(whole)[0][whole.foreground]
    assert np.sort(found) == pytest.approx(np.sort(expected), abs=2e-4)


def test_a_crop_of_one_value_becomes_zero(tmp_path: Path) -> None:
    case = a_case(tmp_path, {"FLAIR": image_of(brain_of())}, label=label_of())
    settings = Preprocessing(("FLAIR",), normalization="window_minmax", limits=(500, 600))
    assert not values_of(preprocess(case, settings)).any()


@pytest.mark.parametrize(
    ("settings", "key", "value"),
    [
        ({"normalization": "window", "limits": (300, -300)}, "limits", r"\[300, -300\]"),
        ({"normalization": "percentile", "limits": (0, 101)}, "limits", r"\[0, 101\].*per cent"),
        ({"limits": (0, 1)}, "limits", "null.*zscore"),
        ({"rater": "median"}, "rater", "'median'.*consensus"),
        ({"rater": 0}, "rater", "0"),
        ({"crop_values": (0,)}, "crop_values", r"\[0\]"),
        ({"crop_margin": -1}, "crop_margin", "-1"),
    ],
)
def test_settings_of_preprocessing_are_refused_with_the_value(
    settings: dict, key: str, value: str
) -> None:
    with pytest.raises(DataError, match=rf"data\.{key}.*{value}"):
        Preprocessing(("FLAIR",), **settings)


@pytest.mark.parametrize("codes", ["RAS", "PIL"])
def test_an_axis_may_keep_its_voxels(tmp_path: Path, codes: str) -> None:
    affine = np.diag([0.5, 0.5, 3, 1])
    turned = nib.as_closest_canonical(nib.Nifti1Image(image_of(brain_of()), affine)).as_reoriented(
        nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(codes))
        )
    )
    nib.save(turned, tmp_path / "a.nii.gz")
    case = Case("a", "a", {"FLAIR": tmp_path / "a.nii.gz"})
    assert preprocess(
        case, Preprocessing(("FLAIR",), spacing_mm=(1, 1, None))
    ).spacing_mm == pytest.approx((1, 1, 3))
    assert preprocess(case, Preprocessing(("FLAIR",))).spacing_mm == pytest.approx((0.5, 0.5, 3))


def test_the_voxel_size_may_be_left_to_the_cases(tmp_path: Path) -> None:
    sizes = [(1, 1, 1), (1, 1, 1), (1, 1, 3), (2, 1, 4), (2, 2, 5)]
    cases = [
        a_case(tmp_path, affine=np.diag([*size, 1.0]), case_id=f"c{i}")
        for i, size in enumerate(sizes)
    ]
    given = {
        None: (1, 1, 1),
        "median": (1, 1, 3),
        "native": None,
        2.0: (2, 2, 2),
        (1, 1, None): (1, 1, None),
    }
    for asked, spacing_mm in given.items():
        dataset = Dataset(modalities=("FLAIR",), manifest=tmp_path, spacing_mm=asked)
        assert preprocessing_of(dataset, cases).spacing_mm == spacing_mm
    with pytest.raises(DataError, match=r"data\.spacing_mm: mean"):
        Dataset(modalities=("FLAIR",), manifest=tmp_path, spacing_mm="mean")


@pytest.mark.parametrize("asked", [None, "median"])
def test_all_folds_have_one_voxel_size(tmp_path: Path, asked: str | None) -> None:
    sizes, lesion = [(1, 1, 1)] * 3 + [(2, 2, 2)] * 3, brain_of().astype(np.uint8)
    cases = [
        a_case(tmp_path, label=lesion, affine=np.diag([*size, 1.0]), case_id=f"c{i}")
        for i, size in enumerate(sizes)
    ]
    dataset = Dataset(modalities=("FLAIR",), manifest=tmp_path, spacing_mm=asked)
    found = set()
    for fold in range(6):
        split = split_cases(
            [replace(case, subject_id=case.case_id) for case in cases], folds="loso", fold=fold
        )
        found.add(preprocessing_of(dataset, [*split.train, *split.val, *split.test]).spacing_mm)
    assert len(found) == 1


def rated(folder: Path, *, consensus: bool) -> tuple[Case, list[np.ndarray]]:
    """A case with three raters, who drew balls of other sizes and places."""
    centres = [(12, 14, 10), (13, 14, 10), (12, 17, 10)]
    masks = [(distance(SHAPE, centre) < 3 + i).astype(np.uint8) for i, centre in enumerate(centres)]
    drawn = ([np.logical_and.reduce(masks).astype(np.uint8)] if consensus else []) + masks
    files = tuple(save(folder / f"r{i}.nii.gz", mask) for i, mask in enumerate(drawn))
    return replace(a_case(folder), labels=files, consensus=consensus), masks


@pytest.mark.parametrize("consensus", [True, False])
def test_a_rater_is_chosen_by_number_or_by_majority(tmp_path: Path, consensus: bool) -> None:
    case, masks = rated(tmp_path, consensus=consensus)
    n_voxels = {
        rater: len(preprocess(case, Preprocessing(("FLAIR",), rater=rater)).lesion_voxels)
        for rater in (1, 2, 3, "majority", None)
    }
    assert [n_voxels[rater] for rater in (1, 2, 3)] == [mask.sum() for mask in masks]
    assert n_voxels["majority"] == (np.sum(masks, axis=0) >= 2).sum()
    assert n_voxels[None] == (np.logical_and.reduce(masks).sum() if consensus else masks[0].sum())
    with pytest.raises(DataError, match=r"data\.rater: 4.*case a.*3"):
        preprocess(case, Preprocessing(("FLAIR",), rater=4))
    if not consensus:
        with pytest.raises(DataError, match=r"data\.rater: consensus.*case a"):
            preprocess(case, Preprocessing(("FLAIR",), rater="consensus"))


def test_two_raters_agree_where_both_drew(tmp_path: Path) -> None:
    case, masks = rated(tmp_path, consensus=False)
    prepared = preprocess(
        replace(case, labels=case.labels[:2]), Preprocessing(("FLAIR",), rater="majority")
    )
    assert len(prepared.lesion_voxels) == (masks[0] & masks[1]).sum()


@pytest.mark.parametrize("cached", [True, False])
def test_a_random_rater_is_drawn_for_each_patch(tmp_path: Path, cached: bool) -> None:
    from tversky_seg.data.patches.batches import (
        PatchBatches,  # here: the processes that other tests start need no torch
    )
    from tversky_seg.data.patches.samplers import LesionSampler

    case, masks = rated(tmp_path, consensus=True)
    settings = Preprocessing(("FLAIR",), rater="random")
    prepared = (
        prepare(case, settings, cache_dir=tmp_path / "cache")
        if cached
        else preprocess(case, settings)
    )
    assert len(prepared.lesion_voxels) == np.logical_and.reduce(masks).sum(), (
        "the consensus, to validate by"
    )
    views = pickle.loads(pickle.dumps(one_case_per_rater([prepared])))
    assert [len(view.lesion_voxels) for view in views] == [mask.sum() for mask in masks]
    for view in views:
        alone = preprocess(replace(case, labels=(case.raters[view.rater - 1],)), FLAIR)
        assert view.n_lesions == alone.n_lesions
        assert view.target is not None
        assert alone.target is not None
        assert view.target.sum() == alone.target.sum()
        assert view.image is prepared.image or np.array_equal(view.image, prepared.image)
    batches = PatchBatches(views, LesionSampler(patch_size=8), batch_size=4, seed=1)
    again = PatchBatches(
        one_case_per_rater([prepared]), LesionSampler(patch_size=8), batch_size=4, seed=1
    )
    assert all(np.array_equal(batches[k].target, again[k].target) for k in range(3))
    assert one_case_per_rater([preprocess(case, FLAIR)])[0].rater == 0


def test_a_case_without_label_needs_no_rater(tmp_path: Path) -> None:
    for rater in ("consensus", "majority", "random", 3):
        assert preprocess(a_case(tmp_path), Preprocessing(("FLAIR",), rater=rater)).n_lesions == ()


def _prepare_together(folder: str, barrier: "multiprocessing.synchronize.Barrier", n: int) -> None:
    cases = []
    for name in [f"c{i}" for i in range(n)]:
        images = {"FLAIR": Path(folder) / f"{name}_FLAIR.nii.gz"}
        cases.append(Case(name, name, images, (Path(folder) / f"{name}_label.nii.gz",)))
    barrier.wait(60)
    prepared = prepare_all(cases, FLAIR, cache_dir=Path(folder) / "cache", n_workers=1)
    assert [case.n_lesions for case in prepared] == [(2,)] * n
    assert all(case.intensities((0, 0, 0), (4, 4, 4)).shape == (1, 4, 4, 4) for case in prepared)


def test_two_trainings_started_at_once_share_an_empty_cache(tmp_path: Path) -> None:
    for i in range(3):
        a_case(tmp_path, label=label_of(), case_id=f"c{i}")
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    processes = [
        context.Process(target=_prepare_together, args=(str(tmp_path), barrier, 3))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    entries = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert [name[:2] for name in entries] == ["c0", "c1", "c2"], "no partial entry is left"


def test_the_cache_holds_the_types_that_patches_are_read_from(tmp_path: Path) -> None:
    prepared = prepare(a_case(tmp_path, label=label_of()), FLAIR, cache_dir=tmp_path / "cache")
    types = {
        "image": "int16",
        "target": "uint8",
        "components": "int32",
        "lesion_voxels": "int32",
        "lesion_offsets": "int64",
        "foreground_voxels": "int32",
    }
    for name, dtype in types.items():
        array = getattr(prepared, name)
        assert isinstance(array, np.memmap)
        assert str(array.dtype) == dtype, name
