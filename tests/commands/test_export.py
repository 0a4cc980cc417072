"""tversky-seg export: each format gives the probabilities of predict."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from helpers.checkpoints import a_checkpoint
from helpers.cohorts import add_case
from helpers.command_line import Outcome, call
from tversky_seg.data.settings import NORMALIZATIONS
from tversky_seg.export.description import NORMALIZATIONS as DESCRIBED
from tversky_seg.export.network_file import with_exact_norms
from tversky_seg.models.group_norm import GroupNorm


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    a_checkpoint(folder / "checkpoints" / "best.pt")
    return folder


def export(run: Path, file_format: str, output: Path, *words: str) -> Outcome:
    return call("export", f"run={run}", f"format={file_format}", f"output={output}", *words)


def difference_in(outcome: Outcome) -> float:
    assert outcome.status == 0, outcome.stderr
    _, found, number = outcome.stdout.partition("largest difference from predict ")
    assert found
    return float(number.split()[0])


def test_pt2_with_its_description(run: Path, tmp_path: Path) -> None:
    add_case(tmp_path, "a", seed=0)
    case = f"input={{FLAIR: {tmp_path}/a_FLAIR.nii.gz, T1: {tmp_path}/a_T1.nii.gz}}"
    outcome = export(run, "pt2", tmp_path / "out", case)
    assert difference_in(outcome) <= 1e-4
    description = json.loads((tmp_path / "out" / "network.json").read_text())
    assert description["input"]["shape"] == ["batch", 2, 16, 16, 16]
    assert description["input"]["modalities"] == ["FLAIR", "T1"]
    assert any("subtract the mean" in step for step in description["steps"])
    assert any("probability >= 0.5" in step for step in description["steps"])
    # The file alone, in a batch of another size.
    program = torch.export.load(tmp_path / "out" / "network.pt2").module()
    assert program(torch.zeros(3, 2, 16, 16, 16)).shape == (3, 1, 16, 16, 16)


def test_every_normalisation_is_described() -> None:
    assert tuple(DESCRIBED) == NORMALIZATIONS


def test_onnx(run: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert difference_in(export(run, "onnx", tmp_path / "out", "patch_size=8")) <= 1e-4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "network.json",
        "network.onnx",
    ]
    session = onnxruntime.InferenceSession(tmp_path / "out" / "network.onnx")
    image = np.zeros((3, 2, 8, 8, 8), np.float32)
    (probability,) = session.run(["probability"], {"image": image})
    assert probability.shape == (3, 1, 8, 8, 8)


def test_a_monai_bundle_of_an_ensemble(run: Path, tmp_path: Path) -> None:
    bundle = pytest.importorskip("monai.bundle")
    runs = [run / "checkpoints" / "best.pt", a_checkpoint(tmp_path / "other.pt", 1)]
    words = [f"run=[{','.join(map(str, runs))}]", "format=monai", f"output={tmp_path / 'out'}"]
    assert difference_in(call("export", *words)) <= 1e-4
    # MONAI's own check of the network against metadata.json.
    configs = tmp_path / "out" / "configs"
    bundle.verify_net_in_out(
        net_id="network_def",
        config_file=str(configs / "inference.json"),
        meta_file=str(configs / "metadata.json"),
        device="cpu",
    )
    assert "mask of lesion: probability >= 0.5" in (tmp_path / "out/docs/README.md").read_text()


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of a BIDS session, and of a case with a name of its own."""
    tmp_path = tmp_path_factory.mktemp("predicted")
    a_checkpoint(tmp_path / "best.pt", classes={"core": (1,), "outer_rim": (2,)}, threshold=0.4)
    anatomy = tmp_path / "raw" / "sub-01" / "ses-2" / "anat"
    add_case(anatomy, "x", seed=0)
    anatomy.joinpath("x_FLAIR.nii.gz").rename(anatomy / "sub-01_ses-2_run-1_FLAIR.nii.gz")
    anatomy.joinpath("x_T1.nii.gz").rename(anatomy / "sub-01_ses-2_run-1_T1w.nii.gz")
    add_case(tmp_path / "raw" / "own", "p_7", seed=1)
    for source in (tmp_path / "raw", tmp_path / "raw" / "own"):
        words = [f"checkpoint={tmp_path / 'best.pt'}", f"input={source}"]
        assert call("predict", *words, f"output_dir={tmp_path / 'masks'}").status == 0
    return tmp_path / "masks"


def export_predictions(predicted: Path, layout: str, output: Path) -> Outcome:
    return call("export", f"predictions={predicted}", f"format={layout}", f"output={output}")


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_a_label_map_stands_beside_the_masks_and_the_later_class_wins(predicted: Path) -> None:
    core = voxels(predicted / "p_7_core_mask.nii.gz") > 0
    rim = voxels(predicted / "p_7_outer_rim_mask.nii.gz") > 0
    assert (core & rim).any()
    labels = nib.load(predicted / "p_7_labels.nii.gz")
    np.testing.assert_array_equal(labels.dataobj, np.where(rim, 2, core))
    assert labels.get_data_dtype() == np.uint8
    settings = json.loads((predicted / "predictions.json").read_text())
    assert settings["label_map"] == {"core": 1, "outer_rim": 2}


def test_predictions_as_a_bids_derivative(predicted: Path, tmp_path: Path) -> None:
    assert "2 cases" in export_predictions(predicted, "bids", tmp_path / "out").stdout
    description = json.loads((tmp_path / "out" / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "tversky-seg"
    anatomy = tmp_path / "out" / "sub-01" / "ses-2" / "anat"
    stem = "sub-01_ses-2_run-1"
    assert sorted(path.name for path in anatomy.iterdir()) == [
        f"{stem}_dseg.json",
        f"{stem}_dseg.nii.gz",
        f"{stem}_dseg.tsv",
        f"{stem}_label-core_mask.json",
        f"{stem}_label-core_mask.nii.gz",
        f"{stem}_label-core_probseg.json",
        f"{stem}_label-core_probseg.nii.gz",
        f"{stem}_label-outerrim_mask.json",
        f"{stem}_label-outerrim_mask.nii.gz",
        f"{stem}_label-outerrim_probseg.json",
        f"{stem}_label-outerrim_probseg.nii.gz",
    ]
    sidecar = json.loads((anatomy / f"{stem}_label-core_mask.json").read_text())
    assert sidecar["Sources"][0] == f"bids:raw:sub-01/ses-2/anat/{stem}_FLAIR.nii.gz"
    assert sidecar["Threshold"] == 0.4
    np.testing.assert_array_equal(
        voxels(anatomy / f"{stem}_label-core_mask.nii.gz"),
        voxels(predicted / "sub-01_ses-2_core_mask.nii.gz"),
    )
    assert (anatomy / f"{stem}_dseg.tsv").read_text() == "index\tname\n1\tcore\n2\touter_rim\n"
    assert (tmp_path / "out" / "sub-p7" / "anat" / "sub-p7_dseg.nii.gz").is_file()


def test_predictions_as_nnunet_labels(predicted: Path, tmp_path: Path) -> None:
    assert export_predictions(predicted, "nnunet", tmp_path / "out").status == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["dataset.json", "p_7.nii.gz", "sub-01_ses-2.nii.gz"]
    description = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "core": 1, "outer_rim": 2}
    assert description["channel_names"] == {"0": "FLAIR", "1": "T1"}
    np.testing.assert_array_equal(
        voxels(tmp_path / "out" / "p_7.nii.gz"), voxels(predicted / "p_7_labels.nii.gz")
    )


def test_bad_input_gets_one_line(run: Path, tmp_path: Path) -> None:
    assert "expected one of" in export(run, "onxx", tmp_path / "out").error
    assert "no such file" in export(tmp_path / "none", "pt2", tmp_path / "out").error
    assert "exists already" in export(run, "pt2", run).error
    assert "expected {MODALITY" in export(run, "pt2", tmp_path / "out", "input=a.nii").error
    two = f"run=[{run},{run / 'checkpoints' / 'last.pt'}]"
    a_checkpoint(run / "checkpoints" / "last.pt", 1)
    assert "holds 2 networks" in call("export", two, "format=pt2", f"output={tmp_path}/o").error
    whole = export(run, "pt2", tmp_path / "out", "patch_size=whole")
    assert "set patch_size=96" in whole.error
    assert "no predictions.json" in export_predictions(run, "bids", tmp_path / "out").error
    assert "expected predictions=" in export(run, "bids", tmp_path / "out").error
    assert "expected run=" in export_predictions(run, "pt2", tmp_path / "out").error
    assert not (tmp_path / "out").exists()


def test_norms_in_plain_arithmetic_are_group_norms() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 8, 3, 4, 5) * 3 + 7
    for n_groups, relu in ((8, False), (4, True), (1, False)):
        norm = GroupNorm(n_groups, 8, relu=relu)
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
        expected = norm.double()(features.double())
        plain = with_exact_norms(norm.float())(features)
        np.testing.assert_allclose(plain.detach(), expected.detach(), atol=2e-6)
