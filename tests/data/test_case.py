import logging
import pickle
from pathlib import Path

import pytest

from tversky_seg.data.case import Case
from tversky_seg.data.dataset import Dataset, find_cases
from tversky_seg.data.errors import DataError
from tversky_seg.data.inputs import cases_from_input
from tversky_seg.data.manifest import read_manifest, write_manifest
from tversky_seg.data.split import split_cases

FLAIR = ("FLAIR",)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def manifest(folder: Path, *lines: str) -> Path:
    (folder / "cases.csv").write_text("\n".join(lines))
    return folder / "cases.csv"


def a_case(i: int, *, subject: str | None = None, label: bool = True, **columns: object) -> Case:
    labels = (Path(f"{i}_label.nii"),) if label else ()
    return Case(f"c{i}", subject or f"s{i}", {"FLAIR": Path(f"{i}.nii")}, labels, **columns)


def ids(cases: tuple[Case, ...] | list[Case]) -> list[str]:
    return [case.case_id for case in cases]


def test_a_manifest_is_read_with_paths_relative_to_itself(tmp_path: Path) -> None:
    touch(tmp_path, "a/flair.nii", "a/t1.nii", "a/label.nii", "a/second.nii", "a/brain.nii")
    path = manifest(
        tmp_path,
        "case_id,subject_id,T1,FLAIR,label,label_2,brain_mask,site,session,split,fold",
        "a,s1,a/t1.nii,a/flair.nii,a/label.nii,a/second.nii,a/brain.nii,Lyon,2,train,3",
    )
    (case,) = read_manifest(path, modalities=["FLAIR", "T1"])
    folder = tmp_path / "a"
    assert case == Case(
        "a",
        "s1",
        {"FLAIR": folder / "flair.nii", "T1": folder / "t1.nii"},
        (folder / "label.nii", folder / "second.nii"),
        folder / "brain.nii",
        "Lyon",
        "2",
        "train",
        3,
    )
    assert list(case.images) == ["FLAIR", "T1"]
    assert list(read_manifest(path)[0].images) == ["T1", "FLAIR"]


@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_what_spreadsheets_write_is_read(tmp_path: Path, delimiter: str, start: str) -> None:
    touch(tmp_path, "a.nii")
    lines = ["case_id,subject_id,FLAIR,label,", ' a ,s1,"a.nii",,', ",,,,", ""]
    path = manifest(tmp_path, start + "\r\n".join(lines).replace(",", delimiter))
    (case,) = read_manifest(path)
    assert (case.case_id, case.label, list(case.images)) == ("a", None, ["FLAIR"])


def test_a_manifest_that_was_written_reads_the_same(tmp_path: Path) -> None:
    touch(tmp_path, "m/x/1.nii", "elsewhere/2.nii", "m/l.nii", "m/l2.nii")
    inside, outside = tmp_path / "m" / "x" / "1.nii", tmp_path / "elsewhere" / "2.nii"
    labels = (tmp_path / "m" / "l.nii", tmp_path / "m" / "l2.nii")
    cases = [
        Case("a", "s1", {"T1": inside}, labels, fold=0, site="A"),
        Case("b", "s2", {"T1": outside}, (), brain_mask=inside, fold=1),
    ]
    write_manifest(cases, tmp_path / "m" / "cases.csv")
    text = (tmp_path / "m" / "cases.csv").read_text()
    assert text.splitlines()[0] == "case_id,subject_id,T1,label,label_2,brain_mask,site,fold"
    assert ",x/1.nii," in text
    assert str(outside) in text
    assert read_manifest(tmp_path / "m" / "cases.csv") == cases
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [
        "cases.csv",
        "l.nii",
        "l2.nii",
        "x",
    ]


HEADER = "case_id,subject_id,FLAIR,label"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "lists no case"),
        ([HEADER], "lists no case"),
        (["case_id,FLAIR,label", "a,a.nii,"], "no column subject_id"),
        (
            ["case_id,subject_id,T1,label", "a,s,a.nii,"],
            "no column FLAIR among case_id, subject_id, T1, label",
        ),
        (["case_id,subject_id,FLAIR,Label", "a,s,a.nii,"], "column 'Label'; write it as 'label'"),
        (["case_id,subject_id,FLAIR,FLAIR", "a,s,a.nii,a.nii"], "column FLAIR stands twice"),
        ([HEADER, "a,s,,"], "line 2: empty cell for FLAIR"),
        ([HEADER, "", ",s,a.nii,"], "line 3: empty cell for case_id"),
        ([HEADER, "a,s,missing.nii,"], "missing.nii: no such file"),
        ([HEADER, "a,s,a.nii,missing.nii"], "missing.nii: no such file"),
        ([HEADER, "a,s,a.nii,", "a,s,a.nii,"], "case_id 'a' stands twice; expected"),
        (
            [HEADER, "a,s,a.nii,", "A,s,a.nii,"],
            "case_id 'A' stands twice (as 'a', one file on some systems)",
        ),
        ([HEADER, "../a,s,a.nii,"], "case_id '../a'; expected letters"),
        ([HEADER, "a/b,s,a.nii,"], "case_id 'a/b'; expected letters"),
        ([HEADER, ".a,s,a.nii,"], "case_id '.a'; expected letters"),
        ([HEADER, "a,s,a.nii,,extra"], "line 2: 5 cells; expected 4"),
        (
            [HEADER + ",split", "a,s,a.nii,,training"],
            "split 'training'; expected train, val or test",
        ),
        ([HEADER + ",fold", "a,s,a.nii,,-1"], "fold '-1'; expected a whole number"),
        (
            [HEADER + ",split", "a,s,a.nii,,train", "b,s,a.nii,,test"],
            "subject 's' is in split test and train",
        ),
        ([HEADER + ",fold", "a,s,a.nii,,0", "b,s,a.nii,,1"], "subject 's' is in fold 0 and 1"),
        ([HEADER + ",label_2", "a,s,a.nii,,a.nii"], "fill the label cell first"),
    ],
)
def test_faults_of_a_manifest_are_one_line(tmp_path: Path, lines: list[str], message: str) -> None:
    touch(tmp_path, "a.nii")
    path = manifest(tmp_path, *lines)
    with pytest.raises(DataError) as error:
        read_manifest(path, modalities=FLAIR)
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_several_faults_are_counted_and_kept(tmp_path: Path) -> None:
    path = manifest(tmp_path, HEADER, "a,s,1.nii,", "b,s,2.nii,", "c,s,,")
    with pytest.raises(DataError, match=r"and 2 more: run scripts/check_data.py\)$") as error:
        read_manifest(path, modalities=FLAIR)
    assert len(error.value.faults) == 3
    copy = pickle.loads(pickle.dumps(error.value))
    assert list(map(str, copy.faults)) == list(map(str, error.value.faults))


def test_files_that_are_no_csv_are_named(tmp_path: Path) -> None:
    (tmp_path / "cases.xlsx").write_bytes(b"PK\x03\x04\xff\xfe\x00")
    for path, message in [
        (tmp_path / "cases.xlsx", "no CSV text"),
        (tmp_path / "none.csv", "No such file"),
    ]:
        with pytest.raises(DataError, match=message):
            read_manifest(path)
    with pytest.raises(DataError, match="directory"):
        read_manifest(tmp_path)


def test_folds_hold_every_subject_out_once_and_never_part_a_subject() -> None:
    cases = [a_case(i, subject=f"s{i // 2}") for i in range(22)]
    tested = []
    for fold in range(5):
        split = split_cases(cases, folds=5, fold=fold)
        subjects = [
            {case.subject_id for case in part} for part in (split.train, split.val, split.test)
        ]
        assert sum(map(len, subjects)) == len(set.union(*subjects)) == 11
        assert len(subjects[1]) == 2  # a fifth of the 8 or 9 that remain
        tested += ids(split.test)
    assert sorted(tested) == sorted(ids(cases))
    assert split_cases(cases, folds=5) == split_cases(cases, folds=5, fold=0)
    assert split_cases(cases, seed=1) != split_cases(cases)
    assert ids(split_cases(cases[::-1]).test)[::-1] == ids(split_cases(cases).test)


@pytest.mark.parametrize(("n_remaining", "n_val"), [(1, 0), (3, 0), (4, 1), (9, 2), (20, 4)])
def test_validation_is_a_fifth_but_only_from_four_subjects_on(n_remaining: int, n_val: int) -> None:
    cases = [
        a_case(0, split="test"),
        *(a_case(i, split="train") for i in range(1, n_remaining + 1)),
    ]
    split = split_cases(cases)
    assert (len(split.train), len(split.val), ids(split.test)) == (
        n_remaining - n_val,
        n_val,
        ["c0"],
    )


def test_no_validation_where_none_is_asked_for() -> None:
    assert split_cases([a_case(i) for i in range(10)], val_fraction=0).val == ()


def test_two_patients_train_one_and_test_the_other_whatever_the_number_of_folds() -> None:
    cases = [a_case(7), a_case(19)]
    tests = [split_cases(cases, folds=5, fold=fold).test for fold in (0, 1)]
    assert sorted(ids([*tests[0], *tests[1]])) == ["c19", "c7"]
    with pytest.raises(DataError, match=r"data\.fold: 2; expected one of 0, 1"):
        split_cases(cases, fold=2)


def test_the_split_column_is_kept_and_a_fold_column_used() -> None:
    columns = ["train", "val", "test", "train", "test"]
    split = split_cases([a_case(i, split=column) for i, column in enumerate(columns)])
    assert (ids(split.train), ids(split.val), ids(split.test)) == (
        ["c0", "c3"],
        ["c1"],
        ["c2", "c4"],
    )
    by_fold = [a_case(i, fold=i % 3 + 1) for i in range(9)]
    assert ids(split_cases(by_fold).test) == ["c0", "c3", "c6"]
    assert ids(split_cases(by_fold, fold=3).test) == ["c2", "c5", "c8"]
    with pytest.raises(DataError, match=r"data\.fold: 0; expected one of 1, 2, 3"):
        split_cases(by_fold, fold=0)


def test_unlabelled_cases_are_only_ever_tested(caplog: pytest.LogCaptureFixture) -> None:
    labelled = [a_case(i, fold=i) for i in range(3)]
    split = split_cases(
        [*labelled, a_case(3, label=False), a_case(4, subject="s1", label=False)], fold=0
    )
    assert (ids(split.train), ids(split.test)) == (["c1", "c2"], ["c0", "c3"])
    assert "left out: c4" in caplog.text


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        (
            [a_case(0, label=False)],
            "0 labelled subjects; expected label files, in a manifest in the column label",
        ),
        ([a_case(0)], "1 labelled subjects; expected two or more"),
        (
            [a_case(0, split="test"), a_case(1, label=False, split="train")],
            "no labelled case to train on among 2",
        ),
        ([a_case(0, split="train"), a_case(1)], "case c1 has a label but no split"),
        ([a_case(0, fold=0), a_case(1)], "case c1 has a label but no fold"),
        (
            [a_case(0, split="train"), a_case(1, subject="s0", split="test")],
            "subject 's0' is in split test and train",
        ),
        ([a_case(0), a_case(0)], "case_id 'c0' stands twice"),
    ],
)
def test_splits_that_cannot_be_are_refused(cases: list[Case], message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_cases(cases)


def test_one_case_for_prediction_is_named_by_its_first_file(tmp_path: Path) -> None:
    touch(tmp_path, "a_T1.nii.gz", "b.nii", "brain.nii")
    files = {
        "T1": tmp_path / "a_T1.nii.gz",
        "FLAIR": str(tmp_path / "b.nii"),
        "brain_mask": tmp_path / "brain.nii",
    }
    (case,) = cases_from_input(files, modalities=["FLAIR", "T1"])
    assert (case.case_id, list(case.images), case.label) == ("b", ["FLAIR", "T1"], None)
    assert case.brain_mask == tmp_path / "brain.nii"
    assert cases_from_input(files, modalities=["FLAIR", "T1"], case_id="x")[0].case_id == "x"
    assert cases_from_input(tmp_path / "a_T1.nii.gz", modalities=["T1"])[0].case_id == "a_T1"


def test_a_folder_for_prediction_holds_files_or_folders_of_cases(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a_1_FLAIR.nii.gz",
        "a_1_post_T1.nii",
        "a_1_T1.nii",
        "a_1_brain_mask.nii",
        "notes.txt",
        "x_mask.nii",
    )
    touch(tmp_path, "p2/FLAIR.nii", "p2/T1.nii.gz", "p2/post_T1.nii.gz", "p2/other.nii")
    first, second = cases_from_input(tmp_path, modalities=["FLAIR", "T1", "post_T1"])
    assert [path.name for path in first.images.values()] == [
        "a_1_FLAIR.nii.gz",
        "a_1_T1.nii",
        "a_1_post_T1.nii",
    ]
    assert (first.case_id, first.brain_mask) == ("a_1", tmp_path / "a_1_brain_mask.nii")
    assert (second.case_id, second.images["T1"]) == ("p2", tmp_path / "p2" / "T1.nii.gz")
    assert ids(cases_from_input(str(tmp_path), modalities=["FLAIR"], case_id="p2")) == ["p2"]


def test_a_manifest_serves_for_prediction(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii")
    assert ids(cases_from_input(manifest(tmp_path, HEADER, "a,s,a.nii,"), modalities=FLAIR)) == [
        "a"
    ]


@pytest.mark.parametrize(
    ("input", "message"),
    [
        ({"FLAIR": "a.nii"}, "input: no file for modality T1"),
        (
            {"FLAIR": "a.nii", "T1": "a.nii", "PD": "a.nii"},
            "input: PD is no modality of this network",
        ),
        ({"FLAIR": "a.nii", "T1": "none.nii"}, "none.nii: no such file"),
        ("a.nii", "one image; expected one for each of FLAIR, T1"),
        ("nowhere", "nowhere: no such file or folder"),
        ("empty", "no image found; expected <case_id>_FLAIR.nii.gz"),
        ("partial", "case a has no T1; expected a_T1.nii.gz"),
        ("twice", "a second FLAIR of case a"),
    ],
)
def test_faults_of_an_input_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, input: object, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    touch(
        tmp_path,
        "a.nii",
        "empty/x.txt",
        "partial/a_FLAIR.nii",
        "twice/a_FLAIR.nii",
        "twice/a/FLAIR.nii",
    )
    with pytest.raises(DataError, match=message):
        cases_from_input(input, modalities=["FLAIR", "T1"])


def test_a_case_id_that_is_unsafe_or_unknown_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a_FLAIR.nii")
    with pytest.raises(DataError, match=r"case_id: '\.\./x'"):
        cases_from_input({"FLAIR": tmp_path / "a_FLAIR.nii"}, modalities=FLAIR, case_id="../x")
    with pytest.raises(DataError, match="case_id: 'b' is not in"):
        cases_from_input(tmp_path, modalities=FLAIR, case_id="b")


def test_incomplete_cases_of_a_download_are_left_out_and_listed_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = {"FLAIR": Path("f.nii"), "T1": Path("t.nii")}
    label = (Path("l.nii"),)
    found = [
        Case("whole", "1", images, label),
        Case("mask_only", "2", {}, label),
        Case("no_t1", "3", {"FLAIR": Path("f.nii")}, label),
        Case("no_label", "4", images),
        Case("official_test", "5", images, split="test"),
    ]
    dataset = Dataset(modalities=("T1", "FLAIR"), root=tmp_path, importer=lambda root: found)
    with caplog.at_level(logging.WARNING):
        cases = find_cases(dataset)
    assert ids(cases) == ["whole", "official_test"]
    assert list(cases[0].images) == ["T1", "FLAIR"]
    assert [record.message for record in caplog.records] == [
        "3 of 5 cases are incomplete and left out (no T1, FLAIR: mask_only; no T1: no_t1; no label: no_label)"
    ]


def test_a_download_without_a_complete_case_is_refused(tmp_path: Path) -> None:
    for found, message in [
        ([], "no case found"),
        ([Case("a", "1", {}, ())], "no case is complete, a has no FLAIR, label"),
    ]:
        with pytest.raises(DataError, match=message):
            find_cases(
                Dataset(modalities=FLAIR, root=tmp_path, importer=lambda root, found=found: found)
            )


def test_a_dataset_takes_what_yaml_gives(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii")
    path = str(manifest(tmp_path, HEADER, "a,s,a.nii,"))
    dataset = Dataset(
        modalities=["FLAIR"],
        classes={"liver": [1, 2], "tumour": 2},
        manifest=path,
        spacing_mm=[1, 1, 3],
    )
    assert dataset.modalities == ("FLAIR",)
    assert dataset.classes == {"liver": (1, 2), "tumour": (2,)}
    assert dataset.spacing_mm == (1.0, 1.0, 3.0)
    assert ids(find_cases(dataset)) == ["a"]
    assert Dataset(modalities=None, classes=None, manifest=path).classes == {"lesion": (1,)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "data.manifest: none given"),
        ({"importer": list}, "data.root: none given"),
        ({"modalities": "FLAIR"}, r"data.modalities: 'FLAIR'; expected a list"),
        ({"modalities": ["FLAIR", "FLAIR"]}, "expected each name once"),
        ({"modalities": ["label"]}, "column with another meaning"),
        ({"modalities": ["a/b"]}, "data.modalities: 'a/b'"),
        ({"classes": {}}, "data.classes: {}"),
        ({"classes": {"lesion": [0]}}, r"data.classes.lesion: \[0\]"),
        ({"classes": {"lesion": [0.5]}}, r"data.classes.lesion: \[0.5\]"),
        ({"classes": {"lesion": []}}, r"data.classes.lesion: \[\]"),
        ({"classes": {"a/b": [1]}}, "data.classes: 'a/b'"),
        ({"spacing_mm": [1, 1]}, r"data.spacing_mm: \[1, 1\]"),
        ({"spacing_mm": [1, 1, 0]}, r"data.spacing_mm: \[1, 1, 0\]"),
        ({"folds": 1}, "data.folds: 1"),
        ({"fold": -1}, "data.fold: -1"),
        ({"val_fraction": 1}, "data.val_fraction: 1"),
        (
            {"normalization": "zscores"},
            "data.normalization: 'zscores'; expected one of zscore, robust, percentile",
        ),
    ],
)
def test_settings_out_of_range_are_refused_with_the_value(settings: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Dataset(**{"manifest": None if not settings else "cases.csv", **settings})
