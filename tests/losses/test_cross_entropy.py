"""Losses that are a mean over voxels: torch's own, and the papers' formulas."""

import pytest
import torch
from torch.nn import functional

from helpers.losses import gradient_of, random_case
from tversky_seg.losses import BCELoss, FocalLoss, WeightedBCELoss


def test_cross_entropies_equal_torch():
    logits, target, weight = random_case()
    expected = functional.binary_cross_entropy_with_logits(logits, target, weight)
    torch.testing.assert_close(BCELoss()(logits, target, weight), expected)
    positive = torch.tensor(5.0)
    expected = functional.binary_cross_entropy_with_logits(
        logits, target, weight, pos_weight=positive
    )
    torch.testing.assert_close(WeightedBCELoss(positive_weight=5)(logits, target, weight), expected)


@pytest.mark.parametrize("detached", [False, True])
def test_adaptive_weight_is_predicted_background_over_predicted_lesion(detached):
    logits, target, weight = random_case((2, 1, 5, 4, 3))
    p = logits.sigmoid()
    positive = (p.numel() - p.sum()) / p.sum()
    positive = positive.detach() if detached else positive
    expected = (-weight * (positive * target * p.log() + (1 - target) * (1 - p).log())).mean()
    loss = WeightedBCELoss(detached=detached)
    torch.testing.assert_close(loss(logits, target, weight), expected)
    (gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient_of(loss, logits, target, weight), gradient)


@pytest.mark.parametrize("level", [-30.0, -44.0, -60.0, -300.0, 60.0])
@pytest.mark.parametrize("has_lesion", [False, True])
def test_adaptive_weight_of_a_network_sure_of_one_class_has_a_finite_gradient(level, has_lesion):
    target = torch.zeros(2, 1, 6, 6, 6)
    target[:, :, :2] = float(has_lesion)
    logits = torch.full_like(target, level).requires_grad_()
    value = WeightedBCELoss()(logits, target)
    assert value.isfinite()
    assert gradient_of(WeightedBCELoss(), logits, target).isfinite().all()


def test_focal_is_the_papers_formula():
    logits, target, weight = random_case()
    p = logits.sigmoid()
    lesion, background = -0.75 * (1 - p) ** 2 * p.log(), -0.25 * p**2 * (1 - p).log()
    expected = (weight * (target * lesion + (1 - target) * background)).mean()
    torch.testing.assert_close(FocalLoss()(logits, target, weight), expected)
    torch.testing.assert_close(
        FocalLoss(alpha=None, gamma=0)(logits, target), BCELoss()(logits, target)
    )
    torch.testing.assert_close(
        2 * FocalLoss(alpha=0.5, gamma=0)(logits, target), BCELoss()(logits, target)
    )


def test_focal_is_finite_where_the_network_is_sure_and_wrong():
    target = torch.tensor([1.0, 0.0, 1.0, 0.0]).view(1, 1, 1, 1, 4)
    logits = torch.tensor([-500.0, 500.0, 500.0, -500.0]).view_as(target).requires_grad_()
    assert FocalLoss()(logits, target).item() == pytest.approx((0.75 * 500 + 0.25 * 500) / 4)
    torch.testing.assert_close(
        gradient_of(FocalLoss(), logits, target).flatten(), torch.tensor([-0.75, 0.25, 0, 0]) / 4
    )
