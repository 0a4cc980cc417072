"""Tiny cohorts as files: bright lesions in a noisy box, written as NIfTI with a manifest."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from tversky_seg.data.case import Case

SHAPE = (24, 26, 22)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
MODALITIES = ("FLAIR", "T1")
HEADER = "case_id,subject_id,FLAIR,label"


def scan(
    seed: int, *, shape: Sequence[int] = SHAPE, values: Sequence[int] = (1,)
) -> tuple[np.ndarray, np.ndarray]:
    """Make a brain (X, Y, Z) with three lesions of each value, 40 % brighter, and their label."""
    rng = np.random.default_rng(seed)
    image = np.zeros(shape)
    label = np.zeros(shape, np.uint8)
    brain = tuple(slice(3, side - 3) for side in shape)
    image[brain] = 100 + rng.normal(0, 4, [side - 6 for side in shape])
    for value in values:
        for _ in range(3):
            x, y, z = (int(rng.integers(4, side - 8)) for side in shape)
            label[x : x + 4, y : y + 4, z : z + 4] = value
    return image + 40.0 * (label > 0) + 15.0 * label, label


def save(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    """Write one NIfTI file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def add_case(
    folder: Path, case_id: str, *, seed: int, affine: np.ndarray = AFFINE, **content: Any
) -> dict[str, str]:
    """Write the two modalities and the label of a case, and return its line of the manifest."""
    image, label = scan(seed, **content)
    save(folder / f"{case_id}_FLAIR.nii.gz", image.astype(np.int16), affine)
    save(
        folder / f"{case_id}_T1.nii.gz",
        (image * 1.5 - 60.0 * (label > 0)).clip(0).astype(np.float32),
        affine,
    )
    save(folder / f"{case_id}_label.nii.gz", label, affine)
    files = {name: f"{case_id}_{name}.nii.gz" for name in (*MODALITIES, "label")}
    return {"case_id": case_id, "subject_id": f"subject_{case_id}", **files}


def write_rows(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    """Write a manifest."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def make_cohort(folder: Path, *, n: int = 6, splits: Sequence[str] = (), **content: Any) -> Path:
    """Write n cases and their manifest, and return the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [add_case(folder, f"c{i}", seed=i, **content) for i in range(n)]
    for row, split in zip(rows, splits, strict=False):
        row["split"] = split
    return write_rows(folder / "manifest.csv", rows)


def touch(folder: Path, *names: str) -> None:
    """Make empty files, and their folders."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def manifest_of_lines(folder: Path, *lines: str) -> Path:
    """Write a manifest line by line."""
    path = folder / "cases.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def case_without_files(
    i: int, *, subject: str | None = None, label: bool = True, **columns: Any
) -> Case:
    """Make case c<i> of subject s<i>, whose files do not exist."""
    labels = (Path(f"{i}_label.nii"),) if label else ()
    return Case(f"c{i}", subject or f"s{i}", {"FLAIR": Path(f"{i}.nii")}, labels, **columns)


def case_ids(cases: Sequence[Case]) -> list[str]:
    """List the ids of cases."""
    return [case.case_id for case in cases]
