"""Weights per voxel from connected components."""

import math

import cc3d
import numpy as np
import pytest
import torch

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
