"""The ring of shared memory through which workers hand samples to a GPU."""

import multiprocessing
from typing import Any

import pytest
import torch

from helpers.batches import as_bytes, changed_batches
from helpers.cuda import no_host_waits, on_gpu
from tversky_seg.data.patches import loader as loaders
from tversky_seg.data.patches import ring as rings
from tversky_seg.data.patches.batch import stack_samples
from tversky_seg.data.patches.packing import Room, pack
from tversky_seg.data.patches.ring import HEAD_BYTES, Ring, make_ring
from tversky_seg.data.patches.samplers import LesionSampler

CPU = torch.device("cpu")
needs_fork = pytest.mark.skipif(
    multiprocessing.get_start_method() != "fork", reason="workers are not forked here"
)


def lies_in(ring: Ring, buffer: torch.Tensor) -> bool:
    return buffer.untyped_storage().data_ptr() == ring.buffer.untyped_storage().data_ptr()


def test_a_slot_is_free_once_the_step_that_had_it_was_read() -> None:
    ring = Ring(n_slots=3, slot_bytes=10, first_step=7)
    assert ring.slot_bytes == HEAD_BYTES, "whole pages"
    slots = [ring.free_slot(step) for step in (7, 8, 9)]
    assert len({slot.data_ptr() for slot in slots}) == 3
    assert ring.free_slot(10) is None
    ring.free_until(7)
    assert ring.free_slot(10).data_ptr() == slots[0].data_ptr()
    assert ring.free_slot(11) is None


def test_the_slots_lie_apart() -> None:
    ring = Ring(n_slots=4, slot_bytes=HEAD_BYTES, first_step=0)
    for step in range(4):
        ring.slot(step).fill_(step + 1)
    assert [int(ring.slot(step).sum()) for step in range(4)] == [
        (step + 1) * HEAD_BYTES for step in range(4)
    ]
    assert ring.free_slot(3) is not None, "the head is not overwritten"
    assert ring.free_slot(4) is None


@needs_fork
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")  # without a GPU
@pytest.mark.parametrize("n_workers", [0, 1, 2])
def test_batches_from_the_ring_are_those_of_the_cpu(n_workers: int) -> None:
    batches = changed_batches(with_components=True)
    ring = loaders._ring_for(batches, n_workers, first_step=2)
    outcomes = loaders._load_outcomes(
        batches, start=2, stop=2 + 4 * ring.n_slots, n_workers=n_workers, is_on_gpu=True, ring=ring
    )
    n_in_ring = 0
    for step, outcome in enumerate(outcomes, 2):
        n_in_ring += lies_in(ring, outcome.samples.buffer)
        finished = [sample.augment() for sample in outcome.samples.unpack(CPU)]
        batch = stack_samples(finished, with_components=True)
        assert as_bytes(batch) == as_bytes(batches[step])
        ring.free_until(step)
    assert n_in_ring > 2 * ring.n_slots, "slots are used again"


@needs_fork
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
def test_what_is_not_read_yet_is_never_overwritten() -> None:
    batches = changed_batches()
    ring = loaders._ring_for(batches, 2, first_step=0)
    n_steps = 2 * ring.n_slots
    outcomes = loaders._load_outcomes(
        batches, start=0, stop=n_steps, n_workers=2, is_on_gpu=True, ring=ring
    )
    held = [outcome.samples for outcome in outcomes]  # none is freed
    in_ring = [lies_in(ring, packed.buffer) for packed in held]
    assert in_ring == [step < ring.n_slots for step in range(n_steps)]
    for step, packed in enumerate(held):
        finished = [sample.augment() for sample in packed.unpack(CPU)]
        batch = stack_samples(finished, with_components=False)
        assert as_bytes(batch) == as_bytes(batches[step])


@needs_fork
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
def test_samples_larger_than_a_slot_go_beside_the_ring() -> None:
    batches = changed_batches()
    ring = Ring(n_slots=4, slot_bytes=1, first_step=0)
    outcomes = loaders._load_outcomes(
        batches, start=0, stop=2, n_workers=1, is_on_gpu=True, ring=ring
    )
    for step, outcome in enumerate(outcomes):
        assert not lies_in(ring, outcome.samples.buffer)
        finished = [sample.augment() for sample in outcome.samples.unpack(CPU)]
        assert as_bytes(stack_samples(finished, with_components=False)) == as_bytes(batches[step])


def test_a_slot_has_room_for_deformed_samples() -> None:
    batches = changed_batches(with_components=True)
    sizes = [pack(tuple(batches.samples(step))).buffer.nbytes for step in range(20)]
    assert max(sizes) <= batches.n_bytes_of_samples < 4 * min(sizes)


@pytest.mark.parametrize(
    "settings",
    [{}, {"with_components": True}, {"sampler": LesionSampler(patch_size=48), "batch_size": 1}],
    ids=["target", "components", "beyond the volume"],
)
@pytest.mark.parametrize("share", [1.0, 0.3], ids=["in the slot", "too small a slot"])
def test_samples_read_into_a_slot_are_those_packed_in_the_end(
    settings: dict[str, Any], share: float
) -> None:
    batches = changed_batches(**settings)
    n_bytes = int(share * batches.n_bytes_of_samples)
    memory = torch.zeros(n_bytes, dtype=torch.uint8)
    n_in_slot = n_read = 0
    for step in range(6):
        room = Room(memory.fill_(85))
        samples = tuple(batches.samples(step, room=room))
        n_read += sum(room.slot_of(sample.image) is not None for sample in samples)
        packed = pack(samples, room=room)
        expected = pack(tuple(batches.samples(step)))
        n_in_slot += packed.buffer.data_ptr() == memory.data_ptr()
        assert in_order(packed.unpack(CPU)) == in_order(expected.unpack(CPU))
    assert n_read > 0
    assert (n_in_slot == 6) == (share == 1)


def in_order(value: object) -> tuple[bytes, bytes]:
    """A value as bytes, its tensors in the order in which they are found, with 0 between them."""
    room = Room(torch.zeros(2**23, dtype=torch.uint8))
    packed = pack(value, room=room)
    assert packed.buffer.data_ptr() == room.memory.data_ptr(), "enough memory"
    return packed.outline, packed.buffer.numpy().tobytes()


def test_a_tensor_made_in_a_room_is_not_copied() -> None:
    room = Room(torch.zeros(4096, dtype=torch.uint8))
    first = room.empty((2, 3), dtype=torch.int16).fill_(1)
    second = room.empty((5,), dtype=torch.int32).fill_(2)
    beside = room.empty((4096,), dtype=torch.uint8)
    assert room.slot_of(beside) is None, "it does not fit"
    turned = second.new_full((2, 2), 3).T
    packed = pack([second, turned, first, first.T], room=room)
    assert packed.buffer.data_ptr() == room.memory.data_ptr()
    unpacked = packed.unpack(CPU)
    values = [tensor.flatten().tolist() for tensor in unpacked]
    assert values == [[2] * 5, [3] * 4, [1] * 6, [1] * 6]
    assert unpacked[0].data_ptr() == second.data_ptr()
    assert unpacked[2].data_ptr() == first.data_ptr()
    assert len({tensor.data_ptr() for tensor in unpacked}) == 4


def test_there_is_no_ring_without_forks_or_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rings.multiprocessing, "get_start_method", lambda: "fork")
    assert make_ring(n_slots=2**20, slot_bytes=2**40, first_step=0) is None
    monkeypatch.setattr(rings, "free_host_memory", lambda: 4 * 2**20)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert make_ring(n_slots=2, slot_bytes=2**18, first_step=0) is not None
    assert make_ring(n_slots=2, slot_bytes=2**18 + 1, first_step=0) is None
    monkeypatch.setattr(rings.multiprocessing, "get_start_method", lambda: "spawn")
    assert make_ring(n_slots=2, slot_bytes=8, first_step=0) is None
    assert make_ring(n_slots=2, slot_bytes=8, first_step=0, has_workers=False) is not None


def test_refused_pages_are_only_slower(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Refusing:
        def cudaHostRegister(self, *_: int) -> int:
            return 801

    monkeypatch.setattr(torch.cuda, "cudart", Refusing)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    assert not Ring(n_slots=1, slot_bytes=1, first_step=0).lock_pages()
    assert "801" in caplog.text


@on_gpu
def test_a_gpu_reads_the_ring_without_a_wait() -> None:
    ring = Ring(n_slots=2, slot_bytes=2**20, first_step=0)
    for _ in range(2):  # the pages are unlocked in between
        assert ring.lock_pages()
        assert ring.slot(1).is_pinned()
        ring.slot(1).random_()
        copied = torch.empty_like(ring.slot(1), device="cuda")
        with no_host_waits():
            copied.copy_(ring.slot(1), non_blocking=True)
        assert torch.equal(copied.cpu(), ring.slot(1))
        ring.unlock_pages()
        assert not ring.slot(1).is_pinned()
