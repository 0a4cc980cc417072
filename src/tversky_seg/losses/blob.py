"""The blob loss: a Tversky loss of each single lesion, next to that of everything."""

from __future__ import annotations

import math

import cc3d
import numpy as np
import torch
from torch import Tensor, nn

from tversky_seg.losses.checks import checked_smooth, tversky_weights
from tversky_seg.losses.global_batch import sum_over_processes
from tversky_seg.losses.soft_counts import counting_dtype, soft_counts
from tversky_seg.metrics.overlap import tversky_index


class BlobLoss(nn.Module):
    """The Tversky loss of everything plus the mean Tversky loss of single lesions.

    arXiv 2205.08209, where both are Dice. In the loss of a lesion, the voxels of all others are
    left out: true positives and false negatives are its own, false positives those of the whole
    patch. The mean is over the lesions of each sample and class that has any, then over these;
    without lesions in the batch, only the loss of everything remains. Lesions are the 26-connected
    components of target > 0.5.

    Args:
        alpha: Weight of false positives, >= 0; 0.5 with beta 0.5 is the paper's Dice.
        beta: Weight of false negatives, >= 0; None: 1 - alpha.
        global_weight: Factor of the loss of everything, >= 0; 2 in the paper.
        lesion_weight: Factor of the mean over lesions, >= 0; 1 in the paper.
        smooth: As in TverskyLoss.
        over_batch: As in TverskyLoss, for the loss of everything.
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
            raise ValueError(
                "global_weight and lesion_weight must be >= 0 and finite, "
                f"got global_weight={global_weight}, lesion_weight={lesion_weight}"
            )
        self.alpha, self.beta = tversky_weights(alpha, beta)
        self.global_weight = global_weight
        self.lesion_weight = lesion_weight
        self.smooth = checked_smooth(smooth)
        self.over_batch = over_batch

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compute the loss, in [0, global_weight + lesion_weight], of tensors (B, C, X, Y, Z)."""
        tp, fp, fn = soft_counts(logits, target, weight, over_batch=self.over_batch)
        of_everything = self._shortfall(tp, fp, fn).mean()
        of_lesions = self._mean_over_lesions(logits, target, weight)
        return self.global_weight * of_everything + self.lesion_weight * of_lesions

    def extra_repr(self) -> str:
        """Settings, as repr() shows them."""
        return (
            f"alpha={self.alpha:g}, beta={self.beta:g}, global_weight={self.global_weight:g}, "
            f"lesion_weight={self.lesion_weight:g}, smooth={self.smooth:g}, "
            f"over_batch={self.over_batch}"
        )

    def _shortfall(self, tp: Tensor, fp: Tensor, fn: Tensor) -> Tensor:
        return 1 - tversky_index(tp, fp, fn, alpha=self.alpha, beta=self.beta, smooth=self.smooth)

    def _mean_over_lesions(self, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        """Average over the lesions of each patch that has any, then over these patches."""
        p = logits.to(counting_dtype(logits)).sigmoid()
        w = torch.ones_like(p) if weight is None else weight.to(p.dtype).expand(p.shape)
        means = [p.new_zeros(())]  # a sum of no patches has to be part of the graph, too
        for sample in range(len(p)):
            for channel in range(p.shape[1]):
                patch = (sample, channel)
                if target[patch].max() > 0.5:
                    lesions = _number_lesions(target[patch])
                    by_lesion = self._loss_of_each_lesion(lesions, p[patch], w[patch])
                    means.append(by_lesion.mean())
        total = torch.stack(means).sum()
        n_patches = total.new_tensor(len(means) - 1.0)
        sums = sum_over_processes(torch.stack([total, n_patches]))
        return sums[0] / sums[1].clamp_min(1)

    def _loss_of_each_lesion(self, lesions: Tensor, p: Tensor, w: Tensor) -> Tensor:
        """Compute the loss of each of K lesions, (K,).

        Args:
            lesions: Number of the lesion of each voxel, 0 for none, (X, Y, Z).
            p: Probability of each voxel, (X, Y, Z).
            w: Weight of each voxel, (X, Y, Z).
        """
        # One pass for all lesions: the sums over the voxels of number 0, 1, 2 ... K.
        number = lesions.flatten()
        zeros = p.new_zeros(int(lesions.max()) + 1)
        predicted = zeros.index_add(0, number, (w * p).flatten())  # of each lesion
        size = zeros.index_add(0, number, w.flatten())
        tp = predicted[1:]
        fp = predicted[:1]  # number 0 is the background, the same for each lesion
        fn = size[1:] - tp
        return self._shortfall(tp, fp, fn)


def _number_lesions(target: Tensor) -> Tensor:
    """Number the lesions of a target (X, Y, Z) from 1; 0 is the background."""
    mask = (target > 0.5).cpu().numpy()
    components = cc3d.connected_components(mask, connectivity=26)
    return torch.from_numpy(components.astype(np.int64)).to(target.device)
