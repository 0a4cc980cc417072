"""Training on a CUDA device: no waits in a step, overflows, resuming, several processes."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from helpers.cuda import no_host_waits
from helpers.trainers import Blobs, a_trainer, assert_same, rows, weights
from tversky_seg.data.patches.batch import Batch
from tversky_seg.models import UNet3D
from tversky_seg.runtime import distributed as processes
from tversky_seg.runtime.checkpoints import load_checkpoint
from tversky_seg.runtime.devices import is_out_of_memory
from tversky_seg.training.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda", 0)


def gpu_trainer(*, norm: str = "group", **settings: Any) -> Trainer:
    torch.manual_seed(0)
    model = UNet3D(in_channels=1, out_channels=1, width=8, n_levels=2, norm=norm)
    return a_trainer(**{"model": model, "device": "cuda", **settings})


def moved(batch: Batch) -> Batch:
    return replace(batch, image=batch.image.to(CUDA), target=batch.target.to(CUDA))


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_no_step_waits_for_the_device(precision: str, norm: str) -> None:
    trainer = gpu_trainer(precision=precision, norm=norm, ema_decay=0.9)
    batches = [moved(Blobs(spoiled=(4,))[step]) for step in range(1, 7)]
    results = [trainer.train_step(step, batches[step - 1]) for step in (1, 2)]
    with no_host_waits():
        for step in (3, 4, 5, 6):
            results.append(trainer.train_step(step, batches[step - 1]))
    assert [result.is_skipped for result in results] == [False, False, False, True, False, False]
    assert all(result.seconds > 0 for result in results)
    for tensor in (*trainer.model.state_dict().values(), *trainer.average.network.buffers()):
        assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("kind", ["AdamW", "Adam", "SGD", "RMSprop"])
def test_losses_are_those_of_the_cpu_with_every_optimizer(kind: str) -> None:
    losses = {}
    optimizer = partial(getattr(torch.optim, kind), lr=0.005)
    for device in ("cpu", "cuda"):
        trainer = gpu_trainer(device=device, precision="fp32", optimizer=optimizer)
        losses[device] = []
        for step in range(1, 7):
            losses[device].append(trainer.train_step(step, Blobs()[step]).loss)
    assert losses["cuda"] == pytest.approx(losses["cpu"], abs=2e-3)


def test_an_overflow_in_fp16_skips_the_step_and_halves_the_scale() -> None:
    trainer = gpu_trainer(precision="fp16", norm="batch", ema_decay=0.9)
    assert not trainer.train_step(1, moved(Blobs()[1])).is_skipped
    trainer.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**60)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    average = {name: t.clone() for name, t in trainer.average.network.state_dict().items()}
    result = trainer.train_step(2, moved(Blobs()[2]))
    assert result.is_skipped
    assert 0 < result.loss < 2
    assert trainer.scaler.get_scale() == 2.0**59
    assert_same(before, trainer.model.state_dict())
    assert_same(average, trainer.average.network.state_dict())
    count = next(iter(trainer.torch_optimizer.state.values()))["step"]
    assert count.item() == 1


def test_memory_that_runs_out_is_recognised_and_the_next_step_goes_on() -> None:
    trainer = gpu_trainer(precision="bf16")
    trainer.train_step(1, moved(Blobs()[1]))
    large = replace(
        Blobs()[1], image=torch.zeros(2, 1, 96, 96, 96), target=torch.zeros(2, 1, 96, 96, 96)
    )
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(2**27 / total)
    try:
        with pytest.raises(Exception) as fault:
            trainer.train_step(2, large)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert is_out_of_memory(fault.value)
    del fault
    assert not trainer.train_step(2, moved(Blobs()[2])).is_skipped


def test_rows_and_skips_are_those_of_results_read_at_once(tmp_path: Path) -> None:
    settings = {"max_steps": 8, "log_every": 2, "checkpoint_every": 5, "validate_every": 8}
    blobs = Blobs(spoiled=(1, 4, 5))
    gpu_trainer(**settings, precision="fp32").fit(blobs, tmp_path / "gpu")
    gpu_trainer(**settings, device="cpu").fit(blobs, tmp_path / "cpu")
    assert rows(tmp_path / "gpu", "skipped") == rows(tmp_path / "cpu", "skipped")
    assert rows(tmp_path / "gpu", "learning_rate") == rows(tmp_path / "cpu", "learning_rate")
    of_gpu, of_cpu = (rows(tmp_path / device, "loss") for device in ("gpu", "cpu"))
    assert of_gpu.keys() == of_cpu.keys()
    assert of_gpu[2] != of_gpu[2]  # NaN: step 2 was skipped
    assert of_gpu[4] == pytest.approx(of_cpu[4], abs=5e-3)


def test_max_skipped_ends_a_run_with_the_same_words(tmp_path: Path) -> None:
    trainer = gpu_trainer(max_skipped=3, max_steps=9, precision="bf16")
    with pytest.raises(FloatingPointError, match=r"^step 6: .*ann at \[5, 0, 0\]"):
        trainer.fit(Blobs(spoiled=(1, 3, 4, 5)), tmp_path)
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt")["step"] == 4


@pytest.fixture
def flags_put_back() -> Iterator[None]:
    """Deterministic algorithms hold for the whole process."""
    benchmark = torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cudnn.deterministic = False


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_a_deterministic_run_repeats_and_resumes_bit_for_bit(
    tmp_path: Path, norm: str, flags_put_back: None
) -> None:
    settings = {"precision": "bf16", "deterministic": True, "norm": norm, "ema_decay": 0.9}
    blobs = Blobs(spoiled=(3,))
    gpu_trainer(**settings).fit(blobs, tmp_path / "whole")
    gpu_trainer(**settings).fit(blobs, tmp_path / "again")
    with pytest.raises(OSError, match="the disk is gone"):
        gpu_trainer(**settings).fit(replace(blobs, dies_at=4), tmp_path / "resumed")
    gpu_trainer(**settings).fit(blobs, tmp_path / "resumed")
    expected = weights(tmp_path / "whole" / "checkpoints" / "last.pt")
    for run in ("again", "resumed"):
        assert_same(weights(tmp_path / run / "checkpoints" / "last.pt"), expected)
        metrics = (tmp_path / run / "metrics.csv").read_bytes()
        assert metrics == (tmp_path / "whole" / "metrics.csv").read_bytes()


def test_a_run_of_the_cpu_resumes_on_the_gpu(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="the disk is gone"):
        gpu_trainer(device="cpu").fit(Blobs(dies_at=4), tmp_path)
    trainer = gpu_trainer(precision="fp32")
    trainer.fit(Blobs(), tmp_path)
    assert rows(tmp_path, "skipped").keys() == {2, 3, 4, 6}
    for weight, entries in trainer.torch_optimizer.state.items():
        assert entries["exp_avg"].stride() == weight.stride()
        assert entries["step"].device == weight.device


def test_one_process_over_nccl_steps_without_a_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [moved(Blobs()[step]) for step in range(1, 6)]
    alone = gpu_trainer(precision="fp32")
    losses = [alone.train_step(step, batches[step - 1]).loss for step in range(1, 6)]
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1)
    try:
        monkeypatch.setattr(processes, "world_size", lambda: 2)
        trainer = gpu_trainer(precision="fp32")
        trainer.network = trainer._prepare_network()
        assert isinstance(trainer.network, DistributedDataParallel)
        results = [trainer.train_step(step, batches[step - 1]) for step in (1, 2, 3)]
        with no_host_waits():
            results += [trainer.train_step(step, batches[step - 1]) for step in (4, 5)]
        assert [result.loss for result in results] == pytest.approx(losses, abs=1e-4)
    finally:
        torch.cuda.synchronize()
        trainer.network = trainer.model
        distributed.destroy_process_group()
