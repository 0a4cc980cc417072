"""The 3^3 convolution of our own: the formula in float64, and torch's where it has no kernel."""

import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.cuda import on_gpu
from helpers.kernels import compiled_usage, run_interpreted
from tversky_seg.models import UNet3D, direct_conv
from tversky_seg.models import convolution_launches as launches
from tversky_seg.models.convolution_launches import Blocks
from tversky_seg.models.direct_conv import direct_convolution, has_kernel
from tversky_seg.models.narrow_conv import NarrowConv
from tversky_seg.runtime.devices import autocast, to_device

NDHWC = torch.channels_last_3d
WIDTHS = sorted(direct_conv.WIDTHS)
CASES = [
    (16, 16, (2, 3, 5, 7)),
    (32, 16, (1, 2, 3, 5)),
    (16, 32, (1, 6, 9, 3)),  # more planes and rows than a program has
    (32, 32, (1, 1, 2, 1)),
    (16, 16, (1, 1, 1, 35)),
]
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3}
MARCH = Blocks(rows=64, planes=4)
TAPS = Blocks(rows=64, planes=0, depth=2)
SHARED_BYTES = 99 * 1024
"""What a program may have on every GPU from compute capability 8.0 on."""


def drawn(shape, n_in: int, n_out: int, dtype: torch.dtype) -> list[Tensor]:
    """Features, weights, bias, and a gradient of the result; weights that `dtype` can hold."""
    generator = torch.Generator().manual_seed(0)
    batch, *sides = shape
    features = torch.randn(batch, n_in, *sides, generator=generator).to(dtype)
    weight = torch.randn(n_out, n_in, 3, 3, 3, generator=generator).to(dtype).float()
    bias = torch.randn(n_out, generator=generator)
    gradient = torch.randn(batch, n_out, *sides, generator=generator).to(dtype)
    tensors = [features, weight, bias, gradient]
    return [t.contiguous(memory_format=NDHWC) if t.ndim == 5 else t for t in tensors]


def results(convolve, features, weight, bias, gradient) -> list[Tensor]:
    """Return the result and the gradients of features, weights and bias."""
    inputs = [tensor.detach().requires_grad_() for tensor in (features, weight, bias)]
    result = convolve(*inputs)
    return [result.detach(), *torch.autograd.grad(result, inputs, gradient)]


def plain(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv3d(features, weight, bias, padding=1)


def check_close(ours, expected, dtype: torch.dtype, case: object) -> None:
    for mine, exact in zip(ours, expected, strict=True):
        error = (mine.cpu().double() - exact).abs().max()
        assert error <= TOLERANCE[dtype] * exact.abs().max(), case


def check_values(device: str) -> None:
    """Compare values and gradients with float64."""
    for n_in, n_out, shape in CASES:
        # Triton's interpreter cannot multiply bfloat16.
        dtype = torch.bfloat16 if n_in == n_out and device == "cuda" else torch.float16
        tensors = drawn(shape, n_in, n_out, dtype)
        expected = results(plain, *(tensor.double() for tensor in tensors))
        ours = results(direct_convolution, *(tensor.to(device) for tensor in tensors))
        check_close(ours, expected, dtype, (n_in, n_out, shape))
        assert ours[0].dtype == ours[1].dtype == dtype
        assert ours[2].dtype == ours[3].dtype == torch.float32
        assert all(mine.is_contiguous(memory_format=NDHWC) for mine in ours[:3])


def check_blocks(device: str) -> None:
    """Both kernels give the same, whatever a program computes."""
    dtype = torch.float16
    for n_in, n_out in WIDTHS:
        tensors = drawn((1, 2, 2, 3), n_in, n_out, dtype)
        expected = results(plain, *(tensor.double() for tensor in tensors))[:2]
        features, weight, bias, gradient = (tensor.to(device) for tensor in tensors)
        for blocks in (MARCH, TAPS):
            ours = [
                launches.convolved(features, weight, bias, blocks=blocks),
                launches.input_gradient(gradient, weight, blocks=blocks),
            ]
            check_close(ours, expected, dtype, (n_in, n_out, blocks))


def check_sums_are_float32(device: str) -> None:
    """Ones are lost beside 2048 in float16."""
    features = torch.ones(1, 16, 3, 3, 3, dtype=torch.float16, device=device)
    features = features.contiguous(memory_format=NDHWC)
    weight = torch.ones(16, 16, 3, 3, 3, device=device)
    weight[:, 0, 0, 0, 0] = 2048
    weight[:, 0, 2, 2, 2] = -2048
    result = direct_convolution(features, weight, None)
    assert result[0, 0, 1, 1, 1] == 27 * 16 - 2
    assert result[0, 0, 0, 0, 0] == 8 * 16 - 1 - 2048


def check_other_layouts(device: str) -> None:
    """Weights of any strides, and a gradient with gaps."""
    features, weight, bias, gradient = drawn((2, 4, 3, 5), 16, 32, torch.float16)
    tensors = [tensor.to(device) for tensor in (features, weight, bias, gradient)]
    expected = results(direct_convolution, *tensors)
    tensors[1] = tensors[1].contiguous()
    wider = torch.cat([tensors[3], tensors[3]], dim=1)
    tensors[3] = wider[:, :32]
    ours = results(direct_convolution, *tensors)
    assert all(map(torch.equal, ours, expected))


CHECKS = [check_values, check_blocks, check_sums_are_float32, check_other_layouts]


def test_kernels_equal_the_formula() -> None:
    pytest.importorskip("triton", reason="kernels are written in Triton: test extra, Linux")
    run_interpreted(__file__)


@on_gpu
@pytest.mark.parametrize("check", CHECKS)
def test_kernels_equal_the_formula_on_a_gpu(check) -> None:
    check("cuda")


@on_gpu
def test_offsets_may_pass_two_billion() -> None:
    factory = {"device": "cuda", "dtype": torch.float16}
    features = torch.zeros(1, 130, 1024, 1024, 16, **factory).permute(0, 4, 1, 2, 3)
    assert features.numel() > 2**31
    end = torch.randn(1, 3, 1024, 1024, 16, **factory).permute(0, 4, 1, 2, 3)
    features[:, :, -3:] = end
    weight = torch.randn(16, 16, 3, 3, 3, device="cuda")
    result = direct_convolution(features, weight, None)
    expected = direct_convolution(end.contiguous(memory_format=NDHWC), weight, None)
    assert torch.equal(result[:, :, -2:], expected[:, :, -2:])


@pytest.mark.parametrize("side", [48, 64, 96, 128])
@pytest.mark.parametrize("n_rows", [32, 64, 128])
def test_rows_fit_usual_sides(n_rows, side) -> None:
    block_y, pairs = launches._fitted(n_rows, side, side)
    assert block_y * pairs == n_rows
    assert side % block_y == side % (2 * pairs) == 0


def test_small_features_are_shared_among_more_programs() -> None:
    few = launches.plan_for(torch.Size((1, 16, 32, 32, 32)), Blocks(rows=64, planes=32))
    assert few.numbers["span"] == launches.MIN_PLANES
    # The channels are shared, too.
    fewer = launches.plan_for(
        torch.Size((2, 32, 64, 64, 64)), Blocks(rows=64, planes=32), n_parts=4
    )
    assert fewer.n_blocks == launches.MIN_PROGRAMS // 4
    many = launches.plan_for(torch.Size((9, 16, 96, 96, 96)), Blocks(rows=64, planes=32))
    assert many.numbers["span"] == 32
    assert many.n_blocks == 9 * 3 * (96 // 4) * (96 // 32)


def kernel_and_constants(part, blocks: Blocks, side: int):
    from tversky_seg.models import convolution_kernels as kernels

    n_in, n_out = (32, 32) if part == launches.WEIGHT else part
    shape = torch.Size((2, n_in, side, side, side))
    numbers = launches.plan_for(shape, blocks).numbers
    constants = {name: number for name, number in numbers.items() if name.isupper()}
    constants |= {"C_IN": n_in, "C_OUT": n_out}
    if part == launches.WEIGHT:
        return kernels.weight_gradient_kernel, constants
    constants["HAS_BIAS"] = False
    return (kernels.march_kernel if blocks.planes else kernels.taps_kernel), constants


@pytest.mark.parametrize("side", [48, 96])
@pytest.mark.parametrize("part", launches.BLOCKS)
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_keep_their_numbers_in_registers(capability, part, side) -> None:
    pytest.importorskip("triton", reason="kernels are written in Triton: test extra, Linux")
    blocks = (launches.OLDER_BLOCKS if capability < 90 else launches.BLOCKS)[part]
    kernel, constants = kernel_and_constants(part, blocks, side)
    types = {}
    for name in kernel.arg_names:
        if name not in constants:
            types[name] = "*bf16" if name.endswith("_ptr") else "i32"
    for name in ("bias_ptr", "partial_ptr"):
        if name in types:
            types[name] = "*fp32"
    usage = compiled_usage(
        kernel,
        types,
        constants,
        capability=capability,
        n_warps=blocks.n_warps,
        n_stages=blocks.n_stages,
    )
    assert usage.stack_bytes == 0
    assert usage.shared_bytes <= SHARED_BYTES


OTHERS = [
    NarrowConv(16, 16, 1),
    NarrowConv(16, 16, 3),
    NarrowConv(16, 16, 3, padding=1, stride=2),
    NarrowConv(16, 16, 3, padding=1, groups=2),
    NarrowConv(16, 16, 3, padding=2, dilation=2),
    NarrowConv(16, 16, 3, padding=1, padding_mode="circular"),
    NarrowConv(16, 16, 3, padding="same"),
    NarrowConv(3, 16, 3, padding=1),
    NarrowConv(16, 64, 3, padding=1),
]


@pytest.mark.parametrize("conv", OTHERS, ids=repr)
def test_other_convolutions_have_no_kernel(conv) -> None:
    assert not has_kernel(conv)


def test_on_the_cpu_it_is_torch_s() -> None:
    conv = NarrowConv(16, 16, 3, padding=1)
    assert has_kernel(conv)
    features = torch.randn(1, 16, 4, 4, 4).contiguous(memory_format=NDHWC)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(conv(features), nn.Conv3d.forward(conv, features))
    assert torch.equal(conv(features), nn.Conv3d.forward(conv, features))


@on_gpu
def test_the_switches_and_the_type_decide(monkeypatch) -> None:
    conv = NarrowConv(16, 16, 3, padding=1).cuda()
    features = torch.randn(1, 16, 4, 4, 4, device="cuda").contiguous(memory_format=NDHWC)
    half = features.bfloat16()
    monkeypatch.setattr(direct_conv, "IN_PREDICTION", {(16, 16)})
    monkeypatch.setattr(direct_conv, "IN_TRAINING", {(16, 16)})
    assert not direct_conv.is_direct(conv, half)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert direct_conv.is_direct(conv, half)
        assert not direct_conv.is_direct(conv, features)
        assert not direct_conv.is_direct(conv, features.half())
        assert not direct_conv.is_direct(conv, half.contiguous())
        monkeypatch.setattr(direct_conv, "IN_TRAINING", {(32, 16)})
        assert not direct_conv.is_direct(conv, half)
        with torch.no_grad():
            assert direct_conv.is_direct(conv, half)


@on_gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_network_gives_torch_s_logits_and_gradients(precision, monkeypatch) -> None:
    device = torch.device("cuda")
    torch.manual_seed(0)
    network = to_device(UNet3D(in_channels=1, out_channels=1, n_levels=3), device)
    image = torch.randn(2, 1, 20, 24, 28, device=device).contiguous(memory_format=NDHWC)

    def logits_and_gradient(*, is_direct: bool) -> tuple[Tensor, Tensor]:
        widths = direct_conv.WIDTHS if is_direct else frozenset()
        monkeypatch.setattr(direct_conv, "IN_TRAINING", widths)
        network.zero_grad()
        with autocast(device, precision):
            logits = network(image)
        logits.float().square().mean().backward()
        gradients = [parameter.grad.flatten() for parameter in network.parameters()]
        return logits.detach().float(), torch.cat(gradients)

    ours = logits_and_gradient(is_direct=True)
    torchs = logits_and_gradient(is_direct=False)
    # Rounding moves values near 0 across a ReLU.
    for mine, reference, bound in zip(ours, torchs, (0.05, 0.15), strict=True):
        assert (mine - reference).norm() <= bound * reference.norm()
    again = logits_and_gradient(is_direct=True)
    assert torch.equal(ours[0], again[0])


if __name__ == "__main__":
    assert os.environ["TRITON_INTERPRET"] == "1"
    for check in CHECKS:
        check("cpu")
