"""Batches that tests share: cases in memory, with lesions."""

from dataclasses import fields

import numpy as np
import torch

from tversky_seg.data.grids import Geometry
from tversky_seg.data.patches.augmentation import Augmentation
from tversky_seg.data.patches.batch import Batch
from tversky_seg.data.patches.batches import PatchBatches
from tversky_seg.data.patches.samplers import LesionSampler
from tversky_seg.data.preprocessing.labels import list_lesions
from tversky_seg.data.preprocessing.prepared_case import PreparedCase


def a_case(case_id: str, *, seed: int = 0) -> PreparedCase:
    """A case in memory: noise, two lesions, a brain that is everything."""
    shape = (40, 36, 32)
    image = np.random.default_rng(seed).integers(-9999, 9999, (2, *shape), dtype=np.int16)
    target = np.zeros((1, *shape), bool)
    target[0, 5:9, 5:9, 5:9] = target[0, 30, 30, 30] = True
    lesions, n_lesions = list_lesions(target)
    return PreparedCase(
        case_id=case_id,
        subject_id=case_id,
        geometry=Geometry(shape, np.eye(4), shape, np.eye(4), (0, 0, 0), shape),
        image_scale=np.array([1e-3, 2e-3], np.float32),
        n_lesions=n_lesions,
        arrays={
            "image": image,
            "foreground_voxels": np.arange(image[0].size, dtype=np.int32),
            **lesions,
        },
    )


def some_batches(**settings: object) -> PatchBatches:
    defaults = {
        "cases": [a_case(f"case{i}", seed=i) for i in range(4)],
        "sampler": LesionSampler(patch_size=16),
        "augmentation": Augmentation(),
        "batch_size": 3,
        "seed": 11,
    }
    return PatchBatches(**(defaults | settings))


def as_bytes(batch: Batch) -> bytes:
    parts = []
    for value in vars(batch).values():
        is_tensor = isinstance(value, torch.Tensor)
        parts.append(value.numpy().tobytes() if is_tensor else repr(value).encode())
    return b"".join(parts)


def changed_batches(**settings: object) -> PatchBatches:
    """Every kind of change, in most patches."""
    probabilities = {
        field.name: 0.7 for field in fields(Augmentation) if field.name.endswith("_probability")
    }
    probabilities["dropout_probability"] = 0.2
    return some_batches(augmentation=Augmentation(**probabilities), **settings)
