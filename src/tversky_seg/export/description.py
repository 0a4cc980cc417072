"""Description of an exported network: what it takes and gives, for a reader and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import tversky_seg
from tversky_seg.data.preprocessing.modality import MAX_DEVIATIONS
from tversky_seg.data.preprocessing.pipeline import Preprocessing
from tversky_seg.data.settings import STANDARD_LIMITS
from tversky_seg.inference.settings import Inference
from tversky_seg.inference.trained_model import TrainedModel

NORMALIZATIONS = {
    "zscore": "subtract the mean of its foreground and divide by the standard deviation there",
    "robust": "subtract the median of its foreground and divide by the interquartile range there "
    "/ 1.349",
    "percentile": "map the percentiles {limits} of its foreground to 0 and 1, and cut there",
    "window": "map the intensities {limits} to 0 and 1, and cut there",
    "window_minmax": "cut at the intensities {limits}, and map the smallest and the largest of its "
    "foreground after that to 0 and 1",
    "none": "keep the intensities of the file",
}
WINDOWS = {
    "bspline": "a spline of order {order}: along a side of n voxels, with t from 0 (border) to 1 "
    "(centre), t = 2 min(i + 1/2, n - i - 1/2) / n, it is (2t)^{order} / 2 for t <= 1/2, else "
    "1 - (2 - 2t)^{order} / 2; the product of the three sides",
    "gaussian": "exp(-d^2 / 2 (n/8)^2) along each side of n voxels, d voxels from its centre; the "
    "product of the three sides",
    "uniform": "1",
}


def describe(model: TrainedModel, inference: Inference, *, file: str, sides: Sequence[int]) -> Any:
    """Describe an exported network as plain values, for JSON.

    Args:
        model: The network.
        inference: Its windows, threshold, smallest lesion and lowest peak.
        file: Name of the network's file.
        sides: Sides of a window in voxels.
    """
    preprocessing = model.preprocessing
    classes = tuple(preprocessing.classes)
    return {
        "network": file,
        "made_by": f"tversky-seg {tversky_seg.__version__}",
        "checkpoint": {"path": str(model.path), "sha256": model.checksum},
        "input": {
            "name": "image",
            "axes": ["batch", "modality", "R", "A", "S"],
            "shape": ["batch", len(preprocessing.modalities), *sides],
            "type": "float32",
            "modalities": list(preprocessing.modalities),
        },
        "output": {
            "name": "probability",
            "axes": ["batch", "class", "R", "A", "S"],
            "shape": ["batch", len(classes), *sides],
            "type": "float32, in [0, 1] (the sigmoid is inside)",
            "classes": list(classes),
        },
        "steps": [*preprocessing_steps(preprocessing), *inference_steps(inference, sides, classes)],
        "preprocessing": preprocessing.as_dict(),
        "inference": asdict(inference),
    }


def preprocessing_steps(preprocessing: Preprocessing) -> list[str]:
    """Say in order how images become the network's input."""
    # The numbers in use, since a reader elsewhere has none of our defaults.
    limits = preprocessing.limits or STANDARD_LIMITS.get(preprocessing.normalization)
    normalization = NORMALIZATIONS[preprocessing.normalization].format(limits=limits)
    steps = [
        "turn and flip the axes of the first modality's image to run to R, A, S, without "
        "resampling",
        f"lay a grid of {_spacing_text(preprocessing)} over its field of view, about the same "
        "centre; an axis whose voxel size is within 1 % keeps its voxels",
        "bring every image to this grid by the affines, linearly, after a Gaussian blur along axes "
        "that become coarser (FWHM^2 = target^2 - source^2)",
        "foreground of an image: the brain mask if there is one, else the voxels that differ from "
        "the background",
        f"each modality: {normalization}",
    ]
    if preprocessing.normalization in ("zscore", "robust"):
        steps.append(f"cut each modality at -{MAX_DEVIATIONS:g} and {MAX_DEVIATIONS:g}")
    steps.append(
        "set all voxels outside the union of the foregrounds to 0, and crop to the box around it"
    )
    return steps


def inference_steps(
    inference: Inference, sides: Sequence[int], classes: Sequence[str]
) -> list[str]:
    """Say in order how the network's windows become masks."""
    step = [max(int(side * (1 - inference.overlap)), 1) for side in sides]
    weights = WINDOWS[inference.window].format(order=inference.spline_order)
    steps = [
        f"windows of {_times(sides)} voxels start at the first voxel, every {_times(step)} voxels, "
        "the last one pushed back to the border; a smaller volume is padded with 0 on both sides; "
        "windows without foreground are skipped",
        f"views of each window, averaged: {inference.tta}",
        f"probability of a voxel: mean over its windows, weighted by {weights}",
        "bring the probability to the grid of the first modality's file, linearly; 0 outside the "
        "crop",
    ]
    for name in classes:
        temperature = inference.temperature_of(name)
        # A temperature of 1 changes nothing.
        if temperature != 1:
            steps.append(
                f"calibrated probability of {name}: sigmoid(logit(p) / {temperature:.6g}), where p "
                "above 1 - 2^-25 counts as that, and 0 stays 0"
            )
        steps.append(
            f"mask of {name}: probability >= {inference.threshold_of(name):.6g}, without "
            f"26-connected components smaller than {inference.min_volume_of(name):g} mm3 or of a "
            f"highest probability below {inference.min_peak_of(name):.6g}"
        )
    return steps


def _spacing_text(preprocessing: Preprocessing) -> str:
    if preprocessing.spacing_mm is None:
        return "the file's own voxels"
    sizes = ["own" if size is None else f"{size:g}" for size in preprocessing.spacing_mm]
    return f"{' x '.join(sizes)} mm"


def _times(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides))
