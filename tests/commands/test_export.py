"""tversky-seg export: each format gives the probabilities of predict."""

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.checkpoints import a_checkpoint
from helpers.cohorts import add_case
from helpers.command_line import Outcome, call


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    a_checkpoint(folder / "checkpoints" / "best.pt")
    return folder


def export(run: Path, file_format: str, output: Path, *words: str) -> Outcome:
    return call("export", f"run={run}", f"format={file_format}", f"output={output}", *words)


def difference_in(outcome: Outcome) -> float:
    assert outcome.status == 0, outcome.stderr
    _, found, number = outcome.stdout.partition("largest difference ")
    assert found
    return float(number.split()[0])


def test_pt2_with_its_description(run: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
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
    assert not (tmp_path / "out").exists()
