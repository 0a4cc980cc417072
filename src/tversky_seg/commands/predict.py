"""Segment cases with one trained network or several."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tversky_seg import config
from tversky_seg.data.bids_inputs import is_bids
from tversky_seg.data.case import Case
from tversky_seg.data.unused_images import unused_images
from tversky_seg.inference.follow_up import compare_predictions
from tversky_seg.inference.predict import first_names
from tversky_seg.inference.segmenter import Segmenter
from tversky_seg.inference.settings import Inference
from tversky_seg.inference.trained_model import TrainedModel, differing_settings
from tversky_seg.runtime.devices import use_threads


def predict(cfg: DictConfig) -> int:
    """Load the networks, find the cases, write mask, probability and lesion table of each."""
    settings = config.plain(cfg)

    # Check the settings before anything is loaded.
    overrides = {name: value for name, value in settings["inference"].items() if value is not None}
    config.check_arguments("inference", overrides, Inference)
    Inference(**overrides)
    if settings["input"] is None:
        raise config.ConfigError(
            "input: none given; expected {MODALITY: file, ...}, a manifest CSV or a folder"
        )
    use_threads(settings["threads"])

    # Load the networks; several make an ensemble, with their own windows and thresholds unless set.
    segmenter = Segmenter.load(
        settings["checkpoint"],
        device=settings["device"],
        precision=settings["precision"],
        combine=settings["combine"],
        uncertainty=settings["uncertainty"],
        trust=settings["trust"],
        **overrides,
    )
    log_ensemble(segmenter.models, segmenter.inference, combine=settings["combine"])

    # Find the cases. Networks trained with channel dropout can do without a modality.
    cases = segmenter.cases(settings["input"], case_id=settings["case_id"])
    if settings["case_id"] is None:
        log_unused_images(settings["input"], cases, segmenter.modalities)

    # Predict them into one folder; the cases that fail do not stop the others.
    faults = segmenter.predict_cases(cases, str(settings["output_dir"]))

    # Where a subject has an earlier examination among them: what has changed since.
    predicted = [case for case in cases if case.case_id not in faults]
    folder = Path(str(settings["output_dir"])).expanduser()
    compare_predictions(predicted, folder, classes=segmenter.classes)
    return 1 if faults else 0


def log_ensemble(models: Sequence[TrainedModel], inference: Inference, *, combine: str) -> None:
    """Log how many networks predict, how they differ, and what makes masks of their probability."""
    ways = {"mean": "mean probability", "vote": "votes", "lesions": "votes on whole lesions"}
    if len(models) == 1:
        config.logger.info("predicting with one network, %s", models[0].path)
    else:
        config.logger.info("predicting with %d networks: their %s", len(models), ways[combine])
    for key, values in differing_settings(models).items():
        config.logger.warning(
            "the networks differ in %s: %s", key, ", ".join(str(value) for value in values)
        )
    config.logger.info(
        "threshold %s, minimum lesion size %s mm³, minimum peak %s",
        describe_by_class(inference.threshold),
        describe_by_class(inference.min_volume_mm3),
        describe_by_class(inference.min_peak),
    )


def describe_by_class(setting: float | Mapping[str, float] | None) -> str:
    """Write a setting with three digits: 0.869, or "liver 0.869, tumour 0.5"."""
    if not isinstance(setting, Mapping):
        return f"{setting or 0:.3g}"
    return ", ".join(f"{name} {value:.3g}" for name, value in setting.items())


def log_unused_images(source: Any, cases: Sequence[Case], modalities: Sequence[str]) -> None:
    """Log the images of an input folder that belong to no case, and the names that are expected."""
    folder = Path(source).expanduser() if isinstance(source, str) else None
    if folder is None or not folder.is_dir() or is_bids(folder):
        return
    unused = [str(path.relative_to(folder)) for path in unused_images(folder, cases)]
    if unused:
        config.logger.warning(
            "passed over %d images in %s, named neither <case_id>_%s.nii.gz nor "
            "<case_id>/%s.nii.gz: %s",
            len(unused),
            folder,
            "|".join(modalities),
            "|".join(modalities),
            first_names(unused),
        )
