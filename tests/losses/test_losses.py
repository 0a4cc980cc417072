"""Every loss against an identity, a case worked by hand and an independent implementation."""

import itertools
import math
from pathlib import Path

import monai.losses
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from tversky_seg.losses import (
    AsymmetricSimilarityLoss,
    BCELoss,
    BlobLoss,
    CombinedLoss,
    DiceLoss,
    FocalLoss,
    FocalTverskyLoss,
    GeneralizedDiceLoss,
    TverskyLoss,
    WeightedBCELoss,
)
from tversky_seg.metrics.overlap import overlap_counts
from tversky_seg.weighting import inverse_weights

LOSSES = {
    "tversky": TverskyLoss(alpha=0.2, beta=0.7),
    "tversky per sample": TverskyLoss(alpha=0.2, beta=0.7, over_batch=False),
    "dice": DiceLoss(),
    "dice squared": DiceLoss(squared=True),
    "asymmetric": AsymmetricSimilarityLoss(),
    "asymmetric squared": AsymmetricSimilarityLoss(squared=True, over_batch=False),
    "focal tversky": FocalTverskyLoss(),
    "generalized dice": GeneralizedDiceLoss(),
    "generalized dice of classes alone": GeneralizedDiceLoss(
        background=False, smooth=1.0, over_batch=False
    ),
    "generalized dice squared": GeneralizedDiceLoss(squared=True),
    "bce": BCELoss(),
    "weighted bce": WeightedBCELoss(positive_weight=5.0),
    "adaptive bce": WeightedBCELoss(),
    "focal": FocalLoss(),
    "focal unweighted": FocalLoss(alpha=None, gamma=1.5),
    "combined": CombinedLoss(losses=[TverskyLoss(), FocalLoss()], weights=[1.0, 0.5]),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def random_case(
    shape: tuple[int, ...] = (2, 2, 5, 4, 3), *, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, a binary target with lesions in every class, positive weights."""
    rng = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape, generator=rng, dtype=dtype) - 1
    target = (torch.rand(shape, generator=rng) < 0.2).to(dtype)
    weight = 0.5 + 5 * torch.rand(shape, generator=rng, dtype=dtype)
    return logits.requires_grad_(), target, weight


def mask_logits(mask: Tensor) -> Tensor:
    """Logits whose probability is the mask itself."""
    return 200 * mask - 100


def gradient_of(loss: nn.Module, logits: Tensor, *arguments: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss(logits, *arguments), logits)
    return gradient


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


# Formulas


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


@each_loss
def test_gradient_passes_gradcheck(loss):
    logits, target, weight = random_case((2, 2, 2, 2, 1))
    assert torch.autograd.gradcheck(lambda x: loss(x, target), (logits,))
    assert torch.autograd.gradcheck(lambda x: loss(x, 0.8 * target + 0.1, weight), (logits,))


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


def two_lesions_a_patch() -> tuple[Tensor, Tensor, Tensor]:
    """Lesions 1 and 2 in the first sample, one in the second sample's second class, none elsewhere."""
    lesions = torch.zeros(2, 2, 6, 6, 6, dtype=torch.int64)
    lesions[0, :, 0:2, 0:2, 0:3], lesions[0, :, 4, 4, 4], lesions[1, 1, 2:5, 3, 3] = 1, 2, 1
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
            kept = weight[cell] * ((target[cell] == 0) | (alone == 1))
            singles.append(tversky(logits[cell], alone, kept))
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


def test_combined_is_the_weighted_sum():
    logits, target, weight = random_case()
    parts = [TverskyLoss(), FocalLoss(), BCELoss()]
    expected = sum(
        w * part(logits, target, weight) for w, part in zip((1, 0.5, 2), parts, strict=True)
    )
    torch.testing.assert_close(
        CombinedLoss(losses=parts, weights=[1, 0.5, 2])(logits, target, weight), expected
    )
    expected = sum(part(logits, target) for part in parts)
    torch.testing.assert_close(CombinedLoss(losses=parts)(logits, target), expected)


@pytest.mark.parametrize("over_batch", [True, False])
@pytest.mark.parametrize("n_classes", [1, 3])
def test_losses_equal_monais(over_batch, n_classes):
    logits, target, _ = random_case((2, n_classes, 12, 10, 8), dtype=torch.float32)
    options = {"sigmoid": True, "batch": over_batch}
    twins = [
        (
            TverskyLoss(alpha=0.2, beta=0.9, over_batch=over_batch),
            monai.losses.TverskyLoss(alpha=0.2, beta=0.9, smooth_nr=1, smooth_dr=1, **options),
        ),
        (
            DiceLoss(over_batch=over_batch),
            monai.losses.DiceLoss(smooth_nr=2, smooth_dr=2, **options),
        ),
        (
            DiceLoss(squared=True, over_batch=over_batch),
            monai.losses.DiceLoss(squared_pred=True, smooth_nr=2, smooth_dr=2, **options),
        ),
        (
            GeneralizedDiceLoss(background=False, over_batch=over_batch),
            monai.losses.GeneralizedDiceLoss(smooth_nr=0, smooth_dr=0, **options),
        ),
        (FocalLoss(alpha=0.25, gamma=2), monai.losses.FocalLoss(alpha=0.25, gamma=2)),
        (FocalLoss(alpha=None, gamma=1.5), monai.losses.FocalLoss(gamma=1.5)),
    ]
    for ours, theirs in twins:
        torch.testing.assert_close(ours(logits, target), theirs(logits, target), rtol=0, atol=1e-6)
        expected = gradient_of(theirs, logits, target)
        torch.testing.assert_close(
            gradient_of(ours, logits, target), expected, rtol=1e-4, atol=1e-8
        )


# What every loss keeps


@each_loss
def test_flips_and_the_order_of_axes_change_nothing(loss):
    logits, target, weight = random_case()
    expected = loss(logits, target, weight)
    for order in itertools.permutations((2, 3, 4)):
        turned = [
            values.permute(0, 1, *order).flip(order[0]) for values in (logits, target, weight)
        ]
        torch.testing.assert_close(loss(*turned), expected)


@each_loss
def test_strided_logits_give_the_same_loss_and_gradient(loss):
    logits, target, weight = random_case()
    strided = logits.detach().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    assert not strided.is_contiguous()
    torch.testing.assert_close(loss(strided, target, weight), loss(logits, target, weight))
    torch.testing.assert_close(
        gradient_of(loss, strided, target, weight), gradient_of(loss, logits, target, weight)
    )


@each_loss
def test_weights_of_one_are_no_weights(loss):
    logits, target, weight = random_case()
    ones = torch.ones_like(weight)
    torch.testing.assert_close(loss(logits, target, ones), loss(logits, target))
    torch.testing.assert_close(
        gradient_of(loss, logits, target, ones), gradient_of(loss, logits, target)
    )


@each_loss
def test_weights_broadcast(loss):
    logits, target, weight = random_case()
    for part in (weight[:, :1], weight[0, 0], weight[:1]):
        torch.testing.assert_close(
            loss(logits, target, part), loss(logits, target, part.expand(logits.shape))
        )


@each_loss
def test_weight_of_a_voxel_is_its_number_of_copies(loss):
    logits, target, _ = random_case((1, 1, 4, 4, 4))
    weight = torch.ones_like(target)
    weight[..., 0] = 3
    copied = [
        torch.cat([values, values[..., :1], values[..., :1]], -1) for values in (logits, target)
    ]
    share = 1.0
    if isinstance(loss, BCELoss | WeightedBCELoss | FocalLoss):
        share = copied[0].numel() / logits.numel()  # the mean is over voxels, whatever they weigh
    if loss in (LOSSES["adaptive bce"], LOSSES["combined"]):
        return  # the adaptive weight counts voxels; a sum of losses scales in parts
    torch.testing.assert_close(loss(logits, target, weight), share * loss(*copied))


@each_loss
@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float32]
)
def test_target_of_any_type_gives_the_same_loss(loss, dtype):
    logits, target, weight = random_case()
    torch.testing.assert_close(loss(logits, target.to(dtype), weight), loss(logits, target, weight))
    cast = gradient_of(loss, logits, target.to(dtype), weight)
    torch.testing.assert_close(cast, gradient_of(loss, logits, target, weight))


@each_loss
def test_inputs_are_left_as_they_were(loss):
    case = random_case()
    before = [values.detach().clone() for values in case]
    loss(*case).backward()
    assert all(torch.equal(values, kept) for values, kept in zip(case, before, strict=True))


@each_loss
def test_backward_can_be_repeated_and_scales(loss):
    logits, target, weight = random_case()
    value = loss(logits, target, weight)
    first = torch.autograd.grad(value, logits, retain_graph=True)[0].clone()
    torch.testing.assert_close(torch.autograd.grad(7 * value, logits)[0], 7 * first)


@each_loss
def test_a_second_backward_pass_repeats_the_first_bit_for_bit(loss):
    logits, target, weight = random_case((2, 1, 5, 7, 11), dtype=torch.float32)
    value = loss(logits, target, weight)
    first = torch.autograd.grad(value, logits, retain_graph=True)[0].clone()
    assert torch.equal(torch.autograd.grad(value, logits)[0], first)


@each_loss
def test_value_without_gradients_is_the_same(loss):
    logits, target, weight = random_case()
    expected = loss(logits, target, weight).detach()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert loss(logits, target, weight) == expected


@each_loss
def test_right_beats_wrong(loss):
    _, target, _ = random_case()
    logits = 8 * target - 4
    assert loss(logits, target) < loss(-logits, target)
    assert loss(logits, target) < loss(torch.full_like(logits, -4), target)


@pytest.mark.parametrize(
    "name", ["tversky", "dice", "asymmetric squared", "generalized dice", "focal"]
)
@pytest.mark.parametrize("weighted", [True, False])
def test_one_tensor_besides_the_arguments_is_kept_for_backward(name, weighted):
    logits, target, weight = random_case((1, 1, 16, 16, 16))
    arguments = (target, weight) if weighted else (target,)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        value = LOSSES[name](logits, *arguments)
    # Bytes that were allocated and not freed again, while `value` holds the graph.
    n_bytes = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
    assert value.requires_grad
    assert logits.nbytes <= n_bytes <= logits.nbytes + 2000


@pytest.mark.parametrize(
    "name", ["tversky", "dice squared", "generalized dice", "generalized dice of classes alone"]
)
def test_gradients_of_a_loss_of_counts_are_once_differentiable(name):
    logits, target, _ = random_case()
    (gradient,) = torch.autograd.grad(LOSSES[name](logits, target), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_repr_shows_the_settings():
    text = repr(TverskyLoss(alpha=0.2, beta=0.7, over_batch=False))
    for setting in ("alpha=0.2", "beta=0.7", "smooth=1", "over_batch=False"):
        assert setting in text
    assert "gamma=2" in repr(FocalLoss())
    assert "weights=[1.0, 2.0]" in repr(CombinedLoss(losses=[BCELoss()] * 2, weights=[1, 2]))


# Batches, classes, empty patches


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


@each_loss
def test_a_batch_without_lesions_still_drives_false_positives_down(loss):
    logits, target, _ = random_case()
    value = loss(logits, 0 * target)
    assert value.isfinite()
    gradient = gradient_of(loss, logits, 0 * target)
    if loss is LOSSES["adaptive bce"]:
        gradient = gradient_of(WeightedBCELoss(detached=True), logits, 0 * target)
    assert (gradient > 0).all()
    assert loss(logits - 3, 0 * target) < value


@each_loss
def test_a_sample_without_lesions_beside_one_with_them_is_driven_down(loss):
    logits, target, _ = random_case()
    target = target.clone()
    target[1] = 0
    if loss is LOSSES["adaptive bce"]:
        return  # its weight can gain from claiming more; see WeightedBCELoss
    assert (gradient_of(loss, logits, target)[1] > 0).all()


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


@each_loss
def test_nothing_there_and_nothing_claimed_is_no_loss(loss):
    _, target, _ = random_case()
    logits = torch.full_like(target, -300).requires_grad_()
    assert loss(logits, 0 * target).item() == pytest.approx(0, abs=1e-4)
    assert gradient_of(loss, logits, 0 * target).isfinite().all()


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_without_smooth_is_defined_on_an_empty_batch(alpha, dtype):
    for level in (-300.0, 0.0):
        logits = torch.full((1, 1, 4, 4, 4), level, dtype=dtype, requires_grad=True)
        loss = TverskyLoss(alpha=alpha, beta=0.5, smooth=0)
        assert loss(logits, torch.zeros_like(logits)).isfinite()
        assert gradient_of(loss, logits, torch.zeros_like(logits)).isfinite().all()


# Precision


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_logits_of_a_large_patch_neither_overflow_nor_saturate(loss, dtype):
    """The sum of p is 16 times the largest fp16 number; a saturated loss is exactly 1 and has no gradient."""
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
    assert 0 < value < (1 if loss is not LOSSES["adaptive bce"] else 10)
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


# Weights by lesion size


def lesions_of_two_sizes() -> tuple[Tensor, Tensor]:
    components = torch.zeros(1, 1, 24, 24, 24, dtype=torch.int32)
    components[0, 0, 2:14, 2:14, 2:14], components[0, 0, 18:20, 18:20, 18:20] = (
        1,
        2,
    )  # 1728 and 8 voxels
    return components, (components > 0).float()


@each_loss
def test_inverse_weights_raise_the_small_lesions_share_of_the_gradient(loss):
    if loss is LOSSES["adaptive bce"]:
        loss = WeightedBCELoss(detached=True)  # else part of the gradient goes through the weight
    components, target = lesions_of_two_sizes()
    logits = torch.full(target.shape, -1.0).requires_grad_()

    def small_share(*weight: Tensor) -> float:
        gradient = gradient_of(loss, logits, target, *weight).abs()
        return (gradient[components == 2].sum() / gradient[components > 0].sum()).item()

    assert small_share() == pytest.approx(8 / 1736, rel=1e-3)
    assert small_share(inverse_weights(components, w_min=0, w_max=math.inf)) == pytest.approx(
        0.5, rel=1e-3
    )
    assert small_share(inverse_weights(components)) > 0.4


# Several processes


SPLIT = {**LOSSES, "blob": BlobLoss()}


def _loss_in_process(rank: int, store: str, results: dict) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    try:
        case = random_case((4, 2, 6, 5, 4))
        part = slice(0, 3) if rank == 0 else slice(3, 4)  # uneven shards
        for name, loss in SPLIT.items():
            if "per sample" in name or not getattr(loss, "over_batch", True):
                continue
            logits, target, weight = (values[part].detach() for values in case)
            scale = torch.ones((), dtype=torch.float64, requires_grad=True)
            value = loss(scale * logits, target, weight)
            value.backward()
            torch.distributed.all_reduce(scale.grad)
            results[rank, name] = (value.item(), scale.grad.item() / 2)  # DDP averages
    finally:
        torch.distributed.destroy_process_group()


def test_a_batch_split_over_two_processes_has_the_whole_batchs_loss_and_gradient(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        arguments = (str(tmp_path / "store"), results)
        torch.multiprocessing.spawn(_loss_in_process, arguments, nprocs=2)
        results = dict(results)
    assert len(results) >= 20
    for (_, name), (value, slope) in results.items():
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        logits, target, weight = (values.detach() for values in random_case((4, 2, 6, 5, 4)))
        expected = SPLIT[name](scale * logits, target, weight)
        (expected_slope,) = torch.autograd.grad(expected, scale)
        assert value == pytest.approx(expected.item(), rel=1e-12), name
        assert slope == pytest.approx(expected_slope.item(), rel=1e-10), name


# Errors


@each_loss
def test_arguments_that_do_not_fit_are_refused(loss):
    logits, target, weight = random_case()
    refused = [
        ((logits.detach().long(), target), "logits .*int64"),
        ((logits[0, 0, 0], target[0, 0, 0]), r"logits .*\(4, 3\)"),
        ((logits[:0], target[:0]), r"logits .*\(0, 2, 5, 4, 3\)"),
        ((logits, target[:1]), r"target .*\(1, 2, 5, 4, 3\)"),
        ((logits, 2 * target), "target .*0 to 2"),
        ((logits, -target), "target .*-1 to"),
        ((logits, target / 0), "target .*nan"),
        ((logits, target, weight[..., :2]), r"weight .*\(2, 2, 5, 4, 2\)"),
        ((logits, target, weight[None]), r"weight .*\(1, 2, 2, 5, 4, 3\)"),
    ]
    for arguments, message in refused:
        with pytest.raises(ValueError, match=message):
            loss(*arguments)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TverskyLoss(alpha=-0.1), "alpha=-0.1, beta=1.1"),
        (lambda: TverskyLoss(beta=1.2), "alpha=-0.2, beta=1.2"),
        (lambda: TverskyLoss(alpha=0, beta=0), "alpha=0, beta=0"),
        (lambda: TverskyLoss(alpha=math.nan), "alpha=nan"),
        (lambda: FocalTverskyLoss(alpha=0.5, beta=math.inf), "alpha=0.5, beta=inf"),
        (lambda: TverskyLoss(smooth=-1), "smooth=-1"),
        (lambda: GeneralizedDiceLoss(smooth=math.nan), "smooth=nan"),
        (lambda: AsymmetricSimilarityLoss(b=-2), "b=-2"),
        (lambda: FocalTverskyLoss(gamma=0), "gamma=0"),
        (lambda: FocalLoss(gamma=-1), "gamma=-1"),
        (lambda: FocalLoss(alpha=1.5), "alpha=1.5"),
        (lambda: WeightedBCELoss(positive_weight=0), "positive_weight=0"),
        (lambda: BlobLoss(lesion_weight=-1), "global_weight=2.0, lesion_weight=-1"),
        (lambda: CombinedLoss(losses=[]), "0 losses"),
        (lambda: CombinedLoss(losses=[DiceLoss()], weights=[1, 2]), r"1 losses.*\[1, 2\]"),
        (lambda: CombinedLoss(losses=[DiceLoss()], weights=[-1]), r"\[-1\]"),
    ],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_alpha_and_beta_are_never_positional():
    with pytest.raises(TypeError):
        TverskyLoss(0.3, 0.7)  # type: ignore[misc]


# Configuration

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    "path", sorted((CONFIGS / "loss").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_loss_config_builds_a_loss_that_takes_weights(path):
    logits, target, weight = random_case()
    loss = instantiate(OmegaConf.load(path), _convert_="all")
    assert loss(logits, target, weight).isfinite()


def test_configs_repeat_the_defaults_of_python():
    assert (
        vars(instantiate(OmegaConf.load(CONFIGS / "loss/tversky.yaml"))).items()
        >= {"alpha": 0.3, "beta": 0.7}.items()
    )
    for path in (CONFIGS / "loss").glob("*.yaml"):
        config = OmegaConf.load(path)
        if path.stem in ("combined", "weighted_bce"):
            continue
        built, default = (
            instantiate(config, _convert_="all"),
            instantiate({"_target_": config["_target_"]}),
        )
        settings = [
            {k: v for k, v in vars(loss).items() if not k.startswith("_")}
            for loss in (built, default)
        ]
        assert settings[0] == settings[1], path.stem
