"""Losses next to MONAI's and to plain PyTorch: time of forward and backward, and memory.

    python benchmarks/losses.py [--repeats 30] [--threads 2] [--sides 96 128] [--clock wall]
                                [--output docs/benchmarks/losses.md] [--device cpu] [--compiled]

Binary targets with 1 % lesion voxels, logits (2, 1, side^3), float32. All losses of a row take
turns in one process, so that a busy machine slows each alike; times are medians. On a busy machine
`OMP_WAIT_POLICY=passive` and `--clock cpu` (processor time of all threads) still compare fairly.
Memory ("held") is what the forward pass allocates and still holds for the backward pass, besides
its arguments, in units of the logits. Weights: one 128^3 patch with 40 lesions.

`--device cuda` prints another page: see losses_cuda.py; there `--compiled` adds plain PyTorch
through torch.compile.
"""

import argparse
import datetime
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import monai
import numpy as np
import torch
from monai.losses import DiceLoss as MonaiDice
from monai.losses import FocalLoss as MonaiFocal
from monai.losses import GeneralizedDiceLoss as MonaiGeneralizedDice
from monai.losses import TverskyLoss as MonaiTversky
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from tversky_seg.losses import BCELoss, DiceLoss, FocalLoss, GeneralizedDiceLoss, TverskyLoss
from tversky_seg.runtime.devices import use_threads
from tversky_seg.weighting import inverse_weights

Loss = Callable[..., Tensor]
N_WARM_UP = 3
TABLE_HEAD = """\
| loss | ours ms | MONAI ms | plain ms | MONAI / ours | plain / ours | held: ours | MONAI | plain |
|---|---|---|---|---|---|---|---|---|"""


def plain_tversky(logits: Tensor, target: Tensor) -> Tensor:
    p = logits.sigmoid()
    tp = (p * target).sum()
    fp = (p * (1 - target)).sum()
    fn = ((1 - p) * target).sum()
    return 1 - (tp + 1) / (tp + 0.3 * fp + 0.7 * fn + 1)


def plain_dice(logits: Tensor, target: Tensor) -> Tensor:
    p = logits.sigmoid()
    return 1 - (2 * (p * target).sum() + 2) / (p.sum() + target.sum() + 2)


def plain_squared_dice(logits: Tensor, target: Tensor) -> Tensor:
    p = logits.sigmoid()
    return 1 - (2 * (p * target).sum() + 2) / ((p * p).sum() + (target * target).sum() + 2)


def plain_focal(logits: Tensor, target: Tensor) -> Tensor:
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p = logits.sigmoid()
    miss = p * (1 - target) + (1 - p) * target
    return ((0.25 + 0.5 * target) * miss**2 * cross_entropy).mean()


@dataclass(frozen=True)
class Row:
    """The same loss three times; None where it does not exist."""

    name: str
    ours: Loss
    monai: Loss | None
    plain: Loss | None

    def losses(self) -> dict[str, Loss]:
        """Return those that exist."""
        candidates = {"ours": self.ours, "monai": self.monai, "plain": self.plain}
        return {name: loss for name, loss in candidates.items() if loss is not None}


ROWS = (
    Row(
        "Tversky",
        ours=TverskyLoss(),
        monai=MonaiTversky(sigmoid=True, alpha=0.3, beta=0.7, batch=True),
        plain=plain_tversky,
    ),
    Row("Dice", ours=DiceLoss(), monai=MonaiDice(sigmoid=True, batch=True), plain=plain_dice),
    Row(
        "Dice, squared",
        ours=DiceLoss(squared=True),
        monai=MonaiDice(sigmoid=True, batch=True, squared_pred=True),
        plain=plain_squared_dice,
    ),
    Row("focal", ours=FocalLoss(), monai=MonaiFocal(alpha=0.75, gamma=2.0), plain=plain_focal),
    Row(
        "generalised Dice",
        ours=GeneralizedDiceLoss(),
        monai=MonaiGeneralizedDice(sigmoid=True, batch=True),
        plain=None,
    ),
    Row(
        "cross-entropy",
        ours=BCELoss(),
        monai=None,
        plain=functional.binary_cross_entropy_with_logits,
    ),
)


Clock = Callable[[], float]  # seconds


def milliseconds(
    jobs: dict[str, Callable[[], object]], *, repeats: int, clock: Clock
) -> dict[str, float]:
    """Measure the median time of each job; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + N_WARM_UP):
        for name, job in jobs.items():
            start = clock()
            job()
            if turn >= N_WARM_UP:
                times[name].append(1e3 * (clock() - start))
    return {name: median(values) for name, values in times.items()}


def forward_and_backward(loss: Loss, logits: Tensor, *arguments: Tensor) -> Callable[[], None]:
    """Make a job that computes a loss and its gradient by the logits."""

    def job() -> None:
        logits.grad = None
        loss(logits, *arguments).backward()

    return job


def held_for_backward(loss: Loss, logits: Tensor, target: Tensor) -> float:
    """Measure what a forward pass allocates and does not free, in units of the logits."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        value = loss(logits, target)
    n_bytes = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
    assert value.requires_grad  # the graph is alive up to here
    return n_bytes / logits.nbytes


def random_patch(side: int) -> tuple[Tensor, Tensor]:
    """Draw logits and a target, (2, 1, side^3)."""
    rng = torch.Generator().manual_seed(0)
    shape = (2, 1, side, side, side)
    target = (torch.rand(shape, generator=rng) < 0.01).float()
    return torch.randn(shape, generator=rng).requires_grad_(), target


def random_components(side: int = 128, *, n_lesions: int = 40) -> Tensor:
    """Draw the component of each voxel, (side^3): boxes of 2 to 8 voxels a side."""
    rng = np.random.default_rng(0)
    components = torch.zeros(side, side, side, dtype=torch.int32)
    for number in range(1, n_lesions + 1):
        size = rng.integers(2, 9, 3)
        x, y, z = rng.integers(0, side - size)
        dx, dy, dz = size
        components[x : x + dx, y : y + dy, z : z + dz] = number
    return components


def weights_by_masks(components: np.ndarray) -> np.ndarray:
    """Weigh by the rule of arXiv 2007.10033 as its authors' code does: one mask per component."""
    weights = np.zeros(components.shape, np.float32)
    labels = np.unique(components)
    for label in labels:
        mask = components == label
        weights[mask] = components.size / (len(labels) * mask.sum())
    return np.clip(weights, 1, 2e5)


def loss_row(row: Row, logits: Tensor, target: Tensor, *, repeats: int, clock: Clock) -> str:
    """Measure one row of the table."""
    losses = row.losses()
    jobs: dict[str, Callable[[], object]] = {}
    for name, loss in losses.items():
        jobs[name] = forward_and_backward(loss, logits, target)
    times = milliseconds(jobs, repeats=repeats, clock=clock)
    cells = [row.name]
    for name in ("ours", "monai", "plain"):
        cells.append(f"{times[name]:.1f}" if name in times else "-")
    for name in ("monai", "plain"):
        cells.append(f"**{times[name] / times['ours']:.1f}**" if name in times else "-")
    for name in ("ours", "monai", "plain"):
        if name in losses:
            cells.append(f"{held_for_backward(losses[name], logits, target):.1f}")
        else:
            cells.append("-")
    return f"| {' | '.join(cells)} |"


def loss_table(side: int, *, repeats: int, clock: Clock) -> list[str]:
    """Measure all losses on one size of patch."""
    logits, target = random_patch(side)
    lines = [f"## (2, 1, {side}^3), float32", "", TABLE_HEAD]
    for row in ROWS:
        lines.append(loss_row(row, logits, target, repeats=repeats, clock=clock))
    lines.append("")
    weight = 1 + 100 * target
    for name, loss in (("Tversky", TverskyLoss()), ("focal", FocalLoss())):
        jobs: dict[str, Callable[[], object]] = {
            "bare": forward_and_backward(loss, logits, target),
            "weighted": forward_and_backward(loss, logits, target, weight),
        }
        times = milliseconds(jobs, repeats=repeats, clock=clock)
        percent = 100 * (times["weighted"] / times["bare"] - 1)
        lines.append(f"- Given weights add {percent:.0f} % to the {name} loss.")
    return [*lines, ""]


def weights_line(*, repeats: int, clock: Clock) -> str:
    """Measure inverse weights."""
    components = random_components()
    jobs: dict[str, Callable[[], object]] = {
        "ours": lambda: inverse_weights(components),
        "masks": lambda: weights_by_masks(components.numpy()),
    }
    times = milliseconds(jobs, repeats=max(repeats // 3, 3), clock=clock)
    return (
        f"Inverse weights of one 128^3 patch with 40 lesions: {times['ours']:.1f} ms from cached "
        f"components; {times['masks']:.0f} ms with one mask per component, as in the authors' code."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sides", type=int, nargs="+", help="96 and 128; on a GPU 128")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--output", type=Path, help="also write the page there")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compiled", action="store_true", help="on a GPU: compile the plain ones")
    arguments = parser.parse_args()
    page = []
    lines = cuda_page(arguments) if arguments.device == "cuda" else cpu_page(arguments)
    for line in lines:
        print(line, flush=True)
        page.append(line)
    if arguments.output:
        arguments.output.write_text("\n".join([*page, ""]), encoding="utf-8")


def cuda_page(arguments: argparse.Namespace) -> Iterator[str]:
    """Measure on a GPU."""
    import losses_cuda

    return losses_cuda.page(
        ROWS,
        random_patch,
        random_components(),
        sides=arguments.sides or [128],
        repeats=arguments.repeats,
        with_compiled=arguments.compiled,
    )


def cpu_page(arguments: argparse.Namespace) -> Iterator[str]:
    """Measure on the CPU."""
    use_threads(arguments.threads)
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    method = (__doc__ or "").split("\n\n")[2].strip()
    yield "# Losses: time and memory\n"
    yield (
        f"`python benchmarks/losses.py --repeats {arguments.repeats} --threads {arguments.threads} "
        f"--clock {arguments.clock}`, "
        f"{datetime.date.today()}, torch {torch.__version__}, MONAI {monai.__version__}, Python "
        f"{platform.python_version()}, {arguments.threads} CPU threads.\n"
    )
    yield f"{method}\n"
    for side in arguments.sides or [96, 128]:
        yield from loss_table(side, repeats=arguments.repeats, clock=clock)
    yield "## Weights\n"
    yield weights_line(repeats=arguments.repeats, clock=clock)


if __name__ == "__main__":
    main()
