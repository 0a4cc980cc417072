import os
import signal
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from tversky_seg.data.augmentation import Augmentation
from tversky_seg.data.cases import DataError
from tversky_seg.data.loaders import PatchBatches, load_batches
from tversky_seg.data.sampling import LesionSampler


@dataclass(frozen=True)
class CaseInMemory:
    """What the loader reads of a PreparedCase: every voxel tells where it lies."""

    case_id: str
    shape: tuple[int, int, int] = (40, 36, 32)
    error: Exception | None = None
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def image(self) -> np.ndarray:
        return np.arange(np.prod(self.shape), dtype=np.int16).reshape(1, *self.shape)

    lesion_voxels = np.array([5000, 20000], np.int32)
    lesion_offsets = np.array([0, 1, 2])
    foreground_voxels = np.arange(40 * 36 * 32, dtype=np.int32)

    def patch(
        self, start: tuple[int, int, int], size: tuple[int, int, int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self.error:
            raise self.error
        window = tuple(slice(a, a + b) for a, b in zip(start, size, strict=True))
        image = self.image[(slice(None), *window)].astype(np.float32)
        return image, (image % 7 == 0).astype(np.uint8), image.astype(np.int32) % 5


def some_batches(**settings: object) -> PatchBatches:
    defaults = {"sampler": LesionSampler(patch_size=16), "augmentation": Augmentation(), "batch_size": 3, "seed": 11}
    return PatchBatches([CaseInMemory(f"case{i}") for i in range(4)], **(defaults | settings))


def as_bytes(batch: dict) -> bytes:
    return b"".join(v.numpy().tobytes() if isinstance(v, torch.Tensor) else repr(v).encode() for v in batch.values())


def test_a_batch_has_the_shapes_and_types_of_the_contract() -> None:
    batch = some_batches(with_components=True)[5]
    assert batch["image"].shape == batch["target"].shape == batch["components"].shape == (3, 1, 16, 16, 16)
    assert (batch["image"].dtype, batch["target"].dtype) == (torch.float32, torch.float32)
    assert batch["components"].dtype == torch.int32
    assert len(batch["case_ids"]) == len(batch["starts"]) == 3
    assert all(batch[name].is_contiguous() for name in ("image", "target", "components"))
    assert "components" not in some_batches()[5]


def test_without_augmentation_a_sample_is_the_patch_of_its_case_and_start() -> None:
    batches = some_batches(augmentation=None)
    batch = batches[0]
    case = next(case for case in batches.cases if case.case_id == batch["case_ids"][1])
    np.testing.assert_array_equal(batch["image"][1], case.patch(batch["starts"][1], (16, 16, 16))[0])


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
def test_workers_change_nothing_byte_for_byte() -> None:
    batches = some_batches(with_components=True)
    expected = [as_bytes(batches[step]) for step in range(2, 9)]
    for n_workers in (0, 1, 3):
        assert [as_bytes(b) for b in load_batches(batches, start=2, stop=9, n_workers=n_workers)] == expected


def test_batches_differ_by_step_and_by_seed() -> None:
    seen = {as_bytes(some_batches(seed=seed)[step]) for seed in (0, 1) for step in range(3)}
    assert len(seen) == 6


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_processes_split_the_same_global_batch_in_order(world_size: int) -> None:
    whole = some_batches(batch_size=5)[3]
    shares = [some_batches(batch_size=5, rank=rank, world_size=world_size)[3] for rank in range(world_size)]
    assert torch.equal(torch.cat([share["image"] for share in shares]), whole["image"])
    assert [name for share in shares for name in share["case_ids"]] == whole["case_ids"]


def test_loading_leaves_torchs_random_stream_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(load_batches(some_batches(), start=0, stop=2))
    assert torch.rand(1) == expected


@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.parametrize(("error", "kind"), [(OSError("gone"), DataError), (KeyError("a bug"), RuntimeError)])
def test_errors_carry_case_and_step_in_one_line(n_workers: int, error: Exception, kind: type[Exception]) -> None:
    batches = PatchBatches([CaseInMemory("patient07", error=error)], LesionSampler(patch_size=8), batch_size=1)
    with pytest.raises(kind) as caught:
        list(load_batches(batches, start=4, stop=8, n_workers=n_workers))
    message = str(caught.value)
    assert message.startswith(f"patient07: {type(error).__name__} at step 4, sample 0: {error}")
    assert "\n" not in message
    assert "Traceback" in caught.value.__notes__[0]


def test_a_killed_worker_is_named_with_its_step() -> None:
    @dataclass(frozen=True)
    class Deadly(CaseInMemory):
        def patch(self, start: tuple, size: tuple) -> tuple:
            os.kill(os.getpid(), signal.SIGKILL)

    batches = PatchBatches([Deadly("heavy")], LesionSampler(patch_size=8), batch_size=1)
    with pytest.raises(RuntimeError, match=r"worker died at step 0.*n_workers=0"):
        list(load_batches(batches, start=0, stop=2, n_workers=1))


def test_bad_settings_are_refused_with_the_value() -> None:
    with pytest.raises(ValueError, match=r"batch_size=2.*world_size=3"):
        some_batches(batch_size=2, world_size=3)
    with pytest.raises(ValueError, match="batch_size=0"):
        some_batches(batch_size=0)
    with pytest.raises(ValueError, match=r"seed.*-1"):
        some_batches(seed=-1)
    with pytest.raises(ValueError, match="at least one case"):
        PatchBatches([], LesionSampler())
