"""Memory in bf16: a network under CUDA's autocast keeps half of what it keeps in float32."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tversky_seg.models import FCDenseNet3D, ResidualUNet3D, UNet3D, group_norm, pooling

IN_BF16 = {torch.conv3d, torch.conv_transpose3d, F.conv3d, F.conv_transpose3d}
IN_FLOAT32 = {F.group_norm, torch.group_norm}


class CudaAutocast(TorchFunctionMode):
    """The rules of torch.autocast("cuda") for tensors on the meta device."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        dtype = None
        if function in IN_BF16:
            dtype = torch.bfloat16
        elif function in IN_FLOAT32:
            dtype = torch.float32
        if dtype is not None:
            args = [a.to(dtype) if isinstance(a, Tensor) else a for a in args]
        return function(*args, **(kwargs or {}))


@pytest.fixture
def fused(monkeypatch):
    """Have tensors on the meta device go the way of a GPU with Triton."""
    monkeypatch.setattr(group_norm, "is_fused", lambda features: True)
    monkeypatch.setattr(group_norm, "is_traced", lambda features: True)
    monkeypatch.setattr(pooling, "max_pool", lambda x: torch.ops.tversky_seg.max_pool(x)[0])


def bytes_kept(network, *, autocast: bool) -> int:
    """Count what a step of 64^3 voxels keeps for its backward pass."""
    saved = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage.nbytes()
        return tensor

    image = torch.empty(2, 3, 64, 64, 64, device="meta")
    image = image.contiguous(memory_format=torch.channels_last_3d)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        if autocast:
            with CudaAutocast():
                network(image)
        else:
            network(image)
    return sum(saved.values())


@pytest.mark.parametrize("build", [UNet3D, FCDenseNet3D, ResidualUNet3D])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_bf16_keeps_half_of_float32(build, norm, fused) -> None:
    with torch.device("meta"):
        network = build(in_channels=3, out_channels=1, norm=norm)
    assert bytes_kept(network, autocast=True) <= 0.55 * bytes_kept(network, autocast=False)


def test_torch_s_group_norm_would_keep_as_much_as_in_float32() -> None:
    """What the fused norm is for, and proof that the rules above are CUDA's."""
    with torch.device("meta"):
        network = UNet3D(in_channels=3, out_channels=1)
    assert bytes_kept(network, autocast=True) > 0.9 * bytes_kept(network, autocast=False)
