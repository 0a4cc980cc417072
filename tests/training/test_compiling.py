"""torch.compile: when a training uses it, and what happens if it fails."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers.trainers import Blobs, a_trainer, assert_same, rows, weights
from tversky_seg.models import UNet3D
from tversky_seg.runtime.files import read_json, write_json
from tversky_seg.training import compiling
from tversky_seg.training.compiling import can_compile, should_compile
from tversky_seg.training.trainer import Trainer

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")
LONG = {"n_steps": 20_000, "is_deterministic": False}


def a_network(**settings: Any) -> nn.Module:
    return UNet3D(in_channels=1, out_channels=1, width=4, n_levels=2, **settings)


def test_auto_compiles_long_trainings_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "can_compile", lambda: True)
    network = a_network(norm="batch")
    assert should_compile("auto", network, CUDA, **LONG)
    # Our group norm has kernels of its own.
    assert not should_compile("auto", a_network(norm="group"), CUDA, **LONG)
    assert not should_compile("auto", network, CPU, **LONG)
    assert not should_compile("auto", network, CUDA, n_steps=2999, is_deterministic=False)
    assert not should_compile("auto", network, CUDA, n_steps=20_000, is_deterministic=True)
    for setting in (True, False):
        assert should_compile(setting, network, CPU, n_steps=1, is_deterministic=True) is setting
    monkeypatch.setattr(compiling, "can_compile", lambda: False)
    assert not should_compile("auto", network, CUDA, **LONG)


def test_auto_does_not_compile_batch_norm_of_several_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiling, "can_compile", lambda: True)
    monkeypatch.setattr(compiling, "world_size", lambda: 2)
    assert should_compile("auto", nn.Sequential(nn.Conv3d(1, 1, 3)), CUDA, **LONG)
    assert not should_compile("auto", a_network(norm="batch"), CUDA, **LONG)


def test_triton_and_a_c_compiler_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(compiling.shutil, "which", {"clang": "/usr/bin/clang"}.get)
    assert can_compile()
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    assert not can_compile()
    monkeypatch.setenv("CC", "icx")
    assert can_compile()
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
    assert not can_compile()


def compiled_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch.compile trace and differentiate, but generate no code."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


@pytest.mark.parametrize("recompute", [False, True])
def test_a_compiled_training_has_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recompute: bool
) -> None:
    compiled_on_the_cpu(monkeypatch)
    runs = {}
    for is_compiled in (False, True):
        run = tmp_path / str(is_compiled)
        run.mkdir()
        write_json(run / "environment.json", {"threads": 1})
        torch.manual_seed(0)
        settings = {"compile": is_compiled, "recompute": recompute, "max_steps": 3}
        trainer = a_trainer(model=a_network(norm="batch"), **settings)
        trainer.fit(Blobs(), run)
        assert trainer.network is trainer.model, "the memory of another one is free again"
        assert read_json(run / "environment.json")["computation"]["compile"] is is_compiled
        runs[is_compiled] = weights(run / "checkpoints" / "last.pt")
    torch.compiler.reset()
    for name, tensor in runs[True].items():
        assert torch.allclose(tensor, runs[False][name], atol=1e-5), name
    timings = (tmp_path / "True" / "timings.csv").read_text()
    assert "compile_s" in timings
    assert "compile_s" not in (tmp_path / "False" / "timings.csv").read_text()


class Broken(nn.Module):
    """A compiled network whose compiler fails in its first pass, after batch norm has run."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.network(image).sum().backward()
        raise RuntimeError("\nno compiler found\nand more")


def test_a_network_that_cannot_be_compiled_is_trained_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fit(run: str, **settings: Any) -> Trainer:
        torch.manual_seed(0)
        trainer = a_trainer(model=a_network(norm="batch", dropout=0.2), **settings)
        trainer.fit(Blobs(), tmp_path / run)
        return trainer

    fit("plain", compile=False)
    monkeypatch.setattr(torch, "compile", Broken)
    with caplog.at_level(logging.WARNING, logger="tversky_seg"):
        trainer = fit("broken", compile=True)
    assert [record.getMessage() for record in caplog.records] == [
        "the network cannot be compiled and is trained without: RuntimeError: no compiler found"
    ]
    assert not trainer.is_compiled
    plain, broken = (weights(tmp_path / run / "checkpoints/last.pt") for run in ("plain", "broken"))
    assert_same(plain, broken)
    assert rows(tmp_path / "plain", "loss") == rows(tmp_path / "broken", "loss")


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(ValueError, match="compile must be auto, true or false, got fast"):
        a_trainer(compile="fast")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_network_compiled_for_a_gpu_has_the_losses_of_an_eager_one(
    tmp_path: Path, precision: str
) -> None:
    losses = {}
    for is_compiled in (False, True):
        torch.manual_seed(0)
        trainer = a_trainer(
            model=a_network(), device="cuda", compile=is_compiled, precision=precision
        )
        trainer.fit(Blobs(), tmp_path / str(is_compiled))
        assert trainer.is_compiled is is_compiled
        losses[is_compiled] = rows(tmp_path / str(is_compiled), "loss")
    torch.compiler.reset()
    assert losses[True] == pytest.approx(losses[False], abs=0.02)
