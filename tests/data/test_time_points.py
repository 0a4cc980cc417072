"""Which examinations of a subject belong together, and the cases and labels made of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.cohorts import AFFINE, SHAPE, add_case, case_without_files, save, write_rows
from tversky_seg.data.dataset import Dataset, find_cases
from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import read_label
from tversky_seg.data.time_points import pairs_of, with_pair_labels
from tversky_seg.data_check.pair_findings import pair_findings


def names(*cases: object) -> list[tuple[str, str]]:
    return [(before.case_id, after.case_id) for before, after in pairs_of(cases)]


def test_sessions_follow_each_other_by_number() -> None:
    cases = [
        case_without_files(number, subject="s", session=session)
        for number, session in enumerate(["m10", "m2", "m1"])
    ]
    assert names(*cases) == [("c2", "c1"), ("c1", "c0")]
    assert names(case_without_files(0, session="1"), case_without_files(1, session="2")) == []


def test_a_baseline_goes_before_the_session() -> None:
    cases = [
        case_without_files(0, subject="s", session="1"),
        case_without_files(1, subject="s", session="2"),
        case_without_files(2, subject="s", session="3", baseline="c0"),
    ]
    assert names(*cases) == [("c0", "c1"), ("c0", "c2")]
    assert names(*cases[1:]) == []  # the baseline is not among them


def two_examinations(folder: Path, **columns: str) -> Path:
    """Two examinations of subject s, and one of another."""
    rows = [add_case(folder, case_id, seed=seed) for seed, case_id in enumerate("abc")]
    rows[0]["subject_id"] = rows[1]["subject_id"] = "s"
    for row in rows:
        row["baseline"] = ""
    rows[1]["baseline"] = "a"
    return write_rows(folder / "cases.csv", rows)


def test_modalities_with_a_time_make_pairs_of_the_baseline_column(tmp_path: Path) -> None:
    manifest = two_examinations(tmp_path)
    settings = {"manifest": manifest, "cache_dir": tmp_path / "cache"}
    (pair,) = find_cases(Dataset(modalities=("FLAIR@2", "FLAIR@1", "T1@2"), **settings))
    assert (pair.case_id, pair.subject_id, pair.baseline) == ("b", "s", None)
    assert {name: path.name for name, path in pair.images.items()} == {
        "FLAIR@2": "b_FLAIR.nii.gz",
        "FLAIR@1": "a_FLAIR.nii.gz",
        "T1@2": "b_T1.nii.gz",
    }
    assert [path.name for path in pair.labels_at] == ["a_label.nii.gz", "b_label.nii.gz"]
    assert pair.label.parent == tmp_path / "cache" / "pair_labels"
    # Without a time the examinations stay cases of their own.
    assert len(find_cases(Dataset(modalities=("FLAIR",), **settings))) == 3


def test_the_label_of_a_pair_is_new_lesions_or_both_times(tmp_path: Path) -> None:
    before, after = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    before[3:6, 5, 5] = before[15, 15, 15] = 1
    after[5:9, 5, 5] = after[10, 10, 10] = 1
    masks = (save(tmp_path / "1.nii.gz", before), save(tmp_path / "2.nii.gz", after))
    own = save(tmp_path / "own.nii.gz", after)
    case = replace(case_without_files(0, label=False), labels_at=masks)
    (new,) = with_pair_labels([case], pair_label=None, cache_dir=tmp_path)
    expected = np.zeros(SHAPE)
    expected[10, 10, 10] = 1
    assert (read_label(new.label).data == expected).all()
    (both,) = with_pair_labels([case], pair_label="both", cache_dir=tmp_path)
    label = read_label(both.label)
    assert (label.data == before + 2 * after).all()
    assert (label.affine == AFFINE).all()
    # A label of its own counts, unless another is asked for.
    labelled = replace(case, labels=(own,))
    (kept,) = with_pair_labels([labelled], pair_label=None, cache_dir=tmp_path)
    assert kept.label == own
    (made,) = with_pair_labels([labelled], pair_label="new", cache_dir=tmp_path)
    assert made.label == new.label


def test_both_times_are_two_classes_and_other_words_are_refused(tmp_path: Path) -> None:
    dataset = Dataset(manifest=tmp_path / "x.csv", pair_label="both")
    assert dataset.classes == {"baseline": (1, 3), "follow_up": (2, 3)}
    with pytest.raises(DataError, match=r"data\.pair_label: 'old'; expected null, new or both"):
        Dataset(manifest=tmp_path / "x.csv", pair_label="old")


def test_the_data_check_warns_of_pairs_that_do_not_lie_on_each_other(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = np.kron(rng.normal(300, 60, (6, 7, 6)), np.ones((4, 4, 4))).astype(np.float32)
    moved = AFFINE.copy()
    moved[1, 3] = 8
    paths = (save(tmp_path / "1.nii.gz", image), save(tmp_path / "2.nii.gz", image, moved))
    case = replace(case_without_files(0), images={"FLAIR@2": paths[0], "FLAIR@1": paths[1]})
    (finding,) = pair_findings([case])
    assert finding.level == "warning"
    assert finding.where == str(paths[1])
    right = replace(case, images={"FLAIR@2": paths[0], "FLAIR@1": paths[0]})
    assert list(pair_findings([right])) == []
    apart = [
        replace(case, case_id="a", images={"FLAIR": paths[1]}),
        replace(case, case_id="b", images={"FLAIR": paths[0]}, baseline="a"),
    ]
    assert [finding.case_id for finding in pair_findings(apart)] == ["b"]
