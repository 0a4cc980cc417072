"""train.py as a user meets it: files of a run, its name, and when it is another run."""

import csv
import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.command_line import train
from helpers.runs import Run, contents
from tversky_seg.data.manifest import read_manifest
from tversky_seg.metrics.case_metrics import METRICS

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
    assert re.fullmatch(r"manifest_unet3d_tversky_ce_[0-9a-f]{8}", finished.folder.name)
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
    assert finished.outcome.stdout.count("┏") == 1
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
    assert {"train/loss", "val/dice", "test/dice"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("val/dice")] == [2, 4]
    pictures = events.Tags()["images"]
    assert pictures
    assert [event.step for event in events.Images(pictures[0])] == [2, 4]


def test_the_checkpoint_holds_plain_values_and_the_bare_network(finished: Run) -> None:
    checkpoint = torch.load(finished.best, weights_only=True)
    assert {"model", "optimizer", "schedule", "step", "config", "threshold"} <= checkpoint.keys()
    assert not [name for name in checkpoint["model"] if name.startswith(("module.", "_orig_mod."))]
    assert checkpoint["config"]["loss"]["_target_"] == "tversky_seg.losses.TverskyCrossEntropyLoss"


def test_the_run_is_evaluated_at_the_threshold_chosen_on_validation(finished: Run) -> None:
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
    assert again.stdout.count("┏") == 1
    report = finished.folder / "evaluation" / "report.html"
    assert report.is_file()
    assert f"report: {report}\n" in again.stdout
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


# Precision


def test_a_run_keeps_the_precision_that_auto_meant_when_it_began(
    finished: Run, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.folder, run)
    config_file = run / "config.yaml"
    settings = yaml.safe_load(config_file.read_text())
    assert settings["trainer"]["precision"] == "fp32"
    kept = torch.load(finished.best, weights_only=True)["config"]
    assert kept["trainer"]["precision"] == "fp32"
    predictions = json.loads((run / "predictions" / "predictions.json").read_text())
    assert predictions["precision"] == "fp32"

    # The run of a card: on a machine without one, auto would mean fp32.
    settings["trainer"]["precision"] = "bf16"
    config_file.write_text(yaml.safe_dump(settings))
    assert train(finished.manifest, run).status == 0
    refused = train(finished.manifest, run, "trainer.precision=fp32")
    assert refused.status == 2
    assert 'trainer.precision was "bf16", now "fp32"' in refused.stderr


def test_a_run_keeps_the_weights_that_auto_started_from(finished: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.folder, run)
    config_file = run / "config.yaml"
    settings = yaml.safe_load(config_file.read_text())
    assert settings["trainer"]["init_from"] is None  # no synthetic network is as narrow

    settings["trainer"]["init_from"] = str(finished.best)
    config_file.write_text(yaml.safe_dump(settings))
    assert train(finished.manifest, run).status == 0
    refused = train(finished.manifest, run, "trainer.init_from=null")
    assert refused.status == 2
    assert "trainer.init_from" in refused.stderr
