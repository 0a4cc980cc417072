"""Which blocks are fastest for the 3^3 convolutions of 16 and 32 channels, and cuDNN beside them.

    python benchmarks/convolution_gpu.py [--seconds 20]

Milliseconds in bf16, channels last, by the GPU's own clock: the median of eight, after two. The
first table has all blocks, with the difference from cuDNN's result; then come the lines of the
blocks that win, to be pasted into models/convolution_launches.py, and a table of these beside cuDNN
with and without its trials. Kernels are compiled by several processes first. What would begin after
--seconds is left out.
"""

import argparse
import math
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
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
BATCH_OF_PREDICTION = 9
LARGEST_ERROR = 0.02
"""Relative difference from cuDNN's result, of two roundings to bf16."""

Kernel = tuple[str, int, int]
"""Part, and the channels of what the kernel reads and writes; for weights it has 16 and 16."""


@dataclass(frozen=True)
class Case:
    """A convolution of features (batch, n_in, side, side, side) to n_out channels."""

    part: str
    batch: int
    side: int
    n_in: int
    n_out: int

    @property
    def kernel(self) -> Kernel:
        """The kernel that computes it, by its own channels."""
        if self.part == WEIGHT:
            return WEIGHT, 16, 16
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

CANDIDATES: dict[Kernel, list[Blocks]] = {
    (FORWARD, 16, 16): [
        Blocks(rows=64, planes=32),
        Blocks(rows=64, planes=16),
        Blocks(rows=64, planes=24),
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
    (WEIGHT, 16, 16): [
        Blocks(rows=64, planes=128, n_warps=8),
        Blocks(rows=64, planes=128),
        Blocks(rows=64, planes=128, n_stages=2),
        Blocks(rows=64, planes=128, n_warps=8, n_stages=2),
        Blocks(rows=64, planes=32, n_warps=8),
        Blocks(rows=128, planes=128, n_warps=8),
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
        # The side decides how rows are shared between Y and Z; the number of planes is no constant.
        alike = replace(blocks, planes=min(blocks.planes, 1))
        unique[case.kernel, case.n_in, case.n_out, case.side % 32 == 0, alike] = (case, blocks)
    start = time.monotonic()
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(N_COMPILERS, mp_context=context) as pool:
        for problem in pool.map(compile_one, unique.values()):
            if problem:
                print(problem)
    print(f"{len(unique)} kernels compiled in {time.monotonic() - start:.1f} s\n", flush=True)


def by_rule(case: Case) -> float:
    """Time cuDNN as it is in prediction, which chooses without trials."""
    return milliseconds(partial(cudnns, case, tensors(case)))


def compare(case: Case, blocks_list: list[Blocks]) -> dict[Blocks, float]:
    """Time and check blocks, print a row each, and return the times of those that are right."""
    drawn = tensors(case)
    expected = cudnns(case, drawn)
    times = {}
    for blocks in blocks_list:
        try:
            error = relative_error(ours(case, blocks, drawn), expected)
            elapsed = milliseconds(partial(ours, case, blocks, drawn))
        except Exception as problem:  # too much shared memory, or a compiler's
            print(f"| {case} | {blocks} | {type(problem).__name__} | |", flush=True)
            continue
        is_right = error < LARGEST_ERROR
        remark = "" if is_right else " WRONG"
        print(f"| {case} | {blocks} | {elapsed:.3f} | {error:.1e}{remark} |", flush=True)
        if is_right:
            times[blocks] = elapsed
    return times


def winners(times: dict[Case, dict[Blocks, float]]) -> dict[Kernel, Blocks]:
    """Choose blocks by the geometric mean of time over the fastest of each case, and print them."""
    print("\nBlocks that win, with the mean of their time over that of the fastest of each case:\n")
    chosen = {}
    for kernel, blocks_list in CANDIDATES.items():
        rows = [row for case, row in times.items() if case.kernel == kernel and row]
        means = {}
        for blocks in blocks_list:
            if rows and all(blocks in row for row in rows):
                logs = [math.log(row[blocks] / min(row.values())) for row in rows]
                means[blocks] = math.exp(sum(logs) / len(logs))
        if means:
            best = min(means, key=lambda blocks: means[blocks])
            chosen[kernel] = best
            key = "WEIGHT" if kernel[0] == WEIGHT else kernel[1:]
            print(f"    {key}: {best},  # {means[best]:.3f} in {len(rows)} cases")
    return chosen


def print_beside_cudnn(
    times: dict[Case, dict[Blocks, float]],
    chosen: dict[Kernel, Blocks],
    rules: dict[Case, float],
    *,
    stop: float,
) -> None:
    """Print the times of the blocks that win beside cuDNN's; this turns its trials on."""
    print("\n| convolution | ours | cuDNN by rule | cuDNN after trials | gain |")
    print("|---|---|---|---|---|")
    torch.backends.cudnn.benchmark = True
    for case, row in times.items():
        mine = row[chosen[case.kernel]] if case.kernel in chosen else math.nan
        tuned = math.nan
        if time.monotonic() < stop:
            tuned = milliseconds(partial(cudnns, case, tensors(case)))
        rule = rules[case]
        # Training has trials, prediction has none.
        other = rule if case.batch == BATCH_OF_PREDICTION else tuned
        gain = f"{other / mine:.2f}"
        print(f"| {case} | {mine:.3f} | {rule:.3f} | {tuned:.3f} | {gain} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20, help="begin nothing after these")
    arguments = parser.parse_args()
    stop = time.monotonic() + arguments.seconds
    tasks = [(case, blocks) for case in CASES for blocks in CANDIDATES[case.kernel]]
    compile_all(tasks)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, ", end="")
    print(f"cuDNN {torch.backends.cudnn.version()}, bf16\n")
    rules = {case: by_rule(case) for case in CASES}
    print("| convolution | blocks | ms | difference |\n|---|---|---|---|")
    times = {}
    for case in CASES:
        if time.monotonic() > stop:
            print("| left out: the time is over | | | |")
            break
        times[case] = compare(case, CANDIDATES[case.kernel])
    print_beside_cudnn(times, winners(times), rules, stop=stop)


if __name__ == "__main__":
    main()
