"""Terms that count each lesion: against brute force, cut lesions, batches without lesions."""

import math

import pytest
import torch
from torch import Tensor

from helpers.cuda import on_gpu
from helpers.losses import gradient_of, random_case
from tversky_seg.losses import (
    AsymmetricSimilarityLoss,
    BCELoss,
    BlobLoss,
    BlobTerm,
    CellTerm,
    CombinedLoss,
    DiceLoss,
    LargestProbabilityTerm,
    TverskyCrossEntropyLoss,
    TverskyLoss,
)
from tversky_seg.losses import lesion_table as tables
from tversky_seg.losses.lesion_table import lesion_table
from tversky_seg.losses.lesion_terms import with_ratio_of

TERMS = {
    "cc": CellTerm(alpha=0.2, beta=0.7),
    "mil": LargestProbabilityTerm(sharpness=4),
    "blob": BlobTerm(alpha=0.2, beta=0.7),
}
each_term = pytest.mark.parametrize("term", TERMS.values(), ids=TERMS.keys())


def cells_and_lesions() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Make logits, target, cells and weights, (2, 2, 6, 6, 6).

    The first class of the second sample has no lesion, and cell 4 of the others no lesion voxel.
    """
    logits, _, weight = random_case((2, 2, 6, 6, 6))
    cells = torch.zeros(2, 2, 6, 6, 6, dtype=torch.int32)
    target = torch.zeros_like(logits)
    for b, c in ((0, 0), (0, 1), (1, 1)):
        cells[b, c, :3, :4, :5] = 1
        target[b, c, 0:2, 1:3, 1:3] = 1
        cells[b, c, 4:, 4:] = 3
        target[b, c, 5, 5, 0] = 1
        cells[b, c, 5, 0, 0] = 4
    target[1, 1, 5, 5, 0] = 0  # one lesion there, two in each of the others
    return logits, target, cells, weight


def brute_force(term: torch.nn.Module, *case: Tensor) -> Tensor:
    """Take lesion by lesion; the mean over those of a class, then over classes."""
    logits, target, cells, weight = case
    by_class = []
    for c in range(logits.shape[1]):
        values = []
        for b in range(len(logits)):
            for number in cells[b, c].unique().tolist():
                inside = cells[b, c] == number
                is_lesion = inside & (target[b, c] > 0.5) & (weight[b, c] > 0)
                if number and is_lesion.any():
                    arguments = (logits[b, c], target[b, c], weight[b, c], inside, is_lesion)
                    values.append(of_one_lesion(term, *arguments))
        if values:
            by_class.append(torch.stack(values).mean())
    return term.weight * torch.stack(by_class).mean()


def of_one_lesion(term, logits, target, weight, inside, is_lesion):
    p = logits.sigmoid()
    if isinstance(term, LargestProbabilityTerm):
        power_mean = (p[is_lesion] ** term.sharpness).mean() ** (1 / term.sharpness)
        return -power_mean.log()
    tp = (weight * p * is_lesion).sum()
    fn = (weight * (1 - p) * is_lesion).sum()
    near = inside if isinstance(term, CellTerm) else torch.ones_like(inside)
    fp = (weight * p * (target < 0.5) * near).sum()
    return 1 - tp / (tp + term.alpha * fp + term.beta * fn)


@each_term
@pytest.mark.parametrize("weighted", [True, False])
def test_a_term_is_the_mean_over_lesions_one_by_one(term, weighted):
    logits, target, cells, weight = cells_and_lesions()
    if not weighted:
        weight = torch.ones_like(weight)
    arguments = (target, cells, weight)[: 2 + weighted]
    expected = brute_force(term, logits, target, cells, weight)
    torch.testing.assert_close(term(logits, *arguments), expected)
    (gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient_of(term, logits, *arguments), gradient)


@each_term
def test_gradients_pass_gradcheck(term):
    logits, target, cells, weight = cells_and_lesions()
    # Every second voxel: both lesions have one.
    case = [values[..., 1::2, 1::2, ::2] for values in (logits.detach(), target, cells, weight)]
    assert torch.autograd.gradcheck(lambda x: term(x, *case[1:]), (case[0].requires_grad_(),))


@each_term
def test_a_gpu_s_table_of_all_voxels_gives_the_same(term, monkeypatch):
    case = cells_and_lesions()
    expected = term(*case)
    gradient = gradient_of(term, *case)
    monkeypatch.setattr(tables, "_table_of_few", tables._table_of_all)
    torch.testing.assert_close(term(*case, n_labels=9), expected)
    torch.testing.assert_close(gradient_of(term, *case), gradient)


@each_term
def test_without_lesions_a_term_is_zero_and_so_is_its_gradient(term):
    logits, target, cells, _ = cells_and_lesions()
    for lesions in (0 * cells, cells):  # cells alone, whose lesions lie outside the patch
        value = term(logits, 0 * target, lesions)
        assert value.item() == 0
        (gradient,) = torch.autograd.grad(value, logits)
        assert not gradient.any()


@each_term
def test_ignored_voxels_count_nowhere(term):
    """A lesion whose voxels all have weight 0 is none, and no voxel of weight 0 has a gradient."""
    logits, target, cells, weight = cells_and_lesions()
    weight[0, 0][cells[0, 0] == 1] = 0
    weight[0, 1, 0] = 0
    expected = brute_force(term, logits, target, cells, weight)
    torch.testing.assert_close(term(logits, target, cells, weight), expected)
    assert not gradient_of(term, logits, target, cells, weight)[weight == 0].any()


def two_sizes() -> tuple[Tensor, Tensor]:
    """A lesion of 1728 voxels and one of 8: target and components."""
    target = torch.zeros(1, 1, 24, 24, 24)
    target[0, 0, 2:14, 2:14, 2:14] = 1
    target[0, 0, 18:20, 18:20, 18:20] = 1
    components = target.int()
    components[0, 0, 16:] *= 2
    return target, components


@pytest.mark.parametrize("term", [CellTerm(), BlobTerm(), LargestProbabilityTerm(sharpness=1)])
def test_missing_half_of_a_lesion_costs_the_same_whatever_its_size(term):
    target, components = two_sizes()
    losses = []
    for half in (slice(2, 8), slice(18, 19)):
        logits = 200 * target - 100
        logits[0, 0, half] = -100
        losses.append(term(logits, target, components).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] > 0.02


@pytest.mark.parametrize("term", [CellTerm(), LargestProbabilityTerm()])
def test_small_lesions_have_the_share_of_large_ones_in_the_gradient(term):
    target, components = two_sizes()
    logits = torch.full_like(target, -2.0).requires_grad_()
    gradient = gradient_of(term, logits, target, components).abs()
    of_large, of_small = (gradient[components == number].sum().item() for number in (1, 2))
    assert of_small == pytest.approx(of_large, rel=1e-4)


def test_a_false_positive_costs_only_the_lesion_that_it_is_near_to():
    logits, target, cells, _ = cells_and_lesions()
    gradient = gradient_of(CellTerm(), logits, target, cells)
    is_far = (cells == 0) | (cells == 4)
    assert not gradient[is_far].any()
    assert (gradient[(cells == 1) & (target == 0)] > 0).all()


def test_a_cut_lesion_counts_by_its_part_inside():
    """The volume holds more of both lesions than the patch: the terms are those of the parts."""
    logits, target, cells, weight = cells_and_lesions()
    patch = [values[:, :, 1:, :, :4] for values in (logits, target, cells, weight)]
    for term in TERMS.values():
        torch.testing.assert_close(term(*patch), brute_force(term, *patch))


def test_raising_the_sharpness_approaches_the_largest_probability():
    logits, target, cells, _ = cells_and_lesions()
    one = (slice(0, 1), slice(0, 1))
    lesion = (cells[one] == 1) & (target[one] == 1)
    values = [
        LargestProbabilityTerm(weight=1, sharpness=sharpness)(
            logits[one], target[one], lesion.int()
        ).item()
        for sharpness in (1, 5, 50, 1e4)
    ]
    p = logits[one][lesion].sigmoid()
    assert values[0] == pytest.approx(-math.log(p.mean().item()))
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(-math.log(p.max().item()), abs=1e-3)


def test_probabilities_of_nothing_keep_their_slope():
    target = torch.zeros(1, 1, 4, 4, 4)
    target[0, 0, 1, 1, 1:3] = 1
    logits = torch.full_like(target, -90.0).requires_grad_()
    term = LargestProbabilityTerm(weight=1)
    assert term(logits, target, target.int()).item() == pytest.approx(90, rel=1e-4)
    assert gradient_of(term, logits, target, target.int()).sum().item() == pytest.approx(-1)


def test_the_blob_term_is_the_per_lesion_part_of_the_blob_loss():
    """With equal numbers of lesions in all patches, where both means are the same."""
    logits, target, cells, weight = (values[:1] for values in cells_and_lesions())
    loss = BlobLoss(global_weight=0, alpha=0.2, beta=0.6)
    term = BlobTerm(weight=1, alpha=0.2, beta=0.6, smooth=1)
    torch.testing.assert_close(
        term(logits, target, cells, weight), loss(logits, target, weight), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(
    ("loss", "ratio"),
    [
        (TverskyLoss(beta=0.8), (0.2, 0.8)),
        (TverskyCrossEntropyLoss(beta=0.9), (0.1, 0.9)),
        (CombinedLoss(losses=[BCELoss(), TverskyLoss(alpha=0.4)]), (0.4, 0.6)),
        (DiceLoss(), (0.5, 0.5)),
        (AsymmetricSimilarityLoss(b=2), (0.2, 0.8)),
        (BCELoss(), (0.3, 0.7)),
    ],
)
def test_a_term_without_alpha_and_beta_takes_those_of_the_loss(loss, ratio):
    for term in (CellTerm(), BlobTerm()):
        following = with_ratio_of(term, loss)
        assert (following.alpha, following.beta) == pytest.approx(ratio)
        assert (term.alpha, term.beta) == (0.3, 0.7)
    assert with_ratio_of(CellTerm(beta=0.6), loss).beta == 0.6
    term = LargestProbabilityTerm()
    assert with_ratio_of(term, loss) is term


@each_term
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_logits_are_counted_in_float32(term, dtype):
    logits, target, cells, _ = cells_and_lesions()
    narrow = logits.detach().to(dtype).requires_grad_()
    value = term(narrow, target, cells)
    assert value.dtype == torch.float32
    expected = term(narrow.detach().double(), target, cells)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert gradient_of(term, narrow, target, cells).dtype == dtype


def test_wrong_arguments_are_refused():
    logits, target, cells, _ = cells_and_lesions()
    for wrong, message in (
        (cells.float(), "lesions must be integers"),
        (-cells, "lesions must be >= 0"),
        (cells[0], "lesions must be integers"),
    ):
        with pytest.raises(ValueError, match=message):
            lesion_table(wrong)
    with pytest.raises(ValueError, match="n_labels=3, got 0 to 4"):
        CellTerm()(logits, target, cells, n_labels=3)
    with pytest.raises(ValueError, match="weight=-1"):
        BlobTerm(weight=-1)
    with pytest.raises(ValueError, match="max_distance_mm=0"):
        CellTerm(max_distance_mm=0)
    with pytest.raises(ValueError, match=r"sharpness=0\.5"):
        LargestProbabilityTerm(sharpness=0.5)


@on_gpu
@each_term
def test_a_gpu_gives_the_terms_of_the_cpu(term):
    case = cells_and_lesions()
    expected = gradient_of(term, *case)
    on_card = [values.detach().cuda() for values in case]
    on_card[0] = on_card[0].float().requires_grad_()
    torch.testing.assert_close(term(*on_card, n_labels=4).cpu().double(), term(*case))
    gradient = gradient_of(lambda *a: term(*a, n_labels=4), *on_card)
    torch.testing.assert_close(gradient.cpu().double(), expected, rtol=1e-4, atol=1e-7)
