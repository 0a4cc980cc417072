"""Manifests from files: patterns, guesses, ids, and what is ambiguous, missing or passed over."""

import csv
import os
import sys
from pathlib import Path

import pytest

from helpers.cohorts import touch
from tversky_seg.data import DataError, make_manifest, read_manifest
from tversky_seg.data.discovery.draft import Draft
from tversky_seg.data.discovery.vocabulary import read_stem


def ids(draft: Draft) -> list[str]:
    return [case.case_id for case in draft.cases]


def files(draft: Draft, root: Path) -> dict[str, dict[str, str]]:
    """Case id -> column -> file below `root`."""
    found: dict[str, dict[str, str]] = {}
    for case in draft.cases:
        columns = {name: str(path.relative_to(root)) for name, path in case.images.items()}
        if case.label is not None:
            columns["label"] = str(case.label.relative_to(root))
        found[case.case_id] = columns
    return found


@pytest.fixture
def sessions(tmp_path: Path) -> Path:
    """Two subjects, one with two sessions, one session without a label."""
    touch(
        tmp_path,
        "raw/P1/a/P1_FLAIR.nii.gz",
        "raw/P1/a/P1_lesion_mask.NII",
        "raw/P1/b/P1_flair.nii",
        "raw/P1/b/P1_lesion_mask.nii.gz",
        "raw/P1/brain.nii.gz",
        "raw/P 2/a/x_FLAIR_x.nii.gz",
        "raw/P 2/a/notes.txt",
    )
    return tmp_path / "raw"


def patterns(raw: Path, **more: str) -> dict[str, str]:
    """Patterns of FLAIR and label by subject and session."""
    here = f"{raw}/{{subject}}/{{session}}"
    return {"FLAIR": f"{here}/*flair*.nii*", "label": f"{here}/*mask*"} | more


def test_files_whose_named_parts_agree_are_one_case(sessions: Path) -> None:
    draft = make_manifest(patterns(sessions))
    assert files(draft, sessions) == {
        "P 2_a": {"FLAIR": "P 2/a/x_FLAIR_x.nii.gz"},
        "P1_a": {"FLAIR": "P1/a/P1_FLAIR.nii.gz", "label": "P1/a/P1_lesion_mask.NII"},
        "P1_b": {"FLAIR": "P1/b/P1_flair.nii", "label": "P1/b/P1_lesion_mask.nii.gz"},
    }
    assert [(case.subject_id, case.session) for case in draft.cases] == [
        ("P 2", "a"),
        ("P1", "a"),
        ("P1", "b"),
    ]
    assert draft.without_label == ["P 2_a"]
    assert [path.name for path in draft.search.unmatched] == ["brain.nii.gz"]


def test_a_pattern_with_fewer_names_serves_all_cases_that_agree(sessions: Path) -> None:
    draft = make_manifest(patterns(sessions, brain_mask=f"{sessions}/{{subject}}/brain*"))
    masks = [case.brain_mask for case in draft.cases]
    assert masks == [None, sessions / "P1/brain.nii.gz", sessions / "P1/brain.nii.gz"]


def test_two_files_for_one_cell_are_named_and_none_is_taken(sessions: Path) -> None:
    touch(sessions, "P1/a/P1_FLAIR.nii")
    draft = make_manifest(patterns(sessions))
    assert ids(draft) == ["P 2_a", "P1_b"]
    (one,) = draft.ambiguous
    assert (one.case_id, one.column) == ("P1_a", "FLAIR")
    assert [path.name for path in one.files] == ["P1_FLAIR.nii", "P1_FLAIR.nii.gz"]


def test_a_file_that_suits_two_columns_goes_to_the_more_special(tmp_path: Path) -> None:
    touch(tmp_path, *(f"1/{name}.nii" for name in ("T1_flair", "T1_T1", "T1_flair_mask")))
    here = f"{tmp_path}/{{subject}}"
    given = {"FLAIR": f"{here}/*flair*", "T1": f"{here}/*t1*", "label": f"{here}/*mask*"}
    draft = make_manifest(given)
    assert files(draft, tmp_path)["1"] == {
        "FLAIR": "1/T1_flair.nii",
        "T1": "1/T1_T1.nii",
        "label": "1/T1_flair_mask.nii",
    }
    assert "taken for FLAIR, whose pattern is narrower (1 more of this kind)" in draft.notes[0]
    (tmp_path / "1" / "T1_flair.nii").unlink()
    touch(tmp_path, "2/flair.nii")
    draft = make_manifest({"FLAIR": f"{here}/*flair*", "label": f"{here}/*mask*"})
    (one,) = draft.ambiguous
    assert (one.case_id, one.column) == ("1", "FLAIR and label")


def test_a_mask_of_one_case_is_no_image_of_another(tmp_path: Path) -> None:
    touch(tmp_path, "A.nii", "A_label.nii", "B.nii")
    here = f"{tmp_path}/{{subject}}"
    draft = make_manifest({"T1": f"{here}.nii", "label": f"{here}_label*"})
    assert files(draft, tmp_path) == {
        "A": {"T1": "A.nii", "label": "A_label.nii"},
        "B": {"T1": "B.nii"},
    }


def test_two_names_of_one_file_are_not_ambiguous(sessions: Path) -> None:
    (sessions / "P1/a/latest_flair.nii.gz").symlink_to(sessions / "P1/a/P1_FLAIR.nii.gz")
    assert not make_manifest(patterns(sessions)).ambiguous


def test_hidden_files_results_broken_links_and_other_formats_are_said(sessions: Path) -> None:
    touch(
        sessions,
        "P1/a/._P1_FLAIR.nii.gz",
        "P3/a/flair.mgz",
        "derivatives/P1/a/x_flair.nii.gz",
        ".git/P9/a/flair.nii.gz",
    )
    (sessions / "P4").mkdir()
    (sessions / "P4" / "flair.nii.gz").symlink_to(sessions / "nowhere.nii.gz")
    (sessions / "P4" / "loop").symlink_to(sessions)
    draft = make_manifest(patterns(sessions))
    assert len(draft.cases) == 3
    skipped = {reason.split(",")[0]: len(paths) for reason, paths in draft.search.skipped.items()}
    assert skipped == {
        "hidden": 1,
        "folders of results": 1,
        "links to files that are not here": 1,
        "in another format": 1,
    }
    named = make_manifest({"FLAIR": f"{sessions}/derivatives/{{subject}}/*/*flair*"})
    assert ids(named) == ["P1"], "a pattern that names the folder searches it"


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode there")
def test_a_name_in_another_encoding_is_one_line(tmp_path: Path) -> None:
    touch(tmp_path, "raw/" + os.fsdecode(b"lat\xe9in") + "/flair.nii.gz")
    with pytest.raises(DataError, match=r"lat\\udce9in.*UTF-8; rename"):
        make_manifest({"FLAIR": f"{tmp_path}/raw/{{subject}}/flair.nii.gz"}, tmp_path / "m.csv")
    assert not (tmp_path / "m.csv").exists()


def test_a_subject_of_two_sites_is_two_people(tmp_path: Path) -> None:
    touch(tmp_path, "A/01/f.nii", "B/01/f.nii", "B/02/f.nii")
    draft = make_manifest({"FLAIR": f"{tmp_path}/{{site}}/{{subject}}/f.nii"})
    assert ids(draft) == ["A_01", "B_01", "B_02"]
    assert [case.subject_id for case in draft.cases] == ["A_01", "B_01", "B_02"]
    assert [case.site for case in draft.cases] == ["A", "B", "B"]
    assert "different people" in draft.notes[0]


def test_other_names_are_metadata_and_part_of_ids_that_would_be_equal(tmp_path: Path) -> None:
    touch(tmp_path, "S1_r1_FLAIR.nii", "S1_r2_FLAIR.nii", "e\u0301 #2_r1_FLAIR.nii")
    draft = make_manifest(
        {"FLAIR": f"{tmp_path}/{{subject}}_r{{run}}_FLAIR.nii"}, tmp_path / "m" / "my.csv"
    )
    assert ids(draft) == ["S1_1", "S1_2", "é _2_1"]
    with (tmp_path / "m" / "my.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["1", "2", "1"]
    cases = read_manifest(tmp_path / "m" / "my.csv")
    assert [case.subject_id for case in cases] == ["S1", "S1", "é #2"]


def test_a_manifest_is_never_replaced_by_another(sessions: Path, tmp_path: Path) -> None:
    output = tmp_path / "my.csv"
    make_manifest(patterns(sessions), output)
    before = output.read_text()
    assert ",raw/P1/a/P1_FLAIR.nii.gz," in before
    make_manifest(patterns(sessions), output)
    touch(sessions, "P5/a/flair.nii")
    with pytest.raises(DataError, match="exists and differs; choose another output="):
        make_manifest(patterns(sessions), output)
    assert output.read_text() == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mask": "{subject}.nii"}, "mask: would be an image to train on; did you mean label="),
        ({"site": "{subject}.nii"}, "site: is a column without files; write {site} in the pattern"),
        ({"label": "{subject}.nii"}, "no pattern of images; add one"),
        ({"FLAIR": "*.nii"}, r"FLAIR=.*\*\.nii: no {subject}; write the part"),
        ({"FLAIR": "{subject}*.nii"}, r"nobody knows where one ends in {subject}\*; put"),
        ({"FLAIR": "{subject}/{a,b}.nii"}, "{a,b} in a pattern; expected a name in braces"),
        ({"FLAIR": "{subject}.nii", "label": "{run}.nii"}, "has {run}, which is not in"),
        ({"FLAIR": "no/{subject}.nii"}, "no such folder; FLAIR is looked for there"),
        ({"FLAIR": "{subject}.mgz"}, r"FLAIR=.*matches no image in .*there are 1, as P1\.nii"),
        ({"FLAIR": "{subject}_{label}.nii"}, "{label} is a column of files"),
    ],
)
def test_faults_of_patterns_are_one_line(
    tmp_path: Path, given: dict[str, str], message: str
) -> None:
    touch(tmp_path, "P1.nii")
    with pytest.raises(DataError, match=message):
        make_manifest({column: f"{tmp_path}/{text}" for column, text in given.items()})


@pytest.mark.parametrize(
    ("stem", "column", "prefix"),
    [
        ("sub01_T1_seg", "label", "sub01_T1"),
        ("P14_T2_FLAIR", "FLAIR", "P14_T2"),
        ("105_T1_to_FLAIR", "T1", "105"),
        ("T1POST_N4_regtoFLAIR_brain", "T1C", ""),
        ("GOLD_STANDARD_regtoMNI", "label", ""),
        ("105_FLAIR_brain_mask", "brain_mask", "105"),
        ("105_abWMHmask", "label", "105"),
        ("hippocampus_190", None, "hippocampus_190"),
    ],
)
def test_names_of_files_tell_their_column(stem: str, column: str | None, prefix: str) -> None:
    assert read_stem(stem) == (column, prefix)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (  # flat, three ways of naming
            ["s1_T1.nii", "s1_T1_seg.nii", "s2_T1.nii.gz", "s2_mask.nii"],
            {"s1": ("s1_T1.nii", "s1_T1_seg.nii"), "s2": ("s2_T1.nii.gz", "s2_mask.nii")},
        ),
        (  # a folder for each subject, files named alike
            ["x/7/t1w_brain.nii", "x/7/tumour_mask.nii", "x/9/t1w_brain.nii", "x/9/seg.nii"],
            {
                "7": ("x/7/t1w_brain.nii", "x/7/tumour_mask.nii"),
                "9": ("x/9/t1w_brain.nii", "x/9/seg.nii"),
            },
        ),
        (  # files and a folder side by side
            ["s1_T1.nii", "s1_seg.nii", "9/T1.nii", "9/hippo_mask.nii"],
            {"9": ("9/T1.nii", "9/hippo_mask.nii"), "s1": ("s1_T1.nii", "s1_seg.nii")},
        ),
        (  # Decathlon
            ["imagesTr/h_1.nii", "labelsTr/h_1.nii", "imagesTr/h_2.nii", "labelsTr/h_2.nii"],
            {
                "h_1": ("imagesTr/h_1.nii", "labelsTr/h_1.nii"),
                "h_2": ("imagesTr/h_2.nii", "labelsTr/h_2.nii"),
            },
        ),
        (  # nnU-Net
            ["imagesTr/h_1_0000.nii", "labelsTr/h_1.nii", "imagesTr/h_2_0000.nii"],
            {"h_1": ("imagesTr/h_1_0000.nii", "labelsTr/h_1.nii")},
        ),
        (  # BIDS with masks beside the images
            ["sub-1/ses-1/anat/sub-1_ses-1_FLAIR.nii", "sub-1/ses-2/anat/sub-1_ses-2_FLAIR.nii"],
            {
                "sub-1_ses-1": ("sub-1/ses-1/anat/sub-1_ses-1_FLAIR.nii",),
                "sub-1_ses-2": ("sub-1/ses-2/anat/sub-1_ses-2_FLAIR.nii",),
            },
        ),
        (  # unknown modality, known by its label
            ["HC-5.nii", "HC-5_label.nii", "HC-6.nii"],
            {"HC-5": ("HC-5.nii", "HC-5_label.nii"), "HC-6": ("HC-6.nii",)},
        ),
    ],
)
def test_columns_and_cases_of_usual_layouts_are_guessed(
    tmp_path: Path, names: list[str], expected: dict[str, tuple[str, ...]]
) -> None:
    touch(tmp_path, *names)
    found = files(make_manifest(tmp_path), tmp_path)
    for case_id, wanted in expected.items():
        assert tuple(found[case_id].values()) == wanted


def test_split_folders_become_the_split(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/FLAIR.nii", "train/b/FLAIR.nii", "test/c/FLAIR.nii")
    draft = make_manifest(tmp_path)
    splits = {case.case_id: case.split for case in draft.cases}
    assert splits == {"a": "train", "b": "train", "c": "test"}


def test_a_pattern_decides_where_a_guess_is_ambiguous(tmp_path: Path) -> None:
    for number in (1, 2):
        touch(tmp_path, *(f"{number}/{number}_{n}.nii" for n in ("FLAIR", "T1", "aMASK", "bMASK")))
    guess = make_manifest(tmp_path)
    assert not guess.cases
    assert guess.search.sources["label"] == ["*_aMASK.nii*", "*_bMASK.nii*"]
    with pytest.raises(DataError, match=r"choose by a pattern, as 'label=\*_aMASK\.nii\*'"):
        make_manifest(tmp_path, tmp_path / "my.csv")
    draft = make_manifest(tmp_path, names={"label": "*_bmask.nii*", "T1": ""})
    assert files(draft, tmp_path)["1"] == {"FLAIR": "1/1_FLAIR.nii", "label": "1/1_bMASK.nii"}


def test_subjects_that_may_be_one_person_are_named(tmp_path: Path) -> None:
    touch(tmp_path, *(f"image/L-{n}.nii" for n in ("001_R_1", "001_R_2", "002_R_1")))
    assert "are L-001_R_1 and L-001_R_2 one person?" in make_manifest(tmp_path).notes[0]
