"""Names of cases, and what holds between the cases of a cohort."""

import unicodedata

import pytest

from helpers.cohorts import case_ids, case_without_files, manifest_of_lines, touch
from tversky_seg.data.case import check_case_id, check_cases
from tversky_seg.data.errors import DataError
from tversky_seg.data.inputs import find_inputs
from tversky_seg.data.manifest import read_manifest

NFC = unicodedata.normalize("NFC", "José")
NFD = unicodedata.normalize("NFD", "José")  # as macOS writes file names


@pytest.mark.parametrize(
    "name", [NFC, NFD, "रोगी1", "ผู้ป่วย", "患者1", "Müller_1", "a.b", "sub-01_ses-2", "c" * 128]
)
def test_letters_of_any_script_are_names(name: str) -> None:
    check_case_id(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", "letters"),
        (".a", "letters"),
        ("a/b", "letters"),
        ("a.", "letters"),
        ("a\n", "letters"),
        ("\u0301a", "letters"),  # a mark on nothing
        ("a\u202eb", "letters"),  # turns the reading direction
        ("c" * 129, "128"),
        ("患" * 100, "200 bytes"),  # with _probability.nii.gz longer than a file name may be
    ],
)
def test_unsafe_names_are_refused_with_the_rule_they_break(name: str, expected: str) -> None:
    with pytest.raises(DataError) as error:
        check_case_id(name)
    assert expected in error.value.expected


def test_one_name_in_two_normal_forms_is_a_duplicate() -> None:
    cases = [case_without_files(i) for i in range(2)]
    for case, name in zip(cases, (NFC, NFD), strict=True):
        object.__setattr__(case, "case_id", name)
    with pytest.raises(DataError, match="duplicate"):
        check_cases(cases, source="data")


def test_names_in_a_folder_and_in_a_manifest_have_one_form(tmp_path) -> None:
    touch(tmp_path, f"{NFD}_FLAIR.nii", "files/a.nii")
    (case,) = find_inputs(tmp_path, modalities=["FLAIR"])
    assert case.case_id == NFC
    assert case.images["FLAIR"].is_file()
    (case,) = find_inputs(tmp_path / f"{NFD}_FLAIR.nii", modalities=["FLAIR"])
    assert case.case_id == f"{NFC}_FLAIR"
    header = f"case_id,subject_id,{NFD},label"
    manifest = manifest_of_lines(tmp_path, header, f"{NFD},{NFD},files/a.nii,")
    assert case_ids(read_manifest(manifest, modalities=[NFC])) == [NFC]
    assert case_ids(find_inputs(manifest, modalities=[NFC], case_id=NFD)) == [NFC]


def test_a_file_is_found_in_either_normal_form(tmp_path) -> None:
    touch(tmp_path, f"{NFD}.nii")
    manifest = manifest_of_lines(tmp_path, "case_id,subject_id,FLAIR,label", f"a,a,{NFC}.nii,")
    (case,) = read_manifest(manifest)
    assert case.images["FLAIR"].is_file()
