"""An evaluated case for the report: image, prediction and reference, turned upright."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.affines import ras_grid
from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.grids import resample
from tversky_seg.data.nifti import Volume, read_label, read_volume
from tversky_seg.evaluation.saved_predictions import Predictions
from tversky_seg.report.slices import ShownCase

logger = logging.getLogger("tversky_seg")


def show_case(case: Case, source: Predictions) -> ShownCase:
    """Read an evaluated case and turn its arrays along R, A, S."""
    assert case.label is not None
    reference = read_label(case.label)
    shape, affine = ras_grid(reference.shape, reference.affine)

    # Only flips and swaps of axes: the patient's left is on the left in every picture.
    def upright(data: NDArray[Any]) -> NDArray[Any]:
        return resample(data, reference.affine, affine, shape)

    predictions: list[NDArray[Any]] = []
    references: list[NDArray[Any]] = []
    for name, values in source.classes.items():
        predictions.append(upright(source.read(case, name, reference=reference).mask))
        references.append(upright(np.isin(reference.data, values)))
    return ShownCase(
        case_id=case.case_id,
        image=upright(_background(case, reference)),
        prediction=np.stack(predictions),
        reference=np.stack(references),
        classes=tuple(source.classes),
        affine=affine,
    )


def _background(case: Case, reference: Volume) -> NDArray[Any]:
    """Read the first image of a case; black where it is unavailable on the label's grid."""
    black = np.zeros(reference.shape, np.float32)
    if not case.images:
        return black
    # The first modality, because the network's grid is made from it.
    path = next(iter(case.images.values()))
    try:
        image = read_volume(path)
    except DataError as fault:
        logger.warning("no picture of case %s: %s", case.case_id, fault)
        return black
    # A modality on another grid would need resampling only to be drawn.
    if image.shape != reference.shape:
        return black
    return image.data
