"""predict.py and evaluate.py as a user meets them, on a run of train.py."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.cohorts import make_cohort, write_rows
from helpers.command_line import SMALL, call, train
from helpers.runs import Run, contents, images_equal, unlabelled

ONE_LINE = re.compile(r"[^:;]+: .+; .+")
"""`<file or key>: <what was found>; <what was expected or to do>`"""


# predict.py and evaluate.py


@pytest.mark.parametrize("form", ["files", "manifest", "flat folder", "nested folder"])
def test_predict_takes_files_manifests_and_folders_without_labels(
    finished: Run, tmp_path: Path, form: str
) -> None:
    given = unlabelled(finished, tmp_path / "in", form)
    case_id = finished.metrics["cases"][0]["case_id"]
    named = [f"case_id={case_id}"] if form == "files" else []
    outcome = call(
        "predict",
        f"checkpoint={finished.best}",
        f"input={given}",
        f"output_dir={tmp_path / 'out'}",
        *named,
    )
    assert outcome.status == 0, outcome.stderr
    assert outcome.stderr == ""
    expected = {".cases", "lesions.csv", "predictions.json"}
    for case in finished.metrics["cases"][: 1 if form == "files" else None]:
        for kind in ("mask", "probability"):
            name = f"{case['case_id']}_{kind}.nii.gz"
            assert images_equal(tmp_path / "out" / name, finished.folder / "predictions" / name)
            expected.add(name)
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected
    header = (tmp_path / "out" / "lesions.csv").read_text().splitlines()[0]
    assert header.startswith("case_id,lesion,volume_mm3,x_mm,y_mm,z_mm")


def test_a_case_without_a_name_takes_that_of_its_first_file(finished: Run, tmp_path: Path) -> None:
    given = unlabelled(finished, tmp_path / "in", "files")
    threshold = ["inference.threshold=0.25", "inference.min_volume_mm3=9"]
    call(
        "predict",
        f"checkpoint={finished.best}",
        f"input={given}",
        f"output_dir={tmp_path / 'out'}",
        *threshold,
    )
    case_id = finished.metrics["cases"][0]["case_id"]
    assert (tmp_path / "out" / f"{case_id}_FLAIR_mask.nii.gz").exists()
    said = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert (said["threshold"], said["min_volume_mm3"]) == (0.25, 9)


def test_predict_goes_on_after_a_case_that_fails_and_says_so_by_its_status(
    finished: Run, tmp_path: Path
) -> None:
    given = unlabelled(finished, tmp_path / "in", "flat folder")
    bad, good = (case["case_id"] for case in finished.metrics["cases"])
    broken = tmp_path / "in" / f"{bad}_T1.nii.gz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    words = [f"checkpoint={finished.best}", f"input={given}", f"output_dir={tmp_path / 'out'}"]
    outcome = call("predict", *words)
    assert outcome.status == 1
    assert f"{broken}: is cut off or damaged" in outcome.stdout
    assert f"1 of 2 cases failed: {bad}" in outcome.stdout
    assert (tmp_path / "out" / f"{good}_mask.nii.gz").exists()
    assert not (tmp_path / "out" / f"{bad}_mask.nii.gz").exists()
    broken.write_bytes(whole)
    assert call("predict", *words).status == 0
    assert (tmp_path / "out" / f"{bad}_mask.nii.gz").exists()


def test_when_no_case_can_be_predicted_the_first_fault_is_named(
    finished: Run, tmp_path: Path
) -> None:
    given = unlabelled(finished, tmp_path / "in", "flat folder")
    for path in (tmp_path / "in").glob("*_FLAIR.nii.gz"):
        path.write_bytes(b"no image")
    outcome = call(
        "predict", f"checkpoint={finished.best}", f"input={given}", f"output_dir={tmp_path / 'out'}"
    )
    assert "_FLAIR.nii.gz: " in outcome.error
    assert outcome.error.endswith("(and 1 more: listed above)")


def damaged_checkpoint(finished: Run, folder: Path) -> Path:
    path = folder / "cut.pt"
    path.write_bytes(finished.best.read_bytes()[:-100])
    return path


class RunsCode:
    """Unpickled, it would leave a file named evidence."""

    def __reduce__(self) -> Any:
        return os.system, ("touch evidence",)


def with_code(finished: Run, folder: Path) -> Path:
    checkpoint = torch.load(finished.best, weights_only=True)
    torch.save(checkpoint | {"threshold": RunsCode()}, folder / "code.pt")
    return folder / "code.pt"


def with_another_target(finished: Run, folder: Path) -> Path:
    checkpoint = torch.load(finished.best, weights_only=True)
    checkpoint["config"]["model"] = {"_target_": "os.system", "command": "touch evidence"}
    torch.save(checkpoint, folder / "target.pt")
    return folder / "target.pt"


def with_other_weights(finished: Run, folder: Path) -> Path:
    checkpoint = torch.load(finished.best, weights_only=True)
    checkpoint["config"]["model"]["width"] = 6
    torch.save(checkpoint, folder / "weights.pt")
    return folder / "weights.pt"


def of_another_program(finished: Run, folder: Path) -> Path:
    torch.save({"model": {"weight": torch.zeros(1)}}, folder / "other.pt")
    return folder / "other.pt"


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (damaged_checkpoint, "cut.pt: damaged"),
        (with_code, "code.pt: holds more than tensors and plain values; "),
        (with_another_target, "model._target_: os.system; "),
        (with_other_weights, "weights.pt: its parts do not fit each other; "),
        (of_another_program, "other.pt: was not written by train.py; "),
    ],
)
def test_predict_refuses_a_checkpoint_that_is_none_and_runs_no_code(
    finished: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Run, Path], Path],
    found: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = make(finished, tmp_path)
    outcome = call("predict", f"checkpoint={path}", f"input={finished.manifest}", "output_dir=out")
    assert found in outcome.error
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_evaluate_gives_the_numbers_of_the_run(finished: Run, tmp_path: Path) -> None:
    where = [f"predictions={finished.folder / 'predictions'}", f"output_dir={tmp_path}"]
    outcome = call("evaluate", *where, f"manifest={finished.folder / 'manifest.csv'}")
    assert outcome.status == 0, outcome.stderr
    assert outcome.stdout.count("┏") == 1
    for name in ("metrics.json", "cases.csv", "lesions.csv", "pr_curve.csv"):
        assert (tmp_path / name).read_bytes() == (
            finished.folder / "evaluation" / name
        ).read_bytes(), name


def test_evaluate_needs_labels_but_no_images(finished: Run, tmp_path: Path) -> None:
    ids = [case["case_id"] for case in finished.metrics["cases"]]
    label = {c: str(finished.manifest.parent / f"{c}_label.nii.gz") for c in ids}
    manifest = write_rows(
        tmp_path / "labels.csv", [{"case_id": c, "subject_id": c, "label": label[c]} for c in ids]
    )
    where = [f"predictions={finished.folder / 'predictions'}", f"output_dir={tmp_path / 'out'}"]
    assert call("evaluate", *where, f"manifest={manifest}").status == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["mean"] == finished.metrics["mean"]


def test_evaluate_lists_a_case_without_prediction_and_evaluates_the_others(
    finished: Run, tmp_path: Path
) -> None:
    outcome = call(
        "evaluate",
        f"predictions={finished.folder / 'predictions'}",
        f"manifest={finished.manifest}",
        f"output_dir={tmp_path}",
    )
    assert outcome.status == 1
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["n_cases"] == 2
    assert len(metrics["faults"]) == 4
    assert all("no such file" in fault for fault in metrics["faults"])


def test_evaluate_takes_the_masks_of_another_tool(finished: Run, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    for case in finished.metrics["cases"]:
        label = finished.manifest.parent / f"{case['case_id']}_label.nii.gz"
        masks.mkdir(exist_ok=True)
        shutil.copy(label, masks / f"seg_{case['case_id']}.nii.gz")
    outcome = call(
        "evaluate",
        f"predictions={masks}",
        f"manifest={finished.folder / 'manifest.csv'}",
        f"output_dir={tmp_path / 'out'}",
        "evaluation.pattern=seg_{case_id}.nii.gz",
    )
    assert outcome.status == 0, outcome.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["mean"]["dice"] == 1
    assert metrics["mean"]["pr_auc"] is None
    assert metrics["undefined"]["pr_auc"] == 2


@pytest.mark.parametrize("verb", ["train", "predict", "evaluate"])
def test_an_output_that_cannot_be_written_is_named(
    finished: Run, tmp_path: Path, verb: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    words = {
        "train": ["data=manifest", f"data.manifest={finished.manifest}", *SMALL],
        "predict": [f"checkpoint={finished.best}", f"input={finished.manifest}"],
        "evaluate": [
            f"predictions={finished.folder / 'predictions'}",
            f"manifest={finished.folder / 'manifest.csv'}",
        ],
    }[verb]
    outcome = call(verb, *words, f"output_dir={tmp_path / 'file' / 'out'}")
    assert str(tmp_path / "file" / "out") in outcome.error
    assert "cannot be written" in outcome.error
    assert ONE_LINE.match(outcome.error)
    assert contents(tmp_path) == {tmp_path / "file": b"in the way"}


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path, n=4)
    (tmp_path / "file").write_text("in the way")
    error = train(manifest, tmp_path / "run", f"data.cache_dir={tmp_path / 'file' / 'cache'}").error
    assert f"{tmp_path / 'file' / 'cache'}: cannot be written" in error
    assert "name another cache_dir" in error
