"""predict.py with several checkpoints, views, BIDS folders and missing modalities.

The checkpoints are written here, without training.
"""

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from helpers.checkpoints import a_checkpoint
from helpers.cohorts import add_case, make_cohort, write_rows
from helpers.command_line import Outcome, call, train
from tversky_seg.data.nifti import read_volume
from tversky_seg.inference.prediction_jobs import running_job
from tversky_seg.inference.trained_model import load_trained, trained_precision
from tversky_seg.models import UNet3D
from tversky_seg.runtime.checkpoints import checksum


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of two cases."""
    for seed, name in enumerate(("a", "b")):
        add_case(tmp_path / "images", name, seed=seed)
        (tmp_path / "images" / f"{name}_label.nii.gz").unlink()
    return tmp_path / "images"


def predict(checkpoint: object, given: object, output_dir: Path, *words: str) -> Outcome:
    return call(
        "predict", f"checkpoint={checkpoint}", f"input={given}", f"output_dir={output_dir}", *words
    )


def probability_of(folder: Path, case_id: str = "a") -> np.ndarray:
    return read_volume(folder / f"{case_id}_probability.nii.gz").data


def settings_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "predictions.json").read_text())
    return content


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "lesions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# Ensembles


def test_an_ensemble_is_the_mean_of_its_members_and_keeps_every_checksum(
    tmp_path: Path, images: Path
) -> None:
    paths = [
        a_checkpoint(tmp_path / f"run{i}" / "checkpoints" / "best.pt", i, threshold=0.4 + i / 10)
        for i in (0, 1)
    ]
    for i, path in enumerate(paths):
        assert predict(path, images, tmp_path / f"p{i}").status == 0
    forms = {
        "list": f"[{paths[0]},{paths[1]}]",
        "folders": f"[{tmp_path / 'run0'},{tmp_path / 'run1'}]",
        "glob": f"{tmp_path}/run*/checkpoints/best.pt",
    }
    mean = (probability_of(tmp_path / "p0") + probability_of(tmp_path / "p1")) / 2
    for name, form in forms.items():
        outcome = predict(form, images, tmp_path / name)
        assert outcome.status == 0, outcome.stderr
        assert "threshold 0.45" in outcome.stdout
        assert "size 9 mm³" in outcome.stdout
        np.testing.assert_allclose(probability_of(tmp_path / name), mean, atol=2e-5)
        assert settings_of(tmp_path / name)["checkpoint"] == [checksum(path) for path in paths]
        assert settings_of(tmp_path / name)["threshold"] == pytest.approx(0.45)
        assert settings_of(tmp_path / name)["combine"] == "mean"


def test_votes_and_uncertainty_maps(tmp_path: Path, images: Path) -> None:
    paths = [a_checkpoint(tmp_path / f"{i}.pt", i) for i in range(3)]
    members = f"[{','.join(map(str, paths))}]"
    outcome = predict(members, images, tmp_path / "votes", "combine=vote", "uncertainty=entropy")
    assert outcome.status == 0, outcome.stderr
    shares = probability_of(tmp_path / "votes")
    np.testing.assert_allclose(shares * 3, np.rint(shares * 3), atol=1e-3)
    assert (tmp_path / "votes" / "a_uncertainty.nii.gz").is_file()
    assert settings_of(tmp_path / "votes")["uncertainty"] == "entropy"
    outcome = predict(
        members, images, tmp_path / "mean", "uncertainty=disagreement", "inference.tta=[none,xy]"
    )
    assert outcome.status == 0, outcome.stderr
    assert read_volume(tmp_path / "mean" / "a_uncertainty.nii.gz").data.max() > 0
    outcome = predict(paths[0], images, tmp_path / "lonely", "uncertainty=disagreement")
    assert outcome.error.startswith("uncertainty: got disagreement; ")
    assert not (tmp_path / "lonely").exists()


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"modalities": ["T1", "FLAIR"]}, "modalities ['FLAIR', 'T1'], "),
        ({"classes": {"lesion": [1, 2]}}, "classes {'lesion': [1]}, "),
        ({"spacing_mm": [1, 1, 1]}, "spacing_mm None, "),
        ({"normalization": "robust"}, "normalization zscore, "),
    ],
)
def test_members_that_do_not_agree_are_refused_by_the_difference(
    tmp_path: Path, images: Path, changed: dict[str, Any], text: str
) -> None:
    paths = a_checkpoint(tmp_path / "a.pt"), a_checkpoint(tmp_path / "b.pt", **changed)
    error = predict(f"[{paths[0]},{paths[1]}]", images, tmp_path / "p").error
    assert f"a.pt has {text}" in error
    assert "b.pt" in error


def test_checkpoints_that_are_none_are_one_line(tmp_path: Path, images: Path) -> None:
    path = a_checkpoint(tmp_path / "a.pt")
    assert "no file matches" in predict(f"{tmp_path}/none*.pt", images, tmp_path / "p").error
    assert "a.pt" in predict(f"[{path},{path}]", images, tmp_path / "p").error
    assert "none given" in predict("[]", images, tmp_path / "p").error
    assert (
        "b.pt: no such file"
        in predict(f"[{path},{tmp_path / 'b.pt'}]", images, tmp_path / "p").error
    )


def test_a_strangers_file_cannot_ask_for_more_memory_than_its_weights(
    tmp_path: Path, images: Path
) -> None:
    path = a_checkpoint(tmp_path / "a.pt")
    state = torch.load(path, weights_only=True)
    state["config"]["model"]["width"] = 100_000
    torch.save(state, path)
    error = predict(path, images, tmp_path / "p").error
    assert "a.pt" in error
    assert "larger" in error


# Settings


def test_a_glob_of_runs_passes_over_what_is_no_run_and_tells_which_are_in_training(
    tmp_path: Path, images: Path
) -> None:
    for fold in range(2):
        run = a_checkpoint(
            tmp_path / "cv" / f"fold={fold}" / "checkpoints" / "best.pt", seed=fold
        ).parents[1]
        (run / "config.yaml").write_text("seed: 0")
    (tmp_path / "cv" / "fold=0" / "predictions").mkdir()
    (tmp_path / "cv" / "summary").mkdir()
    (tmp_path / "cv" / "plan.json").write_text("{}")
    outcome = predict(f"{tmp_path}/cv/*", images, tmp_path / "out")
    assert outcome.status == 0, outcome.stderr
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())["checkpoint"]) == 2
    assert "training is not finished" in outcome.stdout + outcome.stderr
    assert (
        "fold=0" not in (outcome.stdout + outcome.stderr).partition("training is not finished")[2]
    )
    (tmp_path / "cv" / "fold=1" / "checkpoints" / "best.pt").unlink()
    outcome = predict(f"{tmp_path}/cv/*", images, tmp_path / "out2")
    assert outcome.status == 0, outcome.stderr
    assert f"passed over {run}, without checkpoints/best.pt yet" in outcome.stdout


def test_views_and_windows_may_be_set_and_are_written_down(tmp_path: Path, images: Path) -> None:
    path = a_checkpoint(tmp_path / "a.pt")
    for name, words in {
        "plain": [],
        "rotations": ["inference.tta=rotations180"],
        "whole": ["inference.patch_size=whole"],
        "order": ["inference.spline_order=3"],
    }.items():
        outcome = predict(path, images, tmp_path / name, *words)
        assert outcome.status == 0, outcome.stderr
    for name in ("rotations", "whole", "order"):
        assert (
            np.abs(probability_of(tmp_path / name) - probability_of(tmp_path / "plain")).max()
            > 1e-4
        )
    assert settings_of(tmp_path / "rotations")["tta"] == "rotations180"
    assert settings_of(tmp_path / "whole")["patch_size"] == "whole"
    assert settings_of(tmp_path / "order")["spline_order"] == 3


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("inference.tta=mirror", "inference.tta: got mirror; "),
        ("inference.tta=[x,x]", "inference.tta: got ['x', 'x']; "),
        ("inference.patch_size=huge", "inference.patch_size: got huge; "),
        ("inference.spline_order=0", "inference.spline_order: got 0; "),
        ("inference.min_volume_mm3=-1", "inference.min_volume_mm3: got -1; "),
        ("inference.min_peak=1.5", "inference.min_peak: got 1.5; "),
        ("combine=median", "combine: got median; "),
        ("uncertainty=variance", "uncertainty: got variance; "),
        ("uncertainty=3", "uncertainty: 3; "),
    ],
)
def test_wrong_settings_are_one_line(tmp_path: Path, images: Path, word: str, text: str) -> None:
    error = predict(a_checkpoint(tmp_path / "a.pt"), images, tmp_path / "p", word).error
    assert text in error
    assert not (tmp_path / "p").exists()


def test_threshold_and_size_of_the_checkpoint_are_used_unless_set(
    tmp_path: Path, images: Path
) -> None:
    path = a_checkpoint(tmp_path / "a.pt", threshold=0.45)
    outcome = predict(path, images, tmp_path / "kept")
    assert "threshold" in outcome.stdout
    assert (
        settings_of(tmp_path / "kept")["threshold"],
        settings_of(tmp_path / "kept")["min_volume_mm3"],
    ) == (0.45, 9)
    predict(path, images, tmp_path / "set", "inference.threshold=0.3", "inference.min_volume_mm3=0")
    assert (
        settings_of(tmp_path / "set")["threshold"],
        settings_of(tmp_path / "set")["min_volume_mm3"],
    ) == (0.3, 0)


def test_a_run_chooses_for_its_goal_keeps_its_views_and_predict_follows(tmp_path: Path) -> None:
    manifest = make_cohort(
        tmp_path / "cohort", n=5, splits=["train", "train", "train", "val", "test"]
    )
    words = ["inference.goal=recall=0.9", "inference.tta=[none,xy]", "trainer.max_steps=2"]
    words.append("inference.temperature=1")  # so that the threshold stays where it was chosen
    outcome = train(manifest, tmp_path / "run", *words)
    assert outcome.status == 0, outcome.stderr
    state = torch.load(tmp_path / "run" / "checkpoints" / "best.pt", weights_only=True)
    chosen = {name: state[name] for name in ("threshold", "min_volume_mm3", "min_peak")}
    assert (state["inference"]["goal"], state["inference"]["tta"]) == ("recall=0.9", ["none", "xy"])
    assert state["inference"]["threshold"] is None, "left to be chosen"
    assert f"{state['threshold']:.3f}" in outcome.stdout
    of_run = settings_of(tmp_path / "run" / "predictions")
    assert {name: of_run[name] or 0 for name in chosen} == chosen
    assert predict(tmp_path / "run", manifest, tmp_path / "p", "case_id=c4").status == 0
    assert settings_of(tmp_path / "p") == of_run
    np.testing.assert_array_equal(
        probability_of(tmp_path / "p", "c4"), probability_of(tmp_path / "run" / "predictions", "c4")
    )
    metrics = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())
    assert metrics["threshold"] == chosen["threshold"]
    assert metrics["lesion_rule"]["prediction_min_volume_mm3"] == chosen["min_volume_mm3"]
    assert metrics["lesion_rule"]["prediction_min_peak"] == chosen["min_peak"]


# Inputs


def as_bids(images: Path, folder: Path, *, session: str | None = None) -> Path:
    for case_id in ("a", "b"):
        place = folder / f"sub-{case_id}" / (f"ses-{session}" if session else "") / "anat"
        place.mkdir(parents=True)
        stem = "_".join([f"sub-{case_id}", *([f"ses-{session}"] if session else [])])
        for name, suffix in (("FLAIR", "FLAIR"), ("T1", "T1w")):
            shutil.copy(images / f"{case_id}_{name}.nii.gz", place / f"{stem}_{suffix}.nii.gz")
        shutil.copy(images / f"{case_id}_T1.nii.gz", place / f"{stem}_ce-gadolinium_T1w.nii.gz")
    return folder


@pytest.mark.parametrize("session", [None, "02"])
def test_a_bids_folder_is_predicted_as_its_files_are(
    tmp_path: Path, images: Path, session: str | None
) -> None:
    path, bids = (
        a_checkpoint(tmp_path / "a.pt"),
        as_bids(images, tmp_path / "bids", session=session),
    )
    assert predict(path, images, tmp_path / "plain").status == 0
    outcome = predict(path, bids, tmp_path / "p")
    assert outcome.status == 0, outcome.stderr
    stem = "sub-a" if session is None else "sub-a_ses-02"
    np.testing.assert_array_equal(
        probability_of(tmp_path / "p", stem), probability_of(tmp_path / "plain")
    )
    assert predict(path, bids, tmp_path / "one", f"case_id={stem}").status == 0
    assert len(list((tmp_path / "one").glob("*_mask.nii.gz"))) == 1


def test_bids_files_that_are_missing_or_many_are_named(tmp_path: Path, images: Path) -> None:
    path, bids = a_checkpoint(tmp_path / "a.pt"), as_bids(images, tmp_path / "bids")
    shutil.copy(images / "a_T1.nii.gz", bids / "sub-a" / "anat" / "sub-a_run-2_T1w.nii.gz")
    assert "2 files of T1 (" in predict(path, bids, tmp_path / "p").error
    (bids / "sub-a" / "anat" / "sub-a_run-2_T1w.nii.gz").unlink()
    (bids / "sub-a" / "anat" / "sub-a_T1w.nii.gz").unlink()
    assert "case sub-a has no T1; " in predict(path, bids, tmp_path / "p").error


@pytest.mark.parametrize("form", ["folder", "files", "manifest", "bids"])
def test_a_missing_modality_is_0_where_channels_were_dropped_in_training(
    tmp_path: Path, images: Path, form: str
) -> None:
    path = a_checkpoint(tmp_path / "dropped.pt", dropout=0.2)
    (images / "a_T1.nii.gz").unlink()
    given: object = images
    if form == "files":
        given = f"{{FLAIR: {images / 'a_FLAIR.nii.gz'}}}"
    elif form == "manifest":
        files = [
            {"FLAIR": f"{name}_FLAIR.nii.gz", "T1": "" if name == "a" else "b_T1.nii.gz"}
            for name in "ab"
        ]
        ids = [{"case_id": name, "subject_id": name} for name in "ab"]
        given = write_rows(
            images / "manifest.csv", [i | f for i, f in zip(ids, files, strict=True)]
        )
    elif form == "bids":
        shutil.copy(images / "b_T1.nii.gz", images / "a_T1.nii.gz")
        given = as_bids(images, tmp_path / "bids")
        (tmp_path / "bids" / "sub-a" / "anat" / "sub-a_T1w.nii.gz").unlink()
    case_id = "sub-a" if form == "bids" else "a"
    outcome = predict(path, given, tmp_path / "p", *(["case_id=a"] if form == "files" else []))
    assert outcome.status == 0, outcome.stderr
    assert outcome.stdout.count(f"no T1: {case_id})") == 1
    assert probability_of(tmp_path / "p", case_id).max() > 0
    strict = a_checkpoint(tmp_path / "strict.pt")
    error = predict(
        strict, given, tmp_path / "q", *(["case_id=a"] if form == "files" else [])
    ).error
    assert "T1" in error


def test_without_the_first_modality_another_gives_the_grid(tmp_path: Path, images: Path) -> None:
    path = a_checkpoint(tmp_path / "dropped.pt", dropout=0.2)
    (images / "a_FLAIR.nii.gz").unlink()
    assert predict(path, images, tmp_path / "p").status == 0
    mask = nib.load(tmp_path / "p" / "a_mask.nii.gz")
    np.testing.assert_allclose(mask.affine, nib.load(images / "a_T1.nii.gz").affine)


# Many cases


def test_a_failing_case_is_listed_once_at_the_end(tmp_path: Path, images: Path) -> None:
    (images / "a_T1.nii.gz").write_bytes(b"\x1f\x8b no image")
    outcome = predict(a_checkpoint(tmp_path / "a.pt"), images, tmp_path / "p")
    assert outcome.status == 1
    assert outcome.stdout.count("images/a_T1.nii.gz") == 1
    assert "1 of 2 cases failed: a: " in outcome.stdout.splitlines()[-1]
    assert (tmp_path / "p" / "b_mask.nii.gz").is_file()


def test_the_lesion_table_has_the_distance_to_the_edge_of_the_brain(
    tmp_path: Path, images: Path
) -> None:
    path = a_checkpoint(tmp_path / "a.pt")
    predict(path, images, tmp_path / "p", "inference.threshold=0.55", "inference.min_volume_mm3=0")
    rows = rows_of(tmp_path / "p")
    assert {row["case_id"] for row in rows} == {"a", "b"}
    mask = read_volume(tmp_path / "p" / "a_mask.nii.gz").data > 0
    brain = read_volume(images / "a_FLAIR.nii.gz").data > 0
    assert all(float(row["edge_distance_mm"]) >= 0 for row in rows)
    touches = (mask & ~brain).any() or any(float(row["edge_distance_mm"]) <= 2 for row in rows)
    assert touches, "some lesion of an untrained network lies at the edge"


def test_a_stopped_prediction_resumes_from_its_records(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, words = a_checkpoint(tmp_path / "a.pt"), ["inference.threshold=0.5"]
    predict(path, images, tmp_path / "once", *words)
    n_calls = []

    def stop_at_second(*arguments: Any, **settings: Any) -> Any:
        n_calls.append(1)
        if len(n_calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments, **settings)

    original = UNet3D.forward
    (tmp_path / "images" / "b_FLAIR.nii.gz").rename(tmp_path / "b")
    one = predict(
        path,
        f"{{FLAIR: {images / 'a_FLAIR.nii.gz'}, T1: {images / 'a_T1.nii.gz'}}}",
        tmp_path / "p",
        "case_id=a",
        *words,
    )
    assert one.status == 0
    (tmp_path / "b").rename(tmp_path / "images" / "b_FLAIR.nii.gz")
    monkeypatch.setattr(UNet3D, "forward", stop_at_second)
    assert predict(path, images, tmp_path / "p", *words).status == 130
    monkeypatch.undo()
    assert predict(path, images, tmp_path / "p", *words).status == 0
    assert (tmp_path / "p" / "lesions.csv").read_text() == (
        tmp_path / "once" / "lesions.csv"
    ).read_text()
    assert [path.name for path in (tmp_path / "p").glob(".*")] == [".cases"]


# Lines for the user


def a_run(folder: Path, seed: int = 0, **settings: Any) -> Path:
    """A finished run with settings of its own in its checkpoint."""
    path = a_checkpoint(folder / "checkpoints" / "best.pt", seed)
    state = torch.load(path, weights_only=True)
    state["config"] |= {"seed": seed, "data": {"fold": seed}} | settings
    torch.save(state, path)
    (folder / "config.yaml").write_text("seed: 0")
    (folder / "predictions").mkdir()
    return folder


def test_a_sweep_says_what_it_passes_over_and_what_to_choose(tmp_path: Path, images: Path) -> None:
    run = a_run(tmp_path / "runs" / "beta" / "seed=0", 0)
    untrained = tmp_path / "runs" / "beta" / "seed=1"
    (untrained / "checkpoints").mkdir(parents=True)
    outcome = predict(tmp_path / "runs" / "beta", images, tmp_path / "p")
    assert outcome.status == 0, outcome.stderr
    assert f"predicting with one network, {run}" in outcome.stdout
    assert f"passed over {untrained}, without checkpoints/best.pt yet" in outcome.stdout
    error = predict(tmp_path / "runs", images, tmp_path / "p").error
    assert f"folders of runs; choose one of {tmp_path / 'runs' / 'beta'}" in error
    shutil.rmtree(run)
    error = predict(tmp_path / "runs" / "beta", images, tmp_path / "p").error
    assert "holds no run with a checkpoint yet" in error


def test_the_folder_of_a_sweep_is_the_ensemble_of_its_runs(tmp_path: Path, images: Path) -> None:
    runs = [a_run(tmp_path / "sweep" / f"fold={seed}", seed) for seed in range(2)]
    (tmp_path / "sweep" / "summary").mkdir()
    outcome = predict(tmp_path / "sweep", images, tmp_path / "p")
    assert outcome.status == 0, outcome.stderr
    checksums = [checksum(run / "checkpoints" / "best.pt") for run in runs]
    assert settings_of(tmp_path / "p")["checkpoint"] == checksums
    assert "2 networks" in outcome.stdout
    assert "differ" not in outcome.stdout, "seed and fold may differ"


def test_a_folder_without_runs_is_one_line(tmp_path: Path, images: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty" in predict(tmp_path / "empty", images, tmp_path / "p").error


def test_settings_in_which_networks_differ_are_named(tmp_path: Path, images: Path) -> None:
    for seed, beta in enumerate((0.5, 0.7)):
        a_run(tmp_path / "sweep" / f"beta={beta}", seed, loss={"beta": beta, "smooth": 1.0})
    outcome = predict(tmp_path / "sweep", images, tmp_path / "p")
    assert outcome.status == 0, outcome.stderr
    line = next(line for line in outcome.stdout.splitlines() if "differ" in line)
    assert "loss.beta" in line
    assert "0.5, 0.7" in line
    assert "loss.smooth" not in line


def test_images_of_a_folder_that_are_passed_over_are_named(tmp_path: Path, images: Path) -> None:
    shutil.copy(images / "a_FLAIR.nii.gz", images / "c-flair.nii.gz")
    (images / "d").mkdir()
    shutil.copy(images / "a_FLAIR.nii.gz", images / "d" / "flair.nii.gz")
    outcome = predict(a_checkpoint(tmp_path / "a.pt"), images, tmp_path / "p")
    assert outcome.status == 0, outcome.stderr
    line = next(line for line in outcome.stdout.splitlines() if "c-flair.nii.gz" in line)
    assert "2 images" in line
    assert "d/flair.nii.gz" in line
    outcome = predict(tmp_path / "a.pt", images, tmp_path / "p", "case_id=a")
    assert "c-flair" not in outcome.stdout, "other cases were not asked for"


def test_a_second_command_at_the_same_time_is_one_line(tmp_path: Path, images: Path) -> None:
    path = a_checkpoint(tmp_path / "a.pt")
    with running_job(tmp_path / "p", ["b"]):
        error = predict(path, images, tmp_path / "p").error
        assert "case b" in error
        assert str(os.getpid()) in error
        assert predict(path, images, tmp_path / "p", "case_id=a").status == 0
    assert predict(path, images, tmp_path / "p").status == 0


# Precision


def test_the_default_precision_is_that_of_the_training_where_the_device_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {"a": "bf16", "b": "bf16", "c": "fp16", "d": None}
    models = {}
    for number, (name, word) in enumerate(words.items()):
        path = a_checkpoint(tmp_path / name / "best.pt", number)
        settings = {"precision": word} if word else {}
        models[name] = replace(load_trained(path), config={"trainer": settings})
    card = torch.device("cuda", 0)
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert trained_precision([models["c"]], card) == "fp16"
    assert trained_precision([models["a"]], card) == "fp32"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert trained_precision([models["a"], models["b"]], card) == "bf16"
    assert trained_precision([models["a"], models["c"]], card) == "fp32"
    assert trained_precision([models["d"]], card) == "fp32"
    assert trained_precision([models["a"]], cpu) == "fp32"


def test_another_precision_predicts_anew_and_says_so(tmp_path: Path, images: Path) -> None:
    path = a_checkpoint(tmp_path / "run" / "checkpoints" / "best.pt", 0)
    assert predict(path, images, tmp_path / "p").status == 0
    assert settings_of(tmp_path / "p")["precision"] == "fp32"
    again = predict(path, images, tmp_path / "p", "precision=bf16")
    assert again.status == 0
    assert "again, since they were not predicted in bf16" in again.stdout
    assert settings_of(tmp_path / "p")["precision"] == "bf16"
    once_more = predict(path, images, tmp_path / "p", "precision=bf16")
    assert "again" not in once_more.stdout
