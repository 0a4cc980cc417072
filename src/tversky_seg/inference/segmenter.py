"""Segmenter: a trained network, or several, as one function from images to a segmentation."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike

from tversky_seg.data.case import Case, modalities_of
from tversky_seg.data.errors import DataError
from tversky_seg.data.image_files import image_stem
from tversky_seg.data.inputs import find_inputs, first_few
from tversky_seg.data.memory_images import ScratchFolder, name_of, write_image
from tversky_seg.data.preprocessing.pipeline import Preprocessing
from tversky_seg.inference.case_predictor import CasePredictor
from tversky_seg.inference.case_records import CaseRecords
from tversky_seg.inference.checkpoint_search import find_checkpoints
from tversky_seg.inference.ensemble import Ensemble
from tversky_seg.inference.held_out_point import with_held_out_point
from tversky_seg.inference.predict import predict_cases
from tversky_seg.inference.segmentation import Segmentation, segmentation_of
from tversky_seg.inference.settings import Inference
from tversky_seg.inference.trained_model import (
    TrainedModel,
    build_ensemble,
    common_preprocessing,
    load_trained,
    trained_precision,
    warn_of_other_windows,
)
from tversky_seg.runtime.devices import pick_device, resolve_precision

logger = logging.getLogger("tversky_seg")

NAME_IN_MEMORY = "case"


@dataclass(frozen=True, eq=False)
class Segmenter:
    """Trained networks with the preprocessing and the settings that make masks of new images.

        segmenter = Segmenter.load("runs/a")
        result = segmenter("flair.nii.gz", T1="t1.nii.gz")
        result.mask, result.probability, result.affine, result.lesions
        result.save("masks")

    It computes what `predict.py` computes, by the same code.

    Attributes:
        models: The networks, as their checkpoints hold them.
        ensemble: The networks as one.
        preprocessing: Preprocessing that all share.
        inference: Threshold, smallest lesion and windows.
        device: Device to compute on.
        precision: Precision inside the networks: "fp32", "tf32", "bf16" or "fp16".
    """

    models: Sequence[TrainedModel]
    ensemble: Ensemble
    preprocessing: Preprocessing
    inference: Inference
    device: torch.device
    precision: str

    @classmethod
    def load(
        cls,
        checkpoint: Path | str | Sequence[Path | str],
        *,
        device: str = "auto",
        precision: str = "auto",
        combine: str = "mean",
        uncertainty: str | None = None,
        trust: Sequence[str] = (),
        **inference: Any,
    ) -> Segmenter:
        """Load one trained network, or several as an ensemble.

        Args:
            checkpoint: Folder of a run, a checkpoint, the folder of a sweep (all its runs), a glob,
                or a list of these.
            device: "auto", "cpu", "cuda" or "cuda:1".
            precision: "auto" (that of the training, where the device has it), "fp32", "tf32",
                "bf16" or "fp16".
            combine: "mean" of several networks' probabilities, their "vote", or "lesions": the vote
                of networks and views on whole lesions.
            uncertainty: "entropy", "disagreement" or None.
            trust: Packages of your own whose networks a checkpoint may name.
            **inference: Settings that replace the checkpoint's, as `tta="flips8"`, `threshold=0.4`,
                `min_volume_mm3=5`; see `Inference`.

        Raises:
            CheckpointError: There is none, one is damaged, or two do not fit each other.
            ConfigError: A checkpoint names anything but classes of networks.
            TypeError: A setting of another name.
            ValueError: A setting out of its range.
        """
        chosen_device = pick_device(device)
        resolve_precision(precision, chosen_device)  # refuses other words
        # Wrong settings are refused before checkpoints are read.
        Inference(**inference)
        names = [checkpoint] if isinstance(checkpoint, str | Path) else checkpoint
        paths = find_checkpoints([os.fspath(name) for name in names])
        models = [load_trained(path, trust=trust) for path in paths]
        models = with_held_out_point(models, names)
        preprocessing = common_preprocessing(models)
        warn_of_other_windows(models, inference.get("patch_size"))
        ensemble, settings = build_ensemble(
            models, overrides=inference, combine=combine, uncertainty=uncertainty
        )
        if precision == "auto":
            precision = trained_precision(models, chosen_device)
        return cls(models, ensemble, preprocessing, settings, chosen_device, precision)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the images that it takes, in order."""
        return self.preprocessing.modalities

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that it finds."""
        return tuple(self.preprocessing.classes)

    @property
    def allows_missing_modalities(self) -> bool:
        """Whether an image may be missing: all networks were trained to do without some."""
        return all(model.allows_missing_modalities for model in self.models)

    @property
    def required_modalities(self) -> tuple[str, ...]:
        """Modalities that each case needs; of the others one is enough."""
        needed: set[str] = set()
        for model in self.models:
            needed.update(model.required_modalities)
        return tuple(name for name in self.modalities if name in needed)

    @property
    def modality_sets(self) -> tuple[tuple[str, ...], ...]:
        """Sets of modalities that training cases had, of all networks."""
        sets: dict[tuple[str, ...], None] = {}  # as an ordered set
        for model in self.models:
            sets.update(dict.fromkeys(model.modality_sets))
        return tuple(sets)

    def __call__(
        self,
        image: Any = None,
        /,
        *,
        affine: ArrayLike | None = None,
        brain_mask: Any = None,
        case_id: str | None = None,
        **images: Any,
    ) -> Segmentation:
        """Segment one case.

        Args:
            image: Image of the first modality, or a mapping of modality to image. An image is a
                NIfTI file, an image of nibabel, or an array (X, Y, Z).
            affine: (4, 4) of the arrays, voxel indices to mm in RAS.
            brain_mask: Mask of the brain, given as an image is; None: the voxels that are not
                background.
            case_id: Name of the case; None: the stem of the first file, or "case".
            **images: Images of the other modalities, by name.

        Returns:
            Masks, probabilities and lesions on the grid of the first modality.

        Raises:
            DataError: An image is missing or at fault, or images do not fit each other.
            ValueError: An array without affine.
        """
        given = self._by_modality(image, images)
        if brain_mask is not None:
            given["brain_mask"] = brain_mask
        folder = None
        # Images in memory go through files, so that both ways give the same numbers.
        if not all(isinstance(each, str | Path) for each in given.values()):
            folder = ScratchFolder()
        try:
            files = _as_files(given, folder, affine)
            case = self._case(files, given, case_id)
            predictor = self.predictor()
            predicted = predictor.predict(predictor.read(case))
        except DataError as error:
            if folder is None:
                raise
            # Whoever gave an array knows nothing of a file in a scratch folder.
            raise _without_folder(error, folder.path) from None
        return segmentation_of(predictor, case, predicted, images=folder)

    def predict(
        self,
        input: Mapping[str, Path | str] | Path | str,
        output_dir: Path | str,
        *,
        case_id: str | None = None,
    ) -> dict[str, str]:
        """Segment all cases of a folder or a manifest into a folder, as `predict.py` does.

        Args:
            input: Files by modality, one file, a manifest, a folder or a BIDS folder; see
                `find_inputs`.
            output_dir: Folder to write to.
            case_id: Name of the one case, or of one to pick out of several.

        Returns:
            case_id -> one line, for each case that failed.

        Raises:
            DataError: As `find_inputs` and `predict_cases`, or all cases failed.
        """
        return self.predict_cases(self.cases(input, case_id=case_id), output_dir)

    def cases(
        self, input: Mapping[str, Path | str] | Path | str, *, case_id: str | None = None
    ) -> list[Case]:
        """List the cases of an input; see `find_inputs`.

        Sets of modalities that a network was not trained on are named in a warning.
        """
        cases = find_inputs(
            input,
            modalities=self.modalities,
            case_id=case_id,
            may_lack=self.allows_missing_modalities,
            required=self.required_modalities,
        )
        self._warn_of_unseen_sets(cases)
        return cases

    def _warn_of_unseen_sets(self, cases: Sequence[Case]) -> None:
        ids_of: dict[tuple[str, ...], list[str]] = {}
        for case in cases:
            present = modalities_of(case, self.modalities)
            if not all(model.has_seen(present) for model in self.models):
                # By set, since a whole cohort may lack the same image.
                ids_of.setdefault(present, []).append(case.case_id)
        seen = "; ".join(" + ".join(names) for names in self.modality_sets)
        for present, ids in ids_of.items():
            logger.warning(
                "no training case had %s alone (%s); the training cases had %s",
                " + ".join(present),
                first_few(ids),
                seen,
            )

    def predict_cases(self, cases: Sequence[Case], output_dir: Path | str) -> dict[str, str]:
        """Segment cases into a folder; see `predict`."""
        faults = predict_cases(
            self.ensemble,
            cases,
            self.preprocessing,
            Path(output_dir).expanduser(),
            inference=self.inference,
            device=self.device,
            precision=self.precision,
        )
        # Some faults are told in the result; with nothing but faults there is none.
        if len(faults) == len(cases):
            raise DataError.gather(map(DataError, faults.values()), others="listed above")
        return faults

    def _by_modality(self, image: Any, images: dict[str, Any]) -> dict[str, Any]:
        """Name the image that was given without a name."""
        if image is None:
            return dict(images)
        named = image if isinstance(image, Mapping) else {self.modalities[0]: image}
        twice = [name for name in named if name in images]
        if twice:
            raise DataError(twice[0], "is given twice", "give each modality one image")
        return {**named, **images}

    def _case(self, files: dict[str, Path], given: dict[str, Any], case_id: str | None) -> Case:
        if case_id is None:
            first = next((name for name in self.modalities if name in given), None)
            case_id = None if first is None else _case_name(given[first])
        # By the checks that files of a folder go through.
        (case,) = self.cases(files, case_id=case_id)
        return case

    def predictor(self) -> CasePredictor:
        """Return the steps of a prediction: read, predict; nothing is written."""
        return CasePredictor(
            self.ensemble,
            self.preprocessing,
            self.inference,
            CaseRecords(Path()),  # nothing is written before `save` names a folder
            self.device,
            self.precision,
        )


def _case_name(image: Any) -> str:
    """Name a case by the file of its image; an image without file gets a name of its own."""
    path = Path(image) if isinstance(image, str | Path) else name_of(image)
    return NAME_IN_MEMORY if path is None else image_stem(path)


def _as_files(
    given: Mapping[str, Any], folder: ScratchFolder | None, affine: ArrayLike | None
) -> dict[str, Path]:
    """Return the files of the images; those in memory are written first."""
    files = {}
    for name, image in given.items():
        if isinstance(image, str | Path) or folder is None:
            files[name] = Path(image)
        else:
            files[name] = folder.path / f"{name}.nii"
            write_image(files[name], image, affine)
    return files


def _without_folder(error: DataError, folder: Path) -> DataError:
    """Name an image in memory by its modality alone, and not by the scratch file."""
    parts = []
    for part in (error.where, error.found, error.expected):
        parts.append(part.replace(f"{folder}{os.sep}", ""))
    return DataError(*parts, case_id=error.case_id)
