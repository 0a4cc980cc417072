"""An evaluated case for the report: images, prediction and reference, turned upright."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.affines import ras_grid
from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.grids import Shape, resample
from tversky_seg.data.nifti import read_label, read_volume
from tversky_seg.evaluation.case_result import find_ignored
from tversky_seg.evaluation.saved_predictions import Predictions
from tversky_seg.report.slices import ShownCase
from tversky_seg.report.viewer import N_MODALITIES

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
    ignored = find_ignored(case, reference, source)
    counted = np.True_ if ignored is None else ~ignored
    for name, values in source.classes.items():
        predicted = source.read(case, name, reference=reference).mask
        predictions.append(upright(predicted & counted))
        references.append(upright(np.isin(reference.data, values) & counted))
    return ShownCase(
        case_id=case.case_id,
        images=_images(case, shape, affine),
        prediction=np.stack(predictions),
        reference=np.stack(references),
        classes=tuple(source.classes),
        affine=affine,
    )


def _images(case: Case, shape: Shape, affine: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Read the first images of a case on this grid; black where there is none."""
    images: dict[str, NDArray[Any]] = {}
    for modality, path in list(case.images.items())[:N_MODALITIES]:
        try:
            image = read_volume(path)
        except DataError as fault:
            logger.warning("no picture of case %s: %s", case.case_id, fault)
        else:
            # By its affine, because arrays of one shape may still be flipped against each other.
            images[modality] = resample(image.data, image.affine, affine, shape)
    if not images:
        images["no image"] = np.zeros(shape, np.float32)
    return images
