"""The CSV of a cohort: what is read, what is written, and each fault in one line."""

import pickle
from pathlib import Path

import pytest

from helpers.cohorts import HEADER, manifest_of_lines, touch
from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.manifest import read_manifest, write_manifest

FLAIR = ("FLAIR",)


def test_a_manifest_is_read_with_paths_relative_to_itself(tmp_path: Path) -> None:
    touch(tmp_path, "a/flair.nii", "a/t1.nii", "a/label.nii", "a/second.nii", "a/brain.nii")
    path = manifest_of_lines(
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
    path = manifest_of_lines(tmp_path, start + "\r\n".join(lines).replace(",", delimiter))
    (case,) = read_manifest(path)
    assert (case.case_id, case.label, list(case.images)) == ("a", None, ["FLAIR"])


def test_the_first_line_of_excel_is_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii")
    path = manifest_of_lines(tmp_path, "sep=;\ncase_id;subject_id;FLAIR\na;s1;a.nii\n")
    assert [case.case_id for case in read_manifest(path)] == ["a"]
    path = manifest_of_lines(tmp_path, "sep=;\ncase_id;subject_id;FLAIR\na;s1\n")
    with pytest.raises(DataError, match="line 3"):
        read_manifest(path)


def test_two_time_points_are_columns_and_the_later_one_comes_first(tmp_path: Path) -> None:
    touch(tmp_path, "f1.nii", "f2.nii", "t1.nii", "t2.nii", "m1.nii", "m2.nii")
    path = manifest_of_lines(
        tmp_path,
        "case_id,subject_id,FLAIR@1,FLAIR@2,T1@1,T1@2,label@1,label@2",
        "p,s,f1.nii,f2.nii,t1.nii,t2.nii,m1.nii,m2.nii",
    )
    (case,) = read_manifest(path)
    assert list(case.images) == ["FLAIR@2", "T1@2", "FLAIR@1", "T1@1"]
    assert case.labels_at == (tmp_path / "m1.nii", tmp_path / "m2.nii")
    assert not case.labels
    write_manifest([case], tmp_path / "again.csv")
    assert read_manifest(tmp_path / "again.csv") == [case]


def test_a_mask_of_one_time_point_alone_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "f1.nii", "f2.nii", "m1.nii")
    path = manifest_of_lines(
        tmp_path, "case_id,subject_id,FLAIR@1,FLAIR@2,label@1", "p,s,f1.nii,f2.nii,m1.nii"
    )
    with pytest.raises(DataError, match="line 2: a mask of one time point; fill label@1 and"):
        read_manifest(path)


def test_the_column_ignore_mask_names_files(tmp_path: Path) -> None:
    touch(tmp_path, "1.nii", "label.nii", "brain.nii", "ignore.nii")
    columns = "case_id,subject_id,FLAIR,label,brain_mask,ignore_mask"
    path = manifest_of_lines(tmp_path, columns, "a,s,1.nii,label.nii,brain.nii,ignore.nii")
    (case,) = read_manifest(path)
    assert case.brain_mask == tmp_path / "brain.nii"
    assert case.ignore_mask == tmp_path / "ignore.nii"
    (tmp_path / "ignore.nii").unlink()
    with pytest.raises(DataError, match=r"ignore\.nii: no such file"):
        read_manifest(path)


@pytest.mark.parametrize("last", ["a", "b"], ids=["of three", "of two, and one that leads there"])
def test_baselines_in_a_ring_are_refused_once(tmp_path: Path, last: str) -> None:
    touch(tmp_path, "1.nii")
    lines = ["case_id,subject_id,FLAIR,baseline", "a,s,1.nii,b", "b,s,1.nii,c"]
    with pytest.raises(DataError, match="baselines in a ring") as caught:
        read_manifest(manifest_of_lines(tmp_path, *lines, f"c,s,1.nii,{last}"))
    assert "others" not in str(caught.value)


@pytest.mark.parametrize("baseline", ["b", "c", "d"], ids=["itself", "another subject", "none"])
def test_a_baseline_is_another_case_of_the_subject(tmp_path: Path, baseline: str) -> None:
    touch(tmp_path, "1.nii", "2.nii", "3.nii")
    lines = ["case_id,subject_id,FLAIR,baseline", "a,s,1.nii,", "b,s,2.nii,a", "c,t,3.nii,"]
    cases = read_manifest(manifest_of_lines(tmp_path, *lines))
    assert [case.baseline for case in cases] == [None, "a", None]
    lines[2] = f"b,s,2.nii,{baseline}"
    with pytest.raises(DataError, match=f"case b has baseline '{baseline}'; expected the case_id"):
        read_manifest(manifest_of_lines(tmp_path, *lines))


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


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "cases.csv"),
        ([HEADER], "cases.csv"),
        (["case_id,FLAIR,label", "a,a.nii,"], "subject_id"),
        (
            ["case_id,subject_id,T1,label", "a,s,a.nii,"],
            "FLAIR among case_id, subject_id, T1, label",
        ),
        (["case_id,subject_id,FLAIR,Label", "a,s,a.nii,"], "'label'"),
        (["case_id,subject_id,FLAIR,FLAIR", "a,s,a.nii,a.nii"], "column FLAIR"),
        ([HEADER, "a,s,,"], "line 2: empty cell for FLAIR"),
        ([HEADER, "", ",s,a.nii,"], "line 3: empty cell for case_id"),
        ([HEADER, "a,s,missing.nii,"], "missing.nii: no such file"),
        ([HEADER, "a,s,a.nii,missing.nii"], "missing.nii: no such file"),
        ([HEADER, "a,s,a.nii,", "a,s,a.nii,"], "duplicate case_id 'a'"),
        (
            [HEADER, "a,s,a.nii,", "A,s,a.nii,"],
            "duplicate case_id 'A' (the same file as 'a'",
        ),
        ([HEADER, "../a,s,a.nii,"], "case_id '../a'"),
        ([HEADER, "a/b,s,a.nii,"], "case_id 'a/b'"),
        ([HEADER, ".a,s,a.nii,"], "case_id '.a'"),
        ([HEADER, "a,s,a.nii,,extra"], "line 2: 5 cells"),
        (
            [HEADER + ",split", "a,s,a.nii,,training"],
            "split 'training'",
        ),
        ([HEADER + ",fold", "a,s,a.nii,,-1"], "fold '-1'"),
        (
            [HEADER + ",split", "a,s,a.nii,,train", "b,s,a.nii,,test"],
            "subject 's' is in split test and train",
        ),
        ([HEADER + ",fold", "a,s,a.nii,,0", "b,s,a.nii,,1"], "subject 's' is in fold 0 and 1"),
        ([HEADER + ",label_2", "a,s,a.nii,,a.nii"], "line 2: label_2"),
    ],
)
def test_faults_of_a_manifest_are_one_line(tmp_path: Path, lines: list[str], message: str) -> None:
    touch(tmp_path, "a.nii")
    path = manifest_of_lines(tmp_path, *lines)
    with pytest.raises(DataError) as error:
        read_manifest(path, modalities=FLAIR)
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_several_faults_are_counted_and_kept(tmp_path: Path) -> None:
    path = manifest_of_lines(tmp_path, HEADER, "a,s,1.nii,", "b,s,2.nii,", "c,s,,")
    with pytest.raises(DataError, match="2 more") as error:
        read_manifest(path, modalities=FLAIR)
    assert len(error.value.faults) == 3
    copy = pickle.loads(pickle.dumps(error.value))
    assert list(map(str, copy.faults)) == list(map(str, error.value.faults))


def test_files_that_are_no_csv_are_named(tmp_path: Path) -> None:
    (tmp_path / "cases.xlsx").write_bytes(b"PK\x03\x04\xff\xfe\x00")
    for path, message in [
        (tmp_path / "cases.xlsx", "cases.xlsx"),
        (tmp_path / "none.csv", "none.csv"),
    ]:
        with pytest.raises(DataError, match=message):
            read_manifest(path)
    with pytest.raises(DataError, match=tmp_path.name):
        read_manifest(tmp_path)


def test_a_quoted_cell_keeps_its_line_ends(tmp_path: Path) -> None:
    touch(tmp_path, "two\nlines.nii", "a.nii")
    row = '\nc1,s1,"two\nlines.nii",Lyon\u2028Nord\n'
    path = manifest_of_lines(tmp_path, f"case_id,subject_id,FLAIR,site{row}c2,s2,a.nii,\n")
    first, second = read_manifest(path)
    assert first.images["FLAIR"] == tmp_path / "two\nlines.nii"
    assert first.site == "Lyon\u2028Nord"
    assert second.case_id == "c2"


def test_a_name_that_no_system_takes_is_a_missing_file(tmp_path: Path) -> None:
    path = manifest_of_lines(tmp_path, f"case_id,subject_id,FLAIR\nc1,s1,{'x' * 300}.nii")
    with pytest.raises(DataError, match=r"x\.nii: file name too long; .*cases\.csv names it"):
        read_manifest(path)


def test_a_name_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    path = manifest_of_lines(tmp_path, "case_id,subject_id,FLAIR\nc1,s1,\x1b[2Jé.nii")
    with pytest.raises(DataError, match=r"/\\x1b\[2Jé\.nii: no such file"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("column", "cell", "line"),
    [
        ("mask", "l.nii", "column 'mask' would be an image to train on; did you mean label?"),
        ("Lesion", "l.nii", "column 'Lesion' would be an image to train on; did you mean label?"),
    ],
)
def test_a_column_that_is_no_modality_is_named(
    tmp_path: Path, column: str, cell: str, line: str
) -> None:
    touch(tmp_path, "a.nii", "l.nii")
    path = manifest_of_lines(tmp_path, f"case_id,subject_id,FLAIR,{column}\nc,s,a.nii,{cell}")
    with pytest.raises(DataError, match=rf"cases\.csv: {line}"):
        read_manifest(path)
    assert list(read_manifest(path, modalities=FLAIR)[0].images) == ["FLAIR"]


def test_a_column_whose_cells_are_no_files_is_metadata(tmp_path: Path, caplog) -> None:
    touch(tmp_path, "a.nii", "b.nii")
    path = manifest_of_lines(
        tmp_path, "case_id,subject_id,age,FLAIR,sex,lesions", "a,a,45,a.nii,,12", "b,b,,b.nii,f,0"
    )
    with caplog.at_level("INFO", logger="tversky_seg"):
        cases = read_manifest(path)
    assert [list(case.images) for case in cases] == [["FLAIR"], ["FLAIR"]]
    assert "no files in age, sex, lesions: taken as metadata" in caplog.text


def test_a_manifest_of_metadata_alone_has_no_images(tmp_path: Path) -> None:
    path = manifest_of_lines(tmp_path, "case_id,subject_id,age", "a,a,45")
    with pytest.raises(DataError, match="column 'age' holds no images, but '45'"):
        read_manifest(path)


@pytest.mark.parametrize("cell", ["~\0", "a\0.nii"])
def test_a_zero_byte_is_named(tmp_path: Path, cell: str) -> None:
    file = tmp_path / "cases.csv"
    file.write_text(f"case_id,subject_id,FLAIR,label\n{cell},s,a.nii,b.nii\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2: a zero byte in column case_id"):
        read_manifest(file)
