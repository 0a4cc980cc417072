"""Export a trained network to a file of another program, and check it against prediction."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tversky_seg import config
from tversky_seg.data.errors import DataError
from tversky_seg.export.export_network import (
    TOLERANCE,
    difference_from_file,
    export_network,
)
from tversky_seg.export.network_file import FORMATS
from tversky_seg.inference.segmenter import Segmenter
from tversky_seg.runtime.devices import use_threads


def export(cfg: DictConfig) -> int:
    """Write the network, and check it."""
    settings = config.plain(cfg)
    if settings["format"] not in FORMATS:
        raise config.ConfigError(
            f"format: {settings['format']}; expected one of {', '.join(FORMATS)}"
        )
    if settings["run"] is None:
        raise config.ConfigError("run: none given; expected a run folder or a checkpoint")
    folder = new_folder(settings["output"])
    images = images_of(settings["input"])
    use_threads(settings["threads"])
    segmenter = load_on_cpu(settings)
    path = export_network(segmenter, folder, file_format=settings["format"])
    config.logger.info("wrote %s and %s", path, path.with_name("network.json"))
    report_difference(difference_from_file(segmenter, path, images), path)
    return 0


def load_on_cpu(settings: Mapping[str, Any]) -> Segmenter:
    """Load the networks, on the CPU in fp32: there all is plain torch, and sums are exact."""
    windows = {}
    if settings["patch_size"] is not None:
        windows["patch_size"] = settings["patch_size"]
    return Segmenter.load(
        settings["run"], device="cpu", precision="fp32", trust=settings["trust"], **windows
    )


def new_folder(name: Any) -> Path:
    """Return a folder to write to.

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


def report_difference(difference: float, path: Path) -> None:
    """Log the largest difference of probabilities.

    Raises:
        DataError: It is larger than `TOLERANCE`, or not a number.
    """
    if not difference <= TOLERANCE:
        raise DataError(
            path,
            f"its probabilities differ from predict's by {difference:.1e}",
            f"expected at most {TOLERANCE:g}; do not use it",
        )
    config.logger.info("checked against predict: largest difference %.1e", difference)
