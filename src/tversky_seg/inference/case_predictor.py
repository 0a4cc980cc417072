"""Prediction of one case in three steps: read, predict, write; a GPU takes the middle one alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tversky_seg.data.case import Case
from tversky_seg.data.grids import Bools, Geometry, to_input_grid
from tversky_seg.data.preprocessing.pipeline import Preprocessing, preprocess
from tversky_seg.data.preprocessing.prepared_case import PreparedCase
from tversky_seg.inference.case_records import CaseRecords, FileState, input_states
from tversky_seg.inference.ensemble import Ensemble, PartMasks, spread
from tversky_seg.inference.loaded_case import LoadedCase, load_case
from tversky_seg.inference.prediction_folder import (
    label_map_file,
    prediction_files,
    write_prediction,
)
from tversky_seg.inference.settings import Inference
from tversky_seg.metrics.temperature import calibrated


@dataclass(frozen=True, eq=False)
class ReadCase:
    """A case that is ready for the network, and the state of its files before they were read."""

    inputs: dict[str, FileState]
    geometry: Geometry
    loaded: LoadedCase


@dataclass(frozen=True, eq=False)
class PredictedCase:
    """What the networks gave for a case, on their grid, and what else is needed to write it.

    Without the image, so that its memory is free for the next case.
    """

    inputs: dict[str, FileState]
    geometry: Geometry
    foreground: Bools
    probability: Tensor
    uncertainty: Tensor | None
    temperature: Sequence[float] = (1.0,)
    parts: Sequence[PartMasks] = ()

    def masks_of_parts(self) -> list[Iterator[Bools]]:
        """Make the masks of the networks or views on the file's own grid, an iterator a class."""
        return [self._masks_of_class(k) for k in range(len(self.probability))]

    def _masks_of_class(self, k: int) -> Iterator[Bools]:
        shape = tuple(self.probability.shape[1:])
        for part in self.parts:
            mask = np.zeros(shape, dtype=np.float32)
            mask.reshape(-1)[part[k]] = 1
            yield np.asarray(to_input_grid(mask, self.geometry) > 0.5)

    def probability_maps(self) -> Iterator[NDArray[np.float32]]:
        """Yield the calibrated probability of each class on the file's own grid, (X, Y, Z)."""
        return on_input_grid(self.probability, self.geometry, temperature=self.temperature)

    @property
    def brain(self) -> Bools:
        """The brain on the file's own grid, (X, Y, Z)."""
        foreground = self.foreground.astype(np.float32)
        return np.asarray(to_input_grid(foreground, self.geometry) > 0.5)


@dataclass(frozen=True, eq=False)
class CasePredictor:
    """What the predictions of all cases have in common, and the three steps of each.

    Attributes:
        ensemble: Networks.
        preprocessing: Preprocessing of the training.
        inference: Threshold, smallest lesion and lowest peak.
        records: Records of the folder to write to.
        device: Device to compute on.
        precision: Precision inside the networks.
    """

    ensemble: Ensemble
    preprocessing: Preprocessing
    inference: Inference
    records: CaseRecords
    device: torch.device
    precision: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(self.preprocessing.classes)

    def input_of(self, case: Case) -> Case:
        """Return the case with the files that its prediction reads: mostly without its label."""
        if self.inference.crop_labelled and self.preprocessing.crop_values:
            return case
        return replace(case, labels=(), ignore_mask=None)

    def read(self, case: Case) -> ReadCase:
        """Read and prepare a case."""
        case = self.input_of(case)
        # Before they are read: a file that changes meanwhile is then predicted again.
        inputs = input_states(case)
        prepared = prepare_input(case, self.preprocessing)
        return ReadCase(inputs, prepared.geometry, load_case(prepared, self.device))

    def predict(self, read: ReadCase) -> PredictedCase:
        """Predict a case on the network's grid."""
        predicted = self.ensemble.predict_parts(
            read.loaded, device=self.device, precision=self.precision
        )
        return PredictedCase(
            read.inputs,
            read.geometry,
            read.loaded.foreground,
            predicted.probability,
            predicted.uncertainty,
            self.ensemble.temperature,
            predicted.parts,
        )

    def write(self, case: Case, predicted: PredictedCase) -> None:
        """Write the files of a case, and its record when they are complete."""
        geometry = predicted.geometry
        output_dir = self.records.output_dir
        uncertainty_maps = None
        if predicted.uncertainty is not None:
            uncertainty_maps = on_input_grid(predicted.uncertainty, geometry)
        lesions = write_prediction(
            output_dir,
            case.case_id,
            predicted.probability_maps(),
            geometry.input_affine,
            classes=self.classes,
            points=self.inference.operating_points(self.classes),
            uncertainty=uncertainty_maps,
            parts=predicted.masks_of_parts(),
            brain=predicted.brain,
            like=_image_of_the_grid(case, self.preprocessing),
        )
        files = []
        for of_class in prediction_files(output_dir, case.case_id, self.classes).values():
            files += [of_class.probability, of_class.mask]
            if predicted.uncertainty is not None:
                files.append(of_class.uncertainty)
        label_map = label_map_file(output_dir, case.case_id, self.classes)
        if label_map is not None:
            files.append(label_map)
        self.records.write(
            case.case_id,
            inputs=predicted.inputs,
            files=files,
            lesions=lesions,
            precision=self.precision,
        )


def prepare_input(case: Case, preprocessing: Preprocessing) -> PreparedCase:
    """Prepare a case for the network; a modality that it lacks is 0 throughout.

    The first modality that the case has gives the grid. A case with a label is cropped to its
    `crop_values`, as in training; to predict as if there were none, give the case without it.

    Raises:
        DataError: As `preprocess`.
    """
    # What a network can do without was checked when the case was listed. The rater does not
    # matter: lesions are not asked for.
    return preprocess(case, replace(preprocessing, require=(), rater=None))


def _image_of_the_grid(case: Case, preprocessing: Preprocessing) -> Path:
    """Return the image whose grid the prediction has: the first modality that the case has."""
    return next(case.images[name] for name in preprocessing.modalities if name in case.images)


def on_input_grid(
    volumes: Tensor, geometry: Geometry, *, temperature: Sequence[float] = (1.0,)
) -> Iterator[NDArray[np.float32]]:
    """Resample to the file's own grid, class by class, (X, Y, Z) in [0, 1].

    The temperature comes last: so a threshold makes the same mask before it and after it.
    """
    temperatures = spread(temperature, n=len(volumes))
    for volume, of_class in zip(volumes.numpy(), temperatures, strict=True):
        resampled = to_input_grid(volume, geometry)
        yield calibrated(np.clip(resampled, 0, 1, out=resampled), of_class)
