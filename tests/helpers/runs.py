"""A trained run, and what tests ask of it and of others."""

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from helpers.cohorts import MODALITIES, write_rows
from helpers.command_line import Outcome

Rows = list[dict[str, str]]


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


def unlabelled(run: Run, folder: Path, form: str) -> str:
    """Copy the test cases of a run without labels, in a form that predict.py takes.

    Args:
        run: Trained run.
        folder: Folder to fill.
        form: "flat folder", "nested folder", "files" (of the first case) or "manifest".

    Returns:
        Value of `input=`.
    """
    ids = [case["case_id"] for case in run.metrics["cases"]]
    for case_id in ids:
        for modality in MODALITIES:
            source = run.manifest.parent / f"{case_id}_{modality}.nii.gz"
            target = folder / source.name
            if form == "nested folder":
                target = folder / case_id / f"{modality}.nii.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    if form == "files":
        files = [f"{name}: {folder / f'{ids[0]}_{name}.nii.gz'}" for name in MODALITIES]
        return "{" + ", ".join(files) + "}"
    if form == "manifest":
        rows = []
        for case_id in ids:
            row = {"case_id": case_id, "subject_id": case_id}
            row |= {name: f"{case_id}_{name}.nii.gz" for name in MODALITIES}
            rows.append(row)
        return str(write_rows(folder / "unseen.csv", rows))
    return str(folder)
