"""Losses beside MONAI's and beside plain PyTorch: time forward and backward, and bytes kept for backward.

    python benchmarks/losses.py [--repeats 30] [--threads 2] [--sides 96 128] [--output docs/benchmarks/losses.md]

Binary targets with 1 % lesion voxels, logits (2, 1, side^3), float32. All losses of a row take turns in one process, so
that a busy machine slows each alike; times are medians. Bytes are those of the distinct tensors that autograd keeps,
inputs included where it keeps them, in units of the logits. Weights: one 128^3 patch with 40 lesions.
"""

import argparse
import datetime
import platform
import time
from collections.abc import Callable
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

from tversky_seg.losses import BCELoss, DiceLoss, FocalLoss, GeneralizedDiceLoss, TverskyLoss
from tversky_seg.weighting import inverse_weights

Loss = Callable[..., Tensor]


def plain_tversky(logits: Tensor, target: Tensor) -> Tensor:
    p = logits.sigmoid()
    tp, fp, fn = (p * target).sum(), (p * (1 - target)).sum(), ((1 - p) * target).sum()
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


ROWS: dict[str, tuple[Loss, Loss | None, Loss | None]] = {  # ours, MONAI's, plain PyTorch
    "Tversky": (
        TverskyLoss(),
        MonaiTversky(sigmoid=True, alpha=0.3, beta=0.7, batch=True),
        plain_tversky,
    ),
    "Dice": (DiceLoss(), MonaiDice(sigmoid=True, batch=True), plain_dice),
    "Dice, squared": (
        DiceLoss(squared=True),
        MonaiDice(sigmoid=True, batch=True, squared_pred=True),
        plain_squared_dice,
    ),
    "focal": (FocalLoss(), MonaiFocal(alpha=0.75, gamma=2.0), plain_focal),
    "generalised Dice": (
        GeneralizedDiceLoss(),
        MonaiGeneralizedDice(sigmoid=True, batch=True),
        None,
    ),
    "cross-entropy": (BCELoss(), None, functional.binary_cross_entropy_with_logits),
}


def milliseconds(jobs: dict[str, Callable[[], object]], *, repeats: int) -> dict[str, float]:
    """Median time of each job; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 3):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if turn >= 3:  # after warming up
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: median(values) for name, values in times.items()}


def forward_and_backward(loss: Loss, *arguments: Tensor) -> Callable[[], None]:
    def job() -> None:
        arguments[0].grad = None
        loss(*arguments).backward()

    return job


def kept_for_backward(loss: Loss, logits: Tensor, target: Tensor) -> float:
    """Bytes of the distinct tensors that autograd keeps, over the bytes of the logits."""
    kept: dict[int, int] = {}

    def keep(values: Tensor) -> Tensor:
        kept[values.untyped_storage().data_ptr()] = values.untyped_storage().nbytes()
        return values

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda values: values):
        loss(logits, target)
    return sum(kept.values()) / logits.nbytes


def random_patch(side: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    shape = (2, 1, side, side, side)
    target = (torch.rand(shape, generator=rng) < 0.01).float()
    return torch.randn(shape, generator=rng).requires_grad_(), target


def random_components(side: int = 128, *, n_lesions: int = 40) -> Tensor:
    rng = np.random.default_rng(0)
    components = torch.zeros(side, side, side, dtype=torch.int32)
    for number in range(1, n_lesions + 1):
        size = rng.integers(2, 9, 3)
        corner = rng.integers(0, side - size)
        components[tuple(slice(a, a + n) for a, n in zip(corner, size, strict=True))] = number
    return components


def weights_by_masks(components: np.ndarray) -> np.ndarray:
    """The rule of arXiv 2007.10033 as its authors' code goes about it: one mask per component."""
    weights = np.zeros(components.shape, np.float32)
    labels = np.unique(components)
    for label in labels:
        mask = components == label
        weights[mask] = components.size / (len(labels) * mask.sum())
    return np.clip(weights, 1, 2e5)


def loss_table(side: int, *, repeats: int) -> list[str]:
    logits, target = random_patch(side)
    lines = [
        f"## (2, 1, {side}^3), float32",
        "",
        "| loss | ours ms | MONAI ms | plain ms | MONAI / ours | plain / ours | kept: ours | MONAI | plain |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, losses in ROWS.items():
        jobs = {
            str(i): forward_and_backward(loss, logits, target)
            for i, loss in enumerate(losses)
            if loss
        }
        times = milliseconds(jobs, repeats=repeats)
        ours, theirs, plain = (times.get(str(i)) for i in range(3))
        kept = [
            f"{kept_for_backward(loss, logits, target):.1f}" if loss else "-" for loss in losses
        ]
        cells = [f"{value:.1f}" if value else "-" for value in (ours, theirs, plain)]
        cells += [f"**{value / ours:.1f}**" if value else "-" for value in (theirs, plain)]
        lines.append(f"| {name} | {' | '.join(cells + kept)} |")
    return [*lines, "", *weighted_lines(logits, target, repeats=repeats), ""]


def weighted_lines(logits: Tensor, target: Tensor, *, repeats: int) -> list[str]:
    weight = 1 + 100 * target
    lines = []
    for name, loss in (("Tversky", TverskyLoss()), ("focal", FocalLoss())):
        jobs = {
            "bare": forward_and_backward(loss, logits, target),
            "weighted": forward_and_backward(loss, logits, target, weight),
        }
        times = milliseconds(jobs, repeats=repeats)
        lines.append(
            f"- Ready weights add {100 * (times['weighted'] / times['bare'] - 1):.0f} % to the {name} loss."
        )
    return lines


def weights_line(*, repeats: int) -> str:
    components = random_components()
    jobs = {
        "ours": lambda: inverse_weights(components),
        "masks": lambda: weights_by_masks(components.numpy()),
    }
    times = milliseconds(jobs, repeats=max(repeats // 3, 3))
    return (
        f"Inverse weights of one 128^3 patch with 40 lesions: {times['ours']:.1f} ms from cached components; "
        f"{times['masks']:.0f} ms with one mask per component, as the authors' code goes about it."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sides", type=int, nargs="+", default=[96, 128])
    parser.add_argument("--output", type=Path, help="also write the page there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    page = [
        "# Losses: time and memory",
        "",
        f"`python benchmarks/losses.py --repeats {arguments.repeats} --threads {arguments.threads}`, "
        f"{datetime.date.today()}, torch {torch.__version__}, MONAI {monai.__version__}, Python "
        f"{platform.python_version()}, {arguments.threads} CPU threads.",
        "",
        *(__doc__ or "").split("\n\n", 2)[2].strip().split("\n"),
        "",
    ]
    for side in arguments.sides:
        page += loss_table(side, repeats=arguments.repeats)
    page += ["## Weights", "", weights_line(repeats=arguments.repeats), ""]
    print("\n".join(page))
    if arguments.output:
        arguments.output.write_text("\n".join(page))


if __name__ == "__main__":
    main()
