import json
import shutil
import socket
from pathlib import Path

import cc3d
import numpy as np
import pytest
from scipy import ndimage

from tversky_seg.data.datasets.lesjak2017 import find_lesjak2017
from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import read_label, read_volume
from tversky_seg.data.phantom import cohort
from tversky_seg.data.phantom.anatomy import Anatomy, draw_head, load_anatomy
from tversky_seg.data.phantom.cohort import SubjectPlan, make_phantom, write_subject
from tversky_seg.data.phantom.lesions import LESION_SIZES, draw_lesion_sizes, grow_lesions
from tversky_seg.data.phantom.subject import Subject, _at_any_resolution, draw_subject
from tversky_seg.data.split import split_cases


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    """The atlas, read once for all tests."""
    return load_anatomy()


@pytest.fixture(scope="module")
def subject(anatomy: Anatomy) -> Subject:
    """A subject of typical lesion load at the default spacing."""
    return draw_subject(anatomy, load_rank=0.5, spacing_mm=2.0, rng=np.random.default_rng(0))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a small coarse cohort."""
    root = tmp_path_factory.mktemp("phantom")
    make_phantom(root, n_train=3, n_test=1, spacing_mm=4.0, n_workers=1)
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def sizes_of(lesions: np.ndarray) -> list[int]:
    return sorted(
        np.bincount(cc3d.connected_components(lesions, connectivity=26).ravel())[1:].tolist(),
        reverse=True,
    )


def test_cohort_has_the_layout_of_msseg_2016_with_its_split_and_sites(root: Path) -> None:
    cases = make_phantom(root, n_train=3, n_test=1, spacing_mm=4.0)
    assert [case.case_id for case in cases] == [
        "Testing_Center_01_Patient_01",
        "Training_Center_01_Patient_01",
        "Training_Center_07_Patient_01",
        "Training_Center_08_Patient_01",
    ]
    assert [case.site for case in cases] == ["01", "01", "07", "08"]
    assert list(cases[0].images) == ["FLAIR", "T1", "T2"]
    split = split_cases(cases)
    assert (len(split.train), len(split.test)) == (3, 1)
    (folder,) = root.iterdir()
    assert json.loads((folder / "phantom.json").read_text())["spacing_mm"] == 4.0


def test_files_are_int16_images_zero_outside_the_brain_on_one_grid(root: Path) -> None:
    for case in make_phantom(root, n_train=3, n_test=1, spacing_mm=4.0):
        assert case.label is not None
        assert case.brain_mask is not None
        lesions, brain = read_label(case.label), read_label(case.brain_mask)
        assert lesions.spacing_mm == pytest.approx((4.0, 4.0, 4.0))
        assert lesions.data.any()
        assert not (lesions.data > brain.data).any()
        for file in case.images.values():
            image = read_volume(file)
            assert image.shape == lesions.shape
            np.testing.assert_allclose(image.affine, lesions.affine)
            assert image.data[brain.data == 0].max() == 0
            assert (image.data == np.rint(image.data)).all()


def test_cohort_is_made_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort, "write_subject", None)
    assert len(make_phantom(root, n_train=3, n_test=1, spacing_mm=4.0)) == 4


def test_same_seed_gives_the_same_bytes_with_any_number_of_workers(
    root: Path, tmp_path: Path
) -> None:
    make_phantom(tmp_path, n_train=3, n_test=1, spacing_mm=4.0, n_workers=2)
    assert contents(tmp_path) == contents(root)


def test_another_seed_makes_another_cohort_in_another_folder(tmp_path: Path) -> None:
    first, second = (
        make_phantom(tmp_path, n_train=1, n_test=0, spacing_mm=6.0, seed=seed, n_workers=1)[0]
        for seed in (0, 1)
    )
    assert first.images["T1"] != second.images["T1"]
    assert first.images["T1"].read_bytes() != second.images["T1"].read_bytes()


def test_interrupted_cohort_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_on_the_second(folder: Path, plan: SubjectPlan) -> None:
        if plan.key[1] == 1:
            raise KeyboardInterrupt
        write_subject(folder, plan)

    monkeypatch.setattr(cohort, "write_subject", fail_on_the_second)
    with pytest.raises(KeyboardInterrupt):
        make_phantom(tmp_path, n_train=2, n_test=0, spacing_mm=6.0, n_workers=1)
    assert list(tmp_path.iterdir()) == []


def test_cohort_finished_by_another_process_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"n_train": 1, "n_test": 0, "spacing_mm": 6.0, "n_workers": 1}

    def with_a_rival(folder: Path, plan: SubjectPlan) -> None:
        monkeypatch.setattr(cohort, "write_subject", write_subject)
        make_phantom(tmp_path, **settings)  # type: ignore[arg-type]
        write_subject(folder, plan)
        (next(tmp_path.glob("ms_*")) / "rival").touch()

    monkeypatch.setattr(cohort, "write_subject", with_a_rival)
    make_phantom(tmp_path, **settings)  # type: ignore[arg-type]
    assert len(list(tmp_path.glob("ms_*/rival"))) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_atlas_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("network used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    load_anatomy.cache_clear()
    anatomy = load_anatomy()
    assert anatomy.tissue.sum(0).max() == pytest.approx(1, abs=0.01)
    assert 5e3 < (anatomy.ventricle_mm == 0).sum() < 5e4  # mm3 of the lateral and third ventricles


def test_lesions_have_the_sizes_drawn_and_do_not_touch(anatomy: Anatomy) -> None:
    for seed, rank in enumerate((0.1, 0.6)):
        rng = np.random.default_rng(seed)
        head = draw_head(anatomy, spacing_mm=2.0, rng=rng)
        wanted = draw_lesion_sizes(rank, spacing_mm=2.0, rng=rng)
        marked = np.zeros(head.ventricle_mm.shape, dtype=bool)
        for lesion in grow_lesions(head, wanted, rng=rng):
            assert not marked[tuple(lesion.marked.T)].any()
            marked[tuple(lesion.marked.T)] = True
        assert sizes_of(marked) == wanted
        white = head.tissue[1] > 0.5
        assert white[marked].mean() > 0.6
        assert np.median(head.ventricle_mm[marked]) < 0.6 * np.median(head.ventricle_mm[white])


def test_lesions_are_bright_on_flair_and_t2_and_dark_on_t1_as_real_ones(subject: Subject) -> None:
    near = ndimage.binary_dilation(subject.lesions, iterations=2)
    shell = near & ~ndimage.binary_dilation(subject.lesions) & subject.brain
    ratio = {
        name: image[subject.lesions].mean() / image[shell].mean()
        for name, image in subject.images.items()
    }
    assert 1.3 < ratio["FLAIR"] < 1.5
    assert 1.1 < ratio["T2"] < 1.7
    assert 0.7 < ratio["T1"] < 0.95


def test_borders_of_lesions_are_graded(subject: Subject) -> None:
    flair = subject.images["FLAIR"].astype(float)
    large = cc3d.dust(subject.lesions, threshold=200, connectivity=26).astype(bool)
    core = ndimage.binary_erosion(large, iterations=1)
    border = large & ~core
    around = (
        ndimage.binary_dilation(large, iterations=3)
        & ~ndimage.binary_dilation(subject.lesions)
        & subject.brain
    )
    assert np.median(flair[around]) * 1.1 < np.median(flair[border]) < np.median(flair[core]) * 0.97


def test_affine_puts_the_brain_where_the_atlas_has_it(subject: Subject) -> None:
    centre = subject.affine @ [*np.argwhere(subject.brain).mean(0), 1]
    np.testing.assert_allclose(centre[:3], [0, -20, 8], atol=8)


def test_voxels_at_1_mm_and_2_mm_hold_the_same_volume_of_lesions() -> None:
    fine, coarse = (
        [
            s**3 * sum(draw_lesion_sizes(r, spacing_mm=s, rng=np.random.default_rng(i)))
            for i, r in enumerate(RANKS)
        ]
        for s in (1.0, 2.0)
    )
    assert np.median(fine) == pytest.approx(np.median(coarse), rel=0.3)


RANKS = np.linspace(0, 1, 40)


def test_drawn_lesions_follow_the_real_masks() -> None:
    sizes = [
        draw_lesion_sizes(r, spacing_mm=2.0, rng=np.random.default_rng(i))
        for i, r in enumerate(RANKS)
    ]
    table = LESION_SIZES[2.0]
    quartiles = [0.25, 0.5, 0.75]
    np.testing.assert_allclose(
        np.quantile([len(s) for s in sizes], quartiles),
        np.quantile(table.count, quartiles),
        rtol=0.35,
    )
    np.testing.assert_allclose(
        np.quantile([s[0] for s in sizes], quartiles),
        np.quantile(table.largest, quartiles),
        rtol=0.6,
    )
    small = np.concatenate([s[2:] for s in sizes])
    assert np.median(small) == pytest.approx(3, abs=1)
    assert sum(sizes[0]) * 8 < 600
    assert sum(sizes[-1]) * 8 > 40_000


def test_table_of_lesion_sizes_is_that_of_real_masks(real_data: Path) -> None:
    for case in find_lesjak2017(real_data / "open_ms_data")[:4]:
        assert case.label is not None
        sizes = sizes_of(read_label(case.label).data > 0)
        table = LESION_SIZES[1.0]
        assert (len(sizes), *sizes[:2]) in set(
            zip(table.count, table.largest, table.second, strict=True)
        )


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("n_train", 0, "1 or more"),
        ("n_test", -1, "0 or more"),
        ("spacing_mm", 0.5, "1 to 6"),
        ("spacing_mm", "fine", "1 to 6"),
        ("seed", -1, "0 or more"),
    ],
)
def test_settings_out_of_range_are_refused(
    tmp_path: Path, name: str, value: object, expected: str
) -> None:
    with pytest.raises(DataError, match=rf"data\.importer\.{name}: {value}.*{expected}"):
        make_phantom(tmp_path, **{name: value})  # type: ignore[arg-type]


def test_root_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file.*data.root"):
        make_phantom(tmp_path / "file", n_train=1, n_test=0, spacing_mm=6.0, n_workers=1)


def test_a_folder_with_other_files_gets_no_cohort(tmp_path: Path) -> None:
    (tmp_path / "sub-01_T1.nii.gz").touch()
    with pytest.raises(DataError, match=r"sub-01_T1\.nii\.gz.*data=") as error:
        make_phantom(tmp_path, n_train=1, n_test=0, spacing_mm=6.0, n_workers=1)
    assert error.value.where == f"data.root={tmp_path}"
    assert [path.name for path in tmp_path.iterdir()] == ["sub-01_T1.nii.gz"]


def test_a_folder_of_cohorts_gets_another(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "cohorts")
    (tmp_path / "cohorts" / ".DS_Store").touch()
    make_phantom(tmp_path / "cohorts", n_train=1, n_test=0, spacing_mm=6.0, n_workers=1)
    assert len(list((tmp_path / "cohorts").glob("ms_*"))) == 2


@pytest.fixture(scope="module")
def any_subjects(anatomy: Anatomy) -> list[Subject]:
    """Two subjects of any contrast, of one anatomy each."""
    subjects = []
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        subjects.append(
            draw_subject(anatomy, load_rank=0.5, spacing_mm=4.0, rng=rng, contrast="any")
        )
    return subjects


def test_any_contrast_leaves_anatomy_and_lesions_as_they_are(
    anatomy: Anatomy, any_subjects: list[Subject]
) -> None:
    rng = np.random.default_rng(0)
    measured = draw_subject(anatomy, load_rank=0.5, spacing_mm=4.0, rng=rng)
    assert np.array_equal(any_subjects[0].lesions, measured.lesions)
    assert np.array_equal(any_subjects[0].brain, measured.brain)
    for name, image in measured.images.items():
        assert not np.array_equal(any_subjects[0].images[name], image)


def test_thick_slices_keep_the_shape_and_an_even_image_even() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        image = np.full((13, 10, 7), 3.0, np.float32)
        coarse = _at_any_resolution(image, spacing_mm=1.0, rng=rng)
        np.testing.assert_allclose(coarse, image, rtol=1e-5)


def test_thick_slices_take_detail_along_one_axis() -> None:
    image = np.random.default_rng(0).standard_normal((24, 24, 24)).astype(np.float32)
    roughness = []
    for seed in range(20):
        coarse = _at_any_resolution(image, spacing_mm=1.0, rng=np.random.default_rng(seed))
        along = [np.diff(coarse, axis=axis).std() for axis in range(3)]
        roughness.append(min(along) / max(along))
    is_thick = np.array(roughness) < 0.7
    assert 4 <= is_thick.sum() <= 16  # half of them


def test_a_cohort_of_any_contrast_has_a_folder_of_its_own(tmp_path: Path) -> None:
    settings = cohort.CohortSettings(1, 0, 4.0, 0, contrast="any")
    assert settings.folder_name == "ms_1+0_4mm_seed0_v2_any"
    with pytest.raises(DataError, match=r"data\.importer\.contrast: all; expected measured or any"):
        cohort.CohortSettings(1, 0, 4.0, 0, contrast="all")
