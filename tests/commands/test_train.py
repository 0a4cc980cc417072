"""The three commands as a user meets them: files, exit statuses, one-line errors, stopping and going on."""

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.cohorts import AFFINE, MODALITIES, add_case, make_cohort, save, scan, write_rows
from helpers.command_line import ROOT, SMALL, Outcome, call, train
from tversky_seg.data.manifest import read_manifest
from tversky_seg.evaluation import evaluator as evaluation
from tversky_seg.evaluation.evaluator import METRICS
from tversky_seg.inference import predict as inference
from tversky_seg.runtime import checkpoints
from tversky_seg.training import validation
from tversky_seg.training.trainer import Trainer

Rows = list[dict[str, str]]
ONE_LINE = re.compile(
    r"[^:;]+: .+; .+"
)  # <file or key>: <what was found>; <what was expected or to do>


@dataclass(frozen=True)
class Run:
    """A trained run, the command's outcome, and the manifest that it was trained on."""

    folder: Path
    outcome: Outcome
    manifest: Path

    @property
    def metrics(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(
            (self.folder / "evaluation" / "metrics.json").read_text()
        )
        return content

    @property
    def best(self) -> Path:
        return self.folder / "checkpoints" / "best.pt"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of four steps on six cases, in the directory that it chose itself."""
    manifest = make_cohort(tmp_path_factory.mktemp("cohort"))
    here = tmp_path_factory.mktemp("here")
    with contextlib.chdir(here):
        outcome = train(manifest, None)
    assert outcome.status == 0, outcome.stderr
    folders = list((here / "runs").iterdir())
    assert len(folders) == 1
    return Run(folders[0], outcome, manifest)


def contents(*folders: Path) -> dict[Path, bytes]:
    """Every file of some folders."""
    return {
        path: path.read_bytes()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    }


def rows_of(manifest: Path) -> Rows:
    with manifest.open() as file:
        return list(csv.DictReader(file))


def assert_same_results(a: Path, b: Path) -> None:
    """Weights and every number of two runs, bit for bit."""
    for name in ("last", "best"):
        one, other = (
            torch.load(run / "checkpoints" / f"{name}.pt", weights_only=True) for run in (a, b)
        )
        assert (one["step"], one["threshold"]) == (other["step"], other["threshold"])
        assert all(torch.equal(tensor, other["model"][key]) for key, tensor in one["model"].items())
    for name in (
        "metrics.csv",
        *(f"evaluation/{part}" for part in ("metrics.json", "cases.csv", "lesions.csv")),
    ):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    keys = [
        (row["step"], row["name"])
        for row in csv.DictReader((b / "metrics.csv").read_text().splitlines())
    ]
    assert len(keys) == len(set(keys)), "a step stands twice"


def images_equal(a: Path, b: Path) -> bool:
    return np.array_equal(np.asarray(nib.load(a).dataobj), np.asarray(nib.load(b).dataobj))


# What a run leaves


def test_a_run_leaves_the_files_of_the_contract(finished: Run) -> None:
    top = {
        "config.yaml",
        "environment.json",
        "train.log",
        "metrics.csv",
        "timings.csv",
        "manifest.csv",
    }
    assert top <= {path.name for path in finished.folder.iterdir()}
    assert {path.name for path in (finished.folder / "checkpoints").iterdir()} >= {
        "last.pt",
        "best.pt",
    }
    test_cases = [
        case.case_id
        for case in read_manifest(finished.folder / "manifest.csv")
        if case.split == "test"
    ]
    assert {path.name for path in (finished.folder / "predictions").iterdir()} == {
        ".cases",
        "lesions.csv",
        "predictions.json",
        *(f"{case_id}_{kind}.nii.gz" for case_id in test_cases for kind in ("mask", "probability")),
    }
    assert {path.name for path in (finished.folder / "evaluation").iterdir()} == {
        *(
            "metrics.json",
            "cases.csv",
            "lesions.csv",
            "pr_curve.csv",
            "pr_curve.png",
            "report.html",
        ),
        *("froc.csv", "threshold_curve.csv"),
    }


def test_a_run_names_its_directory_by_data_model_loss_and_settings(finished: Run) -> None:
    assert re.fullmatch(r"manifest_unet3d_tversky_[0-9a-f]{8}", finished.folder.name)
    assert finished.folder.name in finished.outcome.stdout


def test_metrics_json_has_the_names_of_the_contract(finished: Run) -> None:
    metrics = finished.metrics
    assert {
        "n_cases",
        "threshold",
        "lesion_rule",
        "mean",
        "ci95",
        "pooled",
        "undefined",
        "cases",
    } <= metrics.keys()
    assert metrics["n_cases"] == len(metrics["cases"]) == 2
    for part in (metrics["mean"], metrics["ci95"], metrics["pooled"], metrics["undefined"]):
        assert list(part) == list(METRICS)
    assert all({"case_id", *METRICS} <= case.keys() for case in metrics["cases"])


def test_a_run_prints_one_table_and_nothing_on_stderr(finished: Run) -> None:
    assert finished.outcome.stderr == ""
    assert finished.outcome.stdout.count("Measure") == 1
    assert "3 train, 1 val, 2 test cases" in finished.outcome.stdout


def test_metrics_csv_holds_no_clock_path_or_host(finished: Run) -> None:
    text = (finished.folder / "metrics.csv").read_text()
    names = {row["name"] for row in csv.DictReader(text.splitlines())}
    assert {"loss", "learning_rate", "skipped", "val_dice", "val_pr_auc"} <= names
    assert not [name for name in names if name.endswith("_s")]
    assert str(finished.folder.parent) not in text
    assert "data_wait_s" in (finished.folder / "timings.csv").read_text()


def test_tensorboard_shows_scalars_and_pictures_of_validation(finished: Run) -> None:
    events = EventAccumulator(str(finished.folder / "tensorboard")).Reload()
    assert {"loss", "val_dice"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("val_dice")] == [2, 4]
    pictures = events.Tags()["images"]
    assert pictures
    assert [event.step for event in events.Images(pictures[0])] == [2, 4]


def test_the_checkpoint_holds_plain_values_and_the_bare_network(finished: Run) -> None:
    checkpoint = torch.load(finished.best, weights_only=True)
    assert {"model", "optimizer", "schedule", "step", "config", "threshold"} <= checkpoint.keys()
    assert not [name for name in checkpoint["model"] if name.startswith(("module.", "_orig_mod."))]
    assert checkpoint["config"]["loss"]["_target_"] == "tversky_seg.losses.TverskyLoss"


def test_the_run_is_judged_at_the_threshold_chosen_on_validation(finished: Run) -> None:
    threshold = torch.load(finished.best, weights_only=True)["threshold"]
    said = json.loads((finished.folder / "predictions" / "predictions.json").read_text())
    assert finished.metrics["threshold"] == said["threshold"] == threshold


def test_probabilities_are_stored_in_sixteen_bits(finished: Run) -> None:
    path = next((finished.folder / "predictions").glob("*_probability.nii.gz"))
    header = nib.load(path).header
    assert header.get_data_dtype() == np.uint16
    assert nib.load(path).dataobj.slope == pytest.approx(1 / 65535)


# Going on, and when it is another run


def test_a_finished_run_says_so_and_stays_as_it_is(finished: Run) -> None:
    before = contents(finished.folder)
    again = train(finished.manifest, finished.folder)
    assert again.status == 0
    assert again.stderr == ""
    assert "already complete" in again.stdout
    assert again.stdout.count("Measure") == 1
    assert contents(finished.folder) == before


def test_threads_workers_and_device_are_free(finished: Run) -> None:
    free = [
        "trainer.n_workers=1",
        "trainer.recompute=true",
        "trainer.device=cpu",
        f"trainer.threads={torch.get_num_threads()}",
    ]
    assert train(finished.manifest, finished.folder, *free).status == 0


def test_the_same_folder_with_other_settings_is_an_error_that_names_them(finished: Run) -> None:
    before = contents(finished.folder)
    outcome = train(finished.manifest, finished.folder, "loss.beta=0.8", "seed=1")
    assert outcome.error.startswith(
        f"output_dir: {finished.folder} holds a run with other settings (loss.beta was null"
    )
    assert "now 0.8, seed was 0, now 1" in outcome.error
    assert contents(finished.folder) == before


class Killed(BaseException):
    """Ends a command as a signal does: no handler of the library catches it."""


def at_call(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, killed instead of its n-th call."""
    left = [number]

    def counted(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return function(*args, **kwargs)

    return counted


def signalled_at_call(
    number: int, function: Callable[..., Any], *, signal_number: int = signal.SIGTERM
) -> Callable[..., Any]:
    """The function; before its n-th call the process gets a signal."""
    left = [number]

    def counted(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal_number)
        return function(*args, **kwargs)

    return counted


@pytest.mark.parametrize(
    ("owner", "name", "number"),
    [
        (Trainer, "train_step", 4),
        (validation, "_choose_point", 2),
        (checkpoints.torch, "save", 2),
        (inference, "write_prediction", 2),
        (evaluation, "write_report", 1),
    ],
    ids=["in a step", "in a validation", "in a checkpoint", "in a prediction", "in the evaluation"],
)
def test_a_stopped_run_goes_on_to_the_same_bits(
    finished: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    number: int,
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, at_call(number, getattr(owner, name)))
        with pytest.raises(Killed):
            train(finished.manifest, tmp_path / "run")
    assert not (tmp_path / "run" / "evaluation" / "metrics.json").exists()
    outcome = train(finished.manifest, tmp_path / "run")
    assert outcome.status == 0, outcome.stderr
    assert_same_results(finished.folder, tmp_path / "run")
    assert not list((tmp_path / "run").rglob(".scratch-*"))


@pytest.mark.parametrize(
    ("owner", "name", "number", "said"),
    [
        (Trainer, "train_step", 3, "SIGTERM after step 3 of 4, checkpoint written"),
        (validation, "_choose_point", 2, "SIGTERM after step 4 of 4, checkpoint written"),
        (checkpoints.torch, "save", 2, "SIGTERM after step 3 of 4, checkpoint written"),
        (inference, "write_prediction", 2, "SIGTERM"),
    ],
    ids=["in a step", "in a validation", "in a checkpoint", "in a prediction"],
)
def test_a_scheduler_stops_a_run_with_status_75_and_it_goes_on_to_the_same_bits(
    finished: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    number: int,
    said: str,
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, signalled_at_call(number, getattr(owner, name)))
        outcome = train(finished.manifest, tmp_path / "run")
    assert (outcome.status, outcome.stderr) == (
        75,
        f"stopped: {said}; run the same command again to resume\n",
    )
    assert not (tmp_path / "run" / "evaluation" / "metrics.json").exists()
    assert train(finished.manifest, tmp_path / "run").status == 0
    assert_same_results(finished.folder, tmp_path / "run")


@pytest.mark.parametrize(
    ("owner", "name"),
    [(Trainer, "train_step"), (inference, "write_prediction"), (evaluation, "write_report")],
    ids=["in a step", "in a prediction", "in the evaluation"],
)
def test_ctrl_c_stops_a_run_with_status_130_and_it_resumes_to_the_same_bits(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    with monkeypatch.context() as patched:
        function = getattr(owner, name)
        interrupted = signalled_at_call(1, function, signal_number=signal.SIGINT)
        patched.setattr(owner, name, interrupted)
        outcome = train(finished.manifest, tmp_path / "run")
    assert outcome.status == 130
    assert outcome.stderr.startswith("stopped: Ctrl-C")
    assert "run the same command again to resume" in outcome.stderr
    assert not (tmp_path / "run" / "evaluation" / "metrics.json").exists()
    assert not list((tmp_path / "run").rglob(".scratch-*"))
    assert train(finished.manifest, tmp_path / "run").status == 0
    assert_same_results(finished.folder, tmp_path / "run")


def test_hours_that_are_over_stop_a_run_likewise(finished: Run, tmp_path: Path) -> None:
    outcome = train(finished.manifest, tmp_path / "run", "trainer.max_hours=1e-9")
    assert outcome.status == 75
    assert outcome.stderr.startswith(
        "stopped: trainer.max_hours=1e-09 after step 1 of 4, checkpoint written; "
    )
    assert train(finished.manifest, tmp_path / "run", "trainer.max_hours=1").status == 0
    assert_same_results(finished.folder, tmp_path / "run")


def test_only_what_is_missing_is_done_again(finished: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.folder, run)
    (run / "evaluation" / "metrics.json").unlink()
    (run / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace(str(finished.folder), str(run))
    )
    before = contents(run / "checkpoints", run / "predictions", run / "tensorboard")
    assert train(finished.manifest, run).status == 0
    assert contents(run / "checkpoints", run / "predictions", run / "tensorboard") == before
    assert_same_results(finished.folder, run)


@pytest.mark.parametrize("name", ["environment.json", "evaluation/metrics.json"])
def test_a_file_that_a_power_cut_emptied_is_made_again(
    finished: Run, tmp_path: Path, name: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.folder, run)
    config_file = run / "config.yaml"
    text = config_file.read_text(encoding="utf-8")
    config_file.write_text(text.replace(str(finished.folder), str(run)), encoding="utf-8")
    (run / "evaluation" / "metrics.json").write_bytes(b"")
    (run / name).write_bytes(b"")
    assert train(finished.manifest, run).status == 0
    assert json.loads((run / name).read_text(encoding="utf-8"))
    assert_same_results(finished.folder, run)


@pytest.mark.slow
def test_a_run_killed_three_times_ends_in_the_same_bits(finished: Run, tmp_path: Path) -> None:
    words = [
        "data=manifest",
        f"data.manifest={finished.manifest}",
        f"data.cache_dir={tmp_path / 'cache'}",
        *SMALL,
    ]
    command = [sys.executable, str(ROOT / "train.py"), *words, f"output_dir={tmp_path / 'run'}"]
    started = time.monotonic()
    while not (tmp_path / "run" / "train.log").exists():  # until it works on the data
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(1)
        process.send_signal(signal.SIGKILL) if (tmp_path / "run").exists() else process.wait()
        process.wait()
        assert time.monotonic() - started < 300
    for name in ("checkpoints/last.pt", "predictions/predictions.json"):
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not (tmp_path / "run" / name).exists():
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, cwd=tmp_path, check=False, capture_output=True).returncode == 0
    assert_same_results(finished.folder, tmp_path / "run")


def test_a_sweep_makes_a_directory_for_each_setting_and_outlives_a_failing_job(
    finished: Run, tmp_path: Path
) -> None:
    outcome = train(finished.manifest, tmp_path / "sweep", "-m", "loss.alpha=null,-1")
    assert outcome.status == 1
    assert outcome.stderr.startswith("error: loss.alpha: got alpha=-1, beta=2; ")
    assert outcome.stderr.count("\n") == 1
    good, bad = (
        next(path for path in (tmp_path / "sweep").iterdir() if f"loss.alpha={alpha}," in path.name)
        for alpha in ("null", "-1")
    )
    assert outcome.stderr.endswith(f" (in {bad})\n")
    assert {path for path in (tmp_path / "sweep").iterdir() if path.is_dir()} == {good, bad}
    assert_same_results(finished.folder, good)
    assert not list(bad.iterdir())


# predict.py and evaluate.py


def unlabelled(finished: Run, folder: Path, form: str) -> str:
    """The test cases of the run without labels, as one of the forms that predict.py takes."""
    for case in finished.metrics["cases"]:
        for modality in MODALITIES:
            source = finished.manifest.parent / f"{case['case_id']}_{modality}.nii.gz"
            nested = folder / case["case_id"] / f"{modality}.nii.gz"
            target = nested if form == "nested folder" else folder / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    if form == "files":
        first = finished.metrics["cases"][0]["case_id"]
        return "{" + ", ".join(f"{m}: {folder / f'{first}_{m}.nii.gz'}" for m in MODALITIES) + "}"
    if form == "manifest":
        ids = [case["case_id"] for case in finished.metrics["cases"]]
        files = [{m: f"{c}_{m}.nii.gz" for m in MODALITIES} for c in ids]
        rows = [
            {"case_id": c, "subject_id": c, **names} for c, names in zip(ids, files, strict=True)
        ]
        return str(write_rows(folder / "unseen.csv", rows))
    return str(folder)


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
    assert outcome.error.endswith("(and 1 more: run scripts/check_data.py)")


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
        (damaged_checkpoint, "cut.pt: damaged; "),
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
    assert outcome.stdout.count("Measure") == 1
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


def test_evaluate_lists_a_case_without_prediction_and_judges_the_rest(
    finished: Run, tmp_path: Path
) -> None:
    outcome = call(
        "evaluate", f"predictions={finished.folder / 'predictions'}", f"manifest={finished.manifest}",
        f"output_dir={tmp_path}",
    )  # fmt: skip
    assert outcome.status == 1
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["n_cases"] == 2
    assert len(metrics["faults"]) == 4
    assert all("no such file" in fault for fault in metrics["faults"])


def test_evaluate_judges_the_masks_of_another_tool(finished: Run, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    for case in finished.metrics["cases"]:
        label = finished.manifest.parent / f"{case['case_id']}_label.nii.gz"
        masks.mkdir(exist_ok=True)
        shutil.copy(label, masks / f"seg_{case['case_id']}.nii.gz")
    outcome = call(
        "evaluate", f"predictions={masks}", f"manifest={finished.folder / 'manifest.csv'}",
        f"output_dir={tmp_path / 'out'}", "evaluation.pattern=seg_{case_id}.nii.gz",
    )  # fmt: skip
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


def test_a_run_is_not_continued_on_other_cases(finished: Run, tmp_path: Path) -> None:
    run, manifest = tmp_path / "run", tmp_path / "manifest.csv"
    folder = finished.manifest.parent
    rows = [
        row | {n: str(folder / row[n]) for n in (*MODALITIES, "label")}
        for row in rows_of(finished.manifest)
    ]
    write_rows(manifest, rows[:-1])
    words = ["trainer.max_steps=2", "trainer.checkpoint_every=1"]
    assert train(manifest, run, *words).status == 0
    (run / "evaluation" / "metrics.json").unlink()
    before = contents(run / "checkpoints", run / "predictions")
    write_rows(manifest, rows)
    assert (
        f"{run / 'manifest.csv'}: the run was started on other cases than these; "
        in train(manifest, run, *words).error
    )
    assert contents(run / "checkpoints", run / "predictions") == before


def test_a_run_never_replaces_the_users_own_manifest(finished: Run) -> None:
    before = finished.manifest.read_bytes()
    outcome = train(finished.manifest, finished.manifest.parent)
    assert "holds data.manifest" in outcome.error
    assert finished.manifest.read_bytes() == before
    for name in ("config.yaml", "train.log", "environment.json"):
        (finished.manifest.parent / name).unlink(missing_ok=True)


# Bad input: one line, status 2, nothing lost


def cut_off(folder: Path, rows: Rows) -> None:
    path = folder / "c0_T1.nii.gz"
    path.write_bytes(path.read_bytes()[:-200])


def text_as_image(folder: Path, rows: Rows) -> None:
    (folder / "c0_FLAIR.nii.gz").write_text("404: not found\n")


def nan_voxels(folder: Path, rows: Rows) -> None:
    image = scan(0)[0].astype(np.float32)
    image[5, 5, 5] = np.nan
    save(folder / "c0_T1.nii.gz", image)


def other_shape(folder: Path, rows: Rows) -> None:
    save(folder / "c0_label.nii.gz", scan(0)[1][:-2])


def other_affine(folder: Path, rows: Rows) -> None:
    save(folder / "c0_label.nii.gz", scan(0)[1], AFFINE + np.outer([5, 0, 0, 0], [0, 0, 0, 1]))


def unnamed_value(folder: Path, rows: Rows) -> None:
    save(folder / "c0_label.nii.gz", scan(0)[1] * 7)


def fractions(folder: Path, rows: Rows) -> None:
    save(folder / "c0_label.nii.gz", scan(0)[1] * np.float32(0.5))


def missing_file(folder: Path, rows: Rows) -> None:
    (folder / "c0_FLAIR.nii.gz").unlink()


def empty_cell(folder: Path, rows: Rows) -> None:
    rows[0]["T1"] = ""


def twice(folder: Path, rows: Rows) -> None:
    rows[1]["case_id"] = "c0"


def in_two_splits(folder: Path, rows: Rows) -> None:
    rows[0]["subject_id"] = rows[3]["subject_id"]


def way_out(folder: Path, rows: Rows) -> None:
    rows[0]["case_id"] = "../../c0"


def no_lesion(folder: Path, rows: Rows) -> None:
    for path in folder.glob("*_label.nii.gz"):
        save(path, np.zeros_like(scan(0)[1]))


def two_frames(folder: Path, rows: Rows) -> None:
    save(folder / "c0_FLAIR.nii.gz", np.stack([scan(0)[0]] * 2, axis=-1))


FAULTS: list[tuple[Callable[[Path, Rows], None], str]] = [
    (missing_file, "c0_FLAIR.nii.gz: no such file; "),
    (cut_off, "c0_T1.nii.gz: is cut off or damaged"),
    (text_as_image, "c0_FLAIR.nii.gz: is text, not an image; "),
    (nan_voxels, "c0_T1.nii.gz: 1 voxels are NaN or infinite; "),
    (two_frames, "c0_FLAIR.nii.gz: has shape 24 x 26 x 22 x 2; "),
    (other_shape, "c0_label.nii.gz: "),
    (other_affine, "c0_label.nii.gz: "),
    (unnamed_value, "c0_label.nii.gz: holds the label values 7 that no class names; "),
    (fractions, "c0_label.nii.gz: "),
    (empty_cell, "line 2: empty cell for T1; "),
    (twice, "duplicate case_id 'c0'; "),
    (in_two_splits, "is in split test and train; "),
    (way_out, "case_id '../../c0'; "),
    (no_lesion, "training set: no lesion in any of "),
]


@pytest.mark.parametrize(("spoil", "found"), FAULTS, ids=[spoil.__name__ for spoil, _ in FAULTS])
def test_a_fault_of_the_data_is_one_line_and_loses_nothing(
    tmp_path: Path, spoil: Callable[[Path, Rows], None], found: str
) -> None:
    manifest = make_cohort(tmp_path / "cohort", n=4, splits=["train", "train", "val", "test"])
    rows = rows_of(manifest)
    spoil(manifest.parent, rows)
    write_rows(manifest, rows)
    before = contents(tmp_path)
    outcome = train(manifest, tmp_path / "run")
    assert found in outcome.error
    assert ONE_LINE.match(outcome.error)
    assert "more: run" not in outcome.error
    assert {
        path: content for path, content in contents(tmp_path).items() if path in before
    } == before
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_fault_in_a_test_case_is_known_before_training(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path, n=4, splits=["test", "train", "val", "train"])
    other_shape(tmp_path, [])
    cut_off(tmp_path, [])
    assert "c0_T1.nii.gz: is cut off" in train(manifest, tmp_path / "run").error
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_several_faults_are_counted(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path, n=4)
    for case in ("c0", "c1", "c2"):
        (tmp_path / f"{case}_T1.nii.gz").write_text("no image")
    assert train(manifest, tmp_path / "run").error.endswith(
        "(and 2 more: run scripts/check_data.py)"
    )


def test_a_corrected_cohort_trains_in_the_same_folder(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path, n=4, splits=["train", "train", "val", "test"])
    cut_off(tmp_path, [])
    assert train(manifest, tmp_path / "run").status == 2
    add_case(tmp_path, "c0", seed=0)
    assert train(manifest, tmp_path / "run").status == 0


@pytest.mark.parametrize(
    ("content", "words", "found"),
    [
        ("", [], "my.csv: lists no case; "),
        ("case_id,subject_id,FLAIR,T1,label\n", [], "my.csv: lists no case; "),
        ("subject_id,FLAIR\na,b\n", [], "my.csv: no column case_id among subject_id, FLAIR; "),
        (
            "case_id,subject_id,FLAIR,label\na,b,c,d\n",
            ["data.modalities=[FLAIR,T2]"],
            "my.csv: no column T2 among ",
        ),
        ("case_id,subject_id,label\na,b,c\n", [], "my.csv: no column of images among "),
        (None, [], "my.csv: No such file or directory; "),
    ],
)
def test_a_manifest_that_is_none_is_one_line(
    tmp_path: Path, content: str | None, words: list[str], found: str
) -> None:
    if content is not None:
        (tmp_path / "my.csv").write_text(content)
    outcome = train(tmp_path / "my.csv", tmp_path / "run", *words)
    assert found in outcome.error
    assert ONE_LINE.match(outcome.error)


def test_a_missing_modality_is_named_by_predict(finished: Run, tmp_path: Path) -> None:
    given = unlabelled(finished, tmp_path / "in", "flat folder")
    case_id = finished.metrics["cases"][0]["case_id"]
    (tmp_path / "in" / f"{case_id}_T1.nii.gz").unlink()
    words = [f"checkpoint={finished.best}", f"output_dir={tmp_path / 'out'}"]
    assert f"case {case_id} has no T1; " in call("predict", *words, f"input={given}").error
    one = f"{{FLAIR: {tmp_path / 'in' / f'{case_id}_FLAIR.nii.gz'}}}"
    assert "input: no file for modality T1; " in call("predict", *words, f"input={one}").error
    assert "no such file or folder; " in call("predict", *words, f"input={tmp_path / 'none'}").error


# Cohorts as they come


def test_without_validation_and_labels_a_run_still_predicts_with_patches_larger_than_the_image(
    tmp_path: Path,
) -> None:
    manifest = make_cohort(tmp_path, n=3, splits=["train", "train", "test"])
    rows = rows_of(manifest)
    rows[2]["label"] = ""
    write_rows(manifest, rows)
    outcome = train(manifest, tmp_path / "run", "sampler.patch_size=32", "trainer.max_steps=2")
    assert outcome.status == 0, outcome.stderr
    assert "2 train, 0 val, 1 test cases" in outcome.stdout
    log = (tmp_path / "run" / "train.log").read_text()
    assert "no validation cases: " in log
    assert "no test case has a label" in log
    assert (
        json.loads((tmp_path / "run" / "predictions" / "predictions.json").read_text())["threshold"]
        == 0.5
    )
    assert (tmp_path / "run" / "predictions" / "c2_mask.nii.gz").exists()
    best, last = (
        torch.load(tmp_path / "run" / "checkpoints" / f"{n}.pt", weights_only=True)
        for n in ("best", "last")
    )
    assert all(torch.equal(tensor, last["model"][name]) for name, tensor in best["model"].items())


def test_two_nested_classes_with_inverse_weights(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path, n=5, values=(1, 2))
    classes = "data.classes={liver: [1, 2], tumour: [2]}"
    outcome = train(
        manifest, tmp_path / "run", classes, "weighting=inverse", "trainer.monitor=tumour/dice"
    )
    assert outcome.status == 0, outcome.stderr
    metrics = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())
    assert list(metrics["mean"]) == ["liver", "tumour"]
    assert list(metrics["mean"]["tumour"]) == list(METRICS)
    case_id = metrics["cases"][0]["case_id"]
    names = {path.name for path in (tmp_path / "run" / "predictions").iterdir()}
    assert {f"{case_id}_liver_mask.nii.gz", f"{case_id}_tumour_probability.nii.gz"} <= names
    liver, tumour = (
        next(row for row in metrics["cases"])[name]["reference_volume_mm3"]
        for name in ("liver", "tumour")
    )
    assert liver > tumour > 0


def rotation(degrees: float) -> np.ndarray:
    """About the third axis, as a 4 x 4 affine."""
    a = np.deg2rad(degrees)
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    return turned


def mixed_cohort(folder: Path) -> Path:
    """Six cases whose files differ in orientation, axes, spacing, type and ending, one with modalities on two grids."""
    flipped = np.diag([-2.0, 2.0, -2.0, 1.0])
    flipped[:3, 3] = [46, 0, 42]
    permuted = AFFINE[:, [2, 0, 1, 3]]
    oblique = rotation(20) @ np.diag([2.0, 2.0, 3.0, 1.0]) + np.outer(
        [-30.0, 12.5, 4.0, 0], [0, 0, 0, 1]
    )
    affines = [AFFINE, flipped, permuted, oblique, flipped @ rotation(5), AFFINE]
    rows = [add_case(folder, f"c{i}", seed=i, affine=affine) for i, affine in enumerate(affines)]
    image, label = scan(4)
    save(
        folder / "c4_T1.nii.gz",
        image[::2, ::2, ::2].astype(np.float64),
        affines[4] @ np.diag([2, 2, 2, 1]),
    )
    save(folder / "c4_label.nii.gz", label.astype(np.float32), affines[4])
    save(folder / "c5_FLAIR.nii", image.astype(np.uint16), AFFINE)
    rows[5]["FLAIR"] = "c5_FLAIR.nii"
    for row, split in zip(rows, ["train", "train", "val", "test", "test", "test"], strict=True):
        row["split"] = split
    return write_rows(folder / "manifest.csv", rows)


def assert_on_the_grid_of(image: Path, predictions: Path, case_id: str) -> None:
    given = nib.load(image)
    for kind in ("mask", "probability"):
        found = nib.load(predictions / f"{case_id}_{kind}.nii.gz")
        assert found.shape == given.shape
        assert np.allclose(found.affine, given.affine, atol=1e-4)
        assert nib.aff2axcodes(found.affine) == nib.aff2axcodes(given.affine)


def test_files_of_many_orientations_spacings_and_types_train_together(tmp_path: Path) -> None:
    manifest = mixed_cohort(tmp_path / "cohort")
    outcome = train(manifest, tmp_path / "run")
    assert outcome.status == 0, outcome.stderr
    cases = {case.case_id: case for case in read_manifest(manifest)}
    for case_id in ("c3", "c4", "c5"):
        assert_on_the_grid_of(
            cases[case_id].images["FLAIR"], tmp_path / "run" / "predictions", case_id
        )
    best = tmp_path / "run" / "checkpoints" / "best.pt"
    assert (
        call(
            "predict", f"checkpoint={best}", f"input={manifest}", f"output_dir={tmp_path / 'out'}"
        ).status
        == 0
    )
    for case_id, case in cases.items():
        assert_on_the_grid_of(case.images["FLAIR"], tmp_path / "out", case_id)
    for case_id in ("c3", "c4", "c5"):
        name = f"{case_id}_probability.nii.gz"
        assert images_equal(tmp_path / "out" / name, tmp_path / "run" / "predictions" / name)


# As a shell sees it


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Runs a verb in a process of its own."""

    def run(verb: str, *words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / f"{verb}.py"), *map(str, words)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


def test_a_shell_sees_one_line_and_status_2(shell: Any) -> None:
    done = shell("train", "loss.alhpa=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: loss.alhpa: no such key; did you mean loss.alpha?\n"


def test_a_shell_can_predict(finished: Run, tmp_path: Path, shell: Any) -> None:
    given = unlabelled(finished, tmp_path / "in", "flat folder")
    done = shell("predict", f"checkpoint={finished.best}", f"input={given}", "output_dir=out")
    assert (done.returncode, done.stderr) == (0, "")
    for case in finished.metrics["cases"]:
        name = f"{case['case_id']}_mask.nii.gz"
        assert images_equal(tmp_path / "out" / name, finished.folder / "predictions" / name)
