"""Narrow and wide numbers: sums neither overflow nor lose lesions."""

import pytest
import torch

from helpers.losses import LOSSES, each_loss
from tversky_seg.losses import BCELoss, DiceLoss, FocalLoss, TverskyLoss


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_logits_of_a_large_patch_neither_overflow_nor_saturate(loss, dtype):
    """The sum of p is 16 times the largest fp16 number.

    A saturated loss is exactly 1 and has no gradient.
    """
    shape = (1, 1, 128, 128, 128)
    target = torch.zeros(shape, dtype=torch.uint8)
    target[0, 0, :40, :40, :40] = 1
    logits = (
        torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    )
    value = loss(logits, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(logits, target) == value
    expected = loss(logits.detach().double(), target)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    is_above_one = loss in (LOSSES["adaptive bce"], LOSSES["tversky + cross-entropy"])
    assert 0 < value < (10 if is_above_one else 1)
    (gradient,) = torch.autograd.grad(2.0**16 * value, logits)
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()
    assert (gradient[target == 1] < 0).float().mean() > 0.99


def test_sums_of_a_large_float32_patch_are_as_exact_as_float64():
    shape = (2, 1, 96, 96, 96)
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=rng)
    target = (torch.rand(shape, generator=rng) < 0.01).float()
    weight = 1 + 1000 * target
    for loss in (TverskyLoss(), DiceLoss(squared=True), FocalLoss(), BCELoss()):
        for arguments in ((target,), (target, weight)):
            exact = loss(logits.double(), *arguments)
            torch.testing.assert_close(
                loss(logits, *arguments).double(), exact, rtol=1e-6, atol=1e-6
            )
