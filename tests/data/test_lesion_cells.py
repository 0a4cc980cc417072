"""Cells of lesions: nearest lesion, cache, and the way of cells through the augmentation."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.batches import a_case, as_bytes, some_batches
from tversky_seg.data.patches.augmentation import Augmentation
from tversky_seg.data.patches.batch import stack_samples
from tversky_seg.data.patches.loader import load_batches
from tversky_seg.data.patches.surrounds import cells_of, with_surrounds
from tversky_seg.data.preprocessing import lesion_cells
from tversky_seg.data.preprocessing.lesion_cells import nearest_lesion, with_cells

SPACING_MM = (1.0, 0.5, 3.0)


def scattered_components(shape=(9, 12, 6)):
    rng = np.random.default_rng(3)
    components = np.zeros(shape, np.int32)
    for number in range(1, 6):
        components[tuple(rng.integers(0, shape))] = number
    return components


def distances_mm(components):
    """Distance of each voxel from each lesion, by all pairs of voxels."""
    places = np.argwhere(components >= 0) * SPACING_MM
    distances = []
    for number in range(1, components.max() + 1):
        inside = np.argwhere(components == number) * SPACING_MM
        pairs = np.linalg.norm(places[:, None] - inside[None], axis=-1)
        distances.append(pairs.min(axis=1).reshape(components.shape))
    return np.stack(distances)


@pytest.mark.parametrize("slab_voxels", [1, 300, 10**9])
def test_a_voxel_belongs_to_the_nearest_lesion_within_the_distance(monkeypatch, slab_voxels):
    monkeypatch.setattr(lesion_cells, "SLAB_VOXELS", slab_voxels)
    components = scattered_components()
    cells = nearest_lesion(components, max_distance_mm=3.0, spacing_mm=SPACING_MM)
    distances = distances_mm(components)
    nearest = distances.min(axis=0)
    assert ((cells > 0) == (nearest <= 3.0)).all()
    own = np.take_along_axis(distances, np.maximum(cells.astype(int) - 1, 0)[None], 0)[0]
    np.testing.assert_allclose(own[cells > 0], nearest[cells > 0])
    np.testing.assert_array_equal(cells[components > 0], components[components > 0])
    assert cells.dtype == np.uint8


def test_ignored_voxels_are_no_lesion():
    components = scattered_components()
    ignored = np.where(components == 0, -1, components)
    settings = {"max_distance_mm": 3.0, "spacing_mm": SPACING_MM}
    expected = nearest_lesion(components, **settings)
    np.testing.assert_array_equal(nearest_lesion(ignored, **settings), expected)


def test_no_lesion_has_no_cell():
    cells = nearest_lesion(np.zeros((3, 4, 5), np.int32), max_distance_mm=5, spacing_mm=(1, 1, 1))
    assert cells.shape == (3, 4, 5)
    assert not cells.any()


def test_labels_with_surrounds_keep_lesions_ignored_voxels_and_cells():
    labels = np.array([[[[0, 2, 0, 0, -1]]]])
    cells = np.array([[[[2, 2, 2, 0, 2]]]], np.uint8)
    marked = with_surrounds(labels, cells)
    np.testing.assert_array_equal(marked, [[[[-3, 2, -3, 0, -1]]]])
    np.testing.assert_array_equal(cells_of(torch.from_numpy(marked)), [[[[2, 2, 2, 0, 0]]]])


def cases_with_cells():
    cases = [a_case(f"case{i}", seed=i) for i in range(4)]
    return with_cells(cases, max_distance_mm=4.0)


def test_cells_of_a_patch_are_those_of_the_whole_volume():
    batches = some_batches(
        cases=cases_with_cells(), augmentation=None, with_components=True, with_cells=True
    )
    plain = some_batches(augmentation=None, with_components=True)
    for step in range(3):
        batch = batches[step]
        for number, (case_id, start) in enumerate(zip(batch.case_ids, batch.starts, strict=True)):
            case = next(case for case in batches.cases if case.case_id == case_id)
            padded = np.pad(case.cells, [(0, 0), *[(20, 20)] * 3])
            box = (slice(None), *(slice(20 + first, 36 + first) for first in start))
            np.testing.assert_array_equal(batch.cells[number], padded[box])
        assert as_bytes(replace(batch, cells=None)) == as_bytes(plain[step])


def test_cells_are_turned_and_deformed_with_the_lesions():
    moving = Augmentation(
        flip_probability=1.0, zoom=(0.7, 1.4), zoom_probability=1.0, tilt_probability=1.0
    )
    batches = some_batches(
        cases=cases_with_cells(), augmentation=moving, with_components=True, with_cells=True
    )
    plain = some_batches(augmentation=moving, with_components=True)
    for step in range(4):
        batch = batches[step]
        assert as_bytes(replace(batch, cells=None)) == as_bytes(plain[step])
        is_lesion = batch.components > 0
        assert torch.equal(batch.cells[is_lesion], batch.components[is_lesion])
        # The surround is moved as well: it is larger than the lesions.
        assert (batch.cells > 0).sum() > 2 * is_lesion.sum()
        samples = [sample.augment() for sample in batches.samples(step)]
        stacked = stack_samples(samples, with_components=True, with_cells=True)
        assert torch.equal(stacked.cells, batch.cells)


def test_a_lesion_that_grows_takes_its_new_voxels_into_its_cell():
    growing = Augmentation(growth_probability=1.0, growth_mm=3.0)
    batches = some_batches(
        cases=cases_with_cells(), augmentation=growing, with_components=True, with_cells=True
    )
    plain = some_batches(augmentation=growing, with_components=True)
    n_grown = 0
    for step in range(4):
        batch = batches[step]
        assert as_bytes(replace(batch, cells=None)) == as_bytes(plain[step])
        is_lesion = batch.components > 0
        assert torch.equal(batch.cells[is_lesion], batch.components[is_lesion])
        n_grown += int(is_lesion.sum())
    assert n_grown > 0


def test_workers_carry_the_cells():
    batches = some_batches(cases=cases_with_cells(), with_components=True, with_cells=True)
    expected = [as_bytes(batches[step]) for step in range(2)]
    loaded = load_batches(batches, start=0, stop=2, n_workers=1)
    assert [as_bytes(batch) for batch in loaded] == expected


def test_batches_with_cells_need_components():
    with pytest.raises(ValueError, match="with_components=False"):
        some_batches(with_cells=True)


def stored(case, folder):
    """The case as one of a cache."""
    folder.mkdir()
    for name, array in case.arrays.items():
        np.save(folder / f"{name}.npy", array)
    return replace(case, folder=folder, arrays={})


def test_cells_are_kept_in_the_cache_and_made_again_when_lost(tmp_path):
    case = stored(a_case("ann"), tmp_path / "ann-0123")
    (completed,) = with_cells([case], max_distance_mm=4.0)
    expected = with_cells([a_case("ann")], max_distance_mm=4.0)[0].cells
    np.testing.assert_array_equal(completed.cells, expected)
    folder = tmp_path / "ann-0123-cells4mm"
    before = (folder / "cells.npy").stat()
    (again,) = with_cells([case], max_distance_mm=4.0)
    assert (folder / "cells.npy").stat() == before
    shutil.rmtree(folder)
    np.testing.assert_array_equal(again.cells, expected)
    # Another distance is another entry; the case itself stays as it is.
    with_cells([case], max_distance_mm=2.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ann-0123",
        "ann-0123-cells2.5mm",
        "ann-0123-cells4mm",
    ]


def test_each_rater_has_cells_of_its_own():
    first, second = a_case("ann"), a_case("ann")
    shifted = np.roll(second.components, 3, axis=1)
    arrays = {**first.arrays, "components_1": first.components, "components_2": shifted}
    case = replace(first, arrays=arrays, rater_lesions=((2,), (2,)))
    (completed,) = with_cells([case], max_distance_mm=3.0)
    of_first = replace(completed, rater=1).cells
    np.testing.assert_array_equal(replace(completed, rater=2).cells, np.roll(of_first, 3, axis=1))
