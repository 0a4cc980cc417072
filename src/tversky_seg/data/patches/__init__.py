"""Patches: where they are cut, how they are augmented, and how batches are made of them."""

from tversky_seg.data.patches.augmentation import Augmentation
from tversky_seg.data.patches.batch import Batch, Sample
from tversky_seg.data.patches.batches import PatchBatches
from tversky_seg.data.patches.implant import Implant
from tversky_seg.data.patches.loader import load_batches
from tversky_seg.data.patches.paper_samplers import Hashemi2018Sampler, Shirokikh2020Sampler
from tversky_seg.data.patches.samplers import (
    ForegroundSampler,
    GridSampler,
    LesionSampler,
    SizeTemperedSampler,
    UniformSampler,
)
from tversky_seg.data.patches.sampling import Aim, Sampler, draw_patch

__all__ = [
    "Aim",
    "Augmentation",
    "Batch",
    "ForegroundSampler",
    "GridSampler",
    "Hashemi2018Sampler",
    "Implant",
    "LesionSampler",
    "PatchBatches",
    "Sample",
    "Sampler",
    "Shirokikh2020Sampler",
    "SizeTemperedSampler",
    "UniformSampler",
    "draw_patch",
    "load_batches",
]
