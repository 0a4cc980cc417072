"""MONAI bundle of trained networks: `python -m monai.bundle run` predicts with it."""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import tversky_seg
from tversky_seg.data.nifti import read_volume
from tversky_seg.export.description import inference_steps, preprocessing_steps
from tversky_seg.export.example_case import write_example_case
from tversky_seg.inference.output_errors import writing
from tversky_seg.inference.prediction_folder import prediction_files
from tversky_seg.inference.segmenter import Segmenter
from tversky_seg.runtime.files import write_json, write_text

SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
EXAMPLE = "example"


def write_bundle(
    segmenter: Segmenter,
    folder: Path,
    *,
    sides: Sequence[int],
    settings: Mapping[str, Any],
    trust: Sequence[str] = (),
) -> None:
    """Write a bundle: configs/inference.json, configs/metadata.json, models/, docs/README.md.

    Images, windows and masks are those of this package, which the bundle needs; MONAI's transforms
    resample and weigh windows otherwise.

    Args:
        segmenter: The networks.
        folder: Folder to write to.
        sides: Sides of a window in voxels.
        settings: Settings of `Inference` that replace the checkpoints'.
        trust: Packages of your own whose networks the checkpoints name.

    Raises:
        DataError: A file cannot be written.
    """
    names = ["model.pt"]
    if len(segmenter.models) > 1:
        names = [f"model_{number}.pt" for number in range(len(segmenter.models))]
    for name, model in zip(names, segmenter.models, strict=True):
        with writing(folder / "models" / name):
            shutil.copyfile(model.path, folder / "models" / name)
    files = {
        "configs/inference.json": _inference(segmenter, names, settings, trust),
        "configs/metadata.json": _metadata(segmenter, sides),
    }
    for file, content in files.items():
        with writing(folder / file):
            write_json(folder / file, content)
    with writing(folder / "docs" / "README.md"):
        write_text(folder / "docs" / "README.md", _readme(segmenter, sides))


def difference_from_bundle(
    segmenter: Segmenter, folder: Path, images: Mapping[str, Path] | None, *, sides: Sequence[int]
) -> float:
    """Predict a case with the networks and by MONAI, and return the largest difference.

    Args:
        segmenter: The networks, on the CPU in fp32.
        folder: The bundle.
        images: Modality -> file of a case; None: an example of noise.
        sides: Sides of a window in voxels.
    """
    from monai.bundle.scripts import run

    with tempfile.TemporaryDirectory() as scratch:
        scans = Path(scratch) / "scans" / EXAMPLE
        if images is None:
            images = write_example_case(scans, segmenter.preprocessing, sides=sides)
        own = segmenter(images)
        # MONAI and what it imports have remarks of their own.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
            try:
                run(
                    config_file=str(folder / "configs" / "inference.json"),
                    bundle_root=str(folder),
                    input={name: str(path) for name, path in images.items()},
                    output_dir=f"{scratch}/masks",
                    device="cpu",
                    precision="fp32",
                )
            finally:
                logging.disable(logging.NOTSET)
        files = prediction_files(Path(scratch) / "masks", own.case_id, segmenter.classes)
        differences = []
        for name, of_class in own.by_class.items():
            by_monai = read_volume(files[name].probability).data
            differences.append(np.abs(by_monai - of_class.probability).max())
    return float(max(differences))


def _inference(
    segmenter: Segmenter, names: Sequence[str], settings: Mapping[str, Any], trust: Sequence[str]
) -> dict[str, Any]:
    """Write down what `monai.bundle run` does."""
    preprocessing = segmenter.preprocessing
    # These tools take a single network; of an ensemble they get the first.
    model = segmenter.models[0].config.get("model") or {}
    channels = {
        "in_channels": len(preprocessing.modalities),
        "out_channels": len(preprocessing.classes),
    }
    return {
        "imports": [],
        "bundle_root": ".",
        # Only where the command line gives none.
        "input": "$@bundle_root + '/scans'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "auto",
        "precision": "auto",
        "checkpoints": [f"$@bundle_root + '/models/{name}'" for name in names],
        # For MONAI's tools that want the network alone, such as verify_net_in_out and ckpt_export.
        "network_def": {**model, **channels},
        "segmenter": {
            "_target_": "tversky_seg.Segmenter.load",
            "checkpoint": "@checkpoints",
            "device": "@device",
            "precision": "@precision",
            "trust": list(trust),
            **settings,
        },
        "run": ["$@segmenter.predict(@input, @output_dir)"],
    }


def _metadata(segmenter: Segmenter, sides: Sequence[int]) -> dict[str, Any]:
    preprocessing = segmenter.preprocessing
    classes = list(preprocessing.classes)
    modalities = list(preprocessing.modalities)
    package = f"tversky-seg {tversky_seg.__version__}"
    steps = [
        *preprocessing_steps(preprocessing),
        *inference_steps(segmenter.inference, sides, classes),
    ]
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": "MR",
        **_data_format(modalities, sides),
    }
    logits = {"type": "image", "format": "segmentation", **_data_format(classes, sides)}
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported by {package}"},
        "monai_version": metadata.version("monai"),
        "pytorch_version": metadata.version("torch"),
        "numpy_version": metadata.version("numpy"),
        "required_packages_version": {"tversky-seg": tversky_seg.__version__},
        "name": f"{'-'.join(classes)} segmentation",
        "task": f"Segmentation of {', '.join(classes)} in {', '.join(modalities)}",
        "description": " ".join(f"{number}. {step}." for number, step in enumerate(steps, 1)),
        "authors": "Trained by the owner of this bundle",
        "copyright": "See the owner of this bundle",
        "intended_use": "Research use; not a medical device",
        "checkpoints_sha256": [model.checksum for model in segmenter.models],
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": logits}},
    }


def _data_format(channels: Sequence[str], sides: Sequence[int]) -> dict[str, Any]:
    """Describe the tensor of a patch, in the words of MONAI's schema."""
    return {
        "num_channels": len(channels),
        "spatial_shape": list(sides),
        "dtype": "float32",
        "value_range": [],
        # The network sees windows, and never a whole volume.
        "is_patch_data": True,
        "channel_def": {str(number): name for number, name in enumerate(channels)},
    }


def _readme(segmenter: Segmenter, sides: Sequence[int]) -> str:
    preprocessing = segmenter.preprocessing
    steps = [
        *preprocessing_steps(preprocessing),
        *inference_steps(segmenter.inference, sides, tuple(preprocessing.classes)),
    ]
    lines = [
        f"# Segmentation of {', '.join(preprocessing.classes)}",
        "",
        f"Exported by tversky-seg {tversky_seg.__version__}, which it needs: "
        "`pip install tversky-seg fire`. Research use; not a medical device.",
        "",
        "```bash",
        "python -m monai.bundle run --config_file configs/inference.json --bundle_root . "
        "--input scans --output_dir masks",
        "```",
        "",
        f"`scans` is a folder of `<case_id>_{'|'.join(preprocessing.modalities)}.nii.gz`, a "
        "manifest, or a BIDS folder. `--device` is auto, cpu or cuda; `--precision` auto, fp32, "
        "bf16 or fp16.",
        "",
        "What it computes:",
        "",
        *(f"{number}. {step}" for number, step in enumerate(steps, start=1)),
        "",
    ]
    return "\n".join(lines)
