"""The data config: its checks, and the cases that it lists."""

import logging
from pathlib import Path

import pytest

from helpers.cohorts import HEADER, case_ids, manifest_of_lines, touch
from tversky_seg.data.case import Case
from tversky_seg.data.dataset import Dataset, find_cases
from tversky_seg.data.errors import DataError

FLAIR = ("FLAIR",)


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
    assert case_ids(cases) == ["whole", "official_test"]
    assert list(cases[0].images) == ["T1", "FLAIR"]
    (record,) = caplog.records
    message = record.getMessage()
    assert "3 of 5" in message
    for part in ("no T1, FLAIR: mask_only", "no T1: no_t1", "no label: no_label"):
        assert part in message


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
    path = str(manifest_of_lines(tmp_path, HEADER, "a,s,a.nii,"))
    dataset = Dataset(
        modalities=["FLAIR"],
        classes={"liver": [1, 2], "tumour": 2},
        manifest=path,
        spacing_mm=[1, 1, 3],
    )
    assert dataset.modalities == ("FLAIR",)
    assert dataset.classes == {"liver": (1, 2), "tumour": (2,)}
    assert dataset.spacing_mm == (1.0, 1.0, 3.0)
    assert case_ids(find_cases(dataset)) == ["a"]
    assert Dataset(modalities=None, classes=None, manifest=path).classes == {"lesion": (1,)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "data.manifest: "),
        ({"importer": list}, "data.root: "),
        ({"modalities": "FLAIR"}, r"data.modalities: 'FLAIR'"),
        ({"modalities": ["FLAIR", "FLAIR"]}, "data.modalities.*FLAIR"),
        ({"modalities": ["label"]}, "data.modalities: 'label'"),
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
            "data.normalization: 'zscores'",
        ),
    ],
)
def test_settings_out_of_range_are_refused_with_the_value(settings: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Dataset(**{"manifest": None if not settings else "cases.csv", **settings})
