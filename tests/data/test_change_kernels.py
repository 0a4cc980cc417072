"""The kernels of the augmentation give what torch gives on the CPU."""

from unittest import mock

import numpy as np
import pytest
import torch

from helpers.batches import changed_batches
from helpers.cuda import on_gpu
from helpers.kernels import run_interpreted, stack_bytes
from tversky_seg.data.patches import fused
from tversky_seg.data.patches.augmentation import Augmentation
from tversky_seg.data.patches.batch import stack_samples
from tversky_seg.data.patches.intensity import IntensityChange
from tversky_seg.data.patches.packing import pack
from tversky_seg.data.patches.samplers import LesionSampler

SIZE = (9, 7, 7)
TURNS = Augmentation()
DEFORMATIONS = Augmentation(
    tilt_probability=1.0,
    zoom=(0.7, 1.4),
    zoom_probability=1.0,
    elastic_spacing_mm=12.0,
    elastic_probability=0.5,
)


def check_moved(device: str) -> None:
    """Images to rounding, labels and turned images exactly, also beyond the border of a box."""
    rng = np.random.default_rng(3)
    for augmentation in (TURNS, DEFORMATIONS):
        for dtype in (np.uint8, np.int32):
            for _ in range(3):
                change = augmentation.draw(rng, n_channels=3, size=SIZE, spacing_mm=(1, 1, 1))
                first, box = change.box((1, -2, 3), (14, 11, 12))
                change = change.at((first[0] - 1, first[1] + 2, first[2] - 3))
                if change.deformation is None:
                    box = SIZE
                image = rng.integers(-9999, 9999, (3, *box), dtype=np.int16)
                image[:, : box[0] // 2] = 0
                labels = rng.integers(0, 200, (2, *box)).astype(dtype)
                scale = rng.uniform(1e-3, 2e-3, 3).astype(np.float32)
                compare_moved(change, tuple(map(torch.from_numpy, (image, scale, labels))), device)


def compare_moved(change, tensors, device: str) -> None:
    image, scale, labels = tensors
    expected, expected_labels, _ = change._moved(image, labels, scale, has_lesion=True)
    change, (image, scale, labels) = pack((change, tensors)).unpack(torch.device(device))
    ours, our_labels, brain = change._moved_at_once(image, labels, scale, has_lesion=True)
    assert torch.equal(our_labels.cpu(), expected_labels)
    assert our_labels.dtype == labels.dtype
    torch.testing.assert_close(ours.cpu(), expected, atol=1e-3, rtol=0)
    if change.deformation is None:
        assert torch.equal(ours.cpu(), expected)
    assert torch.equal(brain.bool(), (ours != 0).any(dim=0))


DRAWN = [
    {"gamma": 1.4},
    {"gamma": 0.7, "contrast": 0.8},
    {"contrast": -0.9, "scale": 1.2},
    {"scale": 0.8, "shift": 0.3},
    {"noise_sd": 0.1},
    {"gamma": 0.8, "contrast": 0.5, "scale": 1.3, "shift": -0.2, "noise_sd": 0.2},
]


def check_values(device: str) -> None:
    """Every change of values, alone and together; a constant channel; 0 outside the brain."""
    rng = np.random.default_rng(5)
    varied = torch.from_numpy(rng.standard_normal((9, 8, 7), dtype=np.float32))
    ranks = torch.from_numpy(rng.integers(0, 65536, varied.shape, dtype=np.uint16))
    brain = torch.from_numpy(rng.integers(0, 2, varied.shape, dtype=np.uint8))
    for drawn in DRAWN:
        for channel in (varied, torch.full_like(varied, 1.5)):
            expected = channel.clone()
            noise = {"noise_ranks": ranks} if "noise_sd" in drawn else {}
            IntensityChange(**drawn, **noise)._change_values(expected)
            change = pack(IntensityChange(**drawn, **noise)).unpack(torch.device(device))
            ours = channel.to(device, copy=True)
            change._change_values_at_once(ours, brain.to(device))
            torch.testing.assert_close(ours.cpu(), expected * brain, atol=2e-5, rtol=2e-5)


def check_samples(device: str) -> None:
    """All changes together, growth of lesions too: the batches of the CPU."""
    batches = changed_batches(with_components=True, sampler=LesionSampler((10, 8, 10)))
    for step in range(2):
        expected = batches[step]
        samples = pack(tuple(batches.samples(step))).unpack(torch.device(device))
        with mock.patch.object(fused, "can_fuse", return_value=True):
            finished = [sample.augment() for sample in samples]
        batch = stack_samples(finished, with_components=True)
        torch.testing.assert_close(batch.image.cpu(), expected.image, atol=1e-3, rtol=1e-4)
        assert torch.equal(batch.components.cpu(), expected.components)
        assert torch.equal(batch.target.cpu(), expected.target)


CHECKS = [check_moved, check_values, check_samples]


def test_the_kernels_change_patches_as_torch_does() -> None:
    pytest.importorskip("triton", reason="kernels are written in Triton: test extra, Linux")
    run_interpreted(__file__)


@on_gpu
@pytest.mark.parametrize("check", CHECKS)
def test_the_kernels_change_patches_as_torch_does_on_a_gpu(check) -> None:
    check("cuda")


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_keep_their_numbers_in_registers(capability: int) -> None:
    pytest.importorskip("triton", reason="kernels are written in Triton: test extra, Linux")
    from tversky_seg.data.patches import change_kernels

    types = dict.fromkeys(("by_x", "by_y", "by_z", "displacement", "scale", "moved"), "*fp32")
    types |= {"image": "*i16", "labels": "*u8", "moved_labels": "*u8", "brain": "*u8"}
    types |= dict.fromkeys(("size_x", "size_y", "size_z", "n_channels", "n_classes"), "i32")
    types |= dict.fromkeys(("box_x", "box_y", "box_z"), "i32")
    flags = {"IS_ELASTIC": True, "WITH_LABELS": True, "SIDE": fused.SIDE}
    assert stack_bytes(change_kernels.move_kernel, types, flags, capability=capability) == 0
    types = dict.fromkeys(("channel", "low", "high", "quantiles"), "*fp32")
    types |= {"brain": "*u8", "ranks": "*u16", "n_voxels": "i32"}
    types |= dict.fromkeys(("gamma", "contrast", "scale", "shift", "noise_sd"), "fp32")
    flags = {"HAS_RANGE": True, "HAS_NOISE": True, "BLOCK": fused.BLOCK}
    assert stack_bytes(change_kernels.values_kernel, types, flags, capability=capability) == 0


if __name__ == "__main__":
    for check in CHECKS:
        check("cpu")
