"""Checkpoints of strangers: what does not fit is refused in one line that names the file."""

import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from tversky_seg.config import ConfigError
from tversky_seg.data.preprocessing.pipeline import Preprocessing
from tversky_seg.inference.settings import Inference
from tversky_seg.inference.trained_model import load_trained
from tversky_seg.models import UNet3D
from tversky_seg.runtime.checkpoints import CheckpointError

MODEL = {"_target_": "tversky_seg.models.UNet3D", "width": 2, "n_levels": 2}


def save_checkpoint(path: Path, **changed: Any) -> Path:
    torch.manual_seed(0)
    state = {
        "model": UNet3D(in_channels=1, out_channels=1, width=2, n_levels=2).state_dict(),
        "config": {"model": MODEL},
        "preprocessing": Preprocessing(("FLAIR",)).as_dict(),
        "inference": asdict(Inference(patch_size=16)),
        "threshold": 0.5,
    }
    torch.save({**state, **changed}, path)
    return path


def test_a_checkpoint_is_the_network_that_was_saved(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "best.pt")
    saved = torch.load(path, weights_only=True)["model"]
    for name, tensor in load_trained(path).network.state_dict().items():
        assert torch.equal(tensor, saved[name])


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"inference": {"patch_size": 10**5}}, "134217728 voxels in a batch of windows"),
        ({"inference": {"patch_size": 16, "batch_size": 10**9}}, "134217728 voxels in a batch"),
        ({"inference": {"overlap": 2}}, "overlap must lie in"),
        ({"inference": {"size": 16}}, "size"),
        ({"threshold": "high"}, "do not fit"),
        ({"preprocessing": {"modalities": None}}, "data.modalities: none"),
        ({"preprocessing": 3}, "do not fit"),
        ({"config": {"model": {**MODEL, "width": 10**9}}}, "larger network than its weights"),
        ({"config": {"model": {**MODEL, "width": 10**30}}}, "model: "),
        ({"config": {"model": {**MODEL, "width": "wide"}}}, "a whole number"),
        ({"config": None}, "do not fit"),
        ({"model": {"weight": 3}}, "do not fit"),
    ],
)
def test_what_does_not_fit_is_one_line_with_the_file(
    tmp_path: Path, changed: dict[str, Any], text: str
) -> None:
    path = save_checkpoint(tmp_path / "best.pt", **changed)
    with pytest.raises((CheckpointError, ConfigError)) as refusal:
        load_trained(path)
    line = str(refusal.value)
    assert line.startswith(f"{path}: ")
    assert text in line
    assert line.isprintable()


def test_a_tensor_that_repeats_one_number_counts_as_what_the_file_holds(tmp_path: Path) -> None:
    # 40 GB by its shape; a network of 1 GB would be built if that were believed.
    endless = {"weight": torch.zeros(1).expand(10**10)}
    config = {"model": {**MODEL, "width": 1000, "n_levels": 3}}
    path = save_checkpoint(tmp_path / "best.pt", model=endless, config=config)
    with pytest.raises(CheckpointError, match=r"best\.pt.*larger network than its weights"):
        load_trained(path)


def test_a_compressed_file_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "best.pt", model={"weight": torch.zeros(10**6)})
    packed = tmp_path / "packed.pt"
    with (
        zipfile.ZipFile(path) as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert packed.stat().st_size < path.stat().st_size / 100
    with pytest.raises(CheckpointError, match=r"packed\.pt: damaged, or not a checkpoint"):
        load_trained(packed)
