"""Export a trained network, checked against prediction, or predictions, to other programs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tversky_seg import config
from tversky_seg.data.errors import DataError
from tversky_seg.export.export_network import (
    DESCRIPTION_FILE,
    TOLERANCE,
    difference_from_file,
    export_network,
    window_sides,
)
from tversky_seg.export.monai_bundle import difference_from_bundle, write_bundle
from tversky_seg.export.network_file import FORMATS
from tversky_seg.export.saved_predictions import (
    LAYOUTS,
    read_predictions,
    write_bids,
    write_nnunet,
)
from tversky_seg.inference.output_errors import writing
from tversky_seg.inference.segmenter import Segmenter
from tversky_seg.report.labels import count
from tversky_seg.runtime.devices import use_threads
from tversky_seg.runtime.files import new_folder

MONAI = "monai"


def export(cfg: DictConfig) -> int:
    """Write the network and check it, or write predictions."""
    settings = config.plain(cfg)
    file_format = settings["format"]
    if file_format in LAYOUTS:
        return export_predictions(settings)
    if file_format not in (*FORMATS, MONAI):
        expected = ", ".join([*FORMATS, MONAI, *LAYOUTS])
        raise config.ConfigError(f"format: {file_format}; expected one of {expected}")
    if settings["run"] is None or settings["predictions"] is not None:
        raise config.ConfigError(
            f"run: format={file_format} writes a network; expected run= a run folder or a "
            "checkpoint, and no predictions="
        )
    output = check_is_new(settings["output"])
    images = images_of(settings["input"])
    use_threads(settings["threads"])
    segmenter = load_on_cpu(settings)
    # The folder appears once it is complete and checked.
    with writing(output), new_folder(output) as folder:
        if file_format == MONAI:
            difference = export_bundle(segmenter, folder, images, settings=settings)
        else:
            path = export_network(segmenter, folder, file_format=file_format)
            difference = difference_from_file(segmenter, path, images)
        check_difference(difference, output)
    config.logger.info("wrote %s; largest difference from predict %.1e", output, difference)
    if file_format != MONAI:
        config.logger.info("%s says how to use it", output / DESCRIPTION_FILE)
    return 0


def export_bundle(
    segmenter: Segmenter,
    folder: Path,
    images: Mapping[str, Path] | None,
    *,
    settings: Mapping[str, Any],
) -> float:
    """Write a MONAI bundle, run it, and return its largest difference from predict."""
    sides = window_sides(segmenter)
    write_bundle(
        segmenter, folder, sides=sides, settings=own_windows(settings), trust=settings["trust"]
    )
    return difference_from_bundle(segmenter, folder, images, sides=sides)


def export_predictions(settings: Mapping[str, Any]) -> int:
    """Write a folder of predictions in the layout of another program."""
    if settings["predictions"] is None or settings["run"] is not None:
        raise config.ConfigError(
            f"predictions: format={settings['format']} writes predictions; expected predictions= "
            "the output_dir of predict, and no run="
        )
    predictions = read_predictions(Path(str(settings["predictions"])).expanduser())
    output = check_is_new(settings["output"])
    with writing(output), new_folder(output) as folder:
        if settings["format"] == "bids":
            write_bids(predictions, folder)
        else:
            write_nnunet(predictions, folder)
    config.logger.info("wrote %s to %s", count(len(predictions.records), "case"), output)
    return 0


def load_on_cpu(settings: Mapping[str, Any]) -> Segmenter:
    """Load the networks, on the CPU in fp32: there all is plain torch, and sums are exact."""
    return Segmenter.load(
        settings["run"],
        device="cpu",
        precision="fp32",
        trust=settings["trust"],
        **own_windows(settings),
    )


def own_windows(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of inference that replace the checkpoint's."""
    if settings["patch_size"] is None:
        return {}
    return {"patch_size": settings["patch_size"]}


def check_is_new(name: Any) -> Path:
    """Return the folder that the export is to become.

    Raises:
        DataError: It holds files already.
    """
    folder = Path(str(name)).expanduser()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise DataError(folder, "exists already", "name another output, or remove it")
    return folder


def images_of(setting: Any) -> dict[str, Path] | None:
    """Return the files of the case to check with; None if none is given.

    Raises:
        ConfigError: It is no mapping of modality to file.
    """
    if setting is None:
        return None
    if not isinstance(setting, Mapping):
        raise config.ConfigError(f"input: {setting}; expected {{MODALITY: file, ...}}")
    return {str(name): Path(str(path)).expanduser() for name, path in setting.items()}


def check_difference(difference: float, output: Path) -> None:
    """Check the largest difference of probabilities.

    Raises:
        DataError: It is larger than `TOLERANCE`, or not a number.
    """
    # Not >: NaN is to fail, too.
    if not difference <= TOLERANCE:
        raise DataError(
            output,
            f"its probabilities would differ from predict's by {difference:.1e}",
            f"expected at most {TOLERANCE:g}; nothing was written",
        )
