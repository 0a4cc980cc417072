"""More losses of soft counts: F measure, focal Tversky, generalised Dice, blob. Import them from tversky_seg.losses.tversky."""

from __future__ import annotations

import math

import cc3d
import numpy as np
import torch
from torch import Tensor, nn

from tversky_seg.losses.soft_counts import (
    NEVER_ZERO,
    check_smooth,
    check_weights,
    loss_of_counts,
    sum_over_processes,
    tversky_loss,
)
from tversky_seg.metrics.overlap import f_weights, tversky_index


class AsymmetricSimilarityLoss(nn.Module):
    """One minus the F measure in which sensitivity counts b times as much as precision (arXiv 1803.11078).

    The Tversky loss with alpha = 1 / (1 + b^2) and beta = b^2 / (1 + b^2).

    Args:
        b: >= 0; 1 is Dice. The paper tried 1 to 3 and found 1.5 best.
        squared: the form that ran in arXiv 2007.10033, 1 - (1 + b^2) sum(p g) / sum(b^2 g^2 + p^2).
        smooth: as in TverskyLoss.
        over_batch: as in TverskyLoss.
    """

    def __init__(
        self, *, b: float = 1.5, squared: bool = False, smooth: float = 1.0, over_batch: bool = True
    ) -> None:
        super().__init__()
        self.alpha, self.beta = f_weights(b)
        self.squared, self.smooth, self.over_batch = squared, check_smooth(smooth), over_batch

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits and target (B, C, X, Y, Z) -> a scalar in [0, 1]."""
        options = {"squared": self.squared, "over_batch": self.over_batch}
        return tversky_loss(
            logits, target, weight, alpha=self.alpha, beta=self.beta, smooth=self.smooth, **options
        )


class FocalTverskyLoss(nn.Module):
    """The Tversky loss of each class to the power 1 / gamma (arXiv 1810.07842), the mean over classes.

    With gamma > 1 the slope is smaller where the index is small and larger where it is nearly 1. In that paper alpha
    (0.7) weighs misses and beta (0.3) false positives: the letters change places, the defaults are the same.

    Args:
        alpha: weight of false positives, >= 0.
        beta: weight of misses, >= 0; None as in TverskyLoss.
        gamma: > 0; the paper took 4/3 from the range 1 to 3. 1 is the Tversky loss.
        smooth: as in TverskyLoss.
        over_batch: as in TverskyLoss.
    """

    def __init__(
        self,
        *,
        alpha: float | None = None,
        beta: float | None = None,
        gamma: float = 4 / 3,
        smooth: float = 1.0,
        over_batch: bool = True,
    ) -> None:
        super().__init__()
        if not 0 < gamma < math.inf:
            raise ValueError(f"gamma must be > 0 and finite, got gamma={gamma}")
        self.alpha, self.beta = check_weights(alpha, beta)
        self.gamma, self.smooth, self.over_batch = gamma, check_smooth(smooth), over_batch

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits and target (B, C, X, Y, Z) -> a scalar in [0, 1]."""
        return tversky_loss(
            logits,
            target,
            weight,
            alpha=self.alpha,
            beta=self.beta,
            smooth=self.smooth,
            over_batch=self.over_batch,
            exponent=1 / self.gamma,
        )


class GeneralizedDiceLoss(nn.Module):
    """One minus the Dice coefficient of all classes together, each weighted by 1 / size^2 (arXiv 1707.03237).

    loss = 1 - 2 sum_c w_c TP_c / sum_c w_c (2 TP_c + FP_c + FN_c), with w_c = 1 / (voxels of c in the target)^2, scaled
    so that the rarest class has weight 1. A class without voxels takes that weight too (1 / 0 otherwise); where nothing
    but background is there, the loss of one class is the mean of p.

    Args:
        background: each class brings its complement 1 - p as another class, so that one class means the two-class
            formula of the paper. False: the classes alone; one class is then plain Dice.
        smooth: added to numerator and denominator as in TverskyLoss, in voxels of the rarest class. 0 by default: the
            background keeps the ratio defined.
        over_batch: as in TverskyLoss.
    """

    def __init__(
        self, *, background: bool = True, smooth: float = 0.0, over_batch: bool = True
    ) -> None:
        super().__init__()
        self.background, self.smooth, self.over_batch = background, check_smooth(smooth), over_batch

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits and target (B, C, X, Y, Z) -> a scalar in [0, 1]."""

        def formula(tp: Tensor, fp: Tensor, fn: Tensor) -> Tensor:
            if self.background:  # its counts are those of the class, seen from the other side
                tn = _total(logits, weight, over_batch=self.over_batch) - tp - fp - fn
                tp, fp, fn = (
                    torch.cat([tp, tn], -1),
                    torch.cat([fp, fn], -1),
                    torch.cat([fn, fp], -1),
                )
            return _generalized_dice_loss(tp, fp, fn, smooth=self.smooth or NEVER_ZERO)

        return loss_of_counts(formula, logits, target, weight, over_batch=self.over_batch)


class BlobLoss(nn.Module):
    """The Tversky loss of everything plus the mean Tversky loss of single lesions (arXiv 2205.08209, Dice there).

    In the loss of a lesion, the voxels of all others are left out: TP and misses are its own, false positives those of
    the whole patch. The mean is over the lesions of each sample and class that has any, then over these; without
    lesions in the batch, only the loss of everything remains. Lesions are the 26-connected parts of target > 0.5.

    Args:
        alpha: weight of false positives, >= 0; 0.5 with beta 0.5 is the paper's Dice.
        beta: weight of misses, >= 0; None: 1 - alpha.
        global_weight: factor of the loss of everything, >= 0; 2 in the paper.
        lesion_weight: factor of the mean over lesions, >= 0; 1 in the paper.
        smooth: as in TverskyLoss.
        over_batch: as in TverskyLoss, for the loss of everything.
    """

    def __init__(
        self,
        *,
        alpha: float | None = 0.5,
        beta: float | None = None,
        global_weight: float = 2.0,
        lesion_weight: float = 1.0,
        smooth: float = 1.0,
        over_batch: bool = True,
    ) -> None:
        super().__init__()
        if not (0 <= global_weight < math.inf and 0 <= lesion_weight < math.inf):
            found = f"global_weight={global_weight}, lesion_weight={lesion_weight}"
            raise ValueError(
                f"global_weight and lesion_weight must be >= 0 and finite, got {found}"
            )
        self.alpha, self.beta = check_weights(alpha, beta)
        self.global_weight, self.lesion_weight = global_weight, lesion_weight
        self.smooth, self.over_batch = check_smooth(smooth), over_batch

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits and target (B, C, X, Y, Z) -> a scalar in [0, global_weight + lesion_weight]."""
        everything = tversky_loss(
            logits,
            target,
            weight,
            alpha=self.alpha,
            beta=self.beta,
            smooth=self.smooth,
            over_batch=self.over_batch,
        )
        return self.global_weight * everything + self.lesion_weight * self._mean_over_lesions(
            logits, target, weight
        )

    def _mean_over_lesions(self, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        p = logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()
        w = torch.ones_like(p) if weight is None else weight.to(p.dtype).expand(p.shape)
        means = [p.new_zeros(())]
        for patch, p_patch, w_patch in zip(
            target.flatten(0, 1), p.flatten(0, 1), w.flatten(0, 1), strict=True
        ):
            if patch.max() > 0.5:
                means.append(
                    self._lesions_of_patch(
                        _label(patch), p_patch.flatten(), w_patch.flatten()
                    ).mean()
                )
        total = torch.stack(means).sum()
        sums = sum_over_processes(torch.stack([total, total.new_tensor(len(means) - 1.0)]))
        return sums[0] / sums[1].clamp_min(1)

    def _lesions_of_patch(self, lesion: Tensor, p: Tensor, w: Tensor) -> Tensor:
        """The loss of each lesion, (K,), from the number of each voxel's lesion (0: none), all (N,)."""
        nothing = p.new_zeros(int(lesion.max()) + 1)
        claimed, there = nothing.index_add(0, lesion, w * p), nothing.index_add(0, lesion, w)
        tp, fp = claimed[1:], claimed[:1]
        smooth = self.smooth or NEVER_ZERO
        index: Tensor = tversky_index(
            tp, fp, there[1:] - tp, alpha=self.alpha, beta=self.beta, smooth=smooth
        )
        return 1 - index


def _generalized_dice_loss(tp: Tensor, fp: Tensor, fn: Tensor, *, smooth: float) -> Tensor:
    """From the counts of all classes, (C,) or (B, C)."""
    size = (tp + fn).detach()
    rarest = size.where(size > 0, math.inf).amin(-1, keepdim=True)
    importance = torch.where(size > 0, rarest / size, 1).square()
    tp, fp, fn = ((importance * counts).sum(-1) for counts in (tp, fp, fn))
    return 1 - tversky_index(tp, fp, fn, alpha=0.5, beta=0.5, smooth=smooth).mean()


def _total(logits: Tensor, weight: Tensor | None, *, over_batch: bool) -> Tensor:
    """Voxels (or their weights) of each class, (C,) or (B, C); over the global batch with `over_batch`."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    if weight is None:
        voxels = torch.full(
            logits.shape[:2], float(logits[0, 0].numel()), dtype=wide, device=logits.device
        )
    else:
        voxels = weight.expand(logits.shape).sum(tuple(range(2, logits.ndim)), dtype=wide)
    return sum_over_processes(voxels.sum(0)) if over_batch else voxels


def _label(patch: Tensor) -> Tensor:
    """The number of each voxel's lesion, (N,), from a target (X, Y, Z)."""
    components = cc3d.connected_components((patch > 0.5).cpu().numpy(), connectivity=26)
    return torch.from_numpy(components.astype(np.int64)).flatten().to(patch.device)
