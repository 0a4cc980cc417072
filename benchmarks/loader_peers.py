"""MONAI's and TorchIO's loaders and augmentations, set up for benchmarks/loader.py."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torchio
from monai import transforms as mt
from monai.data import CacheDataset

from tversky_seg.data.preprocessing.prepared_case import PreparedCase

SIDE = 96
CHANNELS = ("FLAIR", "T1", "T2")


def volume_of(case: PreparedCase) -> dict[str, torch.Tensor]:
    """The whole case as the peers hold it: float32 image and uint8 label."""
    image = torch.from_numpy(case.image * case.image_scale[:, None, None, None])
    return {"image": image, "label": torch.from_numpy(np.array(case.target))}


def as_batch(image: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of one patch as a network takes it."""
    return torch.stack([image]), torch.stack([label]).float()


def monai_patches(case: PreparedCase, *, is_batch: bool = True) -> Callable[[int], object]:
    volume = volume_of(case)
    foreground = case.lesion_voxels.astype(np.int64)
    volume |= {
        "foreground": foreground,
        "background": np.setdiff1d(case.foreground_voxels, foreground).astype(np.int64),
    }
    crop = mt.RandCropByPosNegLabeld(
        ["image", "label"],
        "label",
        (SIDE,) * 3,
        pos=1,
        neg=1,
        fg_indices_key="foreground",
        bg_indices_key="background",
    )
    dataset = CacheDataset([volume], mt.Compose([crop]), copy_cache=False, progress=False)
    if not is_batch:
        return lambda _: dataset[0]

    def fetch(_: int) -> object:
        patch = dataset[0][0]
        return as_batch(patch["image"].as_tensor(), patch["label"].as_tensor())

    return fetch


def torchio_patches(case: PreparedCase) -> Callable[[int], object]:
    volume = volume_of(case)
    subject = torchio.Subject(
        image=torchio.ScalarImage(tensor=volume["image"]),
        label=torchio.LabelMap(tensor=volume["label"]),
    )
    sampler = torchio.LabelSampler(SIDE, "label", {0: 0.5, 1: 0.5})
    queue = torchio.Queue(
        torchio.SubjectsDataset([subject]), 8, 8, sampler, num_workers=0, start_background=False
    )

    def fetch(_: int) -> object:
        patch = queue[0]
        return as_batch(patch["image"].data, patch["label"].data)

    return fetch


def matched_monai(p: Mapping[str, float]) -> list[Any]:
    def each_channel(make: Callable[[], Any]) -> Any:
        """Channels are changed independently, as in the other tools."""
        transforms = [make() for _ in CHANNELS]
        return mt.Lambdad(
            "image",
            lambda x: torch.stack([t(c[None])[0] for t, c in zip(transforms, x, strict=True)]),
        )

    angle = (np.radians(15),) * 3
    makers: dict[str, Callable[[], Any]] = {
        "bias": lambda: mt.RandBiasField(3, (-0.1, 0.1), prob=p["bias"]),
        "blur": lambda: mt.RandGaussianSmooth((0, 1), (0, 1), (0, 1), prob=p["blur"]),
        "low resolution": lambda: mt.RandSimulateLowResolution(
            p["low resolution"], zoom_range=(0.5, 1.0)
        ),
        "gamma": lambda: mt.RandAdjustContrast(p["gamma"], (0.67, 1.5)),
        "noise": lambda: mt.RandGaussianNoise(p["noise"], std=0.15),
    }
    steps: list[Any] = []
    if p.get("affine"):
        keys, mode = ["image", "label"], ("bilinear", "nearest")
        best = {"spatial_size": (SIDE,) * 3, "cache_grid": True}
        steps.append(
            mt.RandAffined(
                keys, prob=p["affine"], rotate_range=angle, mode=mode, padding_mode="zeros", **best
            )
        )
    if p.get("flip"):
        steps += [mt.RandFlipd(["image", "label"], p["flip"], axis) for axis in range(3)]
    return steps + [each_channel(make) for name, make in makers.items() if p.get(name)]


def matched_torchio(p: Mapping[str, float]) -> Callable[[torchio.Subject], Any]:
    makers: dict[str, Callable[[], Any]] = {
        "bias": lambda: torchio.RandomBiasField(0.1, 3, p=p["bias"]),
        "blur": lambda: torchio.RandomBlur((0, 1), p=p["blur"]),
        "low resolution": lambda: torchio.RandomAnisotropy(
            (0, 1, 2), (1, 2), p=p["low resolution"]
        ),
        "gamma": lambda: torchio.RandomGamma(0.4, p=p["gamma"]),
        "noise": lambda: torchio.RandomNoise(0, (0, 0.15), p=p["noise"]),
    }
    both: list[Any] = []
    if p.get("affine"):
        both.append(torchio.RandomAffine(0, 15, p=p["affine"], default_pad_value=0))
    if p.get("flip"):
        both.append(torchio.RandomFlip((0, 1, 2), flip_probability=p["flip"]))
    each = [make() for name, make in makers.items() if p.get(name)]

    def apply(subject: torchio.Subject) -> Any:
        for transform in both:
            subject = transform(subject)
        for transform in each:  # channels independently
            channels = [
                transform(torchio.ScalarImage(tensor=c[None])).data for c in subject["image"].data
            ]
            subject["image"].set_data(torch.cat(channels))
        return subject

    return apply
