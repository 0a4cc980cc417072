import pytest
import torch
from monai.networks.nets import SwinUNETR, UNet
from torch import nn

from tversky_seg.models import FCDenseNet3D, ResidualUNet3D, UNet3D
from tversky_seg.runtime.allocation_limit import AllocationLimit, TooLarge


def test_a_network_of_any_size_is_refused_before_its_memory_is_touched() -> None:
    for build in (
        lambda: nn.Conv3d(2**20, 2**20, 3),
        lambda: UNet3D(in_channels=1, out_channels=1, width=100_000),
        lambda: nn.Linear(2**31, 2**31),
        lambda: nn.Parameter(torch.zeros(2**35)),
    ):
        with pytest.raises(TooLarge), AllocationLimit(2**20):
            build()


def test_many_small_parts_add_up() -> None:
    with AllocationLimit(1000 * 4):
        for _ in range(10):
            torch.empty(100)
        with pytest.raises(TooLarge):
            torch.empty(100)


@pytest.mark.parametrize(
    "build",
    [
        lambda: UNet3D(in_channels=2, out_channels=1, width=4, n_levels=2),
        lambda: FCDenseNet3D(in_channels=1, out_channels=1),
        lambda: ResidualUNet3D(in_channels=1, out_channels=1),
        lambda: UNet(3, 1, 1, channels=(4, 8), strides=(2,)),
        lambda: SwinUNETR(1, 1, feature_size=12),
    ],
)
def test_within_the_limit_a_network_is_the_same(build: object) -> None:
    torch.manual_seed(0)
    expected = build().state_dict()  # type: ignore[operator]
    n_bytes = sum(tensor.nbytes for tensor in expected.values())
    torch.manual_seed(0)
    with AllocationLimit(4 * n_bytes + 2**20):
        weights = build().state_dict()  # type: ignore[operator]
    for name, tensor in expected.items():
        assert torch.equal(weights[name], tensor)
