"""What predict.py takes: files, folders, manifests."""

import re
from pathlib import Path

import pytest

from helpers.cohorts import HEADER, case_ids, manifest_of_lines, touch
from tversky_seg.data.errors import DataError
from tversky_seg.data.inputs import find_inputs

FLAIR = ("FLAIR",)


def test_one_case_for_prediction_is_named_by_its_first_file(tmp_path: Path) -> None:
    touch(tmp_path, "a_T1.nii.gz", "b.nii", "brain.nii")
    files = {
        "T1": tmp_path / "a_T1.nii.gz",
        "FLAIR": str(tmp_path / "b.nii"),
        "brain_mask": tmp_path / "brain.nii",
    }
    (case,) = find_inputs(files, modalities=["FLAIR", "T1"])
    assert (case.case_id, list(case.images), case.label) == ("b", ["FLAIR", "T1"], None)
    assert case.brain_mask == tmp_path / "brain.nii"
    assert find_inputs(files, modalities=["FLAIR", "T1"], case_id="x")[0].case_id == "x"
    assert find_inputs(tmp_path / "a_T1.nii.gz", modalities=["T1"])[0].case_id == "a_T1"


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
    first, second = find_inputs(tmp_path, modalities=["FLAIR", "T1", "post_T1"])
    assert [path.name for path in first.images.values()] == [
        "a_1_FLAIR.nii.gz",
        "a_1_T1.nii",
        "a_1_post_T1.nii",
    ]
    assert (first.case_id, first.brain_mask) == ("a_1", tmp_path / "a_1_brain_mask.nii")
    assert (second.case_id, second.images["T1"]) == ("p2", tmp_path / "p2" / "T1.nii.gz")
    assert case_ids(find_inputs(str(tmp_path), modalities=["FLAIR"], case_id="p2")) == ["p2"]


def test_a_manifest_serves_for_prediction(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii")
    assert case_ids(
        find_inputs(manifest_of_lines(tmp_path, HEADER, "a,s,a.nii,"), modalities=FLAIR)
    ) == ["a"]


@pytest.mark.parametrize(
    ("input", "message"),
    [
        ({"FLAIR": "a.nii"}, "input: .*T1"),
        (
            {"FLAIR": "a.nii", "T1": "a.nii", "PD": "a.nii"},
            "input: PD",
        ),
        ({"FLAIR": "a.nii", "T1": "none.nii"}, "none.nii"),
        ("a.nii", "a.nii.*FLAIR, T1"),
        ("nowhere", "nowhere"),
        ("empty", "empty.*<case_id>_FLAIR.nii.gz"),
        ("partial", "case a has no T1.*a_T1.nii.gz"),
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
        find_inputs(input, modalities=["FLAIR", "T1"])


def test_a_case_id_that_is_unsafe_or_unknown_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a_FLAIR.nii")
    with pytest.raises(DataError, match=r"case_id: '\.\./x'"):
        find_inputs({"FLAIR": tmp_path / "a_FLAIR.nii"}, modalities=FLAIR, case_id="../x")
    with pytest.raises(DataError, match="case_id: 'b' is not in"):
        find_inputs(tmp_path, modalities=FLAIR, case_id="b")


def test_endings_in_capitals_are_read(tmp_path: Path) -> None:
    for name in ("in/a_FLAIR.NII.GZ", "in/b_FLAIR.Nii"):
        touch(tmp_path, name)
    assert case_ids(find_inputs(tmp_path / "in", modalities=FLAIR)) == ["a", "b"]
    assert case_ids(find_inputs(tmp_path / "in/a_FLAIR.NII.GZ", modalities=FLAIR)) == ["a_FLAIR"]
    touch(tmp_path, "bids/sub-1/anat/sub-1_FLAIR.NII.GZ")
    assert case_ids(find_inputs(tmp_path / "bids", modalities=FLAIR)) == ["sub-1"]


@pytest.mark.parametrize("may_lack", [False, True])
@pytest.mark.parametrize(
    "name", ["b_FLAIR.nii.bz2", "b_FLAIR.hdr", "b_FLAIR.img", "b/FLAIR.mha", "b_FLAIR.MGZ"]
)
def test_an_image_of_another_format_is_refused_by_name(
    tmp_path: Path, name: str, may_lack: bool
) -> None:
    touch(tmp_path, "a_FLAIR.nii.gz", name)
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(DataError, match=re.escape(name)):
            find_inputs(source, modalities=FLAIR, may_lack=may_lack)


def test_an_image_of_another_format_beside_its_nifti_is_no_fault(tmp_path: Path) -> None:
    touch(tmp_path, "a_FLAIR.nii.gz", "a_FLAIR.mgz", "a_FLAIR.json", "a_other.mgz")
    assert case_ids(find_inputs(tmp_path, modalities=FLAIR)) == ["a"]


def test_an_image_of_another_format_in_bids_is_refused_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "sub-1/anat/sub-1_FLAIR.nii.gz", "sub-2/anat/sub-2_FLAIR.nii.bz2")
    with pytest.raises(DataError, match=r"sub-2_FLAIR\.nii\.bz2"):
        find_inputs(tmp_path, modalities=FLAIR)
