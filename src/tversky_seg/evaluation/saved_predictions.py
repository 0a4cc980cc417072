"""Saved predictions, read back for judging: our own maps and masks, or the masks of another tool."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import Volume, affine_shift_voxels, read_label, read_volume
from tversky_seg.data.settings import check_classes
from tversky_seg.inference.prediction_folder import (
    PROBABILITY_ENDING,
    SETTINGS_FILE,
    prediction_files,
)
from tversky_seg.metrics.lesions import remove_small_lesions
from tversky_seg.metrics.masks import Mask

LARGEST_SHIFT = 0.6  # voxels, between the grids of a prediction and its reference


@dataclass(frozen=True, eq=False)
class Prediction:
    """One class of one predicted case, on the grid of its reference."""

    mask: Mask
    """(X, Y, Z)."""
    probability: NDArray[np.float32] | None
    """(X, Y, Z) in [0, 1]; None where only a mask was saved."""
    shift_voxels: float
    """How far off the reference's grid the file lies, at most 0.6."""


@dataclass(frozen=True)
class Predictions:
    """A folder of saved predictions, and how masks come from them.

    Attributes:
        folder: Where they lie.
        classes: Class name -> label values.
        threshold: By class; None where only masks are there and nothing says what made them.
        min_volume_mm3: By class; smaller predicted lesions (26-connected) are taken out.
        pattern: Name of another tool's masks, with `{case_id}`, `{subject_id}`, `{class}`; None for our own files.
        uses_masks: Whether saved masks are taken rather than made again from the probabilities.
        background_values: Label values of the reference that belong to no class and count as background.
    """

    folder: Path
    classes: Mapping[str, tuple[int, ...]]
    threshold: Mapping[str, float | None]
    min_volume_mm3: Mapping[str, float]
    pattern: str | None
    uses_masks: bool
    background_values: tuple[int, ...] = ()

    def read(self, case: Case, name: str, *, reference: Volume) -> Prediction:
        """The prediction of one class of a case.

        Raises:
            DataError: Nothing was saved, or what was saved is damaged, on another grid, no mask or no probability.
        """
        if self.pattern is None:
            found = self._read_own(case, name, reference)
        else:
            found = self._read_foreign(case, name, reference, pattern=self.pattern)
        minimum = self.min_volume_mm3[name]
        mask = remove_small_lesions(
            found.mask, spacing_mm=reference.spacing_mm, min_volume_mm3=minimum
        )
        return Prediction(mask, found.probability, found.shift_voxels)

    def _read_own(self, case: Case, name: str, reference: Volume) -> Prediction:
        files = prediction_files(self.folder, case.case_id, tuple(self.classes))[name]
        scored, masked = files.probability, files.mask
        if not _is_named(scored) and not _is_named(masked):
            raise DataError(
                scored, f"no such file, nor {masked.name}", f"predict case {case.case_id} first"
            )
        probability, shifts = None, []
        if _is_named(scored):
            volume = read_volume(scored)
            shifts.append(check_grid(volume, reference, path=scored))
            probability = _as_probability(volume.data, scored)
        threshold = self.threshold[name]
        if (
            probability is not None
            and threshold is not None
            and not (self.uses_masks and _is_named(masked))
        ):
            return Prediction(probability >= threshold, probability, max(shifts))
        volume = read_label(masked)
        shifts.append(check_grid(volume, reference, path=masked))
        return Prediction(_as_mask(volume.data, masked), probability, max(shifts))

    def _read_foreign(
        self, case: Case, name: str, reference: Volume, *, pattern: str
    ) -> Prediction:
        path = self.folder / _file_name(pattern, case, name)
        if not path.exists():
            raise DataError(
                path, "no such file", f"expected the mask of case {case.case_id}, named by pattern"
            )
        volume = read_label(path)
        shift = check_grid(volume, reference, path=path)
        if len(self.classes) > 1 and "{class}" not in pattern:
            return Prediction(np.isin(volume.data, self.classes[name]), None, shift)
        return Prediction(_as_mask(volume.data, path), None, shift)


def open_predictions(
    folder: Path | str,
    *,
    classes: Mapping[str, Sequence[int]] | None = None,
    threshold: float | Mapping[str, float] | None = None,
    min_volume_mm3: float | Mapping[str, float] | None = None,
    pattern: str | None = None,
    background_values: Sequence[int] | None = None,
) -> Predictions:
    """Settle how a folder of predictions is read; its predictions.json says what is not said here.

    Saved masks are used where predictions.json says what made them and nothing else is asked for, and where there is no
    probability. Else masks are made from the probabilities, at 0.5 where no threshold is known.

    Args:
        folder: Holds `<case_id>_{probability,mask}.nii.gz` (several classes: `<case_id>_<class>_…`), or foreign masks.
        classes: Class name -> label values; None: as predictions.json says, else `{"lesion": (1,)}`.
        threshold: For `probability >= threshold`, in [0, 1]; one for all classes, or by class.
        min_volume_mm3: Smaller predicted lesions are taken out; as `threshold`.
        pattern: Name of foreign masks, as in `{case_id}.nii.gz`. With several classes and no `{class}` in it, a file is
            a map of label values.
        background_values: Label values that belong to no class; None: as predictions.json says, else none but 0.

    Raises:
        DataError: The folder is missing, predictions.json is damaged, or a setting cannot be used.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise DataError(
            folder, "no such folder", "expected what predict.py wrote, or a folder of masks"
        )
    saved = {} if pattern is not None else _saved_settings(folder / SETTINGS_FILE)
    has_scores = pattern is None and any(folder.glob(f"*{PROBABILITY_ENDING}"))
    if threshold is not None and not has_scores:
        raise DataError(
            "threshold",
            f"{threshold}, but {folder} holds masks only",
            "leave it out to judge them as they are",
        )
    if pattern is not None:
        _file_name(pattern, Case("case", "subject", {}), "class")
    try:
        checked = check_classes(classes if classes is not None else saved.get("classes"))
    except DataError as fault:
        where = "classes" if classes is not None else str(folder / SETTINGS_FILE)
        raise DataError(where, f"{str(fault).removeprefix('data.')}") from fault
    return Predictions(
        folder=folder,
        classes=checked,
        threshold=_by_class(
            "threshold",
            [threshold, saved.get("threshold"), 0.5 if has_scores else None],
            names=checked,
            highest=1,
        ),
        min_volume_mm3=_by_class(
            "min_volume_mm3",
            [min_volume_mm3, saved.get("min_volume_mm3"), 0.0],
            names=checked,
            highest=math.inf,
        ),
        pattern=pattern,
        uses_masks=saved.get("threshold") is not None
        and threshold is None
        and min_volume_mm3 is None,
        background_values=_whole_numbers(
            saved.get("background_values") if background_values is None else background_values
        ),
    )


def check_grid(volume: Volume, reference: Volume, *, path: Path) -> float:
    """How far off the reference's grid a file lies, in voxels.

    Raises:
        DataError: It has another shape, or lies more than 0.6 voxel off.
    """
    same_shape = volume.shape == reference.shape
    shift = (
        affine_shift_voxels(reference.affine, volume.affine, reference.shape)
        if same_shape
        else math.inf
    )
    if shift > LARGEST_SHIFT:
        raise DataError(
            path,
            f"{_describe_grid(volume)}",
            f"expected the reference's {_describe_grid(reference)}",
        )
    return shift


def _is_named(path: Path) -> bool:
    """Whether the folder has such a name, be it a link to a file that is gone, which reading then says."""
    return path.exists() or path.is_symlink()


def _describe_grid(volume: Volume) -> str:
    return f"shape {volume.shape}, affine {np.round(volume.affine[:3], 4).tolist()}"


def _as_probability(data: NDArray[np.float32], path: Path) -> NDArray[np.float32]:
    lowest, highest = float(data.min()), float(data.max())
    if lowest < -1e-6 or highest > 1 + 1e-6:
        raise DataError(
            path, f"values from {lowest:g} to {highest:g}", "expected probabilities from 0 to 1"
        )
    return data


def _as_mask(data: NDArray[Any], path: Path) -> Mask:
    mask: Mask = data == 1
    strange = data[mask != (data != 0)]
    if strange.size:
        raise DataError(
            path,
            f"{strange.size} voxels of other values, as {strange[0]}",
            "expected a mask of 0 and 1",
        )
    return mask


def _file_name(pattern: str, case: Case, name: str) -> str:
    try:
        filled = pattern.format_map(
            {"case_id": case.case_id, "subject_id": case.subject_id, "class": name}
        )
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise DataError(
            "pattern", f"{pattern!r}", "expected a name with {case_id}, as {case_id}.nii.gz"
        ) from error
    if "{case_id" not in pattern and "{subject_id" not in pattern:
        raise DataError(
            "pattern", f"{pattern!r} is one file for all cases", "expected a name with {case_id}"
        )
    return filled


def _saved_settings(path: Path) -> dict[str, Any]:
    """What predict.py wrote down; nothing where it did not."""
    if not path.exists():
        return {}
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(path, f"cannot be read ({error})", "predict again, or delete it") from error
    if not isinstance(saved, dict):
        raise DataError(path, "holds no settings", "predict again, or delete it")
    return saved


def _whole_numbers(values: Any) -> tuple[int, ...]:
    values = () if values is None else values
    if not isinstance(values, Sequence) or not all(type(value) is int for value in values):
        raise DataError(
            "background_values", f"{values!r}", "expected label values, as [1], or null"
        )
    return tuple(values)


def _by_class(
    key: str, candidates: Sequence[Any], *, names: Mapping[str, Any], highest: float
) -> dict[str, Any]:
    """The first candidate that says something, spread over the classes where it is one number."""
    value = next((candidate for candidate in candidates if candidate is not None), None)
    values = value if isinstance(value, Mapping) else dict.fromkeys(names, value)
    for name in names:
        number = values.get(name)
        if value is not None and not (isinstance(number, int | float) and 0 <= number <= highest):
            raise DataError(
                key, f"{number} for class {name}", f"expected a number from 0 to {highest:g}"
            )
    return {name: values[name] for name in names}
