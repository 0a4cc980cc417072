import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.batches import a_case, as_bytes, some_batches
from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import write_volume
from tversky_seg.data.patches import loader as loaders
from tversky_seg.data.patches.augmentation import Augmentation
from tversky_seg.data.patches.batches import PatchBatches
from tversky_seg.data.patches.change import Change
from tversky_seg.data.patches.loader import load_batches, resolve_n_workers
from tversky_seg.data.patches.samplers import LesionSampler
from tversky_seg.data.preprocessing.case_cache import prepare
from tversky_seg.data.preprocessing.pipeline import Preprocessing, preprocess

pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create"
)  # more workers than cores


def test_a_batch_has_the_shapes_and_types_of_the_contract() -> None:
    batch = some_batches(with_components=True)[5]
    assert batch.image.shape == (3, 2, 16, 16, 16)
    assert batch.target.shape == batch.components.shape == (3, 1, 16, 16, 16)
    assert (batch.image.dtype, batch.target.dtype) == (torch.float32, torch.float32)
    assert batch.components.dtype == torch.int32
    assert len(batch.case_ids) == len(batch.starts) == 3
    assert all(t.is_contiguous() for t in (batch.image, batch.target, batch.components))
    assert some_batches()[5].components is None


def test_a_batch_carries_a_bound_of_its_components() -> None:
    batches = some_batches(with_components=True)
    batch = batches[5]
    bounds = {case.case_id: max(case.n_lesions) for case in batches.cases}
    assert batch.n_labels == max(bounds[case_id] for case_id in batch.case_ids)
    assert batch.components.max() <= batch.n_labels
    assert some_batches()[5].n_labels is None


def test_without_augmentation_a_sample_is_the_patch_of_its_case_and_start() -> None:
    batches = some_batches(augmentation=None)
    batch = batches[0]
    case = next(case for case in batches.cases if case.case_id == batch.case_ids[1])
    np.testing.assert_array_equal(batch.image[1], case.intensities(batch.starts[1], (16, 16, 16)))


def test_workers_change_nothing_byte_for_byte() -> None:
    batches = some_batches(with_components=True)
    expected = [as_bytes(batches[step]) for step in range(2, 9)]
    for n_workers in (0, 1, 3):
        assert [
            as_bytes(b) for b in load_batches(batches, start=2, stop=9, n_workers=n_workers)
        ] == expected


def test_batches_differ_by_step_and_by_seed() -> None:
    seen = {as_bytes(some_batches(seed=seed)[step]) for seed in (0, 1) for step in range(3)}
    assert len(seen) == 6


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_processes_split_the_same_global_batch_in_order(world_size: int) -> None:
    whole = some_batches(batch_size=5)[3]
    shares = [
        some_batches(batch_size=5, rank=rank, world_size=world_size)[3]
        for rank in range(world_size)
    ]
    assert torch.equal(torch.cat([share.image for share in shares]), whole.image)
    assert [name for share in shares for name in share.case_ids] == whole.case_ids


def test_each_part_of_an_accumulated_batch_is_that_of_one_process() -> None:
    whole = some_batches(batch_size=8, accumulate=2)[3]
    assert whole.starts == some_batches(batch_size=8)[3].starts
    shares = [
        some_batches(batch_size=8, accumulate=2, rank=rank, world_size=2)[3] for rank in (0, 1)
    ]
    for part in (0, 1):  # samples 0 to 3, and 4 to 7
        image = torch.cat([share.image.chunk(2)[part] for share in shares])
        assert torch.equal(image, whole.image.chunk(2)[part])


def test_loading_leaves_torchs_random_stream_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(load_batches(some_batches(), start=0, stop=2))
    assert torch.rand(1) == expected


def a_case_on_disk(folder: Path) -> Case:
    """One T1 image with a lesion of 27 voxels, and its label."""
    data = np.random.default_rng(0).normal(100, 20, (30, 28, 26)).astype(np.float32)
    label = np.zeros(data.shape, np.uint8)
    label[10:13, 10:13, 10:13] = 1
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    write_volume(folder / "image.nii.gz", data, affine)
    write_volume(folder / "label.nii.gz", label, affine)
    images = {"T1": folder / "image.nii.gz"}
    return Case("a", "a", images=images, labels=(folder / "label.nii.gz",))


def test_cases_in_the_cache_give_the_same_batches_as_in_memory(tmp_path: Path) -> None:
    case = a_case_on_disk(tmp_path)
    settings = Preprocessing(modalities=("T1",))
    in_memory = some_batches(cases=[preprocess(case, settings)])
    in_cache = some_batches(cases=[prepare(case, settings, cache_dir=tmp_path / "cache")])
    expected = [as_bytes(in_memory[step]) for step in range(3)]
    for n_workers in (0, 3):
        loaded = load_batches(in_cache, start=0, stop=3, n_workers=n_workers)
        assert [as_bytes(batch) for batch in loaded] == expected


@pytest.mark.parametrize("n_workers", [0, 2])
def test_many_cases_load_with_the_256_open_files_that_macos_allows(
    tmp_path: Path, n_workers: int
) -> None:
    resource = pytest.importorskip("resource")  # Windows has none
    settings = Preprocessing(modalities=("T1",))
    cached = prepare(a_case_on_disk(tmp_path), settings, cache_dir=tmp_path / "cache")
    cases = []
    for number in range(80):  # of which a patch needs five files each
        folder = tmp_path / f"case{number}"
        shutil.copytree(cached.folder, folder)
        cases.append(replace(cached, case_id=f"case{number}", folder=folder))
    batches = some_batches(cases=cases, batch_size=16)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        loaded = list(load_batches(batches, start=0, stop=20, n_workers=n_workers))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    names = {name for batch in loaded for name in batch.case_ids}
    assert len(names) > 70


class NoFile:
    def draw(self, *_: object, **__: object) -> None:
        raise OSError("gone")


class Bug:
    def draw(self, *_: object, **__: object) -> None:
        raise KeyError("a bug")


@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.parametrize(
    ("augmentation", "kind", "says"),
    [(NoFile(), DataError, "OSError"), (Bug(), RuntimeError, "KeyError")],
)
def test_errors_carry_case_and_step_in_one_line(
    n_workers: int, augmentation: NoFile | Bug, kind: type[Exception], says: str
) -> None:
    batches = PatchBatches(
        [a_case("patient07")], LesionSampler(patch_size=8), augmentation, batch_size=1
    )
    with pytest.raises(kind) as caught:
        list(load_batches(batches, start=4, stop=8, n_workers=n_workers))
    message = str(caught.value)
    assert message.startswith(f"patient07: {says} at step 4, sample 0: ")
    assert "\n" not in message
    assert "Traceback" in caught.value.__notes__[0]


def test_a_killed_worker_is_named_with_its_step() -> None:
    class Deadly:
        def draw(self, *_: object, **__: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    batches = PatchBatches([a_case("heavy")], LesionSampler(patch_size=8), Deadly(), batch_size=1)
    with pytest.raises(
        RuntimeError,
        match=r"^heavy: .*step 0 .*SIGKILL.*n_workers=0",
    ):
        list(load_batches(batches, start=0, stop=2, n_workers=1))


def test_a_stuck_worker_is_named_with_its_step_and_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck:
        def draw(self, *_: object, **__: object) -> None:
            time.sleep(600)

    monkeypatch.setattr(loaders, "STUCK_AFTER_S", 2)
    monkeypatch.setattr(loaders, "LOOK_EVERY_S", 1)
    batches = PatchBatches([a_case("far")], LesionSampler(patch_size=8), Stuck(), batch_size=2)
    with pytest.raises(RuntimeError, match=r"^far: .*step 3 .* 2 s"):
        list(load_batches(batches, start=3, stop=5, n_workers=1))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("n_workers", [0, 1])
def test_an_error_of_page_locked_memory_is_not_blamed_on_a_worker_or_the_disk(
    n_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: torch.Tensor) -> None:
        raise RuntimeError("CUDA error: out of memory")

    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: cuda)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda _: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", fail)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: None)
    monkeypatch.setattr(loaders, "make_ring", lambda **_: None)  # it is locked as a whole
    with pytest.raises(RuntimeError, match=r"page-locked.*CUDA error: out of memory") as caught:
        list(load_batches(some_batches(), start=0, stop=2, n_workers=n_workers, device=cuda))
    message = str(caught.value)
    assert "disk" not in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "reason", ["unable to allocate shared memory(shm): No space left on device (28)", "", "\n"]
)
def test_shared_memory_that_is_full_is_named_at_once(
    monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    def fail(_: torch.Tensor) -> None:
        raise RuntimeError(reason)

    monkeypatch.setattr(torch.Tensor, "share_memory_", fail)
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        list(load_batches(some_batches(), start=0, stop=2, n_workers=1))
    assert time.monotonic() - start < 20
    message = str(caught.value)
    assert all(word in message for word in ("/dev/shm", "--shm-size", "trainer.n_workers=0"))
    assert "\n" not in message


def test_workers_outlive_the_signals_that_a_trainer_answers_by_stopping() -> None:
    class Signalled(Augmentation):
        def draw(self, *arguments: Any, **settings: Any) -> Change:
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                os.kill(os.getpid(), number)
            return super().draw(*arguments, **settings)

    batches = PatchBatches([a_case("a")], LesionSampler(patch_size=8), Signalled(), batch_size=1)
    assert len(list(load_batches(batches, start=0, stop=3, n_workers=1))) == 3


def test_the_cases_of_a_batch_are_known_without_reading() -> None:
    batches = some_batches()
    assert [batches.case_ids(step) for step in range(3)] == [
        batches[step].case_ids for step in range(3)
    ]


def test_values_come_one_ahead_and_an_error_in_its_turn() -> None:
    computed = []

    def values() -> Iterator[int]:
        for number in range(1, 4):
            computed.append(number)
            yield number
        raise OSError("gone")

    ahead = loaders._one_ahead(values())
    for number in range(1, 4):
        assert next(ahead) == number
        assert computed[-1] == min(number + 1, 3)
    with pytest.raises(OSError, match="gone"):
        next(ahead)
    assert list(loaders._one_ahead(iter(()))) == []
    assert list(loaders._one_ahead(iter("abc"))) == ["a", "b", "c"]


def test_a_patch_is_the_stored_integers_times_their_scale_wherever_it_lies() -> None:
    case = a_case("a")
    volume = np.pad(case.image * case.image_scale[:, None, None, None], [(0, 0), *[(20, 20)] * 3])
    for start in ((0, 0, 0), (-7, 3, 20), (30, 30, 30), (-20, 0, 0), (4, 5, 6)):
        box = (slice(None), *(slice(20 + first, 20 + first + 11) for first in start))
        np.testing.assert_array_equal(case.intensities(start, (11, 11, 11)), volume[box])


def test_the_target_of_a_deformed_patch_is_where_its_components_are() -> None:
    deforming = Augmentation(zoom=(0.7, 1.4), zoom_probability=1.0, tilt_probability=1.0)
    with_components = some_batches(augmentation=deforming, with_components=True)
    for step in range(4):
        batch = with_components[step]
        assert torch.equal(batch.target, (batch.components > 0).float())
        assert torch.equal(batch.target, some_batches(augmentation=deforming)[step].target)


def test_auto_takes_two_workers_on_a_cpu_and_spare_cores_for_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for n_cores, expected in ((1, 1), (4, 3), (16, 8)):
        monkeypatch.setattr(loaders, "n_cores", lambda n=n_cores: n)
        assert resolve_n_workers("auto", cuda) == expected
        assert resolve_n_workers("auto", cpu) == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert resolve_n_workers("auto", cuda) == 3
    assert resolve_n_workers(0, cuda) == 0
    for wrong in (-1, "many"):
        with pytest.raises(ValueError, match=f"n_workers must be auto or >= 0, got {wrong}"):
            resolve_n_workers(wrong, cpu)


def test_bad_settings_are_refused_with_the_value() -> None:
    with pytest.raises(ValueError, match=r"batch_size=2.*world_size=3"):
        some_batches(batch_size=2, world_size=3)
    with pytest.raises(ValueError, match="batch_size=0"):
        some_batches(batch_size=0)
    with pytest.raises(ValueError, match=r"seed.*-1"):
        some_batches(seed=-1)
    with pytest.raises(ValueError, match="at least one case"):
        PatchBatches([], LesionSampler())
