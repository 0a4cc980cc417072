"""Augmentation left to a GPU: what is handed over, and that it waits for nothing."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.batches import as_bytes, changed_batches, some_batches
from helpers.cuda import no_host_waits, on_gpu
from tversky_seg.data.patches import loader as loaders
from tversky_seg.data.patches.augmentation import Augmentation
from tversky_seg.data.patches.batch import stack_samples
from tversky_seg.data.patches.intensity import _normal_quantiles
from tversky_seg.data.patches.loader import load_batches
from tversky_seg.data.patches.packing import pack


def test_what_is_augmented_later_is_the_same_batch() -> None:
    deforming = Augmentation(
        zoom=(0.7, 1.4), zoom_probability=1.0, tilt_probability=0.5, elastic_probability=0.5
    )
    batches = some_batches(augmentation=deforming, with_components=True)
    for step in range(3):
        samples = [sample.augment() for sample in batches.samples(step)]
        finished = stack_samples(samples, with_components=True)
        assert as_bytes(finished) == as_bytes(batches[step])


def augmentation_named(name: str) -> Augmentation:
    """A choice of configs/augmentation."""
    folder = Path(__file__).parents[2] / "configs" / "augmentation"
    settings = OmegaConf.load(folder / f"{name}.yaml")
    if "defaults" in settings:
        settings = OmegaConf.merge(OmegaConf.load(folder / "default.yaml"), settings)
    words = ("_target_", "defaults")
    return Augmentation(**{key: settings[key] for key in settings if key not in words})


@pytest.mark.parametrize("with_components", [False, True])
def test_deferred_samples_are_the_batches_of_the_cpu(with_components: bool) -> None:
    batches = changed_batches(with_components=with_components)
    cpu = torch.device("cpu")
    n_growing = 0
    for step in range(6):
        samples = pack(tuple(batches.samples(step))).unpack(cpu)
        assert all(sample.image.dtype == torch.int16 for sample in samples)
        n_growing += sum(sample.change.growth is not None for sample in samples)
        finished = [sample.augment() for sample in samples]
        batch = stack_samples(finished, with_components=with_components)
        assert as_bytes(batch) == as_bytes(batches[step])
    assert n_growing >= 3


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")  # without a GPU
def test_workers_hand_over_packed_samples() -> None:
    batches = changed_batches()
    outcomes = loaders._load_outcomes(batches, start=2, stop=6, n_workers=2, is_on_gpu=True)
    for step, outcome in enumerate(outcomes, 2):
        samples = outcome.samples.unpack(torch.device("cpu"))
        finished = [sample.augment() for sample in samples]
        assert as_bytes(stack_samples(finished, with_components=False)) == as_bytes(batches[step])


class Operations(TorchDispatchMode):
    """Lists the operations that run, without views, and counts copies from the host."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.n_from_host = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        alias = function._schema.returns[0].alias_info
        name = function.overloadpacket.__name__
        if not name.startswith("empty") and (alias is None or alias.is_write):
            self.names.append(name)
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        self.n_from_host += any(tensor.device.type == "cpu" for tensor in tensors)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "n_most"), [("default", 55), ("strong", 65), ("growth", 75)])
def test_augmentation_on_a_device_neither_waits_nor_needs_the_host(name: str, n_most: int) -> None:
    # Tensors of the meta device have no values: to look at one is an error, and so is to mix it
    # with a tensor of the host.
    meta = torch.device("meta")
    batches = some_batches(augmentation=augmentation_named(name), batch_size=6)
    _normal_quantiles(meta)  # the one table that each device gets once
    n_steps = 4
    operations = Operations()
    for step in range(n_steps):
        packed = pack(tuple(batches.samples(step)))
        with operations:
            samples = [sample.augment() for sample in packed.unpack(meta)]
            stack_samples(samples, with_components=False)
    assert operations.n_from_host == n_steps, "one buffer a batch"
    assert len(operations.names) < n_most * n_steps * 6


@on_gpu
@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_gpu_gives_the_batches_of_the_cpu(n_workers: int) -> None:
    batches = changed_batches(with_components=True)
    cuda = torch.device("cuda")
    # More than the ring has slots.
    loaded = load_batches(batches, start=1, stop=15, n_workers=n_workers, device=cuda)
    for step, batch in enumerate(loaded, 1):
        expected = batches[step]
        assert batch.image.device.type == "cuda"
        assert (batch.case_ids, batch.starts) == (expected.case_ids, expected.starts)
        # At the border of the brain, and halfway between voxels, roundings may decide otherwise.
        is_close = torch.isclose(batch.image.cpu(), expected.image, atol=1e-3, rtol=1e-4)
        assert is_close.float().mean() > 0.9999
        assert batch.components.dtype == torch.int32
        assert (batch.components.cpu() == expected.components).float().mean() > 0.9999
        assert torch.equal(batch.target.cpu(), (batch.components.cpu() > 0).float())


@on_gpu
def test_augmentation_on_a_gpu_waits_for_nothing() -> None:
    batches = changed_batches(with_components=True)
    cuda = torch.device("cuda")
    for step in range(6):
        packed = pack(tuple(batches.samples(step)))
        pinned = packed.pin_memory()
        torch.cuda.synchronize()
        # The first round makes the table of noise, which waits once.
        for context in (nullcontext(), no_host_waits()):
            with context:
                samples = [sample.augment() for sample in pinned.unpack(cuda)]
                stack_samples(samples, with_components=True)


def test_a_packed_value_is_the_same_value_in_one_buffer() -> None:
    value = ("a", {"b": [torch.arange(5, dtype=torch.int16)]}, torch.tensor([True, False]))
    words = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4).transpose(0, 2)
    packed = pack((value, words, torch.zeros(3, 0)))
    (name, by_name, mask), copied_words, empty = packed.unpack(torch.device("cpu"))
    assert name == "a"
    assert torch.equal(copied_words, words)
    assert torch.equal(by_name["b"][0], torch.arange(5, dtype=torch.int16))
    assert torch.equal(mask, value[2])
    assert (by_name["b"][0].dtype, mask.dtype) == (torch.int16, torch.bool)
    assert empty.shape == (3, 0)
    of_buffer = packed.buffer.untyped_storage().data_ptr()
    assert copied_words.untyped_storage().data_ptr() == of_buffer
    assert copied_words.data_ptr() % 16 == 0
    assert len(packed.outline) < 1000


def test_a_batch_for_a_gpu_is_one_buffer_to_share_and_to_pin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copied = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        copied.append(tensor.nbytes)
        return tensor

    batches = some_batches(augmentation=Augmentation(noise_probability=1.0))
    outcome = loaders._Outcomes(batches, is_deferred=True)._load(0, is_in_worker=True)
    assert outcome.samples.buffer.is_shared()
    monkeypatch.setattr(torch.Tensor, "pin_memory", note)
    outcome.pin_memory()
    assert copied == [outcome.samples.buffer.nbytes]
