"""Segment cases with one trained network or several. `python predict.py --help` says what can be set."""

from pathlib import Path

from omegaconf import DictConfig

from tversky_seg import config
from tversky_seg.data.errors import DataError
from tversky_seg.data.inputs import find_inputs
from tversky_seg.inference.predict import Inference, predict_cases
from tversky_seg.inference.trained_model import (
    combine,
    find_checkpoints,
    load_trained,
    require_agreement,
)
from tversky_seg.runtime.devices import autocast, pick_device, use_threads


@config.command("predict")
def predict(cfg: DictConfig) -> int:
    """Load the networks, find the cases, write mask, probability and lesion table of each."""
    settings = config.plain(cfg)
    asked = {name: value for name, value in settings["inference"].items() if value is not None}
    config.check_arguments("inference", asked, Inference)
    Inference(**asked)  # refuses values out of range
    if settings["input"] is None:
        raise config.ConfigError(
            "input: none given; expected {MODALITY: file, ...}, a manifest CSV or a folder"
        )
    use_threads(settings["threads"])
    device = pick_device(settings["device"])
    autocast(device, settings["precision"])  # refuses another precision

    members = [
        load_trained(path, trust=settings["trust"])
        for path in find_checkpoints(settings["checkpoint"])
    ]
    preprocessing = require_agreement(members)
    ensemble, inference = combine(
        members, asked=asked, combination=settings["combine"], uncertainty=settings["uncertainty"]
    )
    config.logger.info(
        "threshold %s, smallest lesion %s mm3", inference.threshold, inference.min_volume_mm3
    )

    cases = find_inputs(
        settings["input"],
        modalities=preprocessing.modalities,
        case_id=settings["case_id"],
        may_lack=all(member.may_lack for member in members),
    )
    output_dir = Path(str(settings["output_dir"])).expanduser()
    where = {"device": device, "precision": settings["precision"]}
    faults = predict_cases(ensemble, cases, preprocessing, output_dir, inference=inference, **where)
    if len(faults) == len(cases):
        raise DataError.gather(map(DataError, faults.values()))
    return 1 if faults else 0


if __name__ == "__main__":
    predict()
