"""Segment cases with a trained network or several. `python predict.py --help` lists the settings."""

from pathlib import Path

from omegaconf import DictConfig

from tversky_seg import config
from tversky_seg.data.errors import DataError
from tversky_seg.data.inputs import find_inputs
from tversky_seg.inference.predict import predict_cases
from tversky_seg.inference.settings import Inference
from tversky_seg.inference.trained_model import (
    build_ensemble,
    common_preprocessing,
    find_checkpoints,
    load_trained,
)
from tversky_seg.runtime.devices import autocast, pick_device, use_threads


@config.command("predict")
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
    device = pick_device(settings["device"])
    autocast(device, settings["precision"])

    # Load the networks; several make an ensemble, with their own windows and thresholds unless set.
    paths = find_checkpoints(settings["checkpoint"])
    models = [load_trained(path, trust=settings["trust"]) for path in paths]
    preprocessing = common_preprocessing(models)
    ensemble, inference = build_ensemble(
        models,
        overrides=overrides,
        combine=settings["combine"],
        uncertainty=settings["uncertainty"],
    )
    config.logger.info(
        "threshold %s, smallest lesion %s mm3", inference.threshold, inference.min_volume_mm3
    )

    # Find the cases. Networks trained with channel dropout can do without a modality.
    cases = find_inputs(
        settings["input"],
        modalities=preprocessing.modalities,
        case_id=settings["case_id"],
        may_lack=all(model.allows_missing_modalities for model in models),
    )

    # Predict them into one folder; the cases that fail do not stop the others.
    faults = predict_cases(
        ensemble,
        cases,
        preprocessing,
        Path(str(settings["output_dir"])).expanduser(),
        inference=inference,
        device=device,
        precision=settings["precision"],
    )
    if len(faults) == len(cases):
        raise DataError.gather(map(DataError, faults.values()))
    return 1 if faults else 0


if __name__ == "__main__":
    predict()
