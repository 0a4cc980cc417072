"""One minus the Tversky index of soft counts, as all losses of the Tversky family have it."""

from __future__ import annotations

from torch import Tensor

from tversky_seg.losses import fused
from tversky_seg.losses.checks import check_shapes
from tversky_seg.losses.global_batch import n_processes
from tversky_seg.losses.soft_counts import soft_counts
from tversky_seg.metrics.overlap import tversky_index


def index_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    alpha: float,
    beta: float,
    smooth: float,
    exponent: float = 1.0,
    squared: bool = False,
    over_batch: bool = True,
) -> Tensor:
    """Compute the mean over classes of (1 - Tversky index)^exponent.

    Args:
        logits: As in `soft_counts`, (B, C, X, Y, Z).
        target: As in `soft_counts`.
        weight: As in `soft_counts`.
        alpha: Weight of false positives, >= 0.
        beta: Weight of false negatives, >= 0.
        smooth: Voxels added to numerator and denominator, > 0.
        exponent: Power of one minus the index, > 0; the mean is taken after it.
        squared: As in `soft_counts`.
        over_batch: One index of the counts of the global batch; False: one per sample, and the mean
            is over samples as well.

    Returns:
        A scalar in [0, 1].

    Raises:
        ValueError: As `soft_counts`.
    """
    needs_other_processes = over_batch and n_processes() > 1
    if fused.can_fuse(logits) and not needs_other_processes:
        check_shapes(logits, target, weight)
        return fused.tversky_loss(
            logits,
            target,
            weight,
            alpha=alpha,
            beta=beta,
            smooth=smooth,
            exponent=exponent,
            squared=squared,
            over_batch=over_batch,
        )
    # A lesion voxel with p = 0.8 and a background voxel with p = 0.4: TP 0.8, FP 0.4, FN 0.2.
    tp, fp, fn = soft_counts(logits, target, weight, squared=squared, over_batch=over_batch)
    # With alpha 0.3, beta 0.7 and smooth 1: 1.8 / (0.8 + 0.12 + 0.14 + 1) = 0.874, loss 0.126.
    shortfall = 1 - tversky_index(tp, fp, fn, alpha=alpha, beta=beta, smooth=smooth)
    if exponent != 1:
        # The slope of a root is infinite at 0, where a perfect prediction would make NaN.
        shortfall = shortfall.clamp_min(1e-7).pow(exponent)
    return shortfall.mean()
