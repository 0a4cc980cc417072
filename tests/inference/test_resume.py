"""Predictions that stop, repeat, run side by side, or whose inputs change."""

import csv
import json
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from helpers.networks import FirstChannel
from helpers.oblique_cases import FLAIR, a_case
from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import read_volume
from tversky_seg.inference.predict import predict_cases
from tversky_seg.inference.settings import Inference
from tversky_seg.runtime.locks import Owner

SETTINGS = Inference(patch_size=8, threshold=0.7)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "p"


def predict(cases: list[Case], folder: Path) -> dict[str, str]:
    return predict_cases(
        FirstChannel(), cases, FLAIR, folder, inference=SETTINGS, checksum="checksum"
    )


def time_of(path: Path) -> int:
    return path.stat().st_mtime_ns


def cases_in_table(folder: Path) -> list[str]:
    """Each case of lesions.csv once, in its order."""
    with (folder / "lesions.csv").open(newline="", encoding="utf-8") as file:
        return list(dict.fromkeys(row["case_id"] for row in csv.DictReader(file)))


# Inputs that change


def test_a_case_whose_input_changed_is_predicted_again(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cases = [a_case(tmp_path, "a", seed=0), a_case(tmp_path, "b", seed=1)]
    assert predict(cases, folder) == {}
    times = {name: time_of(folder / f"{name}_mask.nii.gz") for name in "ab"}
    a_case(tmp_path, "a", shape=(17, 14, 9), seed=2)
    with caplog.at_level(logging.WARNING):
        assert predict(cases, folder) == {}
    assert "a" in caplog.text
    assert "changed" in caplog.text
    assert read_volume(folder / "a_mask.nii.gz").shape == (17, 14, 9)
    assert time_of(folder / "b_mask.nii.gz") == times["b"]
    fresh = tmp_path / "fresh"
    predict(cases, fresh)
    assert (folder / "lesions.csv").read_text() == (fresh / "lesions.csv").read_text()
    caplog.clear()
    assert predict(cases, folder) == {}
    assert not caplog.text, "the new state is remembered"


def test_a_file_of_the_same_size_with_another_time_or_place_has_changed(
    tmp_path: Path, folder: Path
) -> None:
    case = a_case(tmp_path, "a")
    predict([case], folder)
    mask = folder / "a_mask.nii.gz"
    before = time_of(mask)
    os.utime(case.images["FLAIR"], ns=(1, 1))
    predict([case], folder)
    assert time_of(mask) > before
    before = time_of(mask)
    (tmp_path / "other").mkdir()
    predict([a_case(tmp_path / "other", "a")], folder)
    assert time_of(mask) > before


# Leftovers of a stop


@pytest.mark.parametrize("kind", ["mask", "probability"])
def test_an_empty_file_is_no_prediction(tmp_path: Path, folder: Path, kind: str) -> None:
    case = a_case(tmp_path, "a")
    predict([case], folder)
    expected = read_volume(folder / f"a_{kind}.nii.gz").data
    (folder / f"a_{kind}.nii.gz").write_bytes(b"")
    assert predict([case], folder) == {}
    np.testing.assert_array_equal(read_volume(folder / f"a_{kind}.nii.gz").data, expected)


def test_a_prediction_that_was_stopped_before_its_end_is_made_again(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = a_case(tmp_path, "a")
    predict([case], tmp_path / "once")
    with monkeypatch.context() as patched:
        patched.setattr("tversky_seg.inference.case_records.CaseRecords.write", stop)
        with pytest.raises(KeyboardInterrupt):
            predict([case], folder)
    (folder / "a_mask.nii.gz").unlink()
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4)), np.eye(4)), folder / "a_mask.nii.gz")
    assert predict([case], folder) == {}
    assert read_volume(folder / "a_mask.nii.gz").shape == (20, 14, 9)
    for name in ("lesions.csv", "predictions.json"):
        assert (folder / name).read_text() == (tmp_path / "once" / name).read_text()


def test_a_damaged_record_means_that_the_case_is_predicted_again(
    tmp_path: Path, folder: Path
) -> None:
    case = a_case(tmp_path, "a")
    predict([case], folder)
    before = time_of(folder / "a_mask.nii.gz")
    damages = ["", "{}", "[]", "[" * 100_000, '{"inputs": {}, "sizes": 3, "lesions": []}']
    for damage in (*damages, '{"inputs": {}, "sizes": {}, "lesions": [1]}'):
        next((folder / ".cases").iterdir()).write_text(damage)
        assert predict([case], folder) == {}
        assert time_of(folder / "a_mask.nii.gz") > before
        before = time_of(folder / "a_mask.nii.gz")


def test_rows_of_a_case_without_a_record_stay(tmp_path: Path, folder: Path) -> None:
    predict([a_case(tmp_path, "a", seed=0)], folder)
    next((folder / ".cases").iterdir()).unlink()
    predict([a_case(tmp_path, "b", seed=1)], folder)
    assert cases_in_table(folder) == ["a", "b"]


def test_a_case_whose_files_would_be_those_of_an_earlier_one_is_refused(
    tmp_path: Path, folder: Path
) -> None:
    predict([a_case(tmp_path, "scan", seed=0)], folder)
    before = time_of(folder / "scan_mask.nii.gz")
    # On Windows and macOS capitals make no other file.
    with pytest.raises(DataError, match=r"scan.* and .*Scan would both be written"):
        predict([a_case(tmp_path, "Scan", seed=1)], folder)
    assert not (folder / "Scan_mask.nii.gz").exists()
    assert time_of(folder / "scan_mask.nii.gz") == before


def test_records_of_unknown_settings_are_not_used(tmp_path: Path, folder: Path) -> None:
    case = a_case(tmp_path, "a")
    predict([case], folder)
    before = time_of(folder / "a_mask.nii.gz")
    (folder / "predictions.json").unlink()
    predict([case], folder)
    assert time_of(folder / "a_mask.nii.gz") > before
    assert json.loads((folder / "predictions.json").read_text())["checkpoint"] == "checksum"


def stop(*arguments: object, **settings: object) -> None:
    raise KeyboardInterrupt


# Jobs side by side


def test_jobs_side_by_side_lose_no_rows(tmp_path: Path, folder: Path) -> None:
    names = [f"case{number}" for number in range(8)]
    cases = [a_case(tmp_path, name, seed=seed) for seed, name in enumerate(names)]
    with ThreadPoolExecutor(len(cases)) as pool:
        faults = list(pool.map(lambda case: predict([case], folder), cases))
    assert faults == [{}] * len(cases)
    assert sorted(cases_in_table(folder)) == names
    once = tmp_path / "once"
    predict(cases, once)
    assert sorted((folder / "lesions.csv").read_text().splitlines()) == sorted(
        (once / "lesions.csv").read_text().splitlines()
    )


def test_the_first_jobs_of_a_folder_do_not_discard_each_others_records(
    tmp_path: Path, folder: Path
) -> None:
    cases = [a_case(tmp_path, name, seed=seed) for seed, name in enumerate("ab")]
    predict(cases[:1], folder)
    with predicting_elsewhere(folder, ["a"]):
        assert predict(cases[1:], folder) == {}
    assert (folder / "a_mask.nii.gz").is_file()
    assert cases_in_table(folder) == ["a", "b"]


def test_a_case_that_another_process_predicts_is_refused(tmp_path: Path, folder: Path) -> None:
    cases = [a_case(tmp_path, name, seed=seed) for seed, name in enumerate("abc")]
    with predicting_elsewhere(folder, ["a", "b"]):
        with pytest.raises(DataError, match=rf"{folder.name}.*process 77 on node7.*b") as refusal:
            predict(cases[1:], folder)
        assert "\n" not in str(refusal.value)
        assert not (folder / "c_mask.nii.gz").exists()
        assert predict(cases[2:], folder) == {}, "other cases may be predicted meanwhile"
    assert predict(cases[1:], folder) == {}


def test_the_job_of_a_killed_process_stops_nobody_and_its_scratch_files_go(
    tmp_path: Path, folder: Path
) -> None:
    case = a_case(tmp_path, "a")
    ended = replace(Owner.this_process(), started="1")
    with predicting_elsewhere(folder, ["a"], owner=ended):
        for name in (".scratch-0123.nii.gz", ".cases/.scratch-4567.json"):
            (folder / name).write_text("half")
        assert predict([case], folder) == {}
    assert not list(folder.rglob(".scratch-*"))
    assert [path.name for path in (folder / ".cases").iterdir()] == ["a.json"]


def test_scratch_files_of_a_job_that_runs_stay(tmp_path: Path, folder: Path) -> None:
    cases = [a_case(tmp_path, name, seed=seed) for seed, name in enumerate("ab")]
    with predicting_elsewhere(folder, ["a"]):
        (folder / ".scratch-0123.nii.gz").write_text("half")
        predict(cases[1:], folder)
        assert (folder / ".scratch-0123.nii.gz").exists()


@contextmanager
def predicting_elsewhere(
    folder: Path, case_ids: list[str], owner: Owner | None = None
) -> Iterator[None]:
    """Leave the files of a process of another machine that is predicting cases."""
    if owner is None:
        owner = Owner("node7", 77, "another machine", "1", "token")
    (folder / ".cases").mkdir(parents=True, exist_ok=True)
    job = folder / ".cases" / f"job-{owner.token}.lock"
    job.write_text(json.dumps({"owner": asdict(owner), "case_ids": case_ids}))
    yield
    job.unlink(missing_ok=True)
