"""Which blocks are fastest for the 3^3 convolutions of 16 and 32 channels, and cuDNN beside them.

    python benchmarks/convolution_gpu.py [--seconds 20]

Milliseconds in bf16, channels last, by the GPU's own clock: the median of eight, after two. The
first table is ours, with the error against float32 sums; the last lines say which blocks win and
can be pasted into models/convolution_launches.py. Kernels are compiled by several processes first.
What would begin after --seconds is left out.
"""

import argparse
import math
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from tversky_seg.models.convolution_launches import (
    Blocks,
    convolved,
    input_gradient,
    weight_gradient,
)

NDHWC = torch.channels_last_3d
FORWARD, INPUT, WEIGHT = "forward", "input gradient", "weight gradient"
N_COMPILERS = 12


@dataclass(frozen=True)
class Case:
    """A convolution of features (batch, n_in, side, side, side) to n_out channels."""

    part: str
    batch: int
    side: int
    n_in: int
    n_out: int

    @property
    def kernel(self) -> tuple[str, int, int]:
        """The kernel that computes it, by its own channels."""
        if self.part == WEIGHT:
            return WEIGHT, 0, 0
        if self.part == INPUT:
            return FORWARD, self.n_out, self.n_in
        return FORWARD, self.n_in, self.n_out

    def __str__(self) -> str:
        return f"{self.part}, {self.n_in} to {self.n_out}, {self.batch} x {self.side}^3"


# The most frequent first: of a prediction, and then of a training step.
CASES = [
    Case(FORWARD, 9, 96, 16, 16),
    Case(FORWARD, 9, 96, 32, 16),
    Case(FORWARD, 2, 128, 16, 16),
    Case(INPUT, 2, 128, 16, 16),
    Case(WEIGHT, 2, 128, 16, 16),
    Case(FORWARD, 2, 128, 32, 16),
    Case(INPUT, 2, 128, 32, 16),
    Case(WEIGHT, 2, 128, 32, 16),
    Case(FORWARD, 9, 48, 32, 32),
    Case(FORWARD, 9, 48, 16, 32),
    Case(FORWARD, 2, 64, 32, 32),
    Case(INPUT, 2, 64, 32, 32),
    Case(WEIGHT, 2, 64, 32, 32),
]

CANDIDATES = {
    (FORWARD, 16, 16): [
        Blocks(rows=64, planes=32),
        Blocks(rows=64, planes=16),
        Blocks(rows=64, planes=32, n_warps=8),
        Blocks(rows=128, planes=32),
        Blocks(rows=128, planes=32, n_warps=8),
        Blocks(rows=128, planes=0, depth=2),
        Blocks(rows=128, planes=0, depth=2, n_stages=3),
    ],
    (FORWARD, 32, 16): [
        Blocks(rows=64, planes=32),
        Blocks(rows=64, planes=32, n_warps=8),
        Blocks(rows=128, planes=32, n_warps=8),
        Blocks(rows=64, planes=0),
        Blocks(rows=128, planes=0, depth=2, n_warps=8),
        Blocks(rows=64, planes=0, n_stages=3),
    ],
    (FORWARD, 16, 32): [
        Blocks(rows=64, planes=32),
        Blocks(rows=64, planes=32, n_warps=8),
        Blocks(rows=128, planes=32, n_warps=8),
        Blocks(rows=128, planes=0, depth=2),
        Blocks(rows=128, planes=0, depth=2, n_warps=8),
        Blocks(rows=128, planes=0, depth=2, n_stages=3),
    ],
    (FORWARD, 32, 32): [
        Blocks(rows=64, planes=0),
        Blocks(rows=128, planes=0, depth=2),
        Blocks(rows=128, planes=0, depth=2, n_warps=8),
        Blocks(rows=128, planes=0, depth=2, n_warps=8, n_stages=3),
        Blocks(rows=64, planes=0, n_stages=3),
        Blocks(rows=64, planes=32, n_warps=8),
    ],
    (WEIGHT, 0, 0): [
        Blocks(rows=64, planes=64, n_warps=8, n_stages=2),
        Blocks(rows=64, planes=64, n_warps=4),
        Blocks(rows=64, planes=64, n_warps=4, n_stages=2),
        Blocks(rows=64, planes=32, n_warps=4),
        Blocks(rows=64, planes=64, n_warps=8),
        Blocks(rows=128, planes=64, n_warps=8),
    ],
}


def tensors(case: Case, *, n_x: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Draw features, weights, and a gradient of the result."""
    sides = (n_x or case.side, case.side, case.side)
    batch = case.batch if n_x is None else 1
    factory = {"device": "cuda", "dtype": torch.bfloat16}
    features = torch.randn(batch, *sides, case.n_in, **factory).permute(0, 4, 1, 2, 3)
    gradient = torch.randn(batch, *sides, case.n_out, **factory).permute(0, 4, 1, 2, 3)
    weight = torch.randn(case.n_out, case.n_in, 3, 3, 3, device="cuda")
    return features, weight.contiguous(memory_format=NDHWC), gradient


def ours(case: Case, blocks: Blocks, drawn: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    features, weight, gradient = drawn
    if case.part == FORWARD:
        return convolved(features, weight, None, blocks=blocks)
    if case.part == INPUT:
        return input_gradient(gradient, weight, blocks=blocks)
    return weight_gradient(features, gradient, weight, blocks=blocks)


def cudnns(case: Case, drawn: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Compute the same by torch, weights in the type of the features."""
    features, weight, gradient = drawn
    weight = weight.to(features.dtype)
    if case.part == FORWARD:
        return F.conv3d(features, weight, padding=1)
    mask = [case.part == INPUT, case.part == WEIGHT, False]
    ones, zeros = [1, 1, 1], [0, 0, 0]
    gradients = torch.ops.aten.convolution_backward(
        gradient, features, weight, None, ones, ones, ones, False, zeros, 1, mask
    )
    return gradients[0] if case.part == INPUT else gradients[1]


def milliseconds(step: Callable[[], object], *, repeats: int = 8) -> float:
    """Return the median time of a step."""
    for _ in range(2):
        step()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    for event in events[:-1]:
        event.record()
        step()
    events[-1].record()
    torch.cuda.synchronize()
    gaps = [a.elapsed_time(b) for a, b in pairwise(events)]
    return median(gaps)


def relative_error(value: Tensor, expected: Tensor) -> float:
    return float((value.float() - expected.float()).norm() / expected.float().norm())


def compile_one(task: tuple[Case, Blocks]) -> str:
    """Compile the kernels of a case, into the cache on disk; say what went wrong."""
    case, blocks = task
    try:
        ours(case, blocks, tensors(case, n_x=4))
        torch.cuda.synchronize()
    except Exception as error:  # a compiler may raise anything
        return f"{case}, {blocks}: {type(error).__name__}: {str(error)[:200]}"
    return ""


def compile_all(tasks: list[tuple[Case, Blocks]]) -> None:
    """Compile in several processes; before this one touches the GPU, since they are forked."""
    unique = {}
    for case, blocks in tasks:
        # The side decides how rows are shared between Y and Z.
        unique[case.kernel, case.n_in, case.n_out, case.side % 32 == 0, blocks] = (case, blocks)
    start = time.monotonic()
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(N_COMPILERS, mp_context=context) as pool:
        for problem in pool.map(compile_one, unique.values()):
            if problem:
                print(problem)
    print(f"{len(unique)} kernels compiled in {time.monotonic() - start:.1f} s\n", flush=True)


def compare(case: Case, blocks_list: list[Blocks]) -> dict[Blocks, float]:
    """Time and check the blocks, print a row each, and return their times."""
    drawn = tensors(case)
    expected = cudnns(case, drawn)
    without = milliseconds(partial(cudnns, case, drawn))
    print(f"| {case} | cuDNN by rule | {without:.3f} | |", flush=True)
    times = {}
    for blocks in blocks_list:
        try:
            error = relative_error(ours(case, blocks, drawn), expected)
            elapsed = milliseconds(partial(ours, case, blocks, drawn))
        except Exception as problem:  # too much shared memory, or a compiler's
            print(f"| | {blocks} | {type(problem).__name__} | |", flush=True)
            continue
        mark = "" if error < 0.02 else " WRONG"
        print(f"| | {blocks} | {elapsed:.3f} | {error:.1e}{mark} |", flush=True)
        if not mark:
            times[blocks] = elapsed
    return times


def print_winners(times: dict[Case, dict[Blocks, float]]) -> None:
    """Print the blocks of the least mean time, as a multiple of the fastest of each case."""
    print("\nFastest, with the geometric mean of time over the fastest of each case:\n")
    for kernel, blocks_list in CANDIDATES.items():
        rows = [row for case, row in times.items() if case.kernel == kernel and row]
        if not rows:
            continue
        means = {}
        for blocks in blocks_list:
            if all(blocks in row for row in rows):
                logs = [math.log(row[blocks] / min(row.values())) for row in rows]
                means[blocks] = math.exp(sum(logs) / len(logs))
        if means:
            best = min(means, key=lambda blocks: means[blocks])
            print(f"    {kernel}: {best},  # {means[best]:.3f}, {len(rows)} cases")


def print_tuned(cases: list[Case], *, stop: float) -> None:
    """Time cuDNN where it tries its algorithms."""
    print("\n| cuDNN, cudnn.benchmark | ms |\n|---|---|")
    torch.backends.cudnn.benchmark = True
    for case in cases:
        if time.monotonic() > stop:
            print("| left out: the time is over | |")
            return
        elapsed = milliseconds(partial(cudnns, case, tensors(case)))
        print(f"| {case} | {elapsed:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20, help="begin nothing after these")
    arguments = parser.parse_args()
    stop = time.monotonic() + arguments.seconds
    tasks = [(case, blocks) for case in CASES for blocks in CANDIDATES[case.kernel]]
    compile_all(tasks)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, ", end="")
    print(f"cuDNN {torch.backends.cudnn.version()}, bf16\n")
    print("| convolution | blocks | ms | relative error |\n|---|---|---|---|")
    times = {}
    for case in CASES:
        if time.monotonic() > stop:
            print("| left out: the time is over | | | |")
            break
        times[case] = compare(case, CANDIDATES[case.kernel])
    print_winners(times)
    print_tuned(CASES, stop=stop)


if __name__ == "__main__":
    main()
