"""Segmenter: the numbers of predict.py, from files, arrays and nibabel images."""

import json
import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from helpers.checkpoints import a_checkpoint
from helpers.cohorts import add_case
from helpers.command_line import call
from tversky_seg import Segmenter
from tversky_seg.data.errors import DataError
from tversky_seg.inference.trained_model import warn_of_other_windows
from tversky_seg.runtime.checkpoints import CheckpointError

OBLIQUE = np.array([[0, -2.0, 0.1, 10], [2.0, 0, 0, -20], [0, 0.1, 2.0, 5], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run `run`, a case `scans/a_*.nii.gz` on an oblique grid, and its files of predict.py."""
    folder = tmp_path_factory.mktemp("segmenter")
    a_checkpoint(folder / "run" / "checkpoints" / "best.pt")
    add_case(folder / "scans", "a", seed=0, affine=OBLIQUE)
    outcome = call(
        "predict",
        f"checkpoint={folder / 'run'}",
        f"input={folder / 'scans'}",
        f"output_dir={folder / 'predicted'}",
    )
    assert outcome.status == 0, outcome.stderr
    return folder


def scan(folder: Path, name: str) -> Path:
    return folder / "scans" / f"a_{name}.nii.gz"


def stored(folder: Path, name: str) -> np.ndarray:
    """Voxels of a file of predict.py, read by nibabel alone."""
    image = nib.load(folder / f"{name}.nii.gz")
    return np.asarray(image.dataobj, dtype=np.float32)


def test_it_gives_the_bits_of_predict_from_files_images_and_arrays(folder: Path) -> None:
    segmenter = Segmenter.load(folder / "run")
    flair = nib.load(scan(folder, "FLAIR"))
    t1 = nib.load(scan(folder, "T1"))
    results = [
        segmenter(scan(folder, "FLAIR"), T1=str(scan(folder, "T1"))),
        segmenter({"FLAIR": flair, "T1": t1}),
        segmenter(flair.get_fdata(), T1=t1.get_fdata(), affine=flair.affine),
        segmenter(FLAIR=flair, T1=scan(folder, "T1")),
    ]
    for result in results:
        np.testing.assert_array_equal(
            result.probability, stored(folder / "predicted", "a_probability")
        )
        np.testing.assert_array_equal(result.mask, stored(folder / "predicted", "a_mask") > 0)
        assert result.mask.dtype == bool
        np.testing.assert_array_equal(result.affine, flair.affine)
    assert [result.case_id for result in results] == ["a_FLAIR", "a_FLAIR", "case", "a_FLAIR"]


@pytest.mark.parametrize(
    ("patch_size", "is_other"),
    [(None, False), (16, False), (20, False), (24, True), (12, True), ("whole", True)],
)
def test_windows_unlike_those_of_the_training_are_told(
    folder: Path, caplog: pytest.LogCaptureFixture, patch_size: int | str | None, is_other: bool
) -> None:
    settings = {} if patch_size is None else {"patch_size": patch_size}
    Segmenter.load(folder / "run", **settings)
    assert (f"windows of {patch_size} give other probabilities" in caplog.text) == is_other


def test_a_network_without_a_norm_over_the_window_takes_any_window(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (model,) = Segmenter.load(folder / "run").models
    warn_of_other_windows([replace(model, network=nn.BatchNorm3d(2))], "whole")
    assert caplog.text == ""


def test_save_writes_the_files_of_predict(folder: Path, tmp_path: Path) -> None:
    segmenter = Segmenter.load(str(folder / "run"))
    flair, t1 = nib.load(scan(folder, "FLAIR")), nib.load(scan(folder, "T1"))
    segmenter(flair, T1=t1, case_id="a").save(tmp_path / "saved")
    names = ["a_mask.nii.gz", "a_probability.nii.gz", "lesions.csv", "predictions.json"]
    for name in names:
        saved, expected = tmp_path / "saved" / name, folder / "predicted" / name
        if name.endswith(".nii.gz"):
            assert nib.load(saved).header == nib.load(expected).header
            np.testing.assert_array_equal(nib.load(saved).dataobj, nib.load(expected).dataobj)
        else:
            assert saved.read_text() == expected.read_text()
    # Another case joins it; a folder of another segmenter is refused.
    segmenter(flair, T1=t1, case_id="b").save(tmp_path / "saved")
    assert (tmp_path / "saved" / "b_mask.nii.gz").is_file()
    other = Segmenter.load(folder / "run", threshold=0.9)(flair, T1=t1, case_id="c")
    with pytest.raises(DataError, match="made with threshold"):
        other.save(tmp_path / "saved")


def test_lesions_are_the_rows_of_the_table(folder: Path) -> None:
    result = Segmenter.load(folder / "run")(scan(folder, "FLAIR"), T1=scan(folder, "T1"))
    assert result.lesions
    voxel_mm3 = abs(np.linalg.det(result.affine[:3, :3]))
    total = sum(row["volume_mm3"] for row in result.lesions)
    assert total == pytest.approx(result.mask.sum() * voxel_mm3, rel=1e-4)
    assert {"x_mm", "y_mm", "z_mm", "mean_probability"} <= result.lesions[0].keys()


def test_several_classes_and_an_ensemble(folder: Path, tmp_path: Path) -> None:
    classes = {"core": (1,), "rim": (2,)}
    runs = []
    for seed in (0, 1):
        runs.append(tmp_path / "sweep" / f"seed={seed}")
        a_checkpoint(runs[-1] / "checkpoints" / "best.pt", seed, classes=classes)
    words = [f"checkpoint={tmp_path / 'sweep'}", f"input={folder / 'scans'}"]
    words += [f"output_dir={tmp_path / 'p'}", "uncertainty=entropy", "inference.tta=[none,x]"]
    assert call("predict", *words).status == 0
    files = {"FLAIR": scan(folder, "FLAIR"), "T1": scan(folder, "T1")}
    for named in (tmp_path / "sweep", runs):
        segmenter = Segmenter.load(named, uncertainty="entropy", tta=["none", "x"])
        result = segmenter(files)
        assert list(result.mask) == ["core", "rim"]
        for name in classes:
            expected = stored(tmp_path / "p", f"a_{name}_probability")
            np.testing.assert_array_equal(result.probability[name], expected)
            expected = stored(tmp_path / "p", f"a_{name}_mask") > 0
            np.testing.assert_array_equal(result.mask[name], expected)
            expected = stored(tmp_path / "p", f"a_{name}_uncertainty")
            np.testing.assert_array_equal(result.uncertainty[name], expected)


def test_bad_input_gets_one_line(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        Segmenter.load(folder / "nowhere")
    with pytest.raises(TypeError, match="tresh"):
        Segmenter.load(folder / "run", treshold=0.5)
    segmenter = Segmenter.load(folder / "run")
    flair = scan(folder, "FLAIR")
    array = np.zeros((4, 5, 6))
    with pytest.raises(DataError, match="no file for modality T1"):
        segmenter(flair)
    with pytest.raises(DataError, match="FLAIR: is given twice"):
        segmenter(flair, FLAIR=flair)
    with pytest.raises(DataError, match="T2 is not a modality"):
        segmenter(flair, T1=flair, T2=flair)
    with pytest.raises(ValueError, match="affine must be"):
        segmenter(array, T1=array)
    with pytest.raises(ValueError, match=re.escape("(X, Y, Z), got (1, 4, 5, 6)")):
        segmenter(array[None], T1=array, affine=np.eye(4))
    # Named by its modality, not by a scratch file.
    with pytest.raises(DataError, match=r"^FLAIR\.nii: 120 voxels are NaN"):
        segmenter(array * np.nan, T1=array, affine=np.eye(4))


def test_the_snippet_of_the_documentation_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parents[2]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "x").symlink_to(folder / "run")
    for name in ("FLAIR", "T1"):
        (tmp_path / f"{name.lower()}.nii.gz").symlink_to(scan(folder, name))
    monkeypatch.chdir(tmp_path)
    for page in ("README.md", "docs/prediction.md"):
        blocks = re.findall(r"```python\n(.*?)```", (root / page).read_text(), flags=re.DOTALL)
        snippets = [block for block in blocks if "Segmenter.load" in block]
        assert snippets, page
        for snippet in snippets:
            exec(compile(snippet, page, "exec"), {})
    assert json.loads((tmp_path / "masks" / "predictions.json").read_text())["precision"] == "fp32"


def test_voxels_and_grids_that_are_none_are_refused(folder: Path) -> None:
    segmenter = Segmenter.load(folder / "run")
    flair = nib.load(scan(folder, "FLAIR"))
    data = flair.get_fdata()
    colours = np.zeros(data.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    complex_image = nib.Nifti1Image(data.astype(np.complex64), flair.affine)
    for image in (data.astype(complex), data.astype(str), complex_image):
        with pytest.raises(DataError, match=r"FLAIR.*voxels; expected one number per voxel"):
            segmenter(image, T1=data, affine=flair.affine)
    with pytest.raises(DataError, match="one number per voxel"):
        segmenter(nib.Nifti1Image(colours, flair.affine), T1=scan(folder, "T1"))
    for affine in (flair.affine * np.nan, np.diag([1, 1, 0, 1])):
        with pytest.raises(ValueError, match="affine must span a grid of voxels") as refusal:
            segmenter(data, T1=data, affine=affine)
        assert "\n" not in str(refusal.value)


def ragged_run(folder: Path) -> Path:
    """A run on cases of which some had no T1."""
    path = folder / "ragged" / "checkpoints" / "best.pt"
    a_checkpoint(path)
    state = torch.load(path, weights_only=True)
    state["preprocessing"]["require"] = ["FLAIR"]
    state["modality_sets"] = [["FLAIR"], ["FLAIR", "T1"]]
    torch.save(state, path)
    return path


def test_a_network_of_ragged_cases_takes_the_sets_that_it_has_seen(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    segmenter = Segmenter.load(ragged_run(tmp_path))
    assert segmenter.required_modalities == ("FLAIR",)
    assert segmenter.modality_sets == (("FLAIR",), ("FLAIR", "T1"))
    flair, t1 = scan(folder, "FLAIR"), scan(folder, "T1")
    # One file alone is the required modality.
    assert [case.images for case in segmenter.cases(flair)] == [{"FLAIR": flair}]
    alone = segmenter(flair)
    assert alone.probability.shape == segmenter(flair, T1=t1).probability.shape
    assert "no training case" not in caplog.text
    with pytest.raises(DataError, match="no FLAIR; expected FLAIR, which this network cannot do"):
        segmenter(T1=t1)


def test_an_unseen_set_of_modalities_is_a_warning(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = ragged_run(tmp_path)
    state = torch.load(path, weights_only=True)
    state["modality_sets"] = [["FLAIR", "T1"]]
    torch.save(state, path)
    segmenter = Segmenter.load(path)
    segmenter.cases({"FLAIR": scan(folder, "FLAIR")}, case_id="a")
    expected = r"no training case had FLAIR alone \(a\); the training cases had FLAIR \+ T1"
    assert re.search(expected, caplog.text)
    # Channel dropout makes any part of a seen set a seen one.
    state["config"]["augmentation"]["dropout_probability"] = 0.3
    torch.save(state, path)
    caplog.clear()
    Segmenter.load(path).cases({"FLAIR": scan(folder, "FLAIR")}, case_id="a")
    assert "no training case" not in caplog.text
