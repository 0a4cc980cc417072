"""Properties that every loss has."""

import itertools
import math

import monai.losses
import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from helpers.losses import LOSSES, each_loss, each_loss_except, gradient_of, random_case
from tversky_seg.losses import (
    BCELoss,
    CombinedLoss,
    DiceLoss,
    FocalLoss,
    GeneralizedDiceLoss,
    TverskyCrossEntropyLoss,
    TverskyLoss,
    WeightedBCELoss,
)
from tversky_seg.losses.deep_supervision import DeepSupervision
from tversky_seg.weighting import inverse_weights


@each_loss
def test_gradient_passes_gradcheck(loss):
    logits, target, weight = random_case((2, 2, 2, 2, 1))
    assert torch.autograd.gradcheck(lambda x: loss(x, target), (logits,))
    assert torch.autograd.gradcheck(lambda x: loss(x, 0.8 * target + 0.1, weight), (logits,))


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
def test_tversky_plus_cross_entropy_is_the_sum_of_both(over_batch):
    logits, target, weight = random_case()
    soft_target = 0.8 * target + 0.1
    loss = TverskyCrossEntropyLoss(
        alpha=0.2, beta=0.9, tversky_weight=0.5, cross_entropy_weight=3, over_batch=over_batch
    )
    tversky = TverskyLoss(alpha=0.2, beta=0.9, over_batch=over_batch)
    parts = CombinedLoss(losses=[tversky, BCELoss()], weights=[0.5, 3])
    for arguments in ((target,), (soft_target, weight)):
        torch.testing.assert_close(loss(logits, *arguments), parts(logits, *arguments))
        expected = gradient_of(parts, logits, *arguments)
        torch.testing.assert_close(gradient_of(loss, logits, *arguments), expected)


def test_tversky_at_one_half_plus_cross_entropy_is_monais_dice_ce():
    logits, target, _ = random_case((2, 1, 12, 10, 8), dtype=torch.float32)
    theirs = monai.losses.DiceCELoss(sigmoid=True, batch=True, smooth_nr=2, smooth_dr=2)
    ours = TverskyCrossEntropyLoss(alpha=0.5)
    torch.testing.assert_close(ours(logits, target), theirs(logits, target), rtol=0, atol=1e-6)


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


# The adaptive weight counts voxels; a sum of losses scales in parts.
@each_loss_except("adaptive bce", "combined", "tversky + cross-entropy")
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
    assert all(torch.equal(values, copy) for values, copy in zip(case, before, strict=True))


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


def test_repr_shows_the_settings():
    text = repr(TverskyLoss(alpha=0.2, beta=0.7, over_batch=False))
    for setting in ("alpha=0.2", "beta=0.7", "smooth=1", "over_batch=False"):
        assert setting in text
    assert "gamma=2" in repr(FocalLoss())
    assert "weights=[1.0, 2.0]" in repr(CombinedLoss(losses=[BCELoss()] * 2, weights=[1, 2]))


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


# The adaptive weight can gain from predicting more; see WeightedBCELoss.
@each_loss_except("adaptive bce")
def test_a_sample_without_lesions_beside_one_with_them_is_driven_down(loss):
    logits, target, _ = random_case()
    target = target.clone()
    target[1] = 0
    assert (gradient_of(loss, logits, target)[1] > 0).all()


@each_loss
def test_nothing_there_and_nothing_claimed_is_no_loss(loss):
    _, target, _ = random_case()
    logits = torch.full_like(target, -300).requires_grad_()
    assert loss(logits, 0 * target).item() == pytest.approx(0, abs=1e-4)
    assert gradient_of(loss, logits, 0 * target).isfinite().all()


def lesions_of_two_sizes() -> tuple[Tensor, Tensor]:
    components = torch.zeros(1, 1, 24, 24, 24, dtype=torch.int32)
    components[0, 0, 2:14, 2:14, 2:14] = 1  # 1728 voxels
    components[0, 0, 18:20, 18:20, 18:20] = 2  # 8 voxels
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


@each_loss
@pytest.mark.parametrize("is_deep", [False, True])
def test_a_voxel_of_weight_0_does_not_count(loss, is_deep):
    logits, target, weight = random_case((2, 2, 6, 4, 4))
    ignored = torch.zeros(2, 1, 6, 4, 4, dtype=torch.bool)
    ignored[:, :, :4, :2] = True  # whole blocks of 2^3, so that no lower level shows them
    weight = weight.masked_fill(ignored, 0)
    target = target.masked_fill(ignored, 0)

    def of(x: Tensor) -> Tensor:
        levels = [x, torch.nn.functional.avg_pool3d(x, 2)] if is_deep else x
        return DeepSupervision(loss)(levels, target, weight)

    value = of(logits)
    (gradient,) = torch.autograd.grad(value, logits)
    assert not gradient.masked_select(ignored).any()
    assert gradient.masked_select(~ignored).any()
    torch.testing.assert_close(of(logits.detach() + 3 * ignored), value.detach())
