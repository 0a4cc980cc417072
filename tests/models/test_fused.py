"""Where the kernels of networks run, and where torch's own operations do."""

from contextlib import nullcontext
from unittest.mock import Mock

import pytest
import torch

from helpers.cuda import on_gpu
from tversky_seg.models import fused

NO_COMPILER = RuntimeError("Failed to find C compiler")


@pytest.mark.parametrize(
    ("capability", "error", "warning"),
    [
        ((7, 5), None, None),
        ((9, 0), ImportError("no triton"), None),
        ((9, 0), NO_COMPILER, "without kernels.*C compiler"),
    ],
)
def test_a_gpu_whose_kernels_do_not_run_takes_torch_s_operations(
    capability, error, warning, monkeypatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(fused, "_start_triton", Mock(side_effect=error))
    expected = pytest.warns(UserWarning, match=warning) if warning else nullcontext()
    with expected:
        assert not fused._has_kernels.__wrapped__(0)


def test_a_gpu_with_triton_has_kernels(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(fused, "_start_triton", Mock())
    assert fused._has_kernels.__wrapped__(0)


def test_triton_is_started_by_its_own_interface() -> None:
    """Without a GPU it says so, which is no missing name."""
    pytest.importorskip("triton", reason="kernels are written in Triton: test extra, Linux")
    if torch.cuda.is_available():
        fused._start_triton()
    else:
        with pytest.raises(RuntimeError, match="driver"):
            fused._start_triton()


@on_gpu
def test_this_gpu_has_kernels() -> None:
    assert fused.is_fused(torch.ones(1, 2, 2, 2, 2, device="cuda"))
