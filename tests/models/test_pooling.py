"""Max-pooling: torch's values and gradients, whatever computes it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.cuda import on_gpu
from helpers.kernels import run_interpreted, stack_bytes
from tversky_seg.models import pooling
from tversky_seg.models.pooling import max_pool

NDHWC = torch.channels_last_3d
NCDHW = torch.contiguous_format

# More channels than a tile has, sides of one window, one channel, sides that are no power of 2.
SHAPES = [(2, 3, 4, 2, 6), (1, 70, 2, 4, 2), (2, 1, 2, 4, 10), (1, 4, 2, 2, 4)]


def drawn(shape: tuple[int, ...]) -> Tensor:
    """Small whole numbers, so that many windows have two largest values."""
    return torch.randint(-3, 3, shape, generator=torch.Generator().manual_seed(0)).float()


def values_and_gradient(pool, features: Tensor) -> tuple[Tensor, Tensor]:
    features = features.detach().requires_grad_()
    pooled = pool(features)
    weights = torch.arange(1.0, pooled.numel() + 1).reshape(pooled.shape)
    (gradient,) = torch.autograd.grad(pooled, features, weights.to(pooled))
    return pooled.detach(), gradient


def fused(features: Tensor) -> Tensor:
    pooled, _ = pooling._MaxPoolFunction.apply(features)
    return pooled


def traced(features: Tensor) -> Tensor:
    pooled, _ = torch.ops.tversky_seg.max_pool(features)
    return pooled


def check_equal_to_torch(device: str) -> None:
    """Compare values and gradients, ties included, in both layouts and in half precision."""
    cases = [(shape, layout, torch.float32) for shape in SHAPES for layout in (NDHWC, NCDHW)]
    cases += [(SHAPES[0], NDHWC, torch.bfloat16), (SHAPES[0], NDHWC, torch.float16)]
    for shape, layout, dtype in cases:
        features = drawn(shape).to(dtype)
        expected = values_and_gradient(lambda x: F.max_pool3d(x, 2), features)
        ours = values_and_gradient(fused, features.to(device).contiguous(memory_format=layout))
        for mine, torchs in zip(ours, expected, strict=True):
            assert mine.dtype == dtype
            assert mine.is_contiguous(memory_format=layout)
            assert torch.equal(mine.cpu(), torchs), (shape, layout, dtype)


def check_not_a_number(device: str) -> None:
    """NaN is larger than any value, and minus infinity is a value."""
    features = torch.full((1, 2, 2, 2, 4), -torch.inf)
    features[0, 0, 1, 0, 1] = torch.nan
    expected = values_and_gradient(lambda x: F.max_pool3d(x, 2), features)
    ours = values_and_gradient(fused, features.to(device))
    for mine, torchs in zip(ours, expected, strict=True):
        assert torch.equal(mine.cpu().nan_to_num(nan=7.0), torchs.nan_to_num(nan=7.0))


def check_operator(device: str) -> None:
    """The operator that torch.compile calls gives the same, and its shapes are right."""
    features = drawn((1, 3, 2, 4, 2)).to(device).contiguous(memory_format=NDHWC)
    ours, expected = (values_and_gradient(pool, features) for pool in (traced, fused))
    assert all(map(torch.equal, ours, expected))
    torch.library.opcheck(torch.ops.tversky_seg.max_pool, (features.requires_grad_(),))


CHECKS = [check_equal_to_torch, check_not_a_number, check_operator]


def test_the_kernels_pool_as_torch_does() -> None:
    pytest.importorskip("triton", reason="kernels are written in Triton: test extra, Linux")
    run_interpreted(__file__)


@on_gpu
@pytest.mark.parametrize("check", CHECKS)
def test_the_kernels_pool_as_torch_does_on_a_gpu(check) -> None:
    check("cuda")


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_keep_their_numbers_in_registers(capability) -> None:
    pytest.importorskip("triton", reason="kernels are written in Triton: test extra, Linux")
    from tversky_seg.models import pooling_kernels as kernels

    _, settings = pooling._launch(torch.Size((2, 512, 16, 16, 64)), channels_last=True)
    constants = {name: value for name, value in settings.items() if name.isupper()}
    types = {"x_ptr": "*bf16", "y_ptr": "*bf16", "dx_ptr": "*bf16", "dy_ptr": "*bf16"}
    types |= {"index_ptr": "*i8", "n_y": "i32", "n_z": "i32", "n_channel_units": "i32"}
    for kernel in (kernels.pool_kernel, kernels.pool_gradient_kernel):
        assert stack_bytes(kernel, types, constants, capability=capability) == 0


@pytest.mark.parametrize("sides", [(4, 6, 8), (5, 7, 3)])
def test_on_the_cpu_it_is_torch_s(sides) -> None:
    features = drawn((2, 3, *sides))
    ours = values_and_gradient(max_pool, features)
    assert all(map(torch.equal, ours, values_and_gradient(lambda x: F.max_pool3d(x, 2), features)))


def test_without_triton_only_ties_differ() -> None:
    features = torch.randperm(2 * 4 * 6 * 8).reshape(1, 2, 4, 6, 8).double()
    ours = values_and_gradient(pooling._without_triton, features)
    assert all(map(torch.equal, ours, values_and_gradient(lambda x: F.max_pool3d(x, 2), features)))


@on_gpu
@pytest.mark.parametrize("layout", [NDHWC, NCDHW])
def test_a_step_can_be_deterministic(layout) -> None:
    features = drawn((2, 8, 16, 16, 16)).cuda().to(memory_format=layout)
    torch.use_deterministic_algorithms(True)
    try:
        both = [values_and_gradient(max_pool, features.to(t)) for t in (torch.half, torch.double)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(both[0][0].double(), both[1][0])


if __name__ == "__main__":
    for check in CHECKS:
        check("cpu")
