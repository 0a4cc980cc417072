"""The kernels of the losses: against float64, in any layout and type; without waits on a GPU."""

import itertools
import os
from collections.abc import Callable
from contextlib import nullcontext
from unittest.mock import Mock, patch

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from helpers.cuda import no_host_waits, on_gpu
from helpers.kernels import run_interpreted, stack_bytes
from helpers.losses import LOSSES, each_loss, random_case
from tversky_seg.losses import DeepSupervision, FocalLoss, FocalTverskyLoss, TverskyLoss, fused
from tversky_seg.losses.cross_entropy import plain_focal_sum
from tversky_seg.losses.index_loss import index_loss
from tversky_seg.losses.soft_counts import plain_soft_sums

SHAPES = [(2, 2, 5, 4, 3), (1, 2, 12, 11, 9), (2, 1, 5, 7, 3), (1, 1, 1, 1, 1), (3, 2, 50)]
FLOATS = ("alpha", "beta", "smooth", "exponent", "lesion", "background", "gamma", "share")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def as_it_is(values: Tensor) -> Tensor:
    return values


def channels_last(values: Tensor) -> Tensor:
    return values.contiguous(memory_format=torch.channels_last_3d)


def cropped(values: Tensor) -> Tensor:
    return torch.nn.functional.pad(values, (1, 2, 0, 0, 3, 0))[:, :, 3:, :, 1:-2]


def permuted(values: Tensor) -> Tensor:
    return values.transpose(2, 4).contiguous().transpose(2, 4)


def results(
    function: Callable[..., Tensor], logits: Tensor, *arguments: Tensor | None
) -> list[Tensor]:
    """A value and its gradient, each of its numbers with another slope."""
    logits = logits.detach().requires_grad_()
    value = function(logits, *arguments)
    slopes = torch.linspace(-1, 2, value.numel(), dtype=value.dtype, device=value.device)
    (gradient,) = torch.autograd.grad(value, logits, slopes.view(value.shape))
    return [value.detach(), gradient]


def assert_equal_float64(
    kernel: Callable[..., Tensor],
    plain: Callable[..., Tensor],
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
) -> Tensor:
    """Compare with the plain function in float64 on the CPU, and return the gradient."""
    value, gradient = results(kernel, logits, target, weight)
    exact_weight = None if weight is None else weight.cpu().double()
    exact = results(plain, logits.cpu().double(), target.cpu().double(), exact_weight)
    assert value.dtype == torch.float32
    assert gradient.dtype == logits.dtype
    torch.testing.assert_close(value.cpu().double(), exact[0], rtol=1e-6, atol=1e-6)
    tolerance = TOLERANCE[logits.dtype]
    torch.testing.assert_close(
        gradient.cpu().double(), exact[1], rtol=tolerance, atol=tolerance * exact[1].abs().max()
    )
    return gradient


def assert_kernels_equal_float64(
    logits: Tensor, target: Tensor, weight: Tensor | None, *, squared: bool
) -> None:
    """Compare the sums and the losses of one case."""

    def sums(x: Tensor, g: Tensor, w: Tensor | None) -> Tensor:
        return fused.soft_sums(x, g, w, squared=squared)

    def plain_sums(x: Tensor, g: Tensor, w: Tensor | None) -> Tensor:
        return plain_soft_sums(x, g, w, squared=squared)

    assert_equal_float64(sums, plain_sums, logits, target, weight)
    for over_batch, exponent in ((True, 0.75), (False, 1)):
        settings = {"alpha": 0.2, "beta": 0.7, "smooth": 1.5, "exponent": exponent}
        settings |= {"squared": squared, "over_batch": over_batch}

        def kernel(x, g, w, settings=settings) -> Tensor:
            return fused.tversky_loss(x, g, w, **settings)

        def plain(x, g, w, settings=settings) -> Tensor:
            return index_loss(x, g, w, **settings)

        assert_equal_float64(kernel, plain, logits, target, weight)


def drawn(shape: tuple[int, ...], device: str) -> list[Tensor]:
    """Logits, target and weight in float32."""
    return [t.detach().to(device) for t in random_case(shape, dtype=torch.float32)]


def check_sums_and_index_losses(device: str) -> None:
    settings = itertools.cycle([(False, True), (True, False), (True, True), (False, False)])
    for shape, (squared, weighted) in zip(SHAPES, settings, strict=False):
        logits, target, weight = drawn(shape, device)
        given = weight if weighted else None
        assert_kernels_equal_float64(logits, target, given, squared=squared)


def check_focal(device: str) -> None:
    settings = [(0.75, 2.0), (None, 1.5), (0.25, 0), (0.3, 1), (1.0, 3.7)]
    for shape, (alpha, gamma) in zip(SHAPES, settings, strict=True):

        def kernel(x, g, w, alpha=alpha, gamma=gamma) -> Tensor:
            return fused.focal_sum(x, g, w, alpha=alpha, gamma=gamma)

        def plain(x, g, w, alpha=alpha, gamma=gamma) -> Tensor:
            return plain_focal_sum(x, g, w, alpha=alpha, gamma=gamma)

        logits, target, weight = drawn(shape, device)
        assert_equal_float64(kernel, plain, logits, target, None)
        assert_equal_float64(kernel, plain, logits, 0.8 * target + 0.1, weight)


def check_layouts_and_types(device: str) -> None:
    cases = [
        (channels_last, channels_last, torch.bfloat16),
        (channels_last, as_it_is, torch.float32),
        (cropped, channels_last, torch.float16),
        (permuted, cropped, torch.float32),
    ]
    for of_logits, of_target, dtype in cases:
        logits, target, weight = drawn((2, 2, 4, 3, 3), device)
        logits = of_logits(logits.to(dtype))
        arguments = (of_target(target), weight[:1, :, :, :1])
        for loss in (TverskyLoss(alpha=0.2), FocalLoss()):
            gradient = assert_equal_float64(loss, loss, logits, *arguments)
            if of_logits is channels_last:
                assert gradient.stride() == logits.stride()
    of_one_class = channels_last(drawn((2, 1, 2, 3, 4), device)[0].bfloat16())
    gradient = results(TverskyLoss(), of_one_class, torch.zeros_like(of_one_class))[1]
    assert gradient.stride() == of_one_class.stride()


def check_targets_and_weights_of_any_type(device: str) -> None:
    logits, target, weight = drawn((2, 2, 4, 3, 3), device)
    cases = [
        (torch.bool, weight > 3),
        (torch.uint8, weight[:, :1].to(torch.uint8)),
        (torch.int16, weight[0, 0, 0].half()),
        (torch.int64, weight[0, 0, 0, 0, 0].double()),
    ]
    for dtype, given in cases:
        for loss in (TverskyLoss(alpha=0.2), FocalLoss()):
            assert_equal_float64(loss, loss, logits, target.to(dtype), given)


def check_sure_logits(device: str) -> None:
    """Nothing overflows, and the loss of voxels that are nearly right keeps its digits."""
    logits = torch.tensor([-200.0, -40, -12, 0, 12, 40, 200], device=device).view(1, 1, 7)
    for target in (torch.zeros_like(logits), torch.ones_like(logits)):
        value, gradient = results(FocalLoss(gamma=0.5), logits, target)
        assert value.isfinite()
        assert gradient.isfinite().all()
    background = torch.full((1, 1, 1000), -12.0, device=device)
    value = FocalLoss(alpha=None, gamma=0)(background, torch.zeros_like(background))
    assert value.item() == pytest.approx(6.144193e-6, rel=1e-5)  # log(1 + exp(-12))
    empty = torch.full((1, 1, 1000), -300.0, device=device)
    value, gradient = results(TverskyLoss(smooth=0), empty, torch.zeros_like(empty))
    assert value == 0
    assert gradient.isfinite().all()


def check_every_loss(device: str) -> None:
    logits, target, weight = drawn((2, 2, 4, 3, 3), device)
    for loss in LOSSES.values():
        assert_equal_float64(loss, loss, logits, target, weight[:, :1])


def check_not_a_number(device: str) -> None:
    """A logit that is not a number makes the loss so, and its row of metrics.csv tells it."""
    logits, target, _ = drawn((1, 1, 3, 3, 3), device)
    logits[0, 0, 1, 1, 1] = torch.nan
    for loss in (TverskyLoss(), FocalTverskyLoss(gamma=1.5), FocalLoss()):
        assert loss(logits, target).isnan()


CHECKS = [
    check_not_a_number,
    check_sums_and_index_losses,
    check_focal,
    check_layouts_and_types,
    check_targets_and_weights_of_any_type,
    check_sure_logits,
    check_every_loss,
]


def test_kernels_equal_float64() -> None:
    pytest.importorskip("triton", reason="kernels are written in Triton: test extra, Linux")
    run_interpreted(__file__)


@on_gpu
@pytest.mark.parametrize("check", CHECKS)
def test_kernels_equal_float64_on_a_gpu(check: Callable[[str], None]) -> None:
    assert fused.can_fuse(torch.zeros(1, 1, 2, device="cuda"))
    check("cuda")


@pytest.mark.parametrize(("capability", "numbers"), [(80, {}), (90, {"n_classes": 1})])
def test_kernels_keep_their_numbers_in_registers(capability: int, numbers: dict[str, int]) -> None:
    pytest.importorskip("triton", reason="kernels are written in Triton: test extra, Linux")
    from tversky_seg.losses import kernels
    from tversky_seg.losses.launches import BLOCK, MAX_PROGRAMS

    steps = {f"{name}_voxel": 1 for name in "xgwd"} if numbers else {}
    constants = {"BLOCK": BLOCK, "LANES": MAX_PROGRAMS, "WEIGHTED": True, "SQUARED": True}
    constants |= {"SCALED": True, "POWER": -1, "IS_POWER": True} | numbers | steps
    for name in ("soft_sums", "tversky_loss", "soft_sums_gradient", "focal_sums"):
        check_registers(getattr(kernels, name), constants, capability=capability)
    check_registers(kernels.focal_gradient, constants, capability=capability)


def check_registers(kernel, constants: dict[str, int], *, capability: int) -> None:
    types = {"logits": "*bf16", "target": "*u8", "gradient": "*bf16", "n_voxels": "i64"}
    types |= dict.fromkeys(FLOATS, "fp32")
    for name in ("weight", "partials", "loss", "slopes", "scale"):
        types[name] = "*fp32"
    of_kernel = {}
    for name in kernel.arg_names:
        if name not in constants:
            of_kernel[name] = types.get(name, "i32")
    own = {name: constants[name] for name in kernel.arg_names if name in constants}
    assert stack_bytes(kernel, of_kernel, own, capability=capability) == 0


def test_the_cpu_takes_no_kernels() -> None:
    assert not fused.can_fuse(torch.zeros(1, 1, 2))


@pytest.mark.parametrize(
    ("capability", "error", "warning"),
    [
        ((7, 5), None, None),
        ((9, 0), ImportError("no triton"), None),
        ((9, 0), RuntimeError("Failed to find C compiler"), "without kernels.*C compiler"),
    ],
)
def test_a_gpu_whose_kernels_do_not_run_takes_plain_operations(
    capability, error, warning, monkeypatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(fused, "_launches", Mock(side_effect=error))
    expected = pytest.warns(UserWarning, match=warning) if warning else nullcontext()
    with expected:
        assert not fused._kernels_run.__wrapped__(torch.device("cpu"))


@on_gpu
@each_loss
@pytest.mark.parametrize("weighted", [True, False])
def test_no_loss_waits_for_the_gpu(loss, weighted) -> None:
    logits, target, weight = drawn((2, 2, 9, 8, 7), "cuda")
    arguments = (target, weight) if weighted else (target,)
    results(loss, logits, *arguments)
    logits.requires_grad_()
    with no_host_waits():
        loss(logits, *arguments).backward()
    assert logits.grad is not None


@on_gpu
def test_deep_supervision_does_not_wait_for_the_gpu() -> None:
    logits, target, weight = drawn((2, 2, 9, 8, 7), "cuda")
    half = logits[:, :, ::2, ::2, ::2].clone()
    loss = DeepSupervision(TverskyLoss())
    with_halves = [values.requires_grad_() for values in (logits, half)]
    loss(with_halves, target, weight).backward()
    with no_host_waits():
        loss(with_halves, target, weight).backward()
    assert half.grad is not None


@on_gpu
@each_loss
def test_autocast_changes_nothing(loss) -> None:
    logits, target, weight = drawn((2, 2, 9, 8, 7), "cuda")
    expected = results(loss, logits, target, weight)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        value = results(loss, logits, target, weight)
    assert value[0].dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-9)


@on_gpu
@pytest.mark.parametrize("name", ["tversky", "dice squared", "focal"])
def test_repeats_give_the_same_bits(name: str) -> None:
    logits, target, weight = drawn((2, 1, 70, 70, 71), "cuda")
    first = results(LOSSES[name], logits, target, weight)
    second = results(LOSSES[name], logits, target, weight)
    assert all(map(torch.equal, first, second))


@on_gpu
@pytest.mark.parametrize("name", ["tversky", "focal"])
def test_more_than_2_31_voxels(name: str) -> None:
    """Half of the voxels in each of two parts: the whole has the same index and mean."""
    shape = (2, 1, 2**30 + 999)
    logits = torch.randn(1, 1, shape[2], device="cuda", dtype=torch.bfloat16).expand(shape)
    logits = logits.contiguous()
    target = (logits > 2).view(torch.uint8)
    assert logits.numel() > 2**31
    loss = LOSSES[name] if name == "focal" else TverskyLoss(alpha=0.2, beta=0.7, smooth=0)
    value, gradient = results(loss, logits, target)
    part, part_gradient = results(loss, logits[1:], target[1:])
    assert value.item() == pytest.approx(part.item(), rel=1e-4)
    tail = (gradient[1, 0, -999:] * 2e9).float()
    torch.testing.assert_close(tail, (part_gradient[0, 0, -999:] * 1e9).float(), rtol=0.02, atol=0)


@on_gpu
@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about its own doings
@pytest.mark.parametrize("name", ["tversky", "generalized dice", "focal"])
def test_losses_work_compiled_and_on_fake_tensors(name: str) -> None:
    logits, target, weight = drawn((2, 2, 9, 8, 7), "cuda")
    loss = LOSSES[name]
    expected = results(loss, logits, target, weight)
    compiled = torch.compile(loss, backend="eager")
    torch.testing.assert_close(results(compiled, logits, target, weight), expected)
    torch.compiler.reset()
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(values) for values in (logits, target, weight)]
        assert loss(*fakes).shape == ()


if __name__ == "__main__":
    assert os.environ.get("TRITON_INTERPRET") == "1"
    from tversky_seg.losses import launches

    def is_float32(logits: Tensor) -> bool:
        return logits.dtype in fused.TYPES

    with patch.object(fused, "can_fuse", is_float32):
        for check in CHECKS:
            check("cpu")
        # Programs that take several blocks of a row, the last of them not full.
        with patch.multiple(launches, BLOCK=64, MAX_PROGRAMS=2):
            logits, target, weight = drawn((2, 1, 5, 6, 7), "cpu")
            assert_kernels_equal_float64(logits, target, weight, squared=False)
            assert_equal_float64(FocalLoss(), FocalLoss(), logits, target, weight)
