"""From the files of a case to the arrays that training reads.

Axes run to R, A, S; one voxel size; cropped to the brain; normalised; lesions listed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.case import Case, missing_modalities, modalities_of
from tversky_seg.data.dataset import Dataset, survey_cases
from tversky_seg.data.errors import DataError
from tversky_seg.data.grids import Bools, Box, network_grid
from tversky_seg.data.nifti import read_grid
from tversky_seg.data.nifti_header import MAX_VOXELS
from tversky_seg.data.preprocessing.image import (
    flat_indices,
    insert_missing,
    missing_channels,
    stack,
    stretch,
    union_of_foregrounds,
)
from tversky_seg.data.preprocessing.labels import (
    LabelReader,
    box_around,
    labels_to_read,
    list_lesions_of_raters,
    notes_on_lesions,
)
from tversky_seg.data.preprocessing.modality import Channel, read_brain, read_channel
from tversky_seg.data.preprocessing.note import Note
from tversky_seg.data.preprocessing.prepared_case import PreparedCase
from tversky_seg.data.preprocessing.rater_votes import staple
from tversky_seg.data.preprocessing.reference_grid import ReferenceGrid
from tversky_seg.data.preprocessing.spacing import common_spacing, median_spacing
from tversky_seg.data.settings import check_spacing, set_checked
from tversky_seg.metrics.masks import bounding_box

logger = logging.getLogger("tversky_seg")


@dataclass(frozen=True)
class Preprocessing:
    """Settings of preprocessing, the same in training and in prediction.

    Attributes:
        modalities: Channels in order.
        classes: Class name -> label values that belong to it.
        spacing_mm: Voxel size along R, A, S, None for an axis that keeps the file's own; None:
            all axes keep theirs.
        normalization: How intensities are normalised.
            "zscore": mean 0 and standard deviation 1 in the brain.
            "robust": median 0 and interquartile range 1.349 in the brain (that of a normal
            distribution of standard deviation 1), which large lesion loads move less.
            "percentile": from two percentiles of the brain to [0, 1], cut there.
            "window": from two intensities (HU in CT) to [0, 1], cut there.
            "window_minmax": cut at two intensities, then from the smallest to the largest one that
            is left in the crop to [0, 1], as Shirokikh 2020.
            "none": as in the file.
        limits: Percentiles (None: 0.5 and 99.5) or intensities (None: -300 and 300).
        require: Modalities that every case has. Of the others one may be missing: its channel is
            then 0 throughout. None: all modalities.
        crop_values: Label values around which a labelled case is cropped, as Shirokikh 2020 crops
            LiTS to the liver. Voxels beyond the box are neither trained on nor predicted. A case
            without label is not cropped by it. Empty: crop to the box around brain and label.
        crop_margin: Network voxels around that box.
        ignore: Label values whose voxels do not count. A voxel is ignored if any of the labels that
            are read has such a value there, or if the case's `ignore_mask` holds it.
        rater: Label to train on. None: the first. "consensus": the first, if it is one.
            1, 2, …: that rater's. "majority": voxels that more than half of the raters drew.
            "staple": the consensus of all raters by STAPLE (`rater_votes.staple`).
            "mean": the share of raters that drew a voxel, a target between 0 and 1; lesions are
            the components of voxels that at least half of them drew.
            "random": the first, with those of all raters (`one_case_per_rater`).

    Raises:
        DataError: A setting is out of range.
    """

    modalities: tuple[str, ...]
    classes: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: {"lesion": (1,)})
    spacing_mm: tuple[float | None, float | None, float | None] | None = None
    normalization: str = "zscore"
    limits: tuple[float, float] | None = None
    crop_values: tuple[int, ...] = ()
    crop_margin: int = 5
    require: tuple[str, ...] | None = None
    ignore: tuple[int, ...] = ()
    rater: int | str | None = None

    def __post_init__(self) -> None:
        set_checked(self)
        object.__setattr__(self, "spacing_mm", check_spacing(self.spacing_mm))
        if not self.modalities:
            raise DataError("data.modalities", "none", "expected at least one")

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for checkpoints and cache keys."""
        values = {
            "modalities": list(self.modalities),
            "classes": {name: list(values) for name, values in self.classes.items()},
            "spacing_mm": None if self.spacing_mm is None else list(self.spacing_mm),
            "normalization": self.normalization,
            "limits": None if self.limits is None else list(self.limits),
            "crop_values": list(self.crop_values),
            "crop_margin": self.crop_margin,
            "rater": self.rater,
        }
        # Only where they are set, so that caches of earlier versions stay valid.
        if self.ignore:
            values["ignore"] = list(self.ignore)
        if self.require is not None:
            values["require"] = list(self.require)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Do the inverse of `as_dict`."""
        return cls(**values)


def preprocessing_of(dataset: Dataset, cases: Sequence[Case]) -> Preprocessing:
    """Settle the preprocessing of a data set, with the voxel size of its cases.

    Args:
        dataset: The data set as the user describes it.
        cases: Cases whose voxel size counts where the data set names none: the labelled ones,
            test cases too, so that the networks of all folds share a voxel size and can predict
            as one ensemble.

    Raises:
        DataError: A header cannot be read.
    """
    # In the order of their names, so that ties are broken alike in every fold.
    ordered = sorted(cases, key=lambda case: case.case_id)
    labelled = [case for case in ordered if case.labels] or ordered
    spacing_mm = dataset.spacing_mm
    if spacing_mm is None:
        spacing_mm = common_spacing(labelled)
    elif spacing_mm == "median":
        spacing_mm = median_spacing(labelled)
    elif spacing_mm == "native":
        spacing_mm = None
    return Preprocessing(
        modalities=dataset.modalities,
        classes=dataset.classes,
        spacing_mm=check_spacing(spacing_mm),
        normalization=dataset.normalization,
        limits=dataset.limits,
        crop_values=dataset.crop_values,
        crop_margin=dataset.crop_margin,
        require=dataset.require,
        ignore=dataset.ignore,
        rater=dataset.rater,
    )


def network_spacing(dataset: Dataset) -> tuple[float, float, float]:
    """Return the voxel size that the network will see, from the headers of the files.

    Where cases keep their own, along one axis or along all, it is the median of the labelled ones.

    Raises:
        DataError: There is no case, or a header cannot be read.
    """
    cases, _, _ = survey_cases(dataset)
    settled = preprocessing_of(dataset, cases).spacing_mm or (None, None, None)
    median = median_spacing([case for case in cases if case.labels] or cases)
    x, y, z = (own or typical for own, typical in zip(settled, median, strict=True))
    return x, y, z


def preprocess(case: Case, settings: Preprocessing) -> PreparedCase:
    """Prepare one case in memory; without label it can be predicted.

    Oddities of the files that were put right are logged, once in a process.

    Raises:
        DataError: A file is at fault, or files do not fit each other or the settings.
    """
    prepared = preprocess_quietly(case, settings)
    log_notes(prepared)
    return prepared


def require_lesions(cases: Sequence[PreparedCase]) -> None:
    """Refuse cases to train on of which none holds a lesion.

    Raises:
        DataError: No voxel of any class in any case.
    """
    if any(sum(case.n_lesions) for case in cases):
        return
    found = f"no lesion in any of {len(cases)} cases"
    raise DataError("training set", found, "expected a label that is not empty")


def preprocess_quietly(case: Case, settings: Preprocessing) -> PreparedCase:
    """Do as `preprocess`, and leave it to the caller to log the notes."""
    check_contents(case, settings)
    notes: list[Note] = []
    # From the header alone, so that too fine a spacing is refused before a volume is read.
    grid = _reference_grid(case, settings)
    brain = None
    if case.brain_mask is not None:
        brain = read_brain(case.brain_mask, grid, notes)
    channels = _read_channels(case, settings, grid, brain, notes)
    foreground = brain
    if foreground is None:
        foreground = union_of_foregrounds(channels, grid.shape)
    targets, ignored, votes = _read_targets(case, settings, grid, notes)
    box = _crop(case, settings, grid, foreground, targets)
    inside = _cropped(foreground, box)
    # Whole volumes are let go as soon as they are cropped: memory decides how many workers fit.
    del foreground, brain
    scales = np.array([channel.scale for channel in channels], dtype=np.float32)
    image = stack(channels, box, inside)
    if settings.normalization == "window_minmax":
        scales = stretch(image, inside)
    # While the targets are whole: the crop may cut lesions off.
    notes += notes_on_lesions(targets, box, inside)
    targets = [_cropped(target, box) for target in targets]
    arrays = {"image": image, **_arrays_of_voxels(inside, ignored, votes, box)}
    n_raters = 0
    if votes is not None:
        n_raters = len(case.raters)
    del inside, ignored, votes
    missing = missing_channels(settings.modalities, modalities_of(case, settings.modalities))
    if missing:
        image, scales = insert_missing(image, scales, missing)
        arrays["image"] = image
    lesions, n_lesions = list_lesions_of_raters(targets)
    return PreparedCase(
        case_id=case.case_id,
        subject_id=case.subject_id,
        geometry=grid.cropped_to(box),
        image_scale=scales,
        n_lesions=n_lesions[0],
        notes=tuple(dict.fromkeys(notes)),  # each once, in order
        rater_lesions=tuple(n_lesions[1:]),
        has_ignored="ignored" in arrays,
        missing=missing,
        n_raters=n_raters,
        arrays={**arrays, **lesions},
    )


def check_contents(case: Case, settings: Preprocessing) -> None:
    """Check that a case has the required modalities, and the labels of the rater.

    Raises:
        DataError: One is missing.
    """
    missing = missing_modalities(case, settings.modalities, settings.require)
    if missing:
        raise DataError(
            case.case_id,
            f"has no {', '.join(missing)}",
            f"expected {', '.join(settings.modalities)}",
            case_id=case.case_id,
        )
    # The label of the rater is looked for before anything is read.
    labels_to_read(case, settings.rater)


def log_notes(prepared: PreparedCase) -> None:
    """Log the oddities of a case's files, each once in a process."""
    for note in prepared.notes:
        _log_once(note)


def _reference_grid(case: Case, settings: Preprocessing) -> ReferenceGrid:
    # The first that this case has: it may lack the first of the data set.
    first = modalities_of(case, settings.modalities)[0]
    input_shape, input_affine = read_grid(case.images[first])
    shape, affine = network_grid(input_shape, input_affine, spacing_mm=settings.spacing_mm)
    if math.prod(shape) > MAX_VOXELS:
        raise DataError(
            "data.spacing_mm",
            f"{settings.spacing_mm} makes {shape} voxels of {case.images[first]}",
            f"expected at most {MAX_VOXELS}",
            case_id=case.case_id,
        )
    return ReferenceGrid(first, input_shape, input_affine, shape, affine)


def _read_channels(
    case: Case,
    settings: Preprocessing,
    grid: ReferenceGrid,
    brain: Bools | None,
    notes: list[Note],
) -> list[Channel]:
    channels = []
    for name in modalities_of(case, settings.modalities):
        channel = read_channel(
            case.images[name],
            name,
            grid,
            brain,
            normalization=settings.normalization,
            limits=settings.limits,
            notes=notes,
        )
        channels.append(channel)
    return channels


def _read_targets(
    case: Case, settings: Preprocessing, grid: ReferenceGrid, notes: list[Note]
) -> tuple[list[Bools], Bools | None, NDArray[np.uint8] | None]:
    """Read the target (K, X, Y, Z), then those of all raters where one is to be drawn.

    Returns:
        The targets, none for a case without label; the voxels (X, Y, Z) to ignore, None where
        there are none; and the number of raters (K, X, Y, Z) that drew a voxel, where the target
        is their mean.
    """
    files = labels_to_read(case, settings.rater)
    if not files:
        return [], None, None
    reader = LabelReader(
        grid, settings.classes, settings.crop_values, notes, ignore=settings.ignore
    )
    reader = replace(reader, ignored=reader.read_ignored(files, case.ignore_mask))
    votes = None
    if settings.rater == "majority":
        targets = [reader.read_majority(files)]
    elif settings.rater == "mean":
        votes = reader.read_votes(files)
        # Lesions need a mask; the target itself stays the share of the raters.
        targets = [votes * 2 >= len(files)]
    elif settings.rater == "staple":
        targets = [staple([reader.read(file) for file in files])]
    else:
        targets = [reader.read(file) for file in files]
    # What any rater drew counts: resampling must not let ignored voxels eat into it.
    ignored = reader.ignored_on_network_grid(targets if votes is None else [votes > 0])
    return targets, ignored, votes


def _crop(
    case: Case,
    settings: Preprocessing,
    grid: ReferenceGrid,
    foreground: Bools,
    targets: Sequence[Bools],
) -> Box:
    """Choose the box that is kept: around crop_values, or around brain and label."""
    if settings.crop_values and case.label is not None:
        margin = settings.crop_margin
        return box_around(case.label, grid, settings.crop_values, margin=margin)
    occupied = foreground
    for target in targets:
        occupied = occupied | target.any(axis=0)
    return bounding_box(occupied)


def _cropped(volume: NDArray[Any], box: Box) -> NDArray[Any]:
    """Copy the box of (..., X, Y, Z), so that the whole volume can be let go."""
    place: tuple[Any, ...] = (..., *box)
    return np.ascontiguousarray(volume[place])


def _arrays_of_voxels(
    inside: Bools, ignored: Bools | None, votes: NDArray[np.uint8] | None, box: Box
) -> dict[str, NDArray[Any]]:
    """Name the arrays of the brain, of what does not count, and of the raters' votes.

    Args:
        inside: (X, Y, Z) foreground in the box.
        ignored: Whole volume of the voxels to ignore; None: all count.
        votes: Whole volumes of the raters' votes; None for a target of one mask.
        box: Box that is kept.
    """
    arrays: dict[str, NDArray[Any]] = {"foreground_voxels": flat_indices(inside)}
    if ignored is not None:
        ignored = _cropped(ignored, box)
        arrays["ignored"] = ignored.view(np.uint8)
        arrays["counted_voxels"] = flat_indices(inside & ~ignored)
    if votes is not None:
        arrays["votes"] = _cropped(votes, box)
    return arrays


@cache
def _log_once(note: Note) -> None:
    logger.warning("%s", note)
