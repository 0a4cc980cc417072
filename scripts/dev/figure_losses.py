"""Make the figures and tables of docs/losses.md: where each loss puts a network, and which lesions it heeds.

    python scripts/dev/figure_losses.py [--output docs/figures]

The network of the first figure has two parameters: lesions are 1 % of 200,000 voxels, brighter by 2.5 standard
deviations, and p = sigmoid(steepness * (brightness - bias)). Each loss trains it to its optimum.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
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
OTHERS: dict[str, nn.Module] = {
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


def voxels(
    n: int = 200_000, *, lesion_share: float = 0.01, contrast: float = 2.5
) -> tuple[Tensor, Tensor]:
    """Brightness and label of voxels, (1, 1, n, 1, 1)."""
    rng = torch.Generator().manual_seed(0)
    target = (torch.arange(n) < lesion_share * n).double()
    return (torch.randn(n, generator=rng) + contrast * target).view(1, 1, n, 1, 1), target.view(
        1, 1, n, 1, 1
    )


def operating_point(loss: nn.Module, brightness: Tensor, target: Tensor) -> OverlapCounts:
    """Train the two parameters to the loss's optimum; count at p >= 0.5."""
    parameters = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], lr=0.5, max_iter=200, line_search_fn="strong_wolfe")

    def logits() -> Tensor:
        return parameters[0] * (brightness - parameters[1])

    def step() -> Tensor:
        optimizer.zero_grad()
        value = loss(logits(), target)
        value.backward()
        return value

    optimizer.step(step)
    return overlap_counts(logits().detach() >= 0, target)


def figure_precision_recall(path: Path) -> None:
    """Draw the operating point of every loss; print its precision, sensitivity, Dice and F2."""
    brightness, target = voxels()
    figure, axes = plt.subplots(figsize=(7.0, 4.6), layout="constrained")
    curve = precision_recall_curve(brightness.numpy(), target.numpy())
    axes.plot(curve.recall, curve.precision, color="0.75", label="all thresholds")
    points = [operating_point(TverskyLoss(alpha=alpha), brightness, target) for alpha in ALPHAS]
    axes.plot(
        [p.sensitivity for p in points],
        [p.precision for p in points],
        "o-",
        color="C3",
        label="Tversky, beta = 1 - alpha",
    )
    for alpha, point in zip(ALPHAS, points, strict=True):
        axes.annotate(
            f"alpha {alpha:g}",
            (point.sensitivity, point.precision),
            (6, 3),
            textcoords="offset points",
            fontsize=7,
        )
        print(f"| Tversky {alpha:g}/{1 - alpha:g} | {describe(point)} |")
    for number, (name, loss) in enumerate(OTHERS.items()):
        point = operating_point(loss, brightness, target)
        axes.plot(
            point.sensitivity,
            point.precision,
            "Xs^vDP*<>"[number],
            markersize=7,
            alpha=0.8,
            label=name,
        )
        print(f"| {name} | {describe(point)} |")
    axes.set(xlabel="sensitivity", ylabel="precision", xlim=(0, 1), ylim=(0, 1))
    axes.legend(fontsize=7, loc="lower left")
    figure.savefig(path, dpi=100)


def describe(point: OverlapCounts) -> str:
    """Four cells of a table."""
    rates = (point.precision, point.sensitivity, point.dice, point.f(2))
    return " | ".join(f"{rate:.2f}" for rate in rates)


def figure_gradient_share(path: Path) -> None:
    """Twelve cubes of 1 to 12 voxels a side in one patch; each one's share of the gradient of all lesions."""
    components = torch.zeros(1, 1, 96, 96, 96, dtype=torch.int32)
    for side in range(1, 13):
        x, y = divmod(side - 1, 4)
        components[0, 0, 24 * x : 24 * x + side, 24 * y : 24 * y + side, :side] = side
    target = (components > 0).float()
    schemes = {
        "no weights": None,
        "size_tempered, t = 0.5": size_tempered_weights(components),
        "inverse": inverse_weights(components),
    }
    figure, axes = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    for name, weight in schemes.items():
        logits = torch.full(target.shape, -1.0).requires_grad_()
        (gradient,) = torch.autograd.grad(TverskyLoss()(logits, target, weight), logits)
        totals = torch.stack([gradient[components == side].sum() for side in range(1, 13)])
        axes.loglog([side**3 for side in range(1, 13)], totals / totals.sum(), "o-", label=name)
    axes.set(xlabel="lesion size (voxels)", ylabel="share of the lesions' gradient")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def lesion_free_gradient() -> None:
    """How much gradient one of two samples gets when it holds no lesion."""
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
        (with_lesions,) = torch.autograd.grad(loss(logits, target), logits)
        (without,) = torch.autograd.grad(loss(logits, 0 * target), logits)
        beside = with_lesions[1].mean() / with_lesions[0][target[0] == 0].mean()
        print(
            f"| {name} | {beside:.1e} | {without.mean() / with_lesions[0][target[0] == 0].mean():.1e} |"
        )


def main() -> None:
    """Read the arguments, write the figures, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("docs/figures"))
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    figure_precision_recall(folder / "losses_precision_recall.png")
    figure_gradient_share(folder / "losses_gradient_share.png")
    lesion_free_gradient()


if __name__ == "__main__":
    main()
