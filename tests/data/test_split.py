"""Folds that are alike, one left out, no leak; and the loads that they are drawn by."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from helpers.cohorts import case_ids, case_without_files
from tversky_seg.data import lesion_load as loads
from tversky_seg.data.case import Case
from tversky_seg.data.dataset import Dataset
from tversky_seg.data.errors import DataError
from tversky_seg.data.lesion_load import lesion_loads
from tversky_seg.data.manifest import read_manifest, write_manifest
from tversky_seg.data.split import _check_same_cases, draw_split, split_cases, split_dataset


def cohort(n: int, *, sites: int = 1, sessions: int = 1) -> list[Case]:
    """Make subjects of several sessions, each of one site; their files do not exist."""
    cases = []
    for i in range(n):
        for j in range(sessions):
            images = {"T1": Path(f"{i}_{j}.nii")}
            labels = (Path(f"{i}_{j}_l.nii"),)
            subject = f"s{i:02d}"
            cases.append(Case(f"{subject}_{j}", subject, images, labels, site=f"h{i % sites}"))
    return cases


def held_out(cases: list[Case], **settings: object) -> list[list[Case]]:
    """List the test cases of each fold."""
    n_folds = settings.get("folds", 5)
    if n_folds == "loso":
        n_folds = len({case.subject_id for case in cases})
    return [list(split_cases(cases, fold=fold, **settings).test) for fold in range(n_folds)]


def test_each_fold_has_its_share_of_small_and_large_loads() -> None:
    cases = cohort(20, sessions=2)
    load = {case.case_id: 10.0 ** (int(case.subject_id[1:]) % 7) for case in cases}
    folds = held_out(cases, folds=5, loads=load)
    assert sorted(case.case_id for fold in folds for case in fold) == sorted(load)
    order = sorted({(load[case.case_id], case.subject_id) for case in cases})
    blocks = [{subject for _, subject in order[first : first + 5]} for first in range(0, 20, 5)]
    for fold in folds:
        subjects = {case.subject_id for case in fold}
        assert [len(subjects & block) for block in blocks] == [1, 1, 1, 1]
        assert len(fold) == 8, "both sessions of four subjects"


def test_each_fold_has_its_share_of_each_site() -> None:
    cases = cohort(15, sites=3)
    for fold in held_out(cases, folds=5, loads={case.case_id: 1.0 for case in cases}):
        assert sorted(str(case.site) for case in fold) == ["h0", "h1", "h2"]


def test_stratified_folds_depend_on_nothing_but_seed_and_loads() -> None:
    cases = cohort(11)
    load = {case.case_id: float(i % 4) for i, case in enumerate(cases)}
    first = split_cases(cases, loads=load)
    assert split_cases(cases, loads=load) == first
    assert {c.case_id for c in split_cases(cases[::-1], loads=load).test} == {
        c.case_id for c in first.test
    }
    assert split_cases(cases, loads=load, seed=1) != first


def test_leave_one_out_goes_before_the_columns() -> None:
    cases = [
        Case(c.case_id, c.subject_id, c.images, c.labels, site=c.site, split="train")
        for c in cohort(6, sites=2)
    ]
    assert [[c.subject_id for c in fold] for fold in held_out(cases, folds="loso")] == [
        [f"s{i:02d}"] for i in range(6)
    ]
    by_site = [split_cases(cases, folds="site", fold=fold).test for fold in (0, 1)]
    assert [{case.site for case in fold} for fold in by_site] == [{"h0"}, {"h1"}]
    assert split_cases(cases, folds="loso").test == split_cases(cases, folds="loso", fold=0).test
    with pytest.raises(DataError, match=r"data\.fold: 6; expected one of 0, 1, 2, 3, 4, 5"):
        split_cases(cases, folds="loso", fold=6)
    nowhere = [Case(c.case_id, c.subject_id, c.images, c.labels) for c in cases]
    with pytest.raises(DataError, match="site"):
        split_cases(nowhere, folds="site")


def test_an_image_under_two_names_is_a_leak() -> None:
    cases = cohort(8)
    twin = Case("twin", "twin", cases[0].images, cases[0].labels)
    with pytest.raises(DataError, match=r"0_0\.nii: is an image of subject .*subject_id"):
        split_cases([*cases, twin], folds="loso", fold=0)


def label(folder: Path, name: str, counts: dict[int, int]) -> Path:
    data = np.zeros((6, 6, 6), np.uint8)
    data.reshape(-1)[: sum(counts.values())] = np.repeat(list(counts), list(counts.values()))
    nib.save(nib.Nifti1Image(data, np.diag([1.0, 2, 2, 1])), folder / f"{name}.nii.gz")
    return folder / f"{name}.nii.gz"


def labelled(folder: Path, n: int) -> list[Case]:
    return [
        Case(
            f"c{i}",
            f"c{i}",
            {"T1": label(folder, f"t{i}", {1: 3})},
            (label(folder, f"l{i}", {1: 100, 2: i}),),
        )
        for i in range(n)
    ]


def test_the_load_is_the_volume_of_the_smallest_class_and_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = labelled(tmp_path, 3)
    classes = {"liver": (1, 2), "tumour": (2,)}
    assert lesion_loads(cases, classes, cache_dir=tmp_path / "cache") == {"c0": 0, "c1": 4, "c2": 8}
    monkeypatch.setattr(loads, "read_label", lambda path: pytest.fail(f"{path} is read again"))
    assert lesion_loads(cases, {"liver": (1, 2)}, cache_dir=tmp_path / "cache") == {
        "c0": 400,
        "c1": 404,
        "c2": 408,
    }


@pytest.mark.parametrize("damage", ["", "[]", "{"])
def test_a_damaged_store_of_loads_is_made_anew(tmp_path: Path, damage: str) -> None:
    cases = labelled(tmp_path, 2)
    (tmp_path / "label_volumes.json").write_text(damage)
    assert lesion_loads(cases, {"lesion": (2,)}, cache_dir=tmp_path) == {"c0": 0, "c1": 4}
    assert len(json.loads((tmp_path / "label_volumes.json").read_text())) == 2


def test_a_label_that_cannot_be_read_is_left_to_preprocessing(tmp_path: Path) -> None:
    cases = labelled(tmp_path, 2)
    cases[0].labels[0].write_text("<html>")
    assert lesion_loads(cases, {"lesion": (2,)}, cache_dir=tmp_path) == {"c0": 0, "c1": 4}


def test_a_complete_store_of_loads_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = labelled(tmp_path, 2)
    loads_before = lesion_loads(cases, {"lesion": (2,)}, cache_dir=tmp_path)
    monkeypatch.setattr(loads, "write_json", lambda *_: pytest.fail("written again"))
    assert lesion_loads(cases, {"lesion": (2,)}, cache_dir=tmp_path) == loads_before


def test_a_store_of_loads_on_a_read_only_disk_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(loads, "write_json", refuse)
    cases = labelled(tmp_path, 2)
    assert lesion_loads(cases, {"lesion": (2,)}, cache_dir=tmp_path) == {"c0": 0, "c1": 4}


def test_the_split_of_a_run_is_stratified_and_saved(tmp_path: Path) -> None:
    write_manifest(labelled(tmp_path, 12), tmp_path / "m.csv")
    dataset = Dataset(
        manifest=tmp_path / "m.csv",
        classes={"a": (1,), "b": (2,)},
        modalities=("T1",),
        folds=3,
        cache_dir=tmp_path,
    )
    split = split_dataset(dataset, tmp_path / "run.csv", is_started=False)
    assert sorted(int(case.case_id[1:]) // 3 for case in split.test) == [0, 1, 2, 3]
    kept = {case.case_id: case.split for case in read_manifest(tmp_path / "run.csv")}
    assert {name for name, part in kept.items() if part == "test"} == {
        case.case_id for case in split.test
    }
    assert split_dataset(dataset, tmp_path / "run.csv", is_started=True) == split
    plain = Dataset(manifest=tmp_path / "m.csv", modalities=("T1",), folds=3, stratify=False)
    cases = read_manifest(tmp_path / "m.csv")
    assert draw_split(plain, cases) == split_cases(cases, folds=3)


def test_a_resumed_run_names_the_case_whose_set_changed(tmp_path: Path) -> None:
    cases = [replace(case, split="train") for case in labelled(tmp_path, 3)]
    write_manifest(cases, tmp_path / "run.csv")
    last = cases[2].case_id
    moved = [*cases[:2], replace(cases[2], split="test")]
    with pytest.raises(DataError, match=f"case {last} was in train and is in test now"):
        _check_same_cases(moved, tmp_path / "run.csv", modalities=["T1"])
    with pytest.raises(DataError, match=f"other cases than these .as {last}"):
        _check_same_cases(cases[:2], tmp_path / "run.csv", modalities=["T1"])


def test_folds_hold_every_subject_out_once_and_never_part_a_subject() -> None:
    cases = [case_without_files(i, subject=f"s{i // 2}") for i in range(22)]
    tested = []
    for fold in range(5):
        split = split_cases(cases, folds=5, fold=fold)
        subjects = [
            {case.subject_id for case in part} for part in (split.train, split.val, split.test)
        ]
        assert sum(map(len, subjects)) == len(set.union(*subjects)) == 11
        assert len(subjects[1]) == 2  # a fifth of the 8 or 9 that remain
        tested += case_ids(split.test)
    assert sorted(tested) == sorted(case_ids(cases))
    assert split_cases(cases, folds=5) == split_cases(cases, folds=5, fold=0)
    assert split_cases(cases, seed=1) != split_cases(cases)
    assert case_ids(split_cases(cases[::-1]).test)[::-1] == case_ids(split_cases(cases).test)


@pytest.mark.parametrize(("n_remaining", "n_val"), [(1, 0), (3, 0), (4, 1), (9, 2), (20, 4)])
def test_validation_is_a_fifth_but_only_from_four_subjects_on(n_remaining: int, n_val: int) -> None:
    cases = [
        case_without_files(0, split="test"),
        *(case_without_files(i, split="train") for i in range(1, n_remaining + 1)),
    ]
    split = split_cases(cases)
    assert (len(split.train), len(split.val), case_ids(split.test)) == (
        n_remaining - n_val,
        n_val,
        ["c0"],
    )


def test_no_validation_where_none_is_asked_for() -> None:
    assert split_cases([case_without_files(i) for i in range(10)], val_fraction=0).val == ()


def test_two_patients_train_one_and_test_the_other_whatever_the_number_of_folds() -> None:
    cases = [case_without_files(7), case_without_files(19)]
    tests = [split_cases(cases, folds=5, fold=fold).test for fold in (0, 1)]
    assert sorted(case_ids([*tests[0], *tests[1]])) == ["c19", "c7"]
    with pytest.raises(DataError, match=r"data\.fold: 2; expected one of 0, 1"):
        split_cases(cases, fold=2)


def test_the_split_column_is_kept_and_a_fold_column_used() -> None:
    columns = ["train", "val", "test", "train", "test"]
    split = split_cases([case_without_files(i, split=column) for i, column in enumerate(columns)])
    assert (case_ids(split.train), case_ids(split.val), case_ids(split.test)) == (
        ["c0", "c3"],
        ["c1"],
        ["c2", "c4"],
    )
    by_fold = [case_without_files(i, fold=i % 3 + 1) for i in range(9)]
    assert case_ids(split_cases(by_fold).test) == ["c0", "c3", "c6"]
    assert case_ids(split_cases(by_fold, fold=3).test) == ["c2", "c5", "c8"]
    with pytest.raises(DataError, match=r"data\.fold: 0; expected one of 1, 2, 3"):
        split_cases(by_fold, fold=0)


def test_unlabelled_cases_are_only_ever_tested(caplog: pytest.LogCaptureFixture) -> None:
    labelled = [case_without_files(i, fold=i) for i in range(3)]
    split = split_cases(
        [
            *labelled,
            case_without_files(3, label=False),
            case_without_files(4, subject="s1", label=False),
        ],
        fold=0,
    )
    assert (case_ids(split.train), case_ids(split.test)) == (["c1", "c2"], ["c0", "c3"])
    assert "c4" in caplog.text


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        (
            [case_without_files(0, label=False)],
            "0 labelled subjects",
        ),
        ([case_without_files(0)], "1 labelled subject"),
        (
            [
                case_without_files(0, split="test"),
                case_without_files(1, label=False, split="train"),
            ],
            "among 2 cases",
        ),
        (
            [case_without_files(0, split="train"), case_without_files(1)],
            "case c1 has a label but no split",
        ),
        ([case_without_files(0, fold=0), case_without_files(1)], "case c1 has a label but no fold"),
        (
            [
                case_without_files(0, split="train"),
                case_without_files(1, subject="s0", split="test"),
            ],
            "subject 's0' is in split test and train",
        ),
        ([case_without_files(0), case_without_files(0)], "duplicate case_id 'c0'"),
    ],
)
def test_splits_that_cannot_be_are_refused(cases: list[Case], message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_cases(cases)
