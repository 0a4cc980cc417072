"""Devices: what precision "auto" means on one, when cuDNN may use TF32, and memory layouts."""

import logging

import pytest
import torch

from helpers.cuda import on_gpu
from tversky_seg.runtime import devices
from tversky_seg.runtime.devices import (
    autocast,
    computes_fast,
    image_to_device,
    resolve_precision,
    to_device,
    warn_of_faulty_cudnn,
)

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)


def with_card(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


@pytest.mark.parametrize(
    ("capability", "word"),
    [
        ((6, 1), "fp32"),
        ((7, 0), "fp16"),
        ((7, 5), "fp16"),
        ((8, 0), "bf16"),
        ((8, 9), "bf16"),
        ((9, 0), "bf16"),
        ((12, 0), "bf16"),
    ],
)
def test_auto_is_the_fastest_precision_of_the_card(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], word: str
) -> None:
    with_card(monkeypatch, capability)
    assert resolve_precision("auto", CUDA) == word


def test_auto_is_fp32_on_the_cpu_and_bf16_on_a_card_that_is_only_planned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_precision("auto", CPU) == "fp32"
    assert resolve_precision("auto", CUDA) == "bf16"


def test_a_precision_that_is_named_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with_card(monkeypatch, (7, 0))
    for word in ("fp32", "tf32", "bf16", "fp16"):
        assert resolve_precision(word, CUDA) == resolve_precision(word, CPU) == word
    assert not computes_fast("bf16", CUDA)
    assert computes_fast("fp16", CUDA)
    assert not computes_fast("bf16", CPU)
    assert computes_fast("tf32", CPU)


def test_an_unknown_precision_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"precision must be one of auto, .*tf32.*, got fp8"):
        resolve_precision("fp8", CPU)
    with pytest.raises(ValueError, match=r"precision must be one of fp32, .*, got auto"):
        autocast(CPU, "auto")


@pytest.mark.filterwarnings("ignore:Please use the new API")
def test_only_the_precision_tf32_lets_cudnn_round_to_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_allows_tf32", None)
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **settings: None)
    before = torch.backends.cudnn.allow_tf32
    try:
        for word, is_allowed in (("fp32", False), ("tf32", True), ("bf16", False)):
            autocast(CUDA, word)
            assert torch.backends.cudnn.allow_tf32 is is_allowed
            assert torch.get_float32_matmul_precision() == "highest"
        torch.backends.cudnn.allow_tf32 = True
        autocast(CPU, "fp32")
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fp32_on_a_card_is_not_tf32() -> None:
    torch.manual_seed(0)
    convolution = torch.nn.Conv3d(16, 16, 3)
    image = torch.randn(1, 16, 24, 24, 24)
    exact = convolution.double()(image.double())
    errors = {}
    for word in ("tf32", "fp32"):
        with autocast(CUDA, word):
            result = convolution.to(CUDA, torch.float32)(image.to(CUDA))
        errors[word] = (result.double().cpu() - exact).abs().max().item()
    assert errors["fp32"] < 2e-5
    assert torch.backends.cudnn.allow_tf32 is False


@on_gpu
def test_a_network_and_its_images_share_a_layout() -> None:
    device = torch.device("cuda")
    network = to_device(torch.nn.Conv3d(2, 4, 3), device)
    image = image_to_device(torch.ones(1, 2, 5, 6, 7), device)
    assert image.is_contiguous(memory_format=torch.channels_last_3d)
    assert network(image).is_contiguous(memory_format=torch.channels_last_3d)


def test_weights_that_are_in_place_keep_their_memory() -> None:
    """A CUDA graph knows them by their addresses, and a validation places them again."""
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 1), torch.nn.Conv3d(4, 2, 3))
    assert not network[1].weight.is_contiguous(memory_format=torch.channels_last_3d)
    addresses = []
    for _ in range(2):
        to_device(network, CPU)
        addresses.append([parameter.data_ptr() for parameter in network.parameters()])
    assert network[1].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert addresses[0] == addresses[1]


@pytest.mark.parametrize(
    ("version", "is_faulty"),
    [(None, False), (90701, False), (90800, True), (91002, True), (91500, False), (91900, False)],
)
def test_a_faulty_cudnn_is_warned_of(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    version: int | None,
    is_faulty: bool,
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)
    with caplog.at_level(logging.WARNING, logger="tversky_seg"):
        warn_of_faulty_cudnn()
    assert bool(caplog.records) is is_faulty
