"""The blob loss: a Tversky loss of each single lesion, next to that of everything."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cc3d
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tversky_seg.losses.checks import checked_smooth, tversky_weights
from tversky_seg.losses.global_batch import sum_over_processes
from tversky_seg.losses.index_loss import index_loss
from tversky_seg.losses.soft_counts import counting_dtype
from tversky_seg.metrics.overlap import tversky_index


class BlobLoss(nn.Module):
    """The Tversky loss of everything plus the mean Tversky loss of single lesions.

    arXiv 2205.08209, where both are Dice. In the loss of a lesion, the voxels of all others are
    left out: true positives and false negatives are its own, false positives those of the whole
    patch. The mean is over the lesions of each sample and class that has any, then over these;
    without lesions in the batch, only the loss of everything remains. Lesions are the 26-connected
    components of target > 0.5 in the patch. The host numbers them, so a GPU waits once a batch:
    about 10 ms for each patch of 128^3 with lesions.

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
        of_everything = index_loss(
            logits,
            target,
            weight,
            alpha=self.alpha,
            beta=self.beta,
            smooth=self.smooth,
            over_batch=self.over_batch,
        )
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
        is_lesion = target > 0.5
        lesions = _find_lesions(is_lesion)
        p = logits.to(counting_dtype(logits)).sigmoid()
        w = torch.ones_like(p) if weight is None else weight.to(p.dtype).expand(p.shape)
        wp = w * p
        tp = _sums_by_lesion(wp, lesions)
        fn = _sums_by_lesion(w, lesions) - tp
        # The background of a patch is the same for each of its lesions.
        fp = (wp * ~is_lesion).flatten(0, 1).flatten(1).sum(1).index_select(0, lesions.patch)
        total = (self._shortfall(tp, fp, fn) / lesions.n_in_patch).sum()
        n_patches = torch.full_like(total, float(lesions.n_patches))
        sums = sum_over_processes(torch.stack([total, n_patches]))
        return sums[0] / sums[1].clamp_min(1)


@dataclass(frozen=True)
class _Lesions:
    """The K lesions of a batch and their M voxels, on the device of the target.

    Attributes:
        voxel: Place of each voxel in the flattened batch, (M,).
        lesion: Number of its lesion, 0 to K - 1, (M,).
        patch: Number of the patch of each lesion, a patch being one class of a sample, (K,).
        n_in_patch: Number of lesions in the patch of each lesion, (K,).
        n_patches: Number of patches with a lesion.
    """

    voxel: Tensor
    lesion: Tensor
    patch: Tensor
    n_in_patch: Tensor
    n_patches: int


def _find_lesions(is_lesion: Tensor) -> _Lesions:
    """Find the 26-connected components of a mask (B, C, X, Y, Z), patch by patch, on the host."""
    patches = is_lesion.flatten(0, 1).cpu().numpy()  # a GPU is waited for here
    parts = []
    n_lesions = 0
    n_patches = 0
    for number, patch in enumerate(patches):
        voxel, component, n = _components(patch)
        in_batch = (voxel + number * patch.size, component + n_lesions)
        parts.append((*in_batch, np.full(n, number), np.full(n, n)))
        n_lesions += n
        n_patches += n > 0
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    sizes = [len(column) for column in columns]
    # One copy to the device takes all of them.
    table = torch.from_numpy(np.concatenate(columns))
    if is_lesion.device.type == "cuda":
        table = table.pin_memory()
    on_device = table.to(is_lesion.device, non_blocking=True)
    voxels, lesions, patch_numbers, n_in_patch = torch.split_with_sizes(on_device, sizes)
    return _Lesions(voxels, lesions, patch_numbers, n_in_patch, n_patches)


def _components(patch: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """List the lesion voxels of a patch, the lesion of each, counted from 0, and count lesions."""
    if not patch.any():
        nothing = np.zeros(0, np.int64)
        return nothing, nothing, 0
    components = cc3d.connected_components(patch, connectivity=26).reshape(-1)
    voxel = np.flatnonzero(components).astype(np.int64)
    component = components[voxel].astype(np.int64)
    return voxel, component - 1, int(component.max(initial=0))


def _sums_by_lesion(values: Tensor, lesions: _Lesions) -> Tensor:
    """Add up values (B, C, X, Y, Z) over the voxels of each lesion, (K,)."""
    of_voxels = values.flatten().index_select(0, lesions.voxel).double()
    sums = of_voxels.new_zeros(len(lesions.patch))
    # index_put adds in a fixed order on a GPU too; index_add would not.
    sums = sums.index_put((lesions.lesion,), of_voxels, accumulate=True)
    return sums.to(values.dtype)
