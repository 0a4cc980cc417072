"""The losses on a GPU: `python benchmarks/losses.py --device cuda` prints this page."""

import datetime
import platform
from collections.abc import Callable, Iterator
from statistics import median
from typing import TYPE_CHECKING

import monai
import torch
from torch import Tensor

from tversky_seg.losses import BlobLoss, FocalLoss, TverskyLoss
from tversky_seg.weighting import inverse_weights

if TYPE_CHECKING:
    from losses import Row

Job = Callable[[], object]
N_WARM_UP = 5
HOLD_CYCLES = 8_000_000
"""Cycles for which the device is held up: 4 ms at 2 GHz, longer than the host needs for a loss."""
MAIN = ("Tversky", "Dice", "focal")
"""Rows that come first, and whose plain loss is also compiled if that is asked for."""
METHOD = """\
Medians between two events on the device, forward and backward; all losses of a row take turns.
"alone": the device is held up until everything is queued, so that its kernels alone count, as in a
training whose host runs ahead. Otherwise the time is the host's or the kernels', whichever is
longer. "held": what the forward pass still holds for the backward pass, besides its arguments, in
units of the logits."""
TABLE_HEAD = """\
| loss | ours ms | MONAI ms | plain ms | MONAI / ours | plain / ours \
| alone: ours | MONAI | plain | held: ours | MONAI | plain |
|---|---|---|---|---|---|---|---|---|---|---|---|"""
COMPILED_HEAD = """\
| loss | ours ms | plain, compiled ms | compiled / ours | alone: ours | compiled |
|---|---|---|---|---|---|"""


def milliseconds(jobs: dict[str, Job], *, repeats: int, alone: bool = False) -> dict[str, float]:
    """Measure the median time of each job on the device; they take turns."""
    marks: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in jobs}
    for _ in range(repeats + N_WARM_UP):
        for name, job in jobs.items():
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            if alone:
                torch.cuda._sleep(HOLD_CYCLES)
            start.record()
            job()
            end.record()
            marks[name].append((start, end))
        torch.cuda.synchronize()
    times = {}
    for name, pairs in marks.items():
        times[name] = median(start.elapsed_time(end) for start, end in pairs[N_WARM_UP:])
    return times


def forward_and_backward(loss: Callable[..., Tensor], logits: Tensor, *arguments: Tensor) -> Job:
    """Make a job that computes a loss and its gradient by the logits."""

    def job() -> None:
        logits.grad = None
        loss(logits, *arguments).backward()

    return job


def held_for_backward(loss: Callable[..., Tensor], logits: Tensor, target: Tensor) -> float:
    """Measure what a forward pass allocates and does not free, in units of the logits."""
    before = torch.cuda.memory_allocated()
    value = loss(logits, target)
    n_bytes = torch.cuda.memory_allocated() - before
    assert value.requires_grad  # the graph is alive up to here
    return n_bytes / logits.nbytes


def loss_row(row: "Row", logits: Tensor, target: Tensor, *, repeats: int) -> str:
    """Measure one row of the table."""
    losses = row.losses()
    jobs = {name: forward_and_backward(loss, logits, target) for name, loss in losses.items()}
    times = milliseconds(jobs, repeats=repeats)
    alone = milliseconds(jobs, repeats=repeats // 2, alone=True)
    columns = ("ours", "monai", "plain")
    cells = [row.name]
    cells += [f"{times[name]:.2f}" if name in times else "-" for name in columns]
    for name in columns[1:]:
        cells.append(f"**{times[name] / times['ours']:.1f}**" if name in times else "-")
    cells += [f"{alone[name]:.3f}" if name in alone else "-" for name in columns]
    for name in columns:
        if name in losses:
            cells.append(f"{held_for_backward(losses[name], logits, target):.1f}")
        else:
            cells.append("-")
    return f"| {' | '.join(cells)} |"


def compiled_row(row: "Row", logits: Tensor, target: Tensor, *, repeats: int) -> str:
    """Measure a loss beside plain PyTorch through torch.compile, which takes seconds."""
    assert row.plain is not None, "each of the main losses has been written in plain PyTorch"
    jobs = {
        "ours": forward_and_backward(row.ours, logits, target),
        "compiled": forward_and_backward(torch.compile(row.plain), logits, target),
    }
    times = milliseconds(jobs, repeats=repeats)
    alone = milliseconds(jobs, repeats=repeats // 2, alone=True)
    return (
        f"| {row.name} | {times['ours']:.2f} | {times['compiled']:.2f} "
        f"| **{times['compiled'] / times['ours']:.1f}** "
        f"| {alone['ours']:.3f} | {alone['compiled']:.3f} |"
    )


def as_networks_give_them(logits: Tensor, target: Tensor, *, repeats: int) -> Iterator[str]:
    """Measure logits of a network in bf16, and weights."""
    narrow = logits.detach().bfloat16().contiguous(memory_format=torch.channels_last_3d)
    narrow.requires_grad_()
    weight = 1 + 100 * target
    for name, loss in (("Tversky", TverskyLoss()), ("focal", FocalLoss())):
        jobs = {
            "bare": forward_and_backward(loss, logits, target),
            "weighted": forward_and_backward(loss, logits, target, weight),
            "bf16": forward_and_backward(loss, narrow, target),
        }
        times = milliseconds(jobs, repeats=repeats)
        alone = milliseconds(jobs, repeats=repeats // 2, alone=True)
        yield (
            f"- {name}: {times['bare']:.2f} ms ({alone['bare']:.3f} alone), with weights "
            f"{times['weighted']:.2f} ({alone['weighted']:.3f}), with logits in bf16, channels "
            f"last {times['bf16']:.2f} ({alone['bf16']:.3f})."
        )


def by_components(components: Tensor, logits: Tensor, *, repeats: int) -> Iterator[str]:
    """Measure inverse weights and the blob loss."""
    batch = components.cuda()[None, None].expand(logits.shape).contiguous()
    n_labels = int(components.max())
    jobs: dict[str, Job] = {
        "bound": lambda: inverse_weights(batch, n_labels=n_labels),
        "no bound": lambda: inverse_weights(batch),
    }
    times = milliseconds(jobs, repeats=repeats)
    alone = milliseconds({"bound": jobs["bound"]}, repeats=repeats // 2, alone=True)
    yield (
        f"- Inverse weights, {n_labels} lesions a patch: {times['bound']:.2f} ms with a bound of "
        f"their numbers ({alone['bound']:.3f} alone), {times['no bound']:.2f} ms without."
    )
    blob = {"blob": forward_and_backward(BlobLoss(), logits, (batch > 0).float())}
    times = milliseconds(blob, repeats=5)
    yield f"- Blob loss, {n_labels} lesions a patch: {times['blob']:.1f} ms."


def page(
    rows: tuple["Row", ...],
    patches: Callable[[int], tuple[Tensor, Tensor]],
    components: Tensor,
    *,
    sides: list[int],
    repeats: int,
    with_compiled: bool,
) -> Iterator[str]:
    """Measure all losses, and give the page line by line.

    Args:
        rows: The losses.
        patches: Function from a side to logits and target on the CPU.
        components: Components of one patch of 128^3.
        sides: Sides of the patches.
        repeats: Turns of each loss.
        with_compiled: Whether plain PyTorch is also compiled, at the end.
    """
    yield "# Losses on a GPU: time and memory\n"
    yield (
        f"`python benchmarks/losses.py --device cuda --repeats {repeats}`, "
        f"{datetime.date.today()}, {torch.cuda.get_device_name()}, torch {torch.__version__}, "
        f"MONAI {monai.__version__}, Python {platform.python_version()}.\n"
    )
    yield METHOD
    for side in sides:
        logits, target = patches(side)
        logits = logits.detach().cuda().requires_grad_()
        target = target.cuda()
        yield f"\n## (2, 1, {side}^3), float32\n\n{TABLE_HEAD}"
        # The main ones first: on a lent machine the time may be over soon.
        for row in sorted(rows, key=lambda row: row.name not in MAIN):
            yield loss_row(row, logits, target, repeats=repeats)
        yield ""
        yield from as_networks_give_them(logits, target, repeats=repeats)
        if side == components.shape[0]:
            yield from by_components(components, logits, repeats=repeats)
        if with_compiled:
            yield f"\n{COMPILED_HEAD}"
            for row in rows:
                if row.name in MAIN:
                    yield compiled_row(row, logits, target, repeats=repeats)
