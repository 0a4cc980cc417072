"""Patches in mm and strides of the network, from the voxel size of the data."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from omegaconf import OmegaConf

from tversky_seg.config import ConfigError, resolve_voxel_settings
from tversky_seg.data.dataset import Dataset
from tversky_seg.data.patches.sampling import patch_sides_of_mm

UNET = {"_target_": "tversky_seg.models.UNet3D", "n_levels": 4, "width": 4, "strides": "auto"}


def a_dataset(folder: Path, *, zooms: tuple[float, float, float], **settings: object) -> Dataset:
    affine = np.diag([*zooms, 1.0])
    for name in ("flair", "label"):
        nib.save(nib.Nifti1Image(np.ones((4, 4, 3), np.uint8), affine), folder / f"{name}.nii")
    manifest = folder / "m.csv"
    manifest.write_text("case_id,subject_id,FLAIR,label\na,a,flair.nii,label.nii\n")
    return Dataset(modalities=("FLAIR",), manifest=manifest, **settings)


@pytest.mark.parametrize(
    ("side_mm", "spacing_mm", "sides"),
    [
        (64, (1, 1, 1), (64, 64, 64)),
        (64, (2, 2, 2), (32, 32, 32)),
        (64, (0.9, 0.9, 7), (64, 64, 8)),
        (48, (1, 1, 1), (48, 48, 48)),
        (10, (1, 1, 9), (8, 8, 4)),
    ],
)
def test_sides_in_mm(side_mm: float, spacing_mm: tuple[float, ...], sides: tuple[int, ...]) -> None:
    assert patch_sides_of_mm(side_mm, spacing_mm) == sides


def test_patch_and_strides_follow_the_files(tmp_path: Path) -> None:
    cfg = OmegaConf.create({"sampler": {"patch_size": "auto"}, "model": UNET})
    resolve_voxel_settings(cfg, a_dataset(tmp_path, zooms=(0.9, 0.9, 7.0)))
    assert cfg.sampler.patch_size == [64, 64, 8]
    assert cfg.model.strides == [[2, 2, 1], [2, 2, 1], [2, 2, 2]]


@pytest.mark.parametrize("spacing_mm", [(1, 1, 1), (1, 1, None), "native", "median"])
def test_they_follow_the_voxel_that_the_network_sees(tmp_path: Path, spacing_mm: object) -> None:
    cfg = OmegaConf.create({"sampler": {"patch_size": "64mm"}, "model": UNET})
    dataset = a_dataset(tmp_path, zooms=(1.0, 1.0, 4.0), spacing_mm=spacing_mm)
    resolve_voxel_settings(cfg, dataset)
    is_cubic = spacing_mm == (1, 1, 1)
    assert cfg.sampler.patch_size == ([64, 64, 64] if is_cubic else [64, 64, 16])
    assert cfg.model.strides[0] == ([2, 2, 2] if is_cubic else [2, 2, 1])


def test_numbers_stay_and_no_file_is_read() -> None:
    cfg = OmegaConf.create({"sampler": {"patch_size": 64}, "model": UNET | {"strides": None}})
    resolve_voxel_settings(cfg, Dataset(modalities=("FLAIR",), manifest=Path("absent.csv")))
    assert cfg.sampler.patch_size == 64


@pytest.mark.parametrize("patch_size", ["48", "mm", "-3mm", "large", "nanmm"])
def test_a_length_that_is_none_is_refused_by_its_key(patch_size: str) -> None:
    cfg = OmegaConf.create({"sampler": {"patch_size": patch_size}, "model": UNET})
    with pytest.raises(ConfigError, match=f"sampler.patch_size: {patch_size}; expected voxels"):
        resolve_voxel_settings(cfg, Dataset(modalities=("FLAIR",), manifest=Path("absent.csv")))
