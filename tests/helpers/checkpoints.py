"""Checkpoints as train.py writes them, of networks that have learnt nothing."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from helpers.cohorts import MODALITIES
from tversky_seg.data.preprocessing.pipeline import Preprocessing
from tversky_seg.inference.settings import Inference
from tversky_seg.models import UNet3D

MODEL = {"_target_": "tversky_seg.models.UNet3D", "width": 4, "n_levels": 2, "prior": 0.5}


def a_checkpoint(
    path: Path,
    seed: int = 0,
    *,
    threshold: float = 0.5,
    temperature: float | None = None,
    dropout: float = 0.0,
    **changed: Any,
) -> Path:
    """As train.py writes it, of a network that has learnt nothing."""
    torch.manual_seed(seed)
    preprocessing = {"modalities": list(MODALITIES), "classes": {"lesion": [1]}, **changed}
    channels = {
        "in_channels": len(preprocessing["modalities"]),
        "out_channels": len(preprocessing["classes"]),
    }
    state = {
        "model": UNet3D(width=4, n_levels=2, prior=0.5, **channels).state_dict(),
        "config": {"model": MODEL, "augmentation": {"dropout_probability": dropout}},
        "preprocessing": Preprocessing(**preprocessing).as_dict(),
        "inference": asdict(Inference(patch_size=16)),
        "threshold": threshold,
        "min_volume_mm3": 9.0,
    }
    if temperature is not None:
        state["temperature"] = temperature
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path
