"""Group normalisation: torch's bits on the CPU; the fused kernels against float64."""

import itertools
import os
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.cuda import on_gpu
from helpers.kernels import run_interpreted, stack_bytes
from tversky_seg.models import UNet3D, norm_launches
from tversky_seg.models.group_norm import GroupNorm, fused_group_norm

NDHWC = torch.channels_last_3d
NCDHW = torch.contiguous_format
LAYOUTS = (NDHWC, NCDHW)

# Shape and groups: odd sides, one channel, groups of one.
CASES = [
    ((2, 8, 5, 6, 7), 4),
    ((2, 3, 7, 1, 3), 3),
    ((3, 6, 1, 2, 3), 1),
    ((2, 1, 7, 5, 3), 1),
]
MORE_CHANNELS_THAN_A_TILE = ((1, 130, 4, 5, 3), 2)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def drawn(shape: tuple[int, ...], *, offset: float = 0.0) -> list[Tensor]:
    """Features, their gradient, weight and bias."""
    generator = torch.Generator().manual_seed(0)
    channels = shape[1]
    shapes = [shape, shape, (channels,), (channels,)]
    features, *others = [torch.randn(s, generator=generator) for s in shapes]
    return [features + offset, *others]


def results(normalise, features, gradient, weight, bias):
    """Return the normalised features and the gradients of features, weight and bias."""
    inputs = [tensor.detach().requires_grad_() for tensor in (features, weight, bias)]
    normalised = normalise(*inputs)
    return [normalised.detach(), *torch.autograd.grad(normalised, inputs, gradient)]


def check_case(device, shape, n_groups, *, layout, relu, dtype=torch.float32, offset=0.0) -> None:
    """Compare with the formula in float64."""
    features, gradient, weight, bias = drawn(shape, offset=offset)
    features, gradient = features.to(dtype), gradient.to(dtype)

    def plain(x, w, b):
        y = F.group_norm(x, n_groups, w, b, 1e-3)
        return F.relu(y) if relu else y

    def fused(x, w, b):
        return fused_group_norm(x, w, b, n_groups, 1e-3, relu)

    doubles = [tensor.double() for tensor in (features, gradient, weight, bias)]
    expected = results(plain, *doubles)
    features = features.to(device).contiguous(memory_format=layout)
    ours = results(fused, features, *(t.to(device) for t in (gradient, weight, bias)))
    assert ours[0].dtype == ours[1].dtype == dtype
    assert ours[0].is_contiguous(memory_format=layout)
    assert ours[1].is_contiguous(memory_format=layout)
    tolerance = TOLERANCE[dtype] * max(1, abs(offset))
    for mine, exact in zip(ours, expected, strict=True):
        error = (mine.cpu().double() - exact).abs().max()
        assert error <= tolerance * max(1, exact.abs().max()), (shape, layout, relu, dtype)


def check_values(device: str) -> None:
    """Compare in every layout, with and without ReLU, and where the mean is large."""
    for (shape, n_groups), layout in itertools.product(CASES, LAYOUTS):
        check_case(device, shape, n_groups, layout=layout, relu=True)
    check_case(device, *MORE_CHANNELS_THAN_A_TILE, layout=NDHWC, relu=True)
    check_case(device, *CASES[0], layout=NDHWC, relu=False)
    check_case(device, *CASES[0], layout=NDHWC, relu=True, offset=300.0)
    check_case(device, *CASES[2], layout=NCDHW, relu=True, offset=300.0)
    for layout in LAYOUTS:
        check_case(device, *CASES[2], layout=layout, relu=True, dtype=torch.float16)
        check_case(device, *CASES[2], layout=layout, relu=True, dtype=torch.bfloat16)


def check_long_spans(device: str) -> None:
    """Compare where a program works through many tiles, the last of them not full."""
    for layout in LAYOUTS:
        check_case(device, (2, 4, 13, 11, 37), 2, layout=layout, relu=True)


def check_strides(device: str) -> None:
    """Compare where neither the features nor the gradient are dense."""
    features, gradient, weight, bias = (t.to(device) for t in drawn((2, 4, 3, 3, 6)))
    features = features[..., ::2]
    gradient = gradient[:, :, :1, :1, :1].expand(2, 4, 3, 3, 3)

    def fused(x, w, b):
        return fused_group_norm(x, w, b, 2, 1e-5, True)

    strided = results(fused, features, gradient, weight, bias)
    dense = results(fused, features.contiguous(), gradient.contiguous(), weight, bias)
    assert all(map(torch.equal, strided, dense))


def check_not_a_number(device: str) -> None:
    """A value that is not finite reaches the result, so that a step can be skipped."""
    features, _, weight, bias = (t.to(device) for t in drawn((2, 4, 3, 3, 3)))
    features[0, 0, 0, 0, 0] = float("inf")
    normalised = fused_group_norm(features, weight, bias, 2, 1e-5, True)
    assert normalised[0, :2].isnan().all()
    assert normalised[0, 2:].isfinite().all()
    assert normalised[1].isfinite().all()


def check_operator(device: str) -> None:
    """The operator that torch.compile calls gives the same, and its shapes are right."""
    features, gradient, weight, bias = (t.to(device) for t in drawn((2, 2, 3, 2, 3)))
    features = features.contiguous(memory_format=NDHWC)
    operator = torch.ops.tversky_seg.group_norm

    def fused(x, w, b):
        return fused_group_norm(x, w, b, 2, 1e-5, True)

    def traced(x, w, b):
        return operator(x, w, b, 2, 1e-5, True, len(x))[0]

    expected = results(fused, features, gradient, weight, bias)
    assert all(map(torch.equal, results(traced, features, gradient, weight, bias), expected))
    inputs = [tensor.detach().requires_grad_() for tensor in (features, weight, bias)]
    torch.library.opcheck(operator, (*inputs, 2, 1e-5, True, 2))


CHECKS = [check_values, check_long_spans, check_strides, check_not_a_number, check_operator]


def test_kernels_equal_the_formula() -> None:
    pytest.importorskip("triton", reason="kernels are written in Triton: test extra, Linux")
    run_interpreted(__file__)


@on_gpu
@pytest.mark.parametrize("check", CHECKS)
def test_kernels_equal_the_formula_on_a_gpu(check) -> None:
    check("cuda")


@pytest.mark.parametrize(("capability", "dtype", "last"), [(90, "bf16", True), (80, "fp32", False)])
def test_kernels_keep_their_numbers_in_registers(capability, dtype, last) -> None:
    pytest.importorskip("triton", reason="kernels are written in Triton: test extra, Linux")
    from tversky_seg.models import norm_kernels as kernels

    shape = torch.Size((2, 512, 32, 32, 32))
    for name in ("moments", "apply", "gradient_sums", "gradient"):
        tile = norm_launches.TILE_BACKWARD if "gradient" in name else norm_launches.TILE_FORWARD
        settings = norm_launches.plan_for(shape, channels_last=last, tile=tile).settings
        constants = {key: value for key, value in settings.items() if key.isupper()}
        kernel = getattr(kernels, f"{name}_kernel")
        if "RELU" in kernel.arg_names:
            constants["RELU"] = True
        assert stack_bytes(kernel, types(kernel, dtype), constants, capability=capability) == 0
    for name in ("statistics", "gradient_terms"):
        kernel = getattr(kernels, f"{name}_kernel")
        constants = {"BLOCK_B": 4, "BLOCK_D": 512}
        assert stack_bytes(kernel, types(kernel, dtype), constants, capability=capability) == 0


def types(kernel, dtype: str) -> dict[str, str]:
    """Types of a kernel's arguments that are no constants."""
    features = {"x_ptr", "y_ptr", "dx_ptr", "dy_ptr"}
    found = {"eps": "fp32"}
    for name in kernel.arg_names:
        if name.endswith("_ptr"):
            found[name] = f"*{dtype}" if name in features else "*fp32"
        elif name.islower() and name != "eps":
            found[name] = "i32"
    return found


def test_on_the_cpu_it_is_torch_s_group_norm_bit_for_bit() -> None:
    features, gradient, weight, bias = drawn((2, 6, 5, 4, 3))
    ours, torchs = GroupNorm(3, 6, relu=True), nn.Sequential(nn.GroupNorm(3, 6), nn.ReLU())
    ours.load_state_dict({"weight": weight, "bias": bias})
    torchs[0].load_state_dict(ours.state_dict())
    inputs = [features.clone().requires_grad_() for _ in range(2)]
    for norm, x in zip((ours, torchs), inputs, strict=True):
        norm(x).backward(gradient)
    assert torch.equal(ours(features), torchs(features))
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    assert torch.equal(ours.weight.grad, torchs[0].weight.grad)


@pytest.mark.parametrize("shape", [(2, 16, 128, 128, 128), (1, 320, 7, 5, 3), (70, 1, 1, 1, 1)])
@pytest.mark.parametrize("last", [True, False])
def test_spans_cover_every_voxel_once(shape, last) -> None:
    plan = norm_launches.plan_for(torch.Size(shape), channels_last=last, tile=2048)
    assert (plan.n_blocks - 1) * plan.span < plan.n_voxels <= plan.n_blocks * plan.span


def test_programs_fill_a_card() -> None:
    """An H100 has 132 multiprocessors, of which each runs eight programs at once."""
    shape = torch.Size((2, 16, 128, 128, 128))
    assert norm_launches.plan_for(shape, channels_last=True, tile=2048).grid[0] >= 8 * 132


@on_gpu
def test_repeats_give_the_same_bits() -> None:
    features, gradient, weight, bias = (t.cuda() for t in drawn((2, 16, 40, 41, 43)))
    features, gradient = features.bfloat16().to(memory_format=NDHWC), gradient.bfloat16()

    def fused(x, w, b):
        return fused_group_norm(x, w, b, 8, 1e-5, True)

    first, second = (results(fused, features, gradient, weight, bias) for _ in range(2))
    assert all(map(torch.equal, first, second))


@on_gpu
def test_offsets_beyond_2_31() -> None:
    """The last sample of more than 2^31 values is normalised as it is alone."""
    norm = GroupNorm(2, 4, relu=True).cuda()
    for layout in LAYOUTS:
        features = torch.empty(9, 4, 384, 400, 400, dtype=torch.bfloat16, device="cuda")
        features = features.to(memory_format=layout)
        assert features.numel() > 2**31
        features[:-1] = 0
        features[-1].normal_()
        with torch.no_grad():
            normalised = norm(features)[-1:]
            alone = norm(features[-1:].clone(memory_format=torch.preserve_format))
        assert (normalised.float() - alone.float()).abs().max() < 0.02
        del features, normalised, alone
        torch.cuda.empty_cache()


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_keeps_type_and_layout(dtype) -> None:
    norm = GroupNorm(2, 4, relu=True).cuda()
    features = torch.randn(2, 4, 5, 6, 7, device="cuda", dtype=dtype).to(memory_format=NDHWC)
    features.requires_grad_()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        normalised = norm(features)
    assert normalised.dtype == dtype
    assert normalised.is_contiguous(memory_format=NDHWC)
    expected = norm(features.float())
    assert torch.allclose(normalised.float(), expected, atol=0.05)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        plain = norm._in_the_input_s_type(features)
    assert plain.dtype == dtype
    assert torch.allclose(F.relu(plain).float(), normalised.float(), atol=0.05)


@on_gpu
@pytest.mark.parametrize("shape", [(0, 4, 5, 6, 7), (2, 4, 5)])
def test_what_the_kernels_do_not_do_is_torch_s(shape) -> None:
    norm = GroupNorm(2, 4, relu=True).cuda()
    assert norm(torch.ones(shape, device="cuda")).shape == shape
    doubles = torch.randn(2, 4, 3, 3, 3, device="cuda").double()
    assert torch.allclose(norm.double()(doubles), F.relu(F.group_norm(doubles, 2)))


@on_gpu
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_the_network_compiles_as_one_graph() -> None:
    network = UNet3D(in_channels=3, out_channels=1, n_levels=2, width=8).cuda()
    network = network.to(memory_format=NDHWC)
    image = torch.randn(2, 3, 16, 18, 20, device="cuda").to(memory_format=NDHWC)
    compiled = torch.compile(network, fullgraph=True)
    both = []
    for module in (network, compiled):
        network.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logits = module(image)
        logits.float().square().mean().backward()
        both.append([logits.float(), *(p.grad.clone() for p in network.parameters())])
    torch.compiler.reset()
    for eager, fused in zip(*both, strict=True):
        assert (eager - fused).abs().max() <= 0.05 * max(eager.abs().max(), 0.1)


if __name__ == "__main__":
    assert os.environ.get("TRITON_INTERPRET") == "1"
    for check in CHECKS:
        if check is check_long_spans:
            norm_launches.N_PROGRAMS = 2
            norm_launches.plan_for.cache_clear()
        check("cpu")
    sys.exit(0)
