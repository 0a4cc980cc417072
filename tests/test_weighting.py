"""Weights per voxel from connected components."""

import math

import cc3d
import numpy as np
import pytest
import torch

from helpers.cuda import no_host_waits, on_gpu
from tversky_seg import weighting
from tversky_seg.weighting import inverse_weights, size_tempered_weights


@pytest.fixture
def components() -> torch.Tensor:
    """Lesions of very different sizes; the second sample has none in its second class."""
    rng = np.random.default_rng(1)
    labels = np.zeros((2, 2, 12, 11, 10), np.int32)
    for patch in (labels[0, 0], labels[0, 1], labels[1, 0]):
        for number, size in enumerate((1, 2, 4, 5), start=1):
            corner = [rng.integers(0, n - size) for n in patch.shape]
            patch[tuple(slice(a, a + size) for a in corner)] = 10 * number
    return torch.from_numpy(labels)


def brute_force_weights(components: torch.Tensor, t: float = 1.0) -> torch.Tensor:
    """One voxel at a time, straight from the formula."""
    weights = torch.empty(components.shape, dtype=torch.float64)
    for b in range(components.shape[0]):
        for c in range(components.shape[1]):
            patch = components[b, c].flatten().tolist()
            sizes = {label: patch.count(label) for label in {0, *patch}}
            total = sum(size ** (1 - t) for size in sizes.values())
            weights[b, c] = torch.tensor([len(patch) * sizes[k] ** -t / total for k in patch]).view(
                weights.shape[2:]
            )
    return weights


def released_rule(labels: np.ndarray, w_min: float = 1.0, w_max: float = 2e5) -> np.ndarray:
    """Weigh as the code of arXiv 2007.10033: each component by its own mask, then clip."""
    weights = np.zeros(labels.shape, np.float64)
    values = np.unique(labels)
    for value in values:
        weights[labels == value] = labels.size / (len(values) * np.count_nonzero(labels == value))
    return np.clip(weights, w_min, w_max)


def test_weights_of_a_patch_worked_by_hand():
    components = torch.zeros(2, 2, 5, dtype=torch.int32)
    # 20 voxels: lesions of 1 and 4, background of 15
    components[0, 0, 0] = 7
    components[1, 1, :4] = 9
    weights = inverse_weights(components, w_min=0, w_max=math.inf)
    assert weights[0, 0, 0] == pytest.approx(20 / (3 * 1))
    assert weights[1, 1, 0] == pytest.approx(20 / (3 * 4))
    assert weights[0, 1, 1] == pytest.approx(20 / (3 * 15))
    assert inverse_weights(components)[0, 1, 1] == 1  # lifted by the clip
    assert inverse_weights(components, w_max=2)[0, 0, 0] == 2


def test_weights_equal_a_brute_force_loop(components):
    weights = inverse_weights(components, w_min=0, w_max=math.inf)
    torch.testing.assert_close(weights, brute_force_weights(components).float())


def test_weights_equal_the_released_rule(components):
    whole = components[0, 0].numpy()
    patch = cc3d.connected_components(whole > 0, connectivity=26)[2:9, 1:8, 3:9].astype(np.int32)
    torch.testing.assert_close(
        inverse_weights(torch.from_numpy(patch)).double(), torch.from_numpy(released_rule(patch))
    )


def test_unclipped_every_lesion_and_the_background_weigh_the_same(components):
    weights = inverse_weights(components, w_min=0, w_max=math.inf)[0, 0]
    totals = [weights[components[0, 0] == k].sum() for k in components[0, 0].unique()]
    torch.testing.assert_close(
        torch.stack(totals), torch.full((len(totals),), weights.numel() / len(totals))
    )
    assert weights.mean() == pytest.approx(1, abs=1e-5)


def test_each_sample_and_class_is_weighed_by_itself(components):
    weights = inverse_weights(components)
    for b in range(2):
        for c in range(2):
            torch.testing.assert_close(weights[b, c], inverse_weights(components[b, c]))


def test_a_patch_without_lesions_has_weights_of_one(components):
    assert not components[1, 1].any()
    assert (inverse_weights(components)[1, 1] == 1).all()
    assert (size_tempered_weights(components)[1, 1] == 1).all()


def test_a_patch_that_is_all_lesion_has_weights_of_one():
    assert (inverse_weights(torch.ones(3, 3, 3, dtype=torch.int64), w_min=0) == 1).all()


def test_size_tempered_weights_lie_between_none_and_inverse(components):
    unclipped = {"w_min": 0.0, "w_max": math.inf}
    torch.testing.assert_close(
        size_tempered_weights(components, t=1, **unclipped),
        inverse_weights(components, **unclipped),
    )
    assert (size_tempered_weights(components, t=0, **unclipped) == 1).all()
    half = size_tempered_weights(components, t=0.5, **unclipped)
    torch.testing.assert_close(half, brute_force_weights(components, t=0.5).float())
    assert half.mean() == pytest.approx(1, abs=1e-5)


def test_components_are_left_as_they_were(components):
    before = components.clone()
    inverse_weights(components)
    assert torch.equal(components, before)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_any_integer_type_gives_the_same_weights(components, dtype):
    weights = inverse_weights(components.to(dtype))
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, inverse_weights(components))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"w_min": -1.0}, "w_min=-1.0"),
        ({"w_min": 3.0, "w_max": 2.0}, "w_min=3.0, w_max=2.0"),
        ({"w_max": math.nan}, "w_max=nan"),
    ],
)
def test_limits_out_of_order_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        inverse_weights(torch.zeros(2, 2, 2, dtype=torch.int32), **arguments)


def test_what_is_no_component_map_is_refused():
    with pytest.raises(ValueError, match=r"components.*float32"):
        inverse_weights(torch.zeros(2, 2, 2))
    with pytest.raises(ValueError, match=r"components.*int32 \(4,\)"):
        inverse_weights(torch.zeros(4, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"components.*-3"):
        inverse_weights(torch.full((2, 2, 2), -3))
    with pytest.raises(ValueError, match=r"t=1\.5"):
        size_tempered_weights(torch.zeros(2, 2, 2, dtype=torch.int32), t=1.5)


def weights_by_bound(components: torch.Tensor, **settings: float) -> torch.Tensor:
    """Weights as a GPU computes them, here on the CPU."""
    bound = {"n_labels": 45, "t": 1.0, "w_min": 1.0, "w_max": 2e5} | settings
    patches = components.reshape(-1, components[0, 0].numel())
    return weighting._weigh_by_bound(patches, **bound).view(components.shape)


@pytest.mark.parametrize("t", [0, 0.3, 0.5, 1])
@pytest.mark.parametrize("limits", [(1.0, 2e5), (0.0, math.inf), (0.0, 3.0)])
def test_weights_by_a_bound_equal_the_others_bit_for_bit(components, t, limits):
    settings = {"t": t, "w_min": limits[0], "w_max": limits[1]}
    assert torch.equal(
        weights_by_bound(components, **settings), size_tempered_weights(components, **settings)
    )


@pytest.mark.parametrize("n_slots", [1, 3, 4096])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_weights_by_a_bound_are_the_same_for_any_type_and_number_of_slots(
    components, dtype, n_slots, monkeypatch
):
    monkeypatch.setattr(weighting, "N_BACKGROUND_SLOTS", n_slots)
    assert torch.equal(weights_by_bound(components.to(dtype)), inverse_weights(components))


def test_slots_of_two_small_patches(monkeypatch):
    monkeypatch.setattr(weighting, "N_BACKGROUND_SLOTS", 3)
    slots = weighting._slots(torch.tensor([[0, 0, 2, 0], [9, 0, 0, 1]]), 2)
    assert slots.tolist() == [0, 1, 4, 0, 11, 7, 8, 9]


def test_weights_by_a_bound_of_patches_without_background_or_lesions():
    whole = torch.ones(1, 1, 3, 3, 3, dtype=torch.int32)
    assert (weights_by_bound(whole, w_min=0) == 1).all()
    assert (weights_by_bound(0 * whole, n_labels=0) == 1).all()


def test_components_above_the_bound_are_refused_or_have_no_weight(components):
    with pytest.raises(ValueError, match="n_labels=30, got 40"):
        inverse_weights(components, n_labels=30)
    assert torch.equal(inverse_weights(components, n_labels=40), inverse_weights(components))
    weights = weights_by_bound(components, n_labels=30)
    assert torch.equal(weights.isnan(), components == 40)


@on_gpu
@pytest.mark.parametrize("t", [0, 0.5, 1])
def test_a_gpu_gives_the_same_weights_and_with_a_bound_does_not_wait(components, t):
    expected = size_tempered_weights(components, t=t)
    on_card = components.cuda()
    assert torch.equal(size_tempered_weights(on_card, t=t).cpu(), expected)
    with no_host_waits():
        weights = size_tempered_weights(on_card, t=t, n_labels=45)
        again = size_tempered_weights(on_card, t=t, n_labels=45)
    assert torch.equal(weights.cpu(), expected)
    assert torch.equal(weights, again)


@pytest.mark.parametrize("t", [0.5, 1])
def test_ignored_voxels_are_no_background_and_weigh_nothing(t):
    components = torch.zeros(2, 1, 2, 2, 5, dtype=torch.int32)
    components[0, 0, 0, 0, 0] = 7
    ignored = torch.zeros(2, 1, 2, 2, 5, dtype=torch.bool)
    ignored[:, :, 1] = True  # half of each patch
    ignored[1] = True
    settings = {"t": t, "w_min": 0.0, "w_max": math.inf}
    weights = size_tempered_weights(components, ignored=ignored, **settings)
    assert not weights[ignored].any()
    # The other half weighs as if it were the whole patch.
    expected = size_tempered_weights(components[:1, :, :1], **settings)
    assert torch.equal(weights[:1, :, :1], expected)
    n_ignored = ignored.flatten(1).sum(1)
    by_bound = weights_by_bound(components, n_ignored=n_ignored, **settings)
    assert torch.equal(by_bound.masked_fill(ignored, 0), weights)
