"""Segment cases with a trained network. `python predict.py --help` says what can be set."""

from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from tversky_seg import config
from tversky_seg.checkpoints import CheckpointError, checksum, load_checkpoint
from tversky_seg.data.cases import DataError, cases_from_input
from tversky_seg.data.preprocessing import Preprocessing
from tversky_seg.devices import autocast, pick_device, place, use_threads
from tversky_seg.inference import Inference, predict_cases


@config.verb("predict")
def predict(cfg: DictConfig) -> int:
    """Load the network, find the cases, write mask, probability and lesion table of each."""
    settings = config.plain(cfg)
    asked = {name: value for name, value in settings["inference"].items() if value is not None}
    config.check_arguments("inference", asked, Inference)
    if settings["input"] is None:
        raise config.ConfigError("input: none given; expected {MODALITY: file, ...}, a manifest CSV or a folder")
    use_threads(settings["threads"])
    device = pick_device(settings["device"])
    autocast(device, settings["precision"])  # refuses another precision

    path = Path(str(settings["checkpoint"])).expanduser()
    checkpoint = load_checkpoint(path)
    if not {"config", "preprocessing", "inference", "threshold"} <= set(checkpoint):
        raise CheckpointError(f"{path}: was not written by train.py; expected <run>/checkpoints/best.pt")
    try:
        preprocessing = Preprocessing.from_dict(checkpoint["preprocessing"])
        inference = replace(Inference(**checkpoint["inference"]), threshold=checkpoint["threshold"])
        network = config.build_network(checkpoint["config"], preprocessing=preprocessing, trust=settings["trust"])
        network.load_state_dict(checkpoint["model"])
    except (TypeError, AttributeError, RuntimeError) as fault:
        raise CheckpointError(f"{path}: its parts do not fit each other; expected a file of train.py") from fault
    network = place(network, device)
    inference = replace(inference, **asked)
    config.logger.info("threshold %s, smallest lesion %g mm3", inference.threshold, inference.min_volume_mm3)

    cases = cases_from_input(settings["input"], modalities=preprocessing.modalities, case_id=settings["case_id"])
    faults = predict_cases(
        network,
        cases,
        preprocessing,
        Path(str(settings["output_dir"])).expanduser(),
        inference=inference,
        checksum=checksum(path),
        device=device,
        precision=settings["precision"],
    )
    if len(faults) == len(cases):
        raise DataError.gather(map(DataError, faults.values()))
    if faults:
        config.logger.error("%d of %d cases failed: %s", len(faults), len(cases), ", ".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    predict()
