"""The blob loss: the mean over lesions, one by one, and patches without lesions."""

import pytest
import torch
from torch import Tensor

from helpers.losses import gradient_of, random_case
from tversky_seg.losses import BlobLoss, DiceLoss, TverskyLoss


def two_lesions_a_patch() -> tuple[Tensor, Tensor, Tensor]:
    """Make logits, lesion numbers and weights, (2, 2, 6, 6, 6).

    Both classes of the first sample have lesions 1 and 2, the second class of the second sample
    has one, its first class none.
    """
    lesions = torch.zeros(2, 2, 6, 6, 6, dtype=torch.int64)
    lesions[0, :, 0:2, 0:2, 0:3] = 1
    lesions[0, :, 4, 4, 4] = 2
    lesions[1, 1, 2:5, 3, 3] = 1
    logits, _, weight = random_case(tuple(lesions.shape))
    return logits, lesions, weight


@pytest.mark.parametrize("weighted", [True, False])
def test_blob_loss_is_the_mean_over_lesions_with_the_others_cut_out(weighted):
    logits, lesions, weight = two_lesions_a_patch()
    weight = weight if weighted else torch.ones_like(weight)
    target = (lesions > 0).double()
    tversky = TverskyLoss(alpha=0.2, beta=0.6)
    patches = []
    for b, c in ((0, 0), (0, 1), (1, 1)):
        cell = (slice(b, b + 1), slice(c, c + 1))
        singles = []
        for number in range(1, int(lesions[cell].max()) + 1):
            alone = (lesions[cell] == number).double()
            others_cut_out = weight[cell] * ((target[cell] == 0) | (alone == 1))
            singles.append(tversky(logits[cell], alone, others_cut_out))
        patches.append(torch.stack(singles).mean())
    expected = 2 * tversky(logits, target, weight) + 0.5 * torch.stack(patches).mean()
    loss = BlobLoss(alpha=0.2, beta=0.6, lesion_weight=0.5)
    torch.testing.assert_close(loss(logits, target, *([weight] if weighted else [])), expected)
    (gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(
        gradient_of(loss, logits, target, *([weight] if weighted else [])), gradient
    )


def test_blob_loss_heeds_the_small_lesion_and_needs_none():
    logits, lesions, _ = two_lesions_a_patch()
    target = (lesions > 0).double()
    missed_small, missed_large = (8 * target - 4 - 8 * (lesions == number) for number in (2, 1))
    assert BlobLoss()(missed_small, target) > DiceLoss()(missed_small, target) * 2 + 0.3
    assert BlobLoss()(missed_large, target) > BlobLoss()(missed_small, target)
    torch.testing.assert_close(BlobLoss()(logits, 0 * target), 2 * DiceLoss()(logits, 0 * target))
    assert (gradient_of(BlobLoss(), logits, 0 * target) > 0).all()
