"""Losses on a GPU: a few Triton kernels in place of dozens of operations.

They read logits, target and weight as they lie in memory, once forward and once backward, and keep
nothing besides these arguments. Where Triton is missing, `can_fuse` is False and the losses compute
the same by plain operations.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from tversky_seg.losses.launches import Rows

TYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Logits whose sums are float32."""


def can_fuse(logits: Tensor) -> bool:
    """Tell whether there are kernels for these logits.

    torch.compile and fake tensors take the plain operations, which they can see into.
    """
    return (
        not torch.compiler.is_compiling()
        and logits.is_cuda
        and logits.dtype in TYPES
        and type(logits) is Tensor
        and _kernels_run(logits.device)
    )


def soft_sums(logits: Tensor, target: Tensor, weight: Tensor | None, *, squared: bool) -> Tensor:
    """Add up w p g, w p and w g over voxels (squared: w p g, w p^2 and w g^2), (3, B, C).

    Args:
        logits: (B, C, X, Y, Z), of one of `TYPES`.
        target: Of the same shape, any type.
        weight: Broadcasts to the logits, any type.
        squared: Use the squares.
    """
    return _SoftSums.apply(  # type: ignore[no-any-return, no-untyped-call]
        logits, target, weight, squared
    )


def tversky_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    *,
    alpha: float,
    beta: float,
    smooth: float,
    exponent: float,
    squared: bool,
    over_batch: bool,
) -> Tensor:
    """Compute `index_loss` of the voxels of this process, a scalar.

    Its formula and its derivative stand in the kernel, since dozens of operations on a few numbers
    take longer than the sums.

    Args:
        logits: (B, C, X, Y, Z), of one of `TYPES`.
        target: Of the same shape, any type.
        weight: Broadcasts to the logits, any type.
        alpha: Weight of false positives.
        beta: Weight of false negatives.
        smooth: Voxels added to numerator and denominator, > 0.
        exponent: Power of one minus the index.
        squared: Use the squares, as `soft_sums`.
        over_batch: Add up the samples first.
    """
    settings = {"alpha": alpha, "beta": beta, "smooth": smooth, "exponent": exponent}
    return _TverskyLoss.apply(  # type: ignore[no-any-return, no-untyped-call]
        logits, target, weight, settings, squared, over_batch
    )


def focal_sum(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    *,
    alpha: float | None,
    gamma: float,
    share: float = 1.0,
) -> Tensor:
    """Add up the focal loss over voxels, a scalar.

    Args:
        logits: (B, C, X, Y, Z), of one of `TYPES`.
        target: Of the same shape, any type.
        weight: Broadcasts to the logits, any type.
        alpha: As in FocalLoss.
        gamma: As in FocalLoss.
        share: Factor of the sum; 1 over the number of voxels makes it the mean.
    """
    settings = {"alpha": alpha, "gamma": gamma, "share": share}
    return _FocalSum.apply(  # type: ignore[no-any-return, no-untyped-call]
        logits, target, weight, settings
    )


@cache
def _kernels_run(device: torch.device) -> bool:
    """Tell whether Triton is there and supports this GPU: compute capability 8.0 or later."""
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        rows = _rows(torch.zeros(1, 1, 16, device=device), torch.zeros(1, 1, 16, device=device))
        with torch.cuda.device(device):
            _launches().partial_soft_sums(rows, squared=False)
    except ImportError:
        return False
    except Exception as error:  # Triton needs a C compiler and Python's headers
        warnings.warn(f"losses run without kernels, since Triton failed: {error}", stacklevel=2)
        return False
    return True


def _launches() -> Any:
    # Imports Triton, which is not there without CUDA.
    from tversky_seg.losses import launches

    return launches


def _rows(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Rows:
    return _launches().Rows.of(logits, target, weight)  # type: ignore[no-any-return]


def _device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Launch kernels on the device of a tensor."""
    return torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]


class _SoftSums(torch.autograd.Function):
    """See `soft_sums`."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None, squared: bool
    ) -> Tensor:
        with _device_of(logits):
            partials = _launches().partial_soft_sums(_rows(logits, target, weight), squared=squared)
        ctx.save_for_backward(logits, target, weight)
        ctx.squared = squared
        return partials.sum(-1).view(3, *logits.shape[:2])  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_sums: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, weight = ctx.saved_tensors
        with _device_of(logits):
            rows = _rows(logits, target, weight)
            gradient = _launches().soft_sums_gradient(
                logits, rows, d_sums.contiguous(), None, squared=ctx.squared
            )
        return gradient, None, None, None


class _TverskyLoss(torch.autograd.Function):
    """See `tversky_loss`."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        settings: dict[str, float],
        squared: bool,
        over_batch: bool,
    ) -> Tensor:
        launches = _launches()
        with _device_of(logits):
            rows = _rows(logits, target, weight)
            partials = launches.partial_soft_sums(rows, squared=squared)
            n_ratios = logits.shape[1] if over_batch else rows.n_rows
            loss, slopes = launches.tversky_loss(partials, n_ratios=n_ratios, **settings)
        ctx.save_for_backward(logits, target, weight, slopes)
        ctx.squared = squared
        return loss  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, weight, slopes = ctx.saved_tensors
        with _device_of(logits):
            rows = _rows(logits, target, weight)
            gradient = _launches().soft_sums_gradient(
                logits, rows, slopes, d_loss, squared=ctx.squared
            )
        return gradient, None, None, None, None, None


class _FocalSum(torch.autograd.Function):
    """See `focal_sum`."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        settings: dict[str, float | None],
    ) -> Tensor:
        with _device_of(logits):
            partials = _launches().partial_focal_sums(_rows(logits, target, weight), **settings)
        ctx.save_for_backward(logits, target, weight)
        ctx.settings = settings
        return partials.sum()  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, weight = ctx.saved_tensors
        with _device_of(logits):
            rows = _rows(logits, target, weight)
            gradient = _launches().focal_gradient(logits, rows, d_total, **ctx.settings)
        return gradient, None, None, None
