"""Cohorts as they come: without labels, of several classes, of many forms."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from helpers.cohorts import AFFINE, add_case, make_cohort, save, scan, write_rows
from helpers.command_line import call, train
from helpers.runs import images_equal, rows_of
from tversky_seg.data.manifest import read_manifest
from tversky_seg.metrics.case_metrics import METRICS

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
    """Write six cases that differ in orientation, axes, spacing, type and ending of their files.

    The modalities of one of them lie on two grids.
    """
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
