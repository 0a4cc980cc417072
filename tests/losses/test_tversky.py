"""Losses of a Tversky index: identities, cases by hand, and plain autograd in float64."""

import itertools

import pytest
import torch
from torch import Tensor

from helpers.losses import LOSSES, gradient_of, mask_logits, random_case
from tversky_seg.losses import AsymmetricSimilarityLoss, DiceLoss, FocalTverskyLoss, TverskyLoss
from tversky_seg.metrics.overlap import overlap_counts


def plain_index(
    logits: Tensor,
    target: Tensor,
    weight: Tensor,
    *,
    alpha: float,
    beta: float,
    smooth: float,
    power: int,
    dims: tuple,
) -> Tensor:
    """Tversky's index as one would first write it."""
    p = logits.sigmoid()
    tp = (weight * p * target).sum(dims)
    fp = (weight * p**power).sum(dims) - tp
    fn = (weight * target**power).sum(dims) - tp
    return (tp + smooth) / (tp + alpha * fp + beta * fn + smooth)


def test_tversky_of_a_case_worked_by_hand():
    logits = torch.tensor([[[[[0.8, 0.6, 0.5, 0.1]]]]]).logit()
    target = torch.tensor([[[[[1.0, 0.0, 1.0, 0.0]]]]])
    tp, fp, fn = 1.3, 0.7, 0.7
    expected = 1 - (tp + 2) / (tp + 0.1 * fp + 0.6 * fn + 2)
    assert TverskyLoss(alpha=0.1, beta=0.6, smooth=2)(logits, target).item() == pytest.approx(
        expected, abs=1e-6
    )


@pytest.mark.parametrize("over_batch", [True, False])
@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_closed_form_equals_plain_autograd_in_float64(over_batch, squared, weighted):
    logits, target, weight = random_case()
    soft_target = 0.9 * target + 0.05
    if not weighted:
        weight = torch.ones_like(weight)
    dims = (0, 2, 3, 4) if over_batch else (2, 3, 4)
    plain = 1 - plain_index(
        logits,
        soft_target,
        weight,
        alpha=1 / 3.25,
        beta=2.25 / 3.25,
        smooth=0.7,
        power=1 + squared,
        dims=dims,
    )
    loss = AsymmetricSimilarityLoss(b=1.5, squared=squared, smooth=0.7, over_batch=over_batch)
    arguments = (soft_target, weight) if weighted else (soft_target,)
    torch.testing.assert_close(loss(logits, *arguments), plain.mean(), rtol=1e-12, atol=0)
    (expected,) = torch.autograd.grad(plain.mean(), logits)
    torch.testing.assert_close(
        gradient_of(loss, logits, *arguments), expected, rtol=1e-10, atol=1e-15
    )


def test_gradient_is_the_corrected_form_of_the_papers_equations_4_and_5():
    alpha, beta = 0.3, 0.6
    logits, target, _ = random_case((1, 1, 5, 4, 3))
    p0, g0 = logits.detach().sigmoid(), target
    p1, g1 = 1 - p0, 1 - g0
    numerator = (p0 * g0).sum()
    denominator = numerator + alpha * (p0 * g1).sum() + beta * (p1 * g0).sum()
    by_lesion = (
        g0 * denominator - (g0 + alpha * g1) * numerator
    ) / denominator**2  # eq. 4 without its factor 2
    by_background = -beta * g0 * numerator / denominator**2  # eq. 5 with g0 for g1
    expected = -(by_lesion - by_background) * p0 * p1
    gradient = gradient_of(TverskyLoss(alpha=alpha, beta=beta, smooth=0), logits, target)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("over_batch", [True, False])
def test_tversky_with_equal_halves_is_dice(over_batch):
    logits, target, weight = random_case()
    tversky, dice = (
        TverskyLoss(alpha=0.5, beta=0.5, over_batch=over_batch),
        DiceLoss(over_batch=over_batch),
    )
    assert tversky(logits, target, weight) == dice(logits, target, weight)


def test_tversky_of_masks_is_one_minus_f2():
    _, target, _ = random_case((1, 1, 6, 5, 4))
    prediction = target.roll(1, dims=2)
    f2 = overlap_counts(prediction.numpy(), target.numpy()).f(2)
    assert TverskyLoss(alpha=0.2, beta=0.8, smooth=0)(
        mask_logits(prediction), target
    ) == pytest.approx(1 - f2)


@pytest.mark.parametrize("b", [1.0, 1.5, 2.0, 3.0])
def test_asymmetric_loss_is_its_tversky_and_one_minus_f_b_of_masks(b):
    logits, target, weight = random_case()
    tversky = TverskyLoss(alpha=1 / (1 + b**2), beta=b**2 / (1 + b**2))
    torch.testing.assert_close(
        AsymmetricSimilarityLoss(b=b)(logits, target, weight), tversky(logits, target, weight)
    )
    mask = target[:1, :1]
    f_b = overlap_counts(mask.roll(1, dims=2).numpy(), mask.numpy()).f(b)
    for squared in (False, True):  # p^2 = p of masks
        loss = AsymmetricSimilarityLoss(b=b, squared=squared, smooth=0)
        assert loss(mask_logits(mask.roll(1, dims=2)), mask) == pytest.approx(1 - f_b)


def test_squared_forms_are_those_of_the_released_code():
    logits, target, w = random_case((2, 1, 5, 4, 3))
    p, b, sums = logits.sigmoid(), 1.5, {"dim": (1, 2, 3, 4)}
    dice = 1 - 2 * (w * p * target).sum(**sums) / (w * (p**2 + target**2)).sum(**sums)
    asymmetric = 1 - (1 + b**2) * (w * p * target).sum(**sums) / (
        w * (b**2 * target**2 + p**2)
    ).sum(**sums)
    options = {"squared": True, "smooth": 0, "over_batch": False}
    torch.testing.assert_close(DiceLoss(**options)(logits, target, w), dice.mean())
    torch.testing.assert_close(
        AsymmetricSimilarityLoss(**options)(logits, target, w), asymmetric.mean()
    )


def test_missing_weights_are_the_papers_best_or_the_rest_to_one():
    assert (TverskyLoss().alpha, TverskyLoss().beta) == (0.3, 0.7)
    assert TverskyLoss(alpha=0.2).beta == 0.8
    assert TverskyLoss(beta=0.9).alpha == pytest.approx(0.1)


def test_raising_alpha_punishes_invented_lesions_alone():
    _, target, _ = random_case((1, 1, 6, 5, 4))
    grown, shrunk = target.clone(), target.clone()
    grown[0, 0, 0], shrunk[0, 0, 0] = 1, 0
    low, high = TverskyLoss(alpha=0.2, beta=0.5), TverskyLoss(alpha=0.9, beta=0.5)
    assert high(mask_logits(grown), target) > low(mask_logits(grown), target) + 0.05
    assert high(mask_logits(shrunk), target) == low(mask_logits(shrunk), target)


def test_raising_beta_punishes_missed_lesions_alone():
    _, target, _ = random_case((1, 1, 6, 5, 4))
    grown, shrunk = target.clone(), target.clone()
    grown[0, 0, 0], shrunk[0, 0, 0] = 1, 0
    low, high = TverskyLoss(alpha=0.5, beta=0.2), TverskyLoss(alpha=0.5, beta=0.9)
    assert high(mask_logits(shrunk), target) > low(mask_logits(shrunk), target) + 0.05
    assert high(mask_logits(grown), target) == low(mask_logits(grown), target)


def test_focal_tversky_is_the_root_of_each_class_shortfall():
    logits, target, weight = random_case()
    tversky = TverskyLoss()
    assert FocalTverskyLoss(gamma=1)(logits, target, weight) == tversky(logits, target, weight)
    classes = [tversky(logits[:, c : c + 1], target[:, c : c + 1]) for c in range(2)]
    expected = sum(value**0.75 for value in classes) / 2
    torch.testing.assert_close(FocalTverskyLoss()(logits, target), expected)
    perfect = FocalTverskyLoss()(mask_logits(target).requires_grad_(), target)
    assert perfect < 1e-4


def test_over_batch_takes_one_ratio_of_all_counts():
    logits, target, _ = random_case((3, 2, 4, 4, 4))
    side_by_side = [torch.cat(list(values), dim=1)[None] for values in (logits, target)]
    torch.testing.assert_close(TverskyLoss()(logits, target), TverskyLoss()(*side_by_side))


def test_per_sample_is_the_mean_over_samples_and_classes():
    logits, target, weight = random_case((3, 2, 4, 4, 4))
    whole = TverskyLoss(over_batch=False)(logits, target, weight)
    cells = itertools.product(range(3), range(2))
    parts = [
        TverskyLoss()(*(values[b : b + 1, c : c + 1] for values in (logits, target, weight)))
        for b, c in cells
    ]
    torch.testing.assert_close(whole, torch.stack(parts).mean())


def test_per_sample_ratios_leave_a_lesion_free_sample_with_hardly_any_gradient():
    shape = (2, 1, 48, 48, 48)
    target = torch.zeros(shape)
    target[0, 0, 20:24, 20:24, 20:24] = 1
    logits = torch.full(shape, -2.0).masked_fill(target == 1, 0.0).requires_grad_()
    shares = {}
    for over_batch in (True, False):
        gradient = gradient_of(TverskyLoss(over_batch=over_batch), logits, target)
        shares[over_batch] = gradient[1].mean() / gradient[0][target[0] == 0].mean()
    assert shares[True] == pytest.approx(1)
    assert 0 < shares[False] < 0.05


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_without_smooth_is_defined_on_an_empty_batch(alpha, dtype):
    for level in (-300.0, 0.0):
        logits = torch.full((1, 1, 4, 4, 4), level, dtype=dtype, requires_grad=True)
        loss = TverskyLoss(alpha=alpha, beta=0.5, smooth=0)
        assert loss(logits, torch.zeros_like(logits)).isfinite()
        assert gradient_of(loss, logits, torch.zeros_like(logits)).isfinite().all()


@pytest.mark.parametrize(
    "name", ["tversky", "dice squared", "generalized dice", "generalized dice of classes alone"]
)
def test_gradients_of_a_loss_of_counts_are_once_differentiable(name):
    logits, target, _ = random_case()
    (gradient,) = torch.autograd.grad(LOSSES[name](logits, target), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_alpha_and_beta_are_never_positional():
    with pytest.raises(TypeError):
        TverskyLoss(0.3, 0.7)  # type: ignore[misc]
