"""From a trained network to masks: cases on their own grid, many cases into one folder."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import PROBABILITY_SCALE
from tversky_seg.data.preprocessing.pipeline import (
    Geometry,
    PreparedCase,
    Preprocessing,
    preprocess,
    to_input_grid,
)
from tversky_seg.inference.ensemble import Ensemble, Member
from tversky_seg.inference.operating_point import check_goal
from tversky_seg.inference.prediction_folder import (
    LesionTable,
    claim_folder,
    is_written,
    read_lesions,
    write_prediction,
)
from tversky_seg.inference.sliding_window import (
    Window,
    check_windows,
    gaussian_window,
    predict_volume,
    spline_window,
)
from tversky_seg.inference.tta import views
from tversky_seg.runtime.progress import Reporter

__all__ = [
    "Inference",
    "gaussian_window",
    "predict_case",
    "predict_cases",
    "predict_volume",
    "spline_window",
]

logger = logging.getLogger("tversky_seg")


@dataclass(frozen=True)
class Inference:
    """How volumes are predicted and masks are made: plain values, kept with the checkpoint.

    Args:
        patch_size: Sides of a window in voxels, one number or three; "whole": the volume in one window where memory
            allows; None: those of training.
        overlap: Share of a window's side that the next one covers again, in [0, 1).
        window: Weights of a window's voxels: "bspline", "gaussian" or "uniform".
        spline_order: Of the bspline window; 2 is that of Hashemi et al. (arXiv:1803.11078).
        tta: Views of each window whose mean is taken: "none", "rotations180" (four), "flips8", or a list of views, as
            [none, x, yz]; see `views.views`.
        batch_size: Windows, or views of them, that go through the network together.
        goal: What threshold and smallest lesion are chosen for on validation: "dice", "f2", "lesion_f1", "recall=0.9"
            (of voxels) or "lesion_recall=0.9"; see `operating_point`.
        threshold: Probability from which a voxel belongs to the mask, in [0, 1], or one for each class; None: as chosen
            on validation, else 0.5.
        min_volume_mm3: Smaller lesions are taken out of the mask, one size or one for each class; None: as chosen on
            validation, else 0.

    Raises:
        ValueError: A value out of its range.
    """

    patch_size: int | Sequence[int] | str | None = None
    overlap: float = 0.5
    window: str = "bspline"
    spline_order: int = 2
    tta: str | Sequence[str] = "none"
    batch_size: int = 2
    goal: str = "dice"
    threshold: float | Mapping[str, float] | None = None
    min_volume_mm3: float | Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Refuse a wrong value before any data are read."""
        check_windows(self.patch_size, self.overlap, self.window, self.batch_size)
        views(self.tta)
        check_goal(self.goal)
        if self.spline_order < 1:
            raise ValueError(f"spline_order must be >= 1, got {self.spline_order}")
        for threshold in _values(self.threshold):
            if not 0 <= threshold <= 1:
                raise ValueError(f"threshold must lie in [0, 1], got {threshold}")
        for volume in _values(self.min_volume_mm3):
            if not volume >= 0:
                raise ValueError(f"min_volume_mm3 must be >= 0, got {volume}")

    @property
    def windows(self) -> dict[str, Any]:
        """The arguments of `predict_volume` that are set here."""
        splined = self.window == "bspline" and self.spline_order != 2
        window: Window = partial(spline_window, order=self.spline_order) if splined else self.window
        names = ("patch_size", "overlap", "batch_size", "tta")
        return {"window": window} | {name: getattr(self, name) for name in names}

    def threshold_of(self, class_name: str) -> float:
        """The threshold of a class; 0.5 where none was chosen."""
        return _value_of(class_name, self.threshold, default=0.5)

    def min_volume_of(self, class_name: str) -> float:
        """The smallest lesion of a class in mm3; 0 where none was chosen."""
        return _value_of(class_name, self.min_volume_mm3, default=0.0)

    def with_operating_point(self, chosen: Mapping[str, Any]) -> "Inference":
        """With what validation chose, as a checkpoint holds it, for the threshold and the size that are not set."""
        threshold = chosen.get("threshold") if self.threshold is None else self.threshold
        smallest = (
            chosen.get("min_volume_mm3") if self.min_volume_mm3 is None else self.min_volume_mm3
        )
        return replace(self, threshold=threshold, min_volume_mm3=smallest)


def _values(setting: float | Mapping[str, float] | None) -> list[float]:
    values = setting.values() if isinstance(setting, Mapping) else [setting]
    return [value for value in values if value is not None]


def _value_of(
    class_name: str, setting: float | Mapping[str, float] | None, *, default: float
) -> float:
    value = setting.get(class_name) if isinstance(setting, Mapping) else setting
    return default if value is None else value


def predict_case(
    network: nn.Module | Ensemble,
    prepared: PreparedCase,
    *,
    device: torch.device | str | None = None,
    precision: str = "fp32",
    **windows: Any,
) -> NDArray[np.float32]:
    """Probability (K, X, Y, Z) of a case on the grid of its own file: shape, affine and orientation of the input.

    Windows without any brain are skipped; outside the crop around the brain the probability is 0.

    Args:
        network: A network with the `windows` below, or several as an ensemble, which has its own.
        prepared: The case.
        device: Where to compute; None: where the network is.
        precision: As in `predict_volume`.
        windows: As in `predict_volume`: patch_size, overlap, window, batch_size, tta.
    """
    ensemble = network if isinstance(network, Ensemble) else Ensemble([Member(network, windows)])
    probability, _ = ensemble.predict(prepared, device=device, precision=precision)
    moved = _on_input_grid(probability, prepared.geometry)
    if len(probability) == 1:
        return next(moved)[None]
    return np.stack([*moved])


def predict_cases(
    network: nn.Module | Ensemble,
    cases: Sequence[Case],
    preprocessing: Preprocessing,
    output_dir: Path,
    *,
    inference: Inference,
    checksum: str = "",
    device: torch.device | str | None = None,
    precision: str = "fp32",
) -> dict[str, str]:
    """Predict many cases into one folder: masks, probabilities, lesions.csv and predictions.json.

    Cases whose files are there are not computed again; a case that fails does not stop the others, and is listed in the
    log when all are done. Labels are not read. A modality that a case does not have is 0 throughout. lesions.csv is
    complete after every call, whatever was stopped before.

    Args:
        network: Trained network, or several.
        cases: What to predict.
        preprocessing: As in training.
        output_dir: Made where it is missing.
        inference: Threshold and smallest lesion, and a single network's windows; its `patch_size` must be set.
        checksum: Of a single network's checkpoint, kept in predictions.json.
        device: Where to compute; None: where the network is.
        precision: As in `predict_volume`.

    Returns:
        The faults: case_id -> one line. Empty when all cases are written.

    Raises:
        DataError: The folder holds predictions of another checkpoint or other settings, or cannot be written.
        ValueError: `inference.patch_size` is None.
    """
    if inference.patch_size is None:
        raise ValueError("inference.patch_size must be set to predict, got None")
    if not isinstance(network, Ensemble):
        network = Ensemble([Member(network, inference.windows, checksum)])
    classes = tuple(preprocessing.classes)
    resumes = claim_folder(output_dir, _settings(network, preprocessing, inference))
    table = LesionTable(output_dir, n_classes=len(classes), resumes=resumes)
    has_all = partial(is_written, classes=classes, with_uncertainty=network.uncertainty is not None)
    where = {"device": device, "precision": precision}
    faults: dict[str, str] = {}
    with Reporter("predict", total=len(cases)) as reporter:
        for case in cases:
            try:
                is_done = resumes and has_all(output_dir, case.case_id)
                rows = table.known(case.case_id) if is_done else None
                if is_done and rows is None:
                    find_brain = partial(_find_brain, case, preprocessing)
                    rows = read_lesions(
                        output_dir, case.case_id, classes=classes, find_brain=find_brain
                    )
                if rows is None:
                    rows = _predict_into(
                        output_dir, network, case, preprocessing, inference, **where
                    )
                table.add(case.case_id, rows)
            except Exception as error:
                kind = "" if isinstance(error, DataError) else f"{type(error).__name__}: "
                faults[case.case_id] = " ".join(f"{case.case_id}: {kind}{error}".split())
                logger.debug("%s", faults[case.case_id], exc_info=True)
            reporter.advance(case.case_id + " failed" * (case.case_id in faults))
    table.write([case.case_id for case in cases], failed=faults)
    if 0 < len(faults) < len(cases):
        logger.error(
            "%d of %d cases failed: %s", len(faults), len(cases), "\n".join(faults.values())
        )
    return faults


def prepare_input(case: Case, preprocessing: Preprocessing) -> PreparedCase:
    """A case as the network sees it, without its label; 0 throughout the channel of a modality that it does not have.

    The first modality that is there gives the grid.

    Raises:
        DataError: As `preprocess`.
    """
    there = tuple(name for name in preprocessing.modalities if name in case.images)
    prepared = preprocess(replace(case, labels=()), replace(preprocessing, modalities=there))
    if there == preprocessing.modalities:
        return prepared
    places = [preprocessing.modalities.index(name) for name in there]
    n_channels = len(preprocessing.modalities)
    image = np.zeros((n_channels, *prepared.image.shape[1:]), prepared.image.dtype)
    scale = np.ones(n_channels, np.float32)
    image[places], scale[places] = prepared.image, prepared.image_scale
    return replace(prepared, image_scale=scale, arrays={**prepared.arrays, "image": image})


def _predict_into(
    output_dir: Path,
    ensemble: Ensemble,
    case: Case,
    preprocessing: Preprocessing,
    inference: Inference,
    **where: Any,
) -> list[dict[str, Any]]:
    """Write the files of one case; returns its rows of lesions.csv."""
    classes = tuple(preprocessing.classes)
    prepared = prepare_input(case, preprocessing)
    geometry = prepared.geometry
    probability, uncertainty = ensemble.predict(prepared, **where)
    return write_prediction(
        output_dir,
        case.case_id,
        _on_input_grid(probability, geometry),
        geometry.input_affine,
        classes=classes,
        threshold={name: inference.threshold_of(name) for name in classes},
        min_volume_mm3={name: inference.min_volume_of(name) for name in classes},
        uncertainty=None if uncertainty is None else _on_input_grid(uncertainty, geometry),
        brain=_brain(prepared),
    )


def _find_brain(case: Case, preprocessing: Preprocessing) -> NDArray[np.bool_]:
    return _brain(prepare_input(case, preprocessing))


def _brain(prepared: PreparedCase) -> NDArray[np.bool_]:
    """(X, Y, Z): the brain on the file's own grid."""
    return np.asarray(
        to_input_grid(prepared.foreground.astype(np.float32), prepared.geometry) > 0.5
    )


def _on_input_grid(volumes: Tensor, geometry: Geometry) -> Iterator[NDArray[np.float32]]:
    """Class by class, (X, Y, Z) in [0, 1] from the network's grid on the file's own."""
    for from_network in volumes.numpy():
        moved = to_input_grid(from_network, geometry)
        yield np.clip(moved, 0, 1, out=moved)


def _settings(
    ensemble: Ensemble, preprocessing: Preprocessing, inference: Inference
) -> dict[str, Any]:
    """What predictions.json says of a folder."""
    classes = tuple(preprocessing.classes)
    patch_size = inference.patch_size
    return {
        "checkpoint": _one([member.checksum for member in ensemble.members]),
        "classes": {name: list(values) for name, values in preprocessing.classes.items()},
        "background_values": list(preprocessing.crop_values) or None,
        "threshold": _one({name: inference.threshold_of(name) for name in classes}),
        "min_volume_mm3": _one({name: inference.min_volume_of(name) for name in classes}),
        "probability_scale": PROBABILITY_SCALE,
        "window": inference.window,
        "spline_order": inference.spline_order if inference.window == "bspline" else None,
        "overlap": inference.overlap,
        "patch_size": patch_size if isinstance(patch_size, int | str | None) else list(patch_size),
        "tta": inference.tta if isinstance(inference.tta, str) else list(inference.tta),
        "combine": ensemble.combine if len(ensemble.members) > 1 else None,
        "uncertainty": ensemble.uncertainty,
    }


def _one(values: Any) -> Any:
    """The value itself where there is one."""
    several = values.values() if isinstance(values, Mapping) else values
    return values if len(several) > 1 else next(iter(several))
