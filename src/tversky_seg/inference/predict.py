"""Prediction: from a trained network to masks of cases, each on its own grid, in one folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.grids import Geometry, to_input_grid
from tversky_seg.data.nifti import PROBABILITY_SCALE
from tversky_seg.data.preprocessing.pipeline import Preprocessing, preprocess
from tversky_seg.data.preprocessing.prepared_case import PreparedCase
from tversky_seg.inference.case_records import CaseRecords, input_states
from tversky_seg.inference.ensemble import Ensemble, Member
from tversky_seg.inference.lesion_table import write_lesion_table
from tversky_seg.inference.prediction_folder import (
    LESIONS_FILE,
    check_file_names,
    claim_folder,
    prediction_files,
    write_prediction,
)
from tversky_seg.inference.prediction_jobs import exclusive, running_job
from tversky_seg.inference.settings import Inference
from tversky_seg.inference.sliding_window import SlidingWindow
from tversky_seg.metrics.averages import unwrap_single
from tversky_seg.runtime.progress import Reporter

logger = logging.getLogger("tversky_seg")


def predict_case(
    network: nn.Module | Ensemble,
    prepared: PreparedCase,
    *,
    windows: SlidingWindow | None = None,
    device: torch.device | str | None = None,
    precision: str = "fp32",
) -> NDArray[np.float32]:
    """Predict a case on the grid of its own file: shape, affine and orientation of the input.

    Windows without any brain are skipped; outside the crop around the brain the probability is 0.

    Args:
        network: A network, or several as an ensemble.
        prepared: The case.
        windows: Sliding window of a single network; members of an ensemble have their own.
        device: Device to compute on; None: the network's own.
        precision: "fp32", "tf32", "bf16" or "fp16" inside the network.

    Returns:
        Probability (K, X, Y, Z) float32.

    Raises:
        ValueError: A single network without `windows`.
    """
    if not isinstance(network, Ensemble):
        if windows is None:
            raise ValueError("windows must be given for a single network, got None")
        network = Ensemble([Member(network, windows)])
    probability, _ = network.predict(prepared, device=device, precision=precision)
    maps = list(_on_input_grid(probability, prepared.geometry))
    if len(maps) == 1:
        return maps[0][None]  # without the copy that stacking makes
    return np.stack(maps)


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

    Cases that are predicted already are skipped, unless an input file has another path, size or
    time than then. A case that fails does not stop the others; all that failed are logged at the
    end. Labels are not read. A modality that a case lacks is 0 throughout. lesions.csv is complete
    after every call, even if an earlier one was interrupted.

    Args:
        network: Trained network, or several as an ensemble.
        cases: Cases to predict.
        preprocessing: Preprocessing of the training.
        output_dir: Folder to write to, made if it is missing.
        inference: Threshold and smallest lesion, and the windows of a single network; its
            `patch_size` must be set.
        checksum: SHA-256 of a single network's checkpoint, kept in predictions.json.
        device: Device to compute on; None: the network's own.
        precision: "fp32", "tf32", "bf16" or "fp16" inside the network.

    Returns:
        case_id -> one line, for each case that failed; empty if all cases are written.

    Raises:
        DataError: The folder holds predictions of another checkpoint or of other settings, another
            process is predicting one of the cases there, two predictions would be one file, or it
            cannot be written.
        ValueError: `inference.patch_size` is None.
    """
    windows = inference.windows
    if not isinstance(network, Ensemble):
        network = Ensemble([Member(network, windows, checksum)])
    settings = _folder_settings(network, preprocessing, inference)
    predictor = _Predictor(
        network, preprocessing, inference, output_dir, device=device, precision=precision
    )
    case_ids = [case.case_id for case in cases]
    check_file_names(case_ids, tuple(preprocessing.classes))
    records = CaseRecords(output_dir)
    with running_job(output_dir, case_ids):
        # Jobs of other cases may write into the same folder, so shared files change under a lock.
        with exclusive(output_dir):
            if not claim_folder(output_dir, settings, notes={"precision": precision}):
                records.discard_all()  # nothing says how these predictions were made
        faults = _predict_pending(predictor, cases, records)
        with exclusive(output_dir):
            write_lesion_table(
                output_dir / LESIONS_FILE,
                records.lesions(),
                case_ids=[case_id for case_id in case_ids if case_id not in faults],
                n_classes=len(preprocessing.classes),
            )
    # If all failed, the caller raises an error that says so.
    if 0 < len(faults) < len(cases):
        listing = "\n".join(faults.values())
        logger.error("%d of %d cases failed: %s", len(faults), len(cases), listing)
    return faults


def prepare_input(case: Case, preprocessing: Preprocessing) -> PreparedCase:
    """Prepare a case for the network, without its label; a modality that it lacks is 0 throughout.

    The first modality that the case has gives the grid.

    Raises:
        DataError: As `preprocess`.
    """
    present = tuple(name for name in preprocessing.modalities if name in case.images)
    unlabelled = replace(case, labels=())
    prepared = preprocess(unlabelled, replace(preprocessing, modalities=present))
    if present == preprocessing.modalities:
        return prepared
    # As with channel dropout in training: zeros where a modality is missing.
    channels = [preprocessing.modalities.index(name) for name in present]
    n_channels = len(preprocessing.modalities)
    image = np.zeros((n_channels, *prepared.image.shape[1:]), prepared.image.dtype)
    image[channels] = prepared.image
    scale = np.ones(n_channels, np.float32)
    scale[channels] = prepared.image_scale
    return replace(prepared, image_scale=scale, arrays={**prepared.arrays, "image": image})


@dataclass(frozen=True, eq=False)
class _Predictor:
    """What the predictions of all cases have in common."""

    ensemble: Ensemble
    preprocessing: Preprocessing
    inference: Inference
    output_dir: Path
    device: torch.device | str | None
    precision: str

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.preprocessing.classes)

    def predict(self, case: Case, records: CaseRecords) -> None:
        """Write the files of a case, and its record when they are complete."""
        # Before they are read: a file that changes meanwhile is then predicted again.
        inputs = input_states(case)
        prepared = prepare_input(case, self.preprocessing)
        geometry = prepared.geometry
        probability, uncertainty = self.ensemble.predict(
            prepared, device=self.device, precision=self.precision
        )
        uncertainty_maps = None
        if uncertainty is not None:
            uncertainty_maps = _on_input_grid(uncertainty, geometry)
        lesions = write_prediction(
            self.output_dir,
            case.case_id,
            _on_input_grid(probability, geometry),
            geometry.input_affine,
            classes=self.classes,
            threshold=self.inference.thresholds(self.classes),
            min_volume_mm3=self.inference.min_volumes_mm3(self.classes),
            uncertainty=uncertainty_maps,
            brain=_brain_on_input_grid(prepared),
            like=_image_of_the_grid(case, self.preprocessing),
        )
        files = []
        for of_class in prediction_files(self.output_dir, case.case_id, self.classes).values():
            files += [of_class.probability, of_class.mask]
            if uncertainty is not None:
                files.append(of_class.uncertainty)
        records.write(case.case_id, inputs=inputs, files=files, lesions=lesions)


def _predict_pending(
    predictor: _Predictor, cases: Sequence[Case], records: CaseRecords
) -> dict[str, str]:
    """Predict the cases without a prediction, and return case_id -> one line for each failure."""
    pending = _pending_case_ids(cases, records)
    faults: dict[str, str] = {}
    with Reporter("predict", total=len(cases)) as reporter:
        for case in cases:
            note = case.case_id
            if case.case_id in pending:
                # An error of any kind: one case must not stop the work of a night.
                try:
                    predictor.predict(case, records)
                except Exception as error:
                    faults[case.case_id] = _describe_fault(case, error)
                    logger.debug("%s", faults[case.case_id], exc_info=True)
                    note += " failed"
            reporter.advance(note)
    return faults


def _pending_case_ids(cases: Sequence[Case], records: CaseRecords) -> set[str]:
    """Find the cases to predict: those without a complete prediction of their present inputs."""
    pending = set()
    changed = []
    for case in cases:
        record = records.read(case.case_id)
        if record is None or not records.is_complete(record):
            pending.add(case.case_id)
        elif record.inputs != input_states(case):
            pending.add(case.case_id)
            changed.append(case.case_id)
    if changed:
        logger.warning(
            "predicting %d of %d cases again, since their input files have changed: %s",
            len(changed),
            len(cases),
            first_names(changed),
        )
    return pending


def _image_of_the_grid(case: Case, preprocessing: Preprocessing) -> Path:
    """Return the image whose grid the prediction has: the first modality that the case has."""
    return next(case.images[name] for name in preprocessing.modalities if name in case.images)


def _brain_on_input_grid(prepared: PreparedCase) -> NDArray[np.bool_]:
    """Return the brain on the file's own grid, (X, Y, Z)."""
    foreground = prepared.foreground.astype(np.float32)
    return np.asarray(to_input_grid(foreground, prepared.geometry) > 0.5)


def _on_input_grid(volumes: Tensor, geometry: Geometry) -> Iterator[NDArray[np.float32]]:
    """Resample to the file's own grid, class by class, (X, Y, Z) in [0, 1]."""
    for volume in volumes.numpy():
        resampled = to_input_grid(volume, geometry)
        yield np.clip(resampled, 0, 1, out=resampled)


def first_names(names: Sequence[str], *, n: int = 5) -> str:
    """Write out the first names and count the others: "a, b, c, d, e and 7 more"."""
    text = ", ".join(names[:n])
    if len(names) > n:
        text += f" and {len(names) - n} more"
    return text


def _describe_fault(case: Case, error: Exception) -> str:
    """Describe in one line what stopped the prediction of a case."""
    text = str(error)
    if not isinstance(error, DataError):
        text = f"{type(error).__name__}: {text}"
    return " ".join(f"{case.case_id}: {text}".split())


def _folder_settings(
    ensemble: Ensemble, preprocessing: Preprocessing, inference: Inference
) -> dict[str, Any]:
    """List the settings of a folder for its predictions.json; all must agree to resume it."""
    classes = tuple(preprocessing.classes)
    checksums: str | list[str] = [member.checksum for member in ensemble.members]
    if len(ensemble.members) == 1:
        checksums = ensemble.members[0].checksum
    # Device and precision are no part of it: a job may resume on another machine.
    return {
        "checkpoint": checksums,
        "classes": {name: list(values) for name, values in preprocessing.classes.items()},
        "background_values": list(preprocessing.crop_values) or None,
        "threshold": unwrap_single(inference.thresholds(classes)),
        "min_volume_mm3": unwrap_single(inference.min_volumes_mm3(classes)),
        "probability_scale": PROBABILITY_SCALE,
        "window": inference.window,
        "spline_order": inference.spline_order if inference.window == "bspline" else None,
        "overlap": inference.overlap,
        "patch_size": _plain(inference.patch_size),
        "tta": _plain(inference.tta),
        "combine": ensemble.combine if len(ensemble.members) > 1 else None,
        "uncertainty": ensemble.uncertainty,
    }


def _plain(value: int | str | Sequence[Any] | None) -> Any:
    """Return a sequence as a list, as JSON gives it back."""
    if value is None or isinstance(value, int | str):
        return value
    return list(value)
