"""Draw the figures of docs/losses.md and print its tables.

    python scripts/dev/figure_losses.py [--output docs/figures]

The first figure shows the operating point to which each loss takes a network of two parameters:
lesions are 1 % of 200,000 voxels, brighter by 2.5 standard deviations, and
p = sigmoid(steepness * (brightness - bias)). Each loss trains it to the loss's optimum. The second
figure shows the share of the gradient that lesions of each size get.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from tversky_seg.losses import (
    AsymmetricSimilarityLoss,
    BCELoss,
    CombinedLoss,
    DiceLoss,
    FocalLoss,
    FocalTverskyLoss,
    GeneralizedDiceLoss,
    TverskyLoss,
    WeightedBCELoss,
)
from tversky_seg.metrics.overlap import OverlapCounts, overlap_counts
from tversky_seg.metrics.ranking import precision_recall_curve
from tversky_seg.weighting import inverse_weights, size_tempered_weights

ALPHAS = (0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05)

OTHER_LOSSES: dict[str, nn.Module] = {
    "cross-entropy": BCELoss(),
    "weighted cross-entropy (20)": WeightedBCELoss(positive_weight=20.0),
    "adaptive cross-entropy": WeightedBCELoss(detached=True),
    "focal (0.75, 2)": FocalLoss(),
    "Dice, squared": DiceLoss(squared=True),
    "F1.5, squared": AsymmetricSimilarityLoss(squared=True),
    "generalised Dice": GeneralizedDiceLoss(),
    "focal Tversky (.3/.7)": FocalTverskyLoss(),
    "Tversky (.3/.7) + focal": CombinedLoss(losses=[TverskyLoss(), FocalLoss()]),
}
MARKERS = "Xs^vDP*<>"

SIDES = range(1, 13)
"""Sides in voxels of the cubes of the second figure."""


def main() -> None:
    """Read the arguments, draw the figures, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("docs/figures"), help="folder (docs/figures)"
    )
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    draw_operating_points(folder / "losses_precision_recall.png")
    draw_gradient_shares(folder / "losses_gradient_share.png")
    print_gradients_without_lesions()


# The operating point of each loss


def draw_operating_points(path: Path) -> None:
    """Draw the operating point of every loss; print precision, sensitivity, Dice and F2."""
    brightness, target = draw_voxels()
    figure, axes = plt.subplots(figsize=(7.0, 4.6), layout="constrained")
    curve = precision_recall_curve(brightness.numpy(), target.numpy())
    axes.plot(curve.recall, curve.precision, color="0.75", label="all thresholds")
    draw_tversky_losses(axes, brightness, target)
    for (name, loss), marker in zip(OTHER_LOSSES.items(), MARKERS, strict=True):
        point = operating_point(loss, brightness, target)
        axes.plot(point.sensitivity, point.precision, marker, markersize=7, alpha=0.8, label=name)
        print(f"| {name} | {table_cells(point)} |")
    axes.set(xlabel="sensitivity", ylabel="precision", xlim=(0, 1), ylim=(0, 1))
    axes.legend(fontsize=7, loc="lower left")
    figure.savefig(path, dpi=100)


def draw_tversky_losses(axes: Axes, brightness: Tensor, target: Tensor) -> None:
    """Draw the Tversky losses of all ALPHAS as one line, and print their rows."""
    points = [operating_point(TverskyLoss(alpha=alpha), brightness, target) for alpha in ALPHAS]
    sensitivities = [point.sensitivity for point in points]
    precisions = [point.precision for point in points]
    axes.plot(sensitivities, precisions, "o-", color="C3", label="Tversky, beta = 1 - alpha")
    for alpha, point in zip(ALPHAS, points, strict=True):
        axes.annotate(
            f"alpha {alpha:g}",
            (point.sensitivity, point.precision),
            (6, 3),
            textcoords="offset points",
            fontsize=7,
        )
        print(f"| Tversky {alpha:g}/{1 - alpha:g} | {table_cells(point)} |")


def draw_voxels(
    n: int = 200_000, *, lesion_share: float = 0.01, contrast: float = 2.5
) -> tuple[Tensor, Tensor]:
    """Draw brightness and label of voxels, each (1, 1, n, 1, 1)."""
    generator = torch.Generator().manual_seed(0)
    target = (torch.arange(n) < lesion_share * n).double()
    brightness = torch.randn(n, generator=generator) + contrast * target
    shape = (1, 1, n, 1, 1)
    return brightness.view(shape), target.view(shape)


def operating_point(loss: nn.Module, brightness: Tensor, target: Tensor) -> OverlapCounts:
    """Train steepness and bias to the loss's optimum; count at p >= 0.5."""
    parameters = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], lr=0.5, max_iter=200, line_search_fn="strong_wolfe")

    def logits() -> Tensor:
        steepness, bias = parameters
        return steepness * (brightness - bias)

    def step() -> Tensor:
        optimizer.zero_grad()
        value: Tensor = loss(logits(), target)
        value.backward()
        return value

    optimizer.step(step)
    # p >= 0.5 where the logit is not negative.
    return overlap_counts(logits().detach() >= 0, target)


def table_cells(point: OverlapCounts) -> str:
    """Format precision, sensitivity, Dice and F2 as cells of a table."""
    rates = (point.precision, point.sensitivity, point.dice, point.f(2))
    return " | ".join(f"{rate:.2f}" for rate in rates)


# The gradient of lesions by size


def draw_gradient_shares(path: Path) -> None:
    """Draw the share of the gradient of twelve cubes, 1 to 12 voxels a side, in one patch."""
    components = make_cubes()
    target = (components > 0).float()
    schemes = {
        "no weights": None,
        "size_tempered, t = 0.5": size_tempered_weights(components),
        "inverse": inverse_weights(components),
    }
    sizes = [side**3 for side in SIDES]
    figure, axes = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    for name, weight in schemes.items():
        logits = torch.full(target.shape, -1.0).requires_grad_()
        (gradient,) = torch.autograd.grad(TverskyLoss()(logits, target, weight), logits)
        totals = torch.stack([gradient[components == side].sum() for side in SIDES])
        axes.loglog(sizes, totals / totals.sum(), "o-", label=name)
    axes.set(xlabel="lesion size (voxels)", ylabel="share of the lesions' gradient")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def make_cubes() -> Tensor:
    """Number the voxels of each cube by its side, (1, 1, 96, 96, 96); 0 is background."""
    components = torch.zeros(1, 1, 96, 96, 96, dtype=torch.int32)
    for side in SIDES:
        # On a grid of 24 voxels, which no cube fills, so that they do not touch.
        row, column = divmod(side - 1, 4)
        x = 24 * row
        y = 24 * column
        components[0, 0, x : x + side, y : y + side, :side] = side
    return components


# The gradient of a sample without lesions


def print_gradients_without_lesions() -> None:
    """Print the mean gradient of a sample without lesions, relative to the background of another.

    One column with a batch of which the other sample has a lesion, one with a batch that has none.
    """
    shape = (2, 1, 64, 64, 64)
    target = torch.zeros(shape)
    target[0, 0, 20:30, 20:30, 20:30] = 1
    logits = torch.full(shape, -2.0).masked_fill(target == 1, 1.0).requires_grad_()
    losses = {
        "Tversky": TverskyLoss(),
        "Tversky, over_batch=False": TverskyLoss(over_batch=False),
        "Tversky, over_batch=False, smooth=1e-5": TverskyLoss(over_batch=False, smooth=1e-5),
        "Dice, over_batch=False": DiceLoss(over_batch=False),
        "cross-entropy": BCELoss(),
        "focal": FocalLoss(),
    }
    for name, loss in losses.items():
        (gradient,) = torch.autograd.grad(loss(logits, target), logits)
        (gradient_of_empty,) = torch.autograd.grad(loss(logits, 0 * target), logits)
        background = gradient[0][target[0] == 0].mean()
        mixed = gradient[1].mean() / background
        empty = gradient_of_empty.mean() / background
        print(f"| {name} | {mixed:.1e} | {empty:.1e} |")


if __name__ == "__main__":
    main()
