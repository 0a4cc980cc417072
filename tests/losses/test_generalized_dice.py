"""The generalised Dice loss: the formulas of its paper and of released code."""

import pytest
import torch

from helpers.losses import gradient_of, mask_logits, random_case
from tversky_seg.losses import GeneralizedDiceLoss


def test_generalized_dice_of_one_class_is_the_two_class_formula():
    logits, target, weight = random_case((2, 1, 5, 4, 3))
    for w in (torch.ones_like(weight), weight):
        p = torch.cat([logits.sigmoid(), 1 - logits.sigmoid()], 1)
        g = torch.cat([target, 1 - target], 1)
        sums = {"dim": (0, 2, 3, 4)}
        importance = 1 / (w * g).sum(**sums) ** 2
        both = (
            2
            * (importance * (w * p * g).sum(**sums)).sum()
            / (importance * (w * (p + g)).sum(**sums)).sum()
        )
        torch.testing.assert_close(GeneralizedDiceLoss()(logits, target, w), 1 - both)


@pytest.mark.parametrize("has_lesion", [True, False])
def test_squared_generalized_dice_is_that_of_the_released_code(has_lesion):
    """arXiv 2007.10033's iw/torch.py: weights 1 / (1 + size^2), squares in the denominator."""
    logits, target, _ = random_case((2, 1, 5, 4, 3))
    target = target * has_lesion
    p = torch.cat([logits.sigmoid(), 1 - logits.sigmoid()], 1)
    g = torch.cat([target, 1 - target], 1)
    axes = (2, 3, 4)
    importance = 1 / (1 + g.sum(axes) ** 2)
    numerator = (importance * (p * g).sum(axes)).sum(-1)
    denominator = (importance * (p**2 + g**2).sum(axes)).sum(-1)
    expected = (1 - 2 * numerator / denominator).mean()
    loss = GeneralizedDiceLoss(squared=True, over_batch=False)
    torch.testing.assert_close(loss(logits, target), expected)
    (gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient_of(loss, logits, target), gradient)


def test_generalized_dice_with_an_empty_class_still_follows_the_others():
    logits, target, _ = random_case()
    target = target.clone()
    target[:, 1] = 0
    right, wrong = mask_logits(target), mask_logits(target.roll(1, dims=2))
    for loss in (GeneralizedDiceLoss(), GeneralizedDiceLoss(background=False, smooth=1.0)):
        assert loss(right, target) < 1e-6
        assert loss(wrong, target) > 0.3
        gradient = gradient_of(loss, logits, target)
        assert (gradient[:, 1] > 0).all()
        assert (gradient[:, 0][target[:, 0] == 1] < 0).all()


def test_generalized_dice_of_background_alone_is_the_mean_probability():
    logits, target, _ = random_case((2, 1, 5, 4, 3))
    torch.testing.assert_close(GeneralizedDiceLoss()(logits, 0 * target), logits.sigmoid().mean())
