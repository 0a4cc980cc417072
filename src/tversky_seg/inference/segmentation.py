"""Segmentation of one case in memory: masks, probabilities and lesions on the grid of its image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.case import Case
from tversky_seg.data.memory_images import ScratchFolder
from tversky_seg.inference.case_predictor import CasePredictor, PredictedCase, on_input_grid
from tversky_seg.inference.case_records import CaseRecords
from tversky_seg.inference.lesion_table import Row
from tversky_seg.inference.predict import save_predicted
from tversky_seg.inference.prediction_folder import (
    ClassPrediction,
    as_stored,
    class_prediction,
    label_map_of,
)


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What a `Segmenter` found in a case, on the grid of the first image given.

    Arrays are those that a reader of the files of `predict.py` gets, bit for bit.

    Attributes:
        case_id: Name of the case.
        affine: (4, 4) of the grid, voxel indices to mm in RAS.
        by_class: Mask, probability and lesions of each class.
    """

    case_id: str
    affine: NDArray[np.float64]
    by_class: Mapping[str, ClassPrediction]
    _predictor: CasePredictor = field(repr=False)
    _case: Case = field(repr=False)
    _predicted: PredictedCase = field(repr=False)
    # Images given as arrays lie there as long as the result lives: `save` reads their headers.
    _images: ScratchFolder | None = field(repr=False)

    @property
    def mask(self) -> NDArray[np.bool_] | dict[str, NDArray[np.bool_]]:
        """Mask (X, Y, Z); of several classes one each, by name."""
        masks = {name: each.mask for name, each in self.by_class.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    @property
    def probability(self) -> NDArray[np.float32] | dict[str, NDArray[np.float32]]:
        """Probability (X, Y, Z) in [0, 1]; of several classes one each, by name."""
        volumes = {name: each.probability for name, each in self.by_class.items()}
        return volumes if len(volumes) > 1 else next(iter(volumes.values()))

    @property
    def label_map(self) -> NDArray[np.uint8]:
        """All masks in one (X, Y, Z): 0, then 1, 2, … in the order of classes; the later wins."""
        return label_map_of(each.mask for each in self.by_class.values())

    @property
    def uncertainty(self) -> NDArray[np.float32] | dict[str, NDArray[np.float32]] | None:
        """Uncertainty (X, Y, Z) in [0, 1], of several classes one each; None: not asked for."""
        if self._predicted.uncertainty is None:
            return None
        maps = map(as_stored, on_input_grid(self._predicted.uncertainty, self._predicted.geometry))
        volumes = dict(zip(self.by_class, maps, strict=True))
        return volumes if len(volumes) > 1 else next(iter(volumes.values()))

    @property
    def lesions(self) -> list[Row]:
        """Table of lesions, a row each: volume_mm3, centre (x_mm, y_mm, z_mm), and the others.

        The rows of lesions.csv; `pandas.DataFrame(result.lesions)` is their data frame.
        """
        rows: list[Row] = []
        for of_class in self.by_class.values():
            rows.extend(of_class.lesions)
        return rows

    def save(self, folder: Path | str) -> None:
        """Write the files that `predict.py` writes: masks, probabilities, lesions.csv, and so on.

        Args:
            folder: Folder to write to, made if it is missing. It may hold other cases of the same
                segmenter.

        Raises:
            DataError: It holds predictions of another network or of other settings, or it cannot be
                written.
        """
        records = CaseRecords(Path(folder).expanduser())
        save_predicted(replace(self._predictor, records=records), self._case, self._predicted)


def segmentation_of(
    predictor: CasePredictor,
    case: Case,
    predicted: PredictedCase,
    *,
    images: ScratchFolder | None = None,
) -> Segmentation:
    """Make masks and lesions of what the networks gave.

    Args:
        predictor: Networks and settings.
        case: The case.
        predicted: Its probability on the networks' grid.
        images: Folder of its images, kept as long as the result; None: files of the user's.
    """
    geometry = predicted.geometry
    brain = predicted.brain
    points = predictor.inference.operating_points(predictor.classes)
    volumes = predicted.probability_maps()
    by_class = {}
    parts = predicted.masks_of_parts()
    for name, volume, masks in zip(predictor.classes, volumes, parts, strict=True):
        by_class[name] = class_prediction(
            volume,
            geometry.input_affine,
            point=points[name],
            case_id=case.case_id,
            class_name=name if len(predictor.classes) > 1 else None,
            brain=brain,
            parts=masks,
        )
    return Segmentation(
        case_id=case.case_id,
        affine=geometry.input_affine,
        by_class=by_class,
        _predictor=predictor,
        _case=case,
        _predicted=predicted,
        _images=images,
    )
