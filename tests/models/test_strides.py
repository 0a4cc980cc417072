"""Networks that follow the voxel: strides, kernels, and what they leave as it was."""

import pytest
import torch

from tversky_seg.losses import TverskyLoss
from tversky_seg.losses.deep_supervision import DeepSupervision
from tversky_seg.models import UNet3D
from tversky_seg.models.pooling import MaxPool
from tversky_seg.models.strides import kernels_for, strides_for, total_stride

THICK_SLICES = (0.9, 0.9, 7.0)
FOLLOWING = [(2, 2, 1), (2, 2, 1), (2, 2, 2)]


def a_network(**settings: object) -> UNet3D:
    torch.manual_seed(0)
    return UNet3D(**{"in_channels": 2, "out_channels": 1, "width": 4} | settings)


@pytest.mark.parametrize(
    ("spacing_mm", "strides"),
    [
        ((1.0, 1.0, 1.0), [(2, 2, 2)] * 3),
        ((0.47, 0.47, 0.8), [(2, 2, 2)] * 3),
        (THICK_SLICES, FOLLOWING),
        ((1.0, 1.0, 3.0), [(2, 2, 1), (2, 2, 2), (2, 2, 2)]),
        ((6.0, 1.0, 1.0), [(1, 2, 2), (1, 2, 2), (2, 2, 2)]),
        ((0.5, 0.5, 20.0), [(2, 2, 1)] * 3),
    ],
)
def test_thick_slices_are_halved_when_voxels_are_near_cubes(
    spacing_mm: tuple[float, ...], strides: list[tuple[int, ...]]
) -> None:
    assert strides_for(spacing_mm, n_steps=3) == strides


def test_each_step_brings_voxels_nearer_to_cubes() -> None:
    sizes = torch.tensor(THICK_SLICES)
    ratios = [sizes.max() / sizes.min()]
    for stride in strides_for(THICK_SLICES, n_steps=3):
        sizes = sizes * torch.tensor(stride)
        ratios.append(sizes.max() / sizes.min())
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] < 2


def test_kernels_are_flat_until_the_axis_is_halved_and_full_at_the_lowest_level() -> None:
    assert kernels_for(FOLLOWING) == [(3, 3, 1), (3, 3, 1), (3, 3, 3), (3, 3, 3)]
    assert kernels_for([(2, 2, 1)] * 3)[-1] == (3, 3, 3)


def test_cubic_voxels_give_the_network_without_strides_bit_for_bit() -> None:
    plain = a_network()
    following = a_network(strides="auto", spacing_mm=(1.0, 1.0, 1.2))
    image = torch.randn(1, 2, 16, 17, 9)
    assert list(plain.state_dict()) == list(following.state_dict())
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, following.state_dict()[name])
    assert torch.equal(plain(image), following(image))


def test_the_first_level_does_not_mix_slices() -> None:
    network = a_network(strides=FOLLOWING, n_levels=4)
    assert network.encoder[0].conv1.weight.shape == (4, 2, 3, 3, 1)
    assert network.encoder[3].conv1.weight.shape[2:] == (3, 3, 3)
    assert network.upsample[-1].weight.shape[2:] == (2, 2, 1)


@pytest.mark.parametrize("sides", [(16, 16, 4), (19, 9, 3)])
def test_any_size_trains_with_deep_supervision(sides: tuple[int, int, int]) -> None:
    network = a_network(strides=FOLLOWING, deep_supervision=2)
    assert network.multiple == (8, 8, 2) == total_stride(network.strides)
    image = torch.randn(1, 2, *sides)
    logits = network(image)
    x, y, z = sides
    halves = (-(-x // 2), -(-y // 2), z)
    quarters = (-(-x // 4), -(-y // 4), z)
    assert [tuple(part.shape[2:]) for part in logits] == [sides, halves, quarters]
    target = (torch.rand(1, 1, *sides) > 0.9).float()
    DeepSupervision(TverskyLoss())(logits, target, torch.ones_like(target)).backward()
    assert all(weight.grad is not None for weight in network.parameters())


def test_pooling_some_axes_takes_the_largest_of_each_window() -> None:
    features = torch.randn(2, 3, 6, 5, 4)
    pooled = MaxPool((2, 2, 1))(features)
    assert pooled.shape == (2, 3, 3, 2, 4)
    for x in range(3):
        for y in range(2):
            window = features[:, :, 2 * x : 2 * x + 2, 2 * y : 2 * y + 2]
            assert torch.equal(pooled[:, :, x, y], window.amax((2, 3)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strides": [(2, 2, 2)]}, "strides must be 3, one a halving, got 1"),
        ({"strides": [(2, 2, 3)] * 3}, "strides must be lists of three numbers, 1 or 2"),
        ({"strides": "auto"}, "auto with spacing_mm"),
        ({"strides": "thin"}, "auto with spacing_mm"),
    ],
)
def test_wrong_strides_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        a_network(**settings)
