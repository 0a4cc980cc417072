"""Networks that follow the voxel: strides, kernels, and what they leave as it was."""

import pytest
import torch

from tversky_seg.losses import TverskyLoss
from tversky_seg.losses.deep_supervision import DeepSupervision
from tversky_seg.models import FCDenseNet3D, ResidualUNet3D, UNet3D
from tversky_seg.models.pooling import MaxPool
from tversky_seg.models.strides import kernels_for, strides_for, total_stride
from tversky_seg.models.upsampling import _upsample_by_matrices, upsample

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


@pytest.mark.parametrize("sides", [(8, 8, 2), (9, 5, 3)])
def test_the_other_networks_follow_the_voxel_too(sides: tuple[int, int, int]) -> None:
    channels = {"in_channels": 2, "out_channels": 3, "norm": "group"}
    dense = {"growth_rate": 2, "n_layers": 1, "n_blocks": 2, "width": 4, "dropout": 0.0}
    for network in (
        ResidualUNet3D(widths=(4, 4, 8), strides=[(2, 2, 1), (2, 2, 2)], **channels),
        FCDenseNet3D(strides=[(2, 2, 1), (2, 2, 2)], **dense, **channels),
    ):
        assert network.multiple == (4, 4, 2)
        logits = network(torch.randn(1, 2, *sides))
        assert logits.shape == (1, 3, *sides)
        logits.sum().backward()
    with pytest.raises(ValueError, match="strides must be null with compact"):
        FCDenseNet3D(strides=[(2, 2, 1)], compact=True, **dense, **channels)


def test_an_axis_of_stride_1_is_not_interpolated() -> None:
    features = torch.randn(2, 3, 3, 4, 5)
    doubled = upsample(features, (2, 2, 1))
    assert doubled.shape == (2, 3, 6, 8, 5)
    of_slice = upsample(features[..., 2:3], (2, 2, 1))
    torch.testing.assert_close(doubled[..., 2:3], of_slice)
    torch.testing.assert_close(_upsample_by_matrices(features, (2, 2, 1)), doubled)


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
