"""Prediction: from a trained network to masks of cases, each on its own grid, in one folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import PROBABILITY_SCALE
from tversky_seg.data.preprocessing.pipeline import Preprocessing
from tversky_seg.data.preprocessing.prepared_case import PreparedCase
from tversky_seg.inference.case_predictor import (
    CasePredictor,
    PredictedCase,
    ReadCase,
    on_input_grid,
)
from tversky_seg.inference.case_records import CaseRecords, input_states
from tversky_seg.inference.ensemble import Ensemble, Member, spread
from tversky_seg.inference.lesion_table import write_lesion_table
from tversky_seg.inference.operating_point import as_settings
from tversky_seg.inference.prediction_folder import (
    LESIONS_FILE,
    check_file_names,
    claim_folder,
    label_values,
)
from tversky_seg.inference.prediction_jobs import exclusive, running_job
from tversky_seg.inference.settings import Inference
from tversky_seg.inference.sliding_window import SlidingWindow, device_of
from tversky_seg.metrics.averages import unwrap_single
from tversky_seg.runtime.overlap import OneBehind, read_ahead
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
    maps = list(on_input_grid(probability, prepared.geometry, temperature=network.temperature))
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
    time than then, or the precision was another. A case that fails does not stop the others; all
    that failed are logged at the end. Labels are not read, unless by
    `inference.crop_labelled`. A modality that a case lacks is 0
    throughout. lesions.csv is complete after every call, even if an earlier one was interrupted.
    While a GPU predicts a case, the next one is read and the last one is written.

    Args:
        network: Trained network, or several as an ensemble.
        cases: Cases to predict.
        preprocessing: Preprocessing of the training.
        output_dir: Folder to write to, made if it is missing.
        inference: Threshold and smallest lesion, and the windows and the temperature of a single
            network; its `patch_size` must be set.
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
        temperatures = tuple(inference.temperatures(preprocessing.classes).values())
        network = Ensemble([Member(network, windows, checksum, temperature=temperatures)])
    records = CaseRecords(output_dir)
    if device is None:
        device = device_of(network.members[0].network)
    predictor = CasePredictor(
        network, preprocessing, inference, records, torch.device(device), precision
    )
    with _filled_folder(predictor, cases) as faults:
        faults.update(_predict_pending(predictor, cases))
    # If all failed, the caller raises an error that says so.
    if 0 < len(faults) < len(cases):
        listing = "\n".join(faults.values())
        logger.error("%d of %d cases failed: %s", len(faults), len(cases), listing)
    return faults


def save_predicted(predictor: CasePredictor, case: Case, predicted: PredictedCase) -> None:
    """Write a case that is predicted already into a folder, as `predict_cases` does.

    Raises:
        DataError: As `predict_cases`.
    """
    with _filled_folder(predictor, [case]):
        predictor.write(case, predicted)


@contextmanager
def _filled_folder(predictor: CasePredictor, cases: Sequence[Case]) -> Iterator[dict[str, str]]:
    """Prepare the predictions folder for some cases; after the block lists their lesions.

    Yields:
        case_id -> one line: the block adds the cases that failed.
    """
    settings = _folder_settings(predictor.ensemble, predictor.preprocessing, predictor.inference)
    case_ids = [case.case_id for case in cases]
    check_file_names(case_ids, predictor.classes)
    records = predictor.records
    output_dir = records.output_dir
    faults: dict[str, str] = {}
    with running_job(output_dir, case_ids):
        # Jobs of other cases may write into the same folder, so shared files change under a lock.
        with exclusive(output_dir):
            if not claim_folder(output_dir, settings, notes=_folder_notes(predictor)):
                records.discard_all()  # nothing says how these predictions were made
            # Cases of earlier calls have files there too.
            check_file_names([*records.case_ids(), *case_ids], predictor.classes)
        yield faults
        with exclusive(output_dir):
            write_lesion_table(
                output_dir / LESIONS_FILE,
                records.lesions(),
                case_ids=[case_id for case_id in case_ids if case_id not in faults],
                n_classes=len(predictor.classes),
            )


class _Progress:
    """Faults of cases and their number done, told by whichever thread ends a case."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.faults: dict[str, str] = {}

    def end(self, case: Case, work: Callable[[], None]) -> None:
        """Do the last work of a case, and count it; an error of any kind stays with the case."""
        note = case.case_id
        # One case must not stop the work of a night.
        try:
            work()
        except Exception as error:
            self.faults[case.case_id] = _describe_fault(case, error)
            logger.debug("%s", self.faults[case.case_id], exc_info=True)
            note += " failed"
        self.reporter.advance(note)


def _predict_pending(predictor: CasePredictor, cases: Sequence[Case]) -> dict[str, str]:
    """Predict the cases without a prediction, and return case_id -> one line for each failure.

    While a GPU predicts a case, the next one is read and the last one written. On a CPU the network
    takes all cores, and would be the slower for it.
    """
    pending = _pending_case_ids(cases, predictor)
    in_thread = predictor.device.type != "cpu"
    to_read = [case for case in cases if case.case_id in pending]
    reads = read_ahead(to_read, predictor.read, in_thread=in_thread)
    with (
        Reporter("predict", total=len(cases)) as reporter,
        OneBehind(in_thread=in_thread) as writing,
    ):
        progress = _Progress(reporter)
        for case in cases:
            work = _nothing
            if case.case_id in pending:
                work = _work_after_prediction(predictor, case, next(reads))
            writing.start(partial(progress.end, case, work))
    return progress.faults


def _work_after_prediction(
    predictor: CasePredictor, case: Case, read: Callable[[], ReadCase]
) -> Callable[[], None]:
    """Predict a case, and return what remains: to write it, or to raise what went wrong."""
    try:
        predicted = predictor.predict(read())
    except Exception as error:
        return partial(_raise, error)
    return partial(predictor.write, case, predicted)


def _nothing() -> None:
    """Do nothing: the case is predicted already."""


def _raise(error: Exception) -> None:
    raise error


def _pending_case_ids(cases: Sequence[Case], predictor: CasePredictor) -> set[str]:
    """Find the cases to predict: those without a complete prediction of their present inputs."""
    records = predictor.records
    pending = set()
    changed = []
    of_another_precision = []
    for case in cases:
        record = records.read(case.case_id)
        if record is None or not records.is_complete(record):
            pending.add(case.case_id)
        elif record.inputs != input_states(predictor.input_of(case)):
            changed.append(case.case_id)
        elif record.precision not in (None, predictor.precision):
            of_another_precision.append(case.case_id)
    _warn_of_repetition(changed, "their input files have changed", n_cases=len(cases))
    reason = f"they were not predicted in {predictor.precision}"
    _warn_of_repetition(of_another_precision, reason, n_cases=len(cases))
    return pending.union(changed, of_another_precision)


def _warn_of_repetition(case_ids: Sequence[str], reason: str, *, n_cases: int) -> None:
    if case_ids:
        logger.warning(
            "predicting %d of %d cases again, since %s: %s",
            len(case_ids),
            n_cases,
            reason,
            first_names(case_ids),
        )


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
    point = as_settings(inference.operating_points(classes))
    if not any(inference.min_peak_of(name) for name in classes):
        point["min_peak"] = None  # as folders of before, that lack it
    checksums: str | list[str] = [member.checksum for member in ensemble.members]
    if len(ensemble.members) == 1:
        checksums = ensemble.members[0].checksum
    # Device and precision are no part of it: a job may resume on another machine.
    return {
        "checkpoint": checksums,
        "classes": {name: list(values) for name, values in preprocessing.classes.items()},
        "background_values": list(preprocessing.crop_values) or None,
        "ignore": list(preprocessing.ignore) or None,
        "crop_labelled": inference.crop_labelled or None,  # as folders of before, that lack it
        **point,
        "temperature": _temperature_setting(ensemble, classes),
        "probability_scale": PROBABILITY_SCALE,
        "window": inference.window,
        "spline_order": inference.spline_order if inference.window == "bspline" else None,
        "overlap": inference.overlap,
        "patch_size": _plain(inference.patch_size),
        "tta": _plain(inference.tta),
        "combine": _combine_setting(ensemble),
        "uncertainty": ensemble.uncertainty,
    }


def _combine_setting(ensemble: Ensemble) -> str | None:
    """Return how networks or views are combined; None for one network whose views are averaged."""
    is_plain = len(ensemble.members) == 1 and ensemble.combine != "lesions"
    return None if is_plain else ensemble.combine


def _temperature_setting(ensemble: Ensemble, classes: Sequence[str]) -> Any:
    """Return the temperature of a network, or a list with that of each.

    None where no probability is changed, as folders of before, that lack it.
    """
    if not any(member.is_calibrated for member in ensemble.members):
        return None
    temperatures = []
    for member in ensemble.members:
        of_class = spread(member.temperature, n=len(classes))
        temperatures.append(unwrap_single(dict(zip(classes, of_class, strict=True))))
    return temperatures[0] if len(temperatures) == 1 else temperatures


def _folder_notes(predictor: CasePredictor) -> dict[str, Any]:
    """List what predictions.json says besides, in which predictions of a folder may differ."""
    notes: dict[str, Any] = {"precision": predictor.precision}
    if len(predictor.classes) > 1:
        notes["label_map"] = label_values(predictor.classes)
    return notes


def _plain(value: int | str | Sequence[Any] | None) -> Any:
    """Return a sequence as a list, as JSON gives it back."""
    if value is None or isinstance(value, int | str):
        return value
    return list(value)
