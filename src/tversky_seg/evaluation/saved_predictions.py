"""Saved predictions, read back for evaluation: our own, or the masks of another tool."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.affines import affine_shift_voxels, other_orientation
from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.grids import TOLERATED_SHIFT_VOXELS
from tversky_seg.data.nifti import Volume, read_label, read_volume
from tversky_seg.data.settings import check_classes
from tversky_seg.evaluation.saved_settings import (
    SavedSettings,
    by_class,
    ignored_values,
    label_values,
    read_saved_settings,
    refuse_for_masks,
    temperatures,
)
from tversky_seg.inference.prediction_folder import (
    PROBABILITY_ENDING,
    SETTINGS_FILE,
    prediction_files,
)
from tversky_seg.metrics.lesions import remove_small_lesions, remove_weak_lesions
from tversky_seg.metrics.masks import Mask


@dataclass(frozen=True, eq=False)
class Prediction:
    """One class of one predicted case, on the grid of its reference."""

    mask: Mask
    """(X, Y, Z)."""
    probability: NDArray[np.float32] | None
    """(X, Y, Z) in [0, 1]; None where only a mask was saved."""
    shift_voxels: float
    """Distance of the file's grid from that of the reference, at most `TOLERATED_SHIFT_VOXELS`."""


@dataclass(frozen=True)
class Predictions:
    """A folder of saved predictions, and how masks are made of them."""

    folder: Path
    classes: Mapping[str, tuple[int, ...]]
    """Class name -> label values."""
    threshold: Mapping[str, float | None]
    """By class; None where the folder holds masks only and nothing says what made them."""
    min_volume_mm3: Mapping[str, float]
    """By class; smaller predicted lesions (26-connected) are removed."""
    min_peak: Mapping[str, float]
    """By class; of masks made from a probability, lesions that never reach it are removed."""
    pattern: str | None
    """File name of another tool's masks, with `{case_id}`, `{subject_id}`, `{class}`; None for
    our own files."""
    uses_masks: bool
    """Whether saved masks are read, rather than made again from the probabilities."""
    background_values: tuple[int, ...] = ()
    """Label values of the reference that belong to no class and count as background."""
    temperature: Mapping[str, float | None] = field(default_factory=dict)
    """By class; None where nothing says it, or several networks have each their own."""
    ignore: tuple[int, ...] = ()
    """Label values of the reference whose voxels do not count."""

    def read(self, case: Case, name: str, *, reference: Volume) -> Prediction:
        """Read the prediction of one class of a case.

        Raises:
            DataError: The file is missing, damaged, on another grid, or holds other values than a
                mask or a probability.
        """
        if self.pattern is None:
            saved = self._read_own(case, name, reference)
        else:
            saved = self._read_foreign(case, name, reference, pattern=self.pattern)
        # Whatever made the mask, the same minimum holds for all of them.
        mask = remove_small_lesions(
            saved.mask,
            spacing_mm=reference.spacing_mm,
            min_volume_mm3=self.min_volume_mm3[name],
        )
        return Prediction(mask, saved.probability, saved.shift_voxels)

    def file_of(self, case: Case, name: str) -> Path:
        """Return the file of one class of a case, whether it exists or not."""
        if self.pattern is not None:
            return self.folder / _file_name(self.pattern, case, name)
        files = prediction_files(self.folder, case.case_id, tuple(self.classes))[name]
        return files.probability if _is_listed(files.probability) else files.mask

    def _read_own(self, case: Case, name: str, reference: Volume) -> Prediction:
        """Read the probability if there is one, and the mask unless it follows from that."""
        files = prediction_files(self.folder, case.case_id, tuple(self.classes))[name]
        has_probability = _is_listed(files.probability)
        has_mask = _is_listed(files.mask)
        if not has_probability and not has_mask:
            raise DataError(
                files.probability,
                f"no such file, nor {files.mask.name}",
                f"predict case {case.case_id} first, or name the masks of another tool by "
                "evaluation.pattern='{case_id}.nii.gz'",
            )
        probability = None
        shift_voxels = 0.0
        if has_probability:
            volume = read_volume(files.probability)
            shift_voxels = check_grid(volume, reference, path=files.probability)
            probability = _as_probability(volume.data, files.probability)
            threshold = self.threshold[name]
            # A mask edited by hand counts, unless another threshold was asked for.
            if threshold is not None and not (self.uses_masks and has_mask):
                mask = remove_weak_lesions(
                    probability >= threshold, probability, min_score=self.min_peak[name]
                )
                return Prediction(mask, probability, shift_voxels)
        volume = read_label(files.mask)
        shift_of_mask = check_grid(volume, reference, path=files.mask)
        mask = _as_mask(volume.data, files.mask)
        return Prediction(mask, probability, max(shift_voxels, shift_of_mask))

    def _read_foreign(
        self, case: Case, name: str, reference: Volume, *, pattern: str
    ) -> Prediction:
        path = self.folder / _file_name(pattern, case, name)
        if not path.exists():
            raise DataError(
                path,
                f"no such file for case {case.case_id}",
                "expected its mask; see evaluation.pattern",
            )
        volume = read_label(path)
        shift_voxels = check_grid(volume, reference, path=path)
        is_of_one_class = len(self.classes) == 1 and _is_mask(volume.data)
        if "{class}" in pattern or is_of_one_class:
            mask = _as_mask(volume.data, path)
        else:
            # One file holds all classes, as label values.
            check_values(volume.data, path, self)
            mask = np.isin(volume.data, self.classes[name])
        return Prediction(mask, None, shift_voxels)


def open_predictions(
    folder: Path | str,
    *,
    classes: Mapping[str, Sequence[int]] | None = None,
    threshold: float | Mapping[str, float] | None = None,
    min_volume_mm3: float | Mapping[str, float] | None = None,
    min_peak: float | Mapping[str, float] | None = None,
    pattern: str | None = None,
    background_values: Sequence[int] | None = None,
    ignore: Sequence[int] | None = None,
) -> Predictions:
    """Decide how a folder of predictions is read; what is None here follows its predictions.json.

    Saved masks are used where predictions.json says what made them and no other threshold, minimum
    or peak is given, and where there is no probability. Otherwise masks are made from the
    probabilities, at 0.5 where no threshold is known.

    Args:
        folder: Folder of `<case_id>_{probability,mask}.nii.gz` (several classes:
            `<case_id>_<class>_…`), or of another tool's masks.
        classes: Class name -> label values; without predictions.json `{"lesion": (1,)}`.
        threshold: Threshold of `probability >= threshold`, in [0, 1]; one for all classes, or by
            class.
        min_volume_mm3: Volume below which predicted lesions are removed; one for all classes, or
            by class.
        min_peak: Probability that a predicted lesion must reach, in [0, 1]; one for all classes, or
            by class; without predictions.json, or in one of before, 0.
        pattern: File name of another tool's masks, as in `{case_id}.nii.gz`. With several classes
            and no `{class}` in it, a file is a map of label values.
        background_values: Label values that belong to no class; without predictions.json only 0.
        ignore: Label values of voxels that do not count; without predictions.json none.

    Raises:
        DataError: The folder is missing, predictions.json is damaged, or a setting is out of range.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise DataError(
            folder, "no such folder", "expected what predict.py wrote, or a folder of masks"
        )
    # Another tool's folder may hold a predictions.json of its own, which says nothing to us.
    saved = SavedSettings(folder / SETTINGS_FILE, {})
    has_probabilities = False
    if pattern is None:
        saved = read_saved_settings(folder / SETTINGS_FILE)
        has_probabilities = any(folder.glob(f"*{PROBABILITY_ENDING}"))
    else:
        _check_pattern(pattern)
    if not has_probabilities:
        refuse_for_masks(folder, threshold=threshold, min_peak=min_peak)
    checked_classes = saved.settle("classes", classes, lambda _, given: check_classes(given))
    shares = partial(by_class, names=checked_classes, highest=1)
    volumes = partial(by_class, names=checked_classes, highest=math.inf)
    default_threshold = 0.5 if has_probabilities else None
    # Another threshold, minimum or peak would have given other masks than the saved ones.
    is_as_saved = threshold is None and min_volume_mm3 is None and min_peak is None
    return Predictions(
        folder=folder,
        classes=checked_classes,
        threshold=saved.settle("threshold", threshold, shares, default_threshold),
        min_volume_mm3=saved.settle("min_volume_mm3", min_volume_mm3, volumes, 0.0),
        min_peak=saved.settle("min_peak", min_peak, shares, 0.0),
        pattern=pattern,
        uses_masks=is_as_saved and saved.values.get("threshold") is not None,
        background_values=saved.settle("background_values", background_values, label_values),
        temperature=temperatures(saved.values.get("temperature"), tuple(checked_classes)),
        ignore=saved.settle("ignore", ignore, partial(ignored_values, classes=checked_classes)),
    )


def check_values(data: NDArray[Any], path: Path, source: Predictions) -> None:
    """Refuse label values that belong to no class: more likely a wrong setting than background.

    Raises:
        DataError: Names the first of them.
    """
    expected_values = {0, *source.background_values, *source.ignore}
    for values in source.classes.values():
        expected_values.update(values)
    other_values = sorted(set(np.unique(data).tolist()) - expected_values)
    if other_values:
        classes = ", ".join(f"{name}: {list(values)}" for name, values in source.classes.items())
        raise DataError(
            path,
            f"label values {other_values[:5]} belong to no class of {{{classes}}}",
            "expected other classes, or evaluation.background_values (values that count as "
            "background) or evaluation.ignore (voxels that do not count)",
        )


def check_grid(volume: Volume, reference: Volume, *, path: Path) -> float:
    """Measure how far a file lies off the reference's grid, in voxels.

    Raises:
        DataError: It has another shape, or lies more than 0.6 voxel off.
    """
    shift_voxels = math.inf
    if volume.shape == reference.shape:
        shift_voxels = affine_shift_voxels(reference.affine, volume.affine, reference.shape)
    codes = other_orientation(
        volume.shape,
        volume.affine,
        reference.shape,
        reference.affine,
        tolerance_voxels=TOLERATED_SHIFT_VOXELS,
    )
    if codes is not None:
        found = f"covers the voxels of the reference, but its axes run otherwise ({codes})"
        raise DataError(path, found, "store both in one orientation")
    # A nearer grid is the same one, in another convention of what a voxel's origin is.
    if shift_voxels > TOLERATED_SHIFT_VOXELS:
        raise DataError(
            path, _describe_grid(volume), f"expected the reference's {_describe_grid(reference)}"
        )
    return shift_voxels


def _is_listed(path: Path) -> bool:
    """Tell whether the folder lists this name, be it a broken link: reading it then says so."""
    return path.exists() or path.is_symlink()


def _describe_grid(volume: Volume) -> str:
    return f"shape {volume.shape}, affine {np.round(volume.affine[:3], 4).tolist()}"


def _as_probability(data: NDArray[np.float32], path: Path) -> NDArray[np.float32]:
    lowest = float(data.min())
    highest = float(data.max())
    # The margin covers the rounding of a scale factor in the header.
    if lowest < -1e-6 or highest > 1 + 1e-6:
        raise DataError(
            path, f"values from {lowest:g} to {highest:g}", "expected probabilities from 0 to 1"
        )
    return data


def _is_mask(data: NDArray[Any]) -> bool:
    """Tell whether there is no other value than 0 and 1."""
    return bool(((data == 0) | (data == 1)).all())


def _as_mask(data: NDArray[Any], path: Path) -> Mask:
    mask: Mask = data == 1
    # A mask of 0 and 255 is refused rather than guessed: it may be a label map.
    other_values = data[~mask & (data != 0)]
    if other_values.size:
        raise DataError(
            path,
            f"{other_values.size} voxels of other values, as {other_values[0]}",
            "expected a mask of 0 and 1",
        )
    return mask


def _file_name(pattern: str, case: Case, name: str) -> str:
    """Fill in a pattern: "{subject_id}_seg.nii.gz" -> "p01_seg.nii.gz"."""
    values = {"case_id": case.case_id, "subject_id": case.subject_id, "class": name}
    # A pattern comes from the user: an unknown name or an unclosed brace is a wrong setting.
    try:
        return pattern.format_map(values)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise DataError(
            "evaluation.pattern",
            f"{pattern!r}",
            "expected a name with {case_id}, as {case_id}.nii.gz",
        ) from error


def _check_pattern(pattern: str) -> None:
    # Filled in once for nothing, so that a bad pattern is an error of its own and not one per case.
    _file_name(pattern, Case("case", "subject", {}), "class")
    if "{case_id" not in pattern and "{subject_id" not in pattern:
        raise DataError(
            "evaluation.pattern",
            f"{pattern!r} is one file for all cases",
            "expected a name with {case_id}",
        )
