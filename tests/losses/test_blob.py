"""The blob loss: the mean over lesions, one by one, and patches without lesions."""

import pytest
import torch
from torch import Tensor

from helpers.cuda import on_gpu
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


def test_the_background_of_a_large_patch_counts_in_full():
    """Equal small probabilities, added one by one in float32, would lose a part of each."""
    target = torch.zeros(1, 1, 96, 96, 96)
    target[0, 0, 3:5, 3:5, 3:5] = 1
    logits = torch.full_like(target, -5.0).requires_grad_()
    loss = BlobLoss(global_weight=0, smooth=0)
    exact = 1 - loss(logits.detach().double(), target)
    assert (1 - loss(logits, target)).item() == pytest.approx(exact.item(), rel=1e-4)


@on_gpu
@pytest.mark.parametrize("weighted", [True, False])
def test_a_gpu_gives_the_same_blob_loss_twice_and_the_cpu_s(weighted):
    logits, lesions, weight = two_lesions_a_patch()
    arguments = [(lesions > 0).float(), weight.float()][: 1 + weighted]
    expected = gradient_of(BlobLoss(), logits, *arguments)
    on_card = [values.cuda() for values in arguments]
    card_logits = logits.detach().float().cuda().requires_grad_()
    gradients = [gradient_of(BlobLoss(), card_logits, *on_card) for _ in range(2)]
    assert torch.equal(*gradients)
    torch.testing.assert_close(gradients[0].cpu().double(), expected, rtol=1e-4, atol=1e-7)
