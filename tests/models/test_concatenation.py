"""Concatenation of features: torch's values and gradients, whatever computes it."""

import pytest
import torch
from torch import Tensor

from helpers.cuda import on_gpu
from helpers.kernels import run_interpreted, stack_bytes
from tversky_seg.models import concatenation
from tversky_seg.models.concatenation import concatenate

NDHWC = torch.channels_last_3d

# Channels of each part: equal, odd, more than a tile has.
WIDTHS = [(16, 16), (48, 12, 12), (3, 5), (72, 2)]


def drawn(widths: tuple[int, ...], *, sides=(3, 5, 7)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, width, *sides, generator=generator) for width in widths]
    return [part.contiguous(memory_format=NDHWC) for part in parts]


def values_and_gradients(join, parts: list[Tensor]) -> list[Tensor]:
    parts = [part.detach().requires_grad_() for part in parts]
    joined = join(parts)
    weights = torch.arange(joined.numel()).reshape(joined.shape)
    return [joined.detach(), *torch.autograd.grad(joined, parts, weights.to(joined))]


def torchs(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts, dim=1)


def fused(parts: list[Tensor]) -> Tensor:
    return concatenation._Concatenation.apply(*parts)


def check_equal_to_torch(device: str) -> None:
    for widths in WIDTHS:
        parts = [part.to(device) for part in drawn(widths)]
        ours = values_and_gradients(fused, parts)
        for mine, reference in zip(ours, values_and_gradients(torchs, parts), strict=True):
            assert torch.equal(mine, reference), widths
            assert mine.is_contiguous(memory_format=NDHWC)


def check_parts_without_gradient(device: str) -> None:
    parts = [part.to(device) for part in drawn((4, 2))]
    parts[1].requires_grad_()
    fused(parts).square().sum().backward()
    assert parts[0].grad is None
    assert torch.equal(parts[1].grad, 2 * parts[1].detach())


CHECKS = [check_equal_to_torch, check_parts_without_gradient]


def test_the_kernel_joins_as_torch_does() -> None:
    pytest.importorskip("triton", reason="kernels are written in Triton: test extra, Linux")
    run_interpreted(__file__)


@on_gpu
@pytest.mark.parametrize("check", CHECKS)
def test_the_kernel_joins_as_torch_does_on_a_gpu(check) -> None:
    check("cuda")


@on_gpu
def test_other_layouts_and_types_are_torch_s() -> None:
    parts = [part.cuda() for part in drawn((4, 1))]
    assert torch.equal(concatenate(parts), torchs(parts))
    parts = [part.contiguous() for part in drawn((4, 2))]
    assert torch.equal(concatenate([part.cuda() for part in parts]).cpu(), torchs(parts))


@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernel_keeps_its_numbers_in_registers(capability) -> None:
    pytest.importorskip("triton", reason="kernels are written in Triton: test extra, Linux")
    from tversky_seg.models.concatenation_kernels import copy_kernel

    types = dict.fromkeys(copy_kernel.arg_names, "i32") | {"from_ptr": "*bf16", "to_ptr": "*bf16"}
    constants = {"UNIT": 16, "BLOCK_V": 32, "BLOCK_C": 64}
    for name in constants:
        del types[name]
    assert stack_bytes(copy_kernel, types, constants, capability=capability) == 0


def test_on_the_cpu_it_is_torch_s() -> None:
    parts = drawn((2, 3))
    assert torch.equal(concatenate(parts), torchs(parts))


if __name__ == "__main__":
    for check in CHECKS:
        check("cpu")
