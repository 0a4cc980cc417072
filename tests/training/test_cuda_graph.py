"""CUDA graphs of the network: when they are used, and that they change no number."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from helpers.cuda import no_host_waits, on_gpu
from helpers.trainers import Blobs, a_trainer, assert_same
from tversky_seg.data.patches.batch import Batch
from tversky_seg.inference.sliding_window import predict_volume
from tversky_seg.models import FCDenseNet3D, UNet3D
from tversky_seg.training import cuda_graph as cuda_graphs
from tversky_seg.training.cuda_graph import _is_known, check_cuda_graph, graphed
from tversky_seg.training.trainer import Trainer


def test_the_setting_is_checked() -> None:
    for setting in ("auto", True, False):
        check_cuda_graph(setting)
    with pytest.raises(ValueError, match="cuda_graph must be auto, true or false, got on"):
        check_cuda_graph("on")


def test_a_cpu_has_no_graph() -> None:
    network = UNet3D(in_channels=1, out_channels=1, width=4, n_levels=2)
    image = torch.zeros(1, 1, 8, 8, 8)
    cpu = torch.device("cpu")
    for setting in ("auto", True, False):
        assert graphed(network, image, cpu, precision="fp32", setting=setting) is None


def test_networks_of_others_are_not_recorded_unasked() -> None:
    class Mine(nn.Module):
        pass

    assert _is_known(UNet3D(in_channels=1, out_channels=1, width=4, n_levels=2))
    small = {"in_channels": 1, "out_channels": 1, "n_blocks": 2, "width": 8}
    assert _is_known(FCDenseNet3D(**small))
    assert not _is_known(FCDenseNet3D(**small, checkpointing=True))
    assert not _is_known(nn.Sequential(nn.Conv3d(1, 1, 1), Mine()))


@pytest.mark.parametrize(("gib", "is_recorded"), [(32, True), (39, True), (41, False)])
def test_a_graph_may_keep_half_of_the_memory(
    gib: int, is_recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FC-DenseNet takes 32 GiB for two patches of 128^3."""
    monkeypatch.setattr(cuda_graphs, "image_to_device", lambda image, _: image)
    monkeypatch.setattr(cuda_graphs, "_bytes_of_a_pass", lambda *_, **__: gib * 2**30)
    monkeypatch.setattr(cuda_graphs, "GraphedNetwork", lambda *_, **__: "graph")
    card = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    network = UNet3D(in_channels=1, out_channels=1, width=4, n_levels=2)
    graph = graphed(network, torch.zeros(1), torch.device("cuda"), precision="bf16", setting="auto")
    assert (graph is not None) is is_recorded


def gpu_trainer(*, cuda_graph: bool | str, norm: str, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    model = UNet3D(
        in_channels=1, out_channels=1, width=8, n_levels=2, norm=norm, dropout=0.2, residual=True
    )
    return a_trainer(model=model, device="cuda", ema_decay=0.9, cuda_graph=cuda_graph, **settings)


def moved(batch: Batch) -> Batch:
    return replace(batch, image=batch.image.to("cuda"), target=batch.target.to("cuda"))


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Of this test alone: the flag holds for the whole process."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@on_gpu
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_graph_changes_no_number(norm: str, precision: str) -> None:
    losses: list[list[float]] = []
    states = []
    for cuda_graph in (False, "auto"):
        trainer = gpu_trainer(cuda_graph=cuda_graph, norm=norm, precision=precision)
        batches = [moved(Blobs(spoiled=(4,))[step]) for step in range(1, 7)]
        trainer.use_graph(batches[0])
        assert trainer.is_graphed is (cuda_graph == "auto")
        results = [trainer.train_step(1, batches[0])]
        # As in a validation, which leaves the weights where the graph reads them.
        predict_volume(trainer.model, torch.zeros(1, 8, 8, 8), patch_size=8)
        with no_host_waits():
            for step in range(2, 7):
                results.append(trainer.train_step(step, batches[step - 1]))
        assert [result.is_skipped for result in results] == [step == 4 for step in range(1, 7)]
        losses.append([result.loss for result in results if not result.is_skipped])
        states.append({**trainer.model.state_dict(), **trainer.average.network.state_dict()})
    assert losses[0] == losses[1]
    assert_same(states[0], states[1])


@on_gpu
def test_validation_sees_the_trained_weights() -> None:
    trainer = gpu_trainer(cuda_graph="auto", norm="group")
    batch = moved(Blobs()[1])
    trainer.use_graph(batch)
    trainer.train_step(1, batch)
    again = UNet3D(in_channels=1, out_channels=1, width=8, n_levels=2, residual=True).cuda()
    again.load_state_dict(trainer.model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(trainer.model.eval()(batch.image), again.eval()(batch.image))


@on_gpu
def test_another_thread_may_pin_memory_while_a_graph_is_recorded() -> None:
    stop = threading.Event()
    faults: list[Exception] = []

    def pin() -> None:
        kept = []
        try:
            while not stop.is_set():
                # A new size each time: memory that was pinned before would be used again.
                kept.append(torch.empty(2**20 + 4096 * len(kept), dtype=torch.uint8).pin_memory())
                stop.wait(0.005)
        except Exception as error:
            faults.append(error)

    thread = threading.Thread(target=pin)
    thread.start()
    try:
        trainer = gpu_trainer(cuda_graph=True, norm="group")
        trainer.use_graph(moved(Blobs()[1]))
    finally:
        stop.set()
        thread.join()
    assert not faults
    assert trainer.is_graphed
    assert not trainer.train_step(1, moved(Blobs()[1])).is_skipped


@on_gpu
def test_images_of_another_shape_go_through_the_network_itself() -> None:
    trainer = gpu_trainer(cuda_graph=True, norm="group")
    batch = moved(Blobs()[1])
    trainer.use_graph(batch)
    one = replace(batch, image=batch.image[:1], target=batch.target[:1])
    assert not trainer.train_step(1, one).is_skipped
    assert not trainer.train_step(2, batch).is_skipped
