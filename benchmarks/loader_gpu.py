"""Augmentation on a GPU, and how long a training waits for its batches.

    python benchmarks/loader_gpu.py [--side 128] [--steps 40] [--seconds 60]

Batches of two patches with 3 channels, of synthetic cases of 1 mm with small lesions. By importance
(no loop begins after --seconds):

1. Two workers that do nothing else, their batches through the ring; and the same with the copy to
   the GPU and the changes there.
2. Steps of the default U-Net in bf16 (Tversky loss, AdamW, CUDA graph), each read one step late as
   the trainer does: with one batch that lies on the device, and with the loader. What the latter
   takes more is the wait for data. `augmentation=default` with 2 workers is never left out.
3. Where the rest of the time goes: new shared memory for each batch, page-locked then, in place of
   the ring; and, in one process, reading, packing, the copy to the GPU and the changes. Only what
   takes longer than a step delays it: the rate of the workers, and the sum of what this process
   does. The same with `augmentation=strong`.
4. The augmentation alone: the samples of a batch lie in page-locked memory; timed are the copy to
   the GPU, the changes and the stacking, by the clock of the GPU while the host runs ahead, and on
   the host, which only launches them; the kernels by themselves are what a step beside them loses.
5. Steps with other augmentations and numbers of workers.

With --device cpu, which needs no GPU, nothing is trained, page-locked or copied, and the parts of 3
are times of the process alone, which others on the machine do not disturb.
"""

import argparse
import platform
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
import torch
from omegaconf import OmegaConf

from tversky_seg.data.grids import Geometry
from tversky_seg.data.patches.augmentation import Augmentation
from tversky_seg.data.patches.batch import Batch, Sample, stack_samples
from tversky_seg.data.patches.batches import PatchBatches
from tversky_seg.data.patches.loader import _load_outcomes as load_outcomes
from tversky_seg.data.patches.loader import _ring_for as ring_for
from tversky_seg.data.patches.loader import load_batches
from tversky_seg.data.patches.packing import Room, pack
from tversky_seg.data.patches.samplers import LesionSampler
from tversky_seg.data.preprocessing.labels import list_lesions
from tversky_seg.data.preprocessing.prepared_case import PreparedCase
from tversky_seg.losses import TverskyLoss
from tversky_seg.models import UNet3D
from tversky_seg.training.trainer import Trainer

Value = TypeVar("Value")

N_CHANNELS = 3
N_BATCHES = 16
HOLD_CYCLES = 16_000_000
"""Cycles for which the device is held up: 8 ms at 2 GHz, longer than the host needs for a batch."""
NAMES = ("none", "default", "strong", "growth")
FIRST_LOOPS = (("default", 2), ("strong", 8), ("strong", 2), ("default", 8))
OTHER_LOOPS = (("none", 2), ("default", 0), ("growth", 8))
"""Augmentation and workers, by importance."""


def synthetic_case(seed: int, shape: tuple[int, int, int]) -> PreparedCase:
    """A ball of noise with 30 lesions of 27 voxels."""
    rng = np.random.default_rng(seed)
    x, y, z = np.ogrid[tuple(slice(-1, 1, 1j * n) for n in shape)]
    brain = x**2 + y**2 + z**2 < 0.9
    image = rng.integers(-3000, 3000, (N_CHANNELS, *shape), dtype=np.int16) * brain
    target = np.zeros((1, *shape), bool)
    for corner in rng.integers(np.array(shape) // 4, np.array(shape) * 3 // 4, (30, 3)):
        target[0, *(slice(first, first + 3) for first in corner)] = True
    lesions, n_lesions = list_lesions(target)
    foreground = np.flatnonzero(brain).astype(np.int32)
    return PreparedCase(
        case_id=f"case{seed}",
        subject_id=f"case{seed}",
        geometry=Geometry(shape, np.eye(4), shape, np.eye(4), (0, 0, 0), shape),
        image_scale=np.full(N_CHANNELS, 1e-3, np.float32),
        n_lesions=n_lesions,
        arrays={"image": image, "foreground_voxels": foreground, **lesions},
    )


def batches_of(name: str, cases: list[PreparedCase], *, side: int) -> PatchBatches:
    """Batches of two, with a choice of configs/augmentation."""
    folder = Path(__file__).parents[1] / "configs/augmentation"
    settings = OmegaConf.load(folder / f"{name}.yaml")
    if "defaults" in settings:
        settings = OmegaConf.merge(OmegaConf.load(folder / "default.yaml"), settings)
    plain = OmegaConf.to_container(settings)  # as a training makes its objects
    plain = {key: value for key, value in plain.items() if key not in ("_target_", "defaults")}
    sampler = LesionSampler(patch_size=side)
    return PatchBatches(cases, sampler, Augmentation(**plain), batch_size=2)


def milliseconds(
    job: Callable[[], object],
    device: torch.device,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Time a job, the work of a GPU included."""
    synchronize(device)
    start = clock()
    job()
    synchronize(device)
    return 1e3 * (clock() - start)


def parts_of_a_batch(batches: PatchBatches, device: torch.device) -> Iterator[str]:
    """Time what happens to a batch, one after the other: medians; on a CPU of its own time."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    memory = torch.zeros(batches.n_bytes_of_samples, dtype=torch.uint8)
    if device.type == "cuda":
        memory = memory.pin_memory()
    times: dict[str, list[float]] = {}

    def timed(name: str, job: Callable[[], Value]) -> Value:
        results: list[Value] = []
        took_ms = milliseconds(lambda: results.append(job()), device, clock=clock)
        times.setdefault(name, []).append(took_ms)
        return results[0]

    for step in range(N_BATCHES):
        room = Room(memory)
        read = partial(batches.samples, step, room=room)
        samples = tuple(timed("read and draw into memory that is there, in one process", read))
        packed = timed("pack the rest", partial(pack, samples, room=room))
        new = timed("pack into new shared memory", partial(pack, samples, is_shared=True))
        if device.type == "cuda":
            timed("copy new shared memory to page-locked memory", new.pin_memory)
        on_device = timed("copy to the GPU and unpack", partial(packed.unpack, device))
        timed("change and stack on the GPU", partial(augment, on_device))
    for name, of_part in times.items():
        yield f"| {name} | {median(of_part[2:]):.2f} |"


def augment(samples: tuple[Sample, ...]) -> Batch:
    """Change samples where they lie."""
    return stack_samples([sample.augment() for sample in samples], with_components=False)


def workers_alone(batches: PatchBatches, *, with_ring: bool) -> Iterator[str]:
    """Time the batches of two workers, of which nothing is used."""
    n_warm_up, n_timed, n_ready = 12, 24, 4
    ring = ring_for(batches, 2, first_step=0) if with_ring else None
    outcomes = load_outcomes(batches, start=0, stop=10**6, n_workers=2, is_on_gpu=True, ring=ring)

    def take(first: int, n_steps: int) -> float:
        """Take over batches, and return the milliseconds for each."""
        start = time.perf_counter()
        for step in range(first, first + n_steps):
            next(outcomes)
            if ring is not None:
                ring.free_until(step)
        return 1e3 * (time.perf_counter() - start) / n_steps

    take(0, n_warm_up)
    rate = take(n_warm_up, n_timed)
    time.sleep(0.5)  # until all that is computed ahead lies ready
    ready = take(n_warm_up + n_timed, n_ready)
    way = "through the ring" if with_ring else "in new shared memory, page-locked"
    yield f"| two workers alone, {way} | {rate:.2f} |"
    yield f"| take over a batch that is ready, {way} | {ready:.2f} |"


def loaded_alone(batches: PatchBatches, device: torch.device) -> str:
    """Time batches of two workers that end on the GPU, where nothing trains on them."""
    n_warm_up, n_timed = 12, 24
    loaded = load_batches(batches, start=0, stop=10**6, n_workers=2, device=device)
    for _ in range(n_warm_up):
        next(loaded)
    took_ms = milliseconds(partial(deque, islice(loaded, n_timed), maxlen=0), device)
    return f"| two workers, copied and changed on the GPU, no training | {took_ms / n_timed:.2f} |"


def augmentation_line(batches: PatchBatches, name: str, device: torch.device) -> str:
    """Time the augmentation of batches that were read before."""
    held = []
    for step in range(N_BATCHES):
        packed = pack(tuple(batches.samples(step)))
        if device.type == "cuda":
            packed = packed.pin_memory()
        held.append(packed)

    for packed in held[:4]:
        augment(packed.unpack(device))
    synchronize(device)
    host_ms, totals_ms = [], []
    for _ in range(3):
        start = time.perf_counter()
        for packed in held:
            before = time.perf_counter()
            augment(packed.unpack(device))
            host_ms.append(1e3 * (time.perf_counter() - before))
        synchronize(device)
        totals_ms.append(1e3 * (time.perf_counter() - start) / N_BATCHES)
    mib = sum(packed.buffer.nbytes for packed in held) / N_BATCHES / 2**20
    kernels = "-"
    if device.type == "cuda":
        kernels = f"{kernels_alone_ms([packed.unpack(device) for packed in held[:8]]):.3f}"
    return f"| {name} | {min(totals_ms):.2f} | {median(host_ms):.2f} | {kernels} | {mib:.0f} |"


def kernels_alone_ms(batches: list[tuple[Sample, ...]]) -> float:
    """Time what a GPU computes for a batch on the device, which it takes from a step beside it."""
    times = []
    for samples in batches:
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(HOLD_CYCLES)  # until the host has launched everything
        start.record()
        augment(samples)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return sum(times) / len(times)


def steps_ms(trainer: Trainer, batches: Iterator[Batch], n_steps: int) -> float:
    """Time a step, the loading of its batch included, while results are read one step late."""
    n_warm_up = 12
    unread = None
    start = 0.0
    for step, batch in enumerate(batches, 1):
        result = trainer.train_step(step, batch)
        if unread is not None:
            _ = unread.loss
        unread = result
        if step == n_warm_up:
            synchronize(trainer.torch_device)
            start = time.perf_counter()
        if step == n_warm_up + n_steps:
            break
    synchronize(trainer.torch_device)
    return 1e3 * (time.perf_counter() - start) / n_steps


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def print_table(columns: tuple[str, ...], lines: Iterable[str]) -> None:
    """Print lines as they come, below the head of a table."""
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for line in lines:
        print(line, flush=True)


class Loops:
    """Loops of training steps, beside the step on one batch that lies on the device.

    Args:
        cases: What the batches are cut from.
        options: The command line.
        stop: Time, by the monotonic clock, after which no loop begins.
    """

    def __init__(
        self, cases: list[PreparedCase], options: argparse.Namespace, *, stop: float
    ) -> None:
        self.cases, self.options, self.stop = cases, options, stop
        self.device = torch.device(options.device)
        self.trainer = Trainer(
            model=UNet3D(in_channels=N_CHANNELS, out_channels=1),
            loss=TverskyLoss(),
            device=options.device,
            precision="auto",
        )
        batches = batches_of("none", cases, side=options.side)
        (held,) = load_batches(batches, start=0, stop=1, device=self.device)
        self.trainer.network = self.trainer._prepare_network()
        self.trainer.use_graph(held)
        # First the algorithms of the convolutions are chosen, and nothing is timed.
        steps_ms(self.trainer, repeat(held), 2)
        self.bare_ms = steps_ms(self.trainer, repeat(held), options.steps)

    def __str__(self) -> str:
        words = self.trainer.precision + (", CUDA graph" if self.trainer.is_graphed else "")
        return f"A step ({words}) on one batch on the device: {self.bare_ms:.2f} ms."

    def line(self, name: str, n_workers: int, *, is_certain: bool = False) -> str:
        """Time steps with the loader, or say that the time is over."""
        if time.monotonic() > self.stop and not is_certain:
            return f"| {name} | {n_workers} | left out: the time is over | | |"
        batches = batches_of(name, self.cases, side=self.options.side)
        loaded = load_batches(batches, start=0, stop=10**6, n_workers=n_workers, device=self.device)
        took_ms = steps_ms(self.trainer, loaded, self.options.steps)
        wait_ms = took_ms - self.bare_ms
        share = 100 * wait_ms / self.bare_ms
        return f"| {name} | {n_workers} | {took_ms:.2f} | {wait_ms:.2f} | {share:+.1f} % |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=60, help="no loop begins after these")
    options = parser.parse_args()
    started = time.monotonic()
    device = torch.device(options.device)
    side = options.side
    shape = tuple(side * n // 16 for n in (20, 24, 20))
    cases = [synthetic_case(seed, shape) for seed in range(2)]
    card = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    print(f"{card}, torch {torch.__version__}, {date.today()}, 2 x {N_CHANNELS} x {side}^3")

    batches = batches_of("default", cases, side=side)
    of_a_batch = ("part of a batch, default augmentation", "ms")
    print_table(of_a_batch, workers_alone(batches, with_ring=True))
    print(loaded_alone(batches, device), flush=True)
    print(f"\nAfter {time.monotonic() - started:.0f} s.", flush=True)

    of_a_loop = ("augmentation", "workers", "ms a step", "wait", "of the bare step")
    loops = None
    if device.type == "cuda":
        loops = Loops(cases, options, stop=started + options.seconds)
        print(f"\n{loops}", flush=True)
        lines = (loops.line(*loop, is_certain=loop == FIRST_LOOPS[0]) for loop in FIRST_LOOPS)
        print_table(of_a_loop, lines)
        print(f"\nAfter {time.monotonic() - started:.0f} s.", flush=True)

    print_table(of_a_batch, workers_alone(batches, with_ring=False))
    for line in parts_of_a_batch(batches, device):
        print(line, flush=True)
    strong = batches_of("strong", cases, side=side)
    of_a_strong_batch = ("part of a batch, strong augmentation", "ms")
    print_table(of_a_strong_batch, workers_alone(strong, with_ring=True))
    for line in parts_of_a_batch(strong, device):
        print(line, flush=True)
    columns = ("augmentation of a batch", "ms", "host ms", "its kernels ms", "MiB copied")
    lines = (augmentation_line(batches_of(name, cases, side=side), name, device) for name in NAMES)
    print_table(columns, lines)
    if loops is not None:
        print_table(of_a_loop, (loops.line(*loop) for loop in OTHER_LOOPS))


if __name__ == "__main__":
    main()
