"""A cohort as the `data` config describes it, and the cases that it lists."""

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tversky_seg.data.case import Case, check_cases, faults_between_cases, is_safe_name
from tversky_seg.data.errors import DataError
from tversky_seg.data.manifest import inspect_manifest, is_reserved, read_manifest

logger = logging.getLogger("tversky_seg")

NORMALIZATIONS = ("zscore", "robust", "percentile", "window", "none")
RATERS = ("consensus", "majority", "random")
SPACINGS = ("native", "median")
SUBJECT_FOLDS = {
    "loso": "subject_id",
    "site": "site",
}  # leave one out: each value of this attribute is a fold


@dataclass(frozen=True)
class Dataset:
    """A cohort as a user describes it: where the cases are listed, which channels and classes, how to split.

    Attributes:
        modalities: Input channels in order; empty: every modality column of the manifest.
        classes: Class name -> label values that belong to it (values may be shared: nested classes). None:
            `default_classes`.
        default_classes: The classes where the user names none; None: `{"lesion": (1,)}`.
        manifest: CSV that lists the cases; else `root` and `importer`.
        root: Folder of a public data set as downloaded.
        importer: `importer(root)` lists the cases of such a folder.
        spacing_mm: Voxel size that the network sees, along R, A, S, null for an axis that stays as it is; "median" of
            the labelled cases; "native": each case keeps its own; None: that of most cases.
        cache_dir: Where preprocessed cases are kept.
        folds: Number of folds where neither a split nor a fold column decides; "loso": each subject is one, "site":
            each site is one, whatever the columns say.
        fold: Which fold is held out for testing; None: the split column, else the first fold.
        val_fraction: Share of the remaining subjects to validate on.
        normalization: "zscore", "robust", "percentile", "window" or "none", see `preprocessing.Preprocessing`.
        limits: Of "percentile" in per cent, of "window" in the file's units; None: see `preprocessing.Preprocessing`.
        crop_values: Crop to the box around these label values; empty: to the brain (`preprocessing.Preprocessing`).
        crop_margin: Voxels around that box.
        rater: Whose label to train on: None the first, "consensus", 1, 2, …, "majority" or "random" (for each patch).
        stratify: Draw folds so that each has its share of small and large lesion loads, and of each site.

    Raises:
        DataError: A setting is out of range, or it is not said where the cases are.
    """

    modalities: tuple[str, ...] = ()
    classes: Mapping[str, tuple[int, ...]] = None  # type: ignore[assignment]  # filled below
    default_classes: Mapping[str, tuple[int, ...]] | None = None
    manifest: Path | None = None
    root: Path | None = None
    importer: Callable[[Path], list[Case]] | None = None
    spacing_mm: tuple[float | None, float | None, float | None] | float | str | None = None
    cache_dir: Path = Path("data/cache")
    folds: int | str = 5
    fold: int | None = None
    val_fraction: float = 0.2
    normalization: str = "zscore"
    limits: tuple[float, float] | None = None
    crop_values: tuple[int, ...] = ()
    crop_margin: int = 5
    rater: int | str | None = None
    stratify: bool = True

    def __post_init__(self) -> None:
        plain = {
            "modalities": check_modalities(self.modalities),
            "classes": check_classes(
                self.default_classes if self.classes is None else self.classes
            ),
            "manifest": None if self.manifest is None else Path(self.manifest).expanduser(),
            "root": None if self.root is None else Path(self.root).expanduser(),
            "spacing_mm": self.spacing_mm
            if self.spacing_mm in SPACINGS
            else check_spacing(self.spacing_mm),
            "limits": check_limits(self.limits, self.normalization),
            "crop_values": check_crop(self.crop_values, self.crop_margin),
            "rater": check_rater(self.rater),
            "cache_dir": Path(self.cache_dir).expanduser(),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        is_number = isinstance(self.folds, int) and self.folds >= 2
        _require(
            is_number or self.folds in SUBJECT_FOLDS,
            f"data.folds: {self.folds}; expected 2 or more, loso or site",
        )
        _require(self.fold is None or self.fold >= 0, f"data.fold: {self.fold}; expected 0 or more")
        _require(
            0 <= self.val_fraction < 1,
            f"data.val_fraction: {self.val_fraction}; expected 0 to below 1",
        )
        if self.importer is None:
            _require(
                self.manifest is not None,
                "data.manifest: none given; expected a CSV file that lists the cases",
            )
        else:
            _require(
                self.root is not None,
                "data.root: none given; expected the folder of the data set as downloaded",
            )


def check_modalities(modalities: Sequence[str] | None) -> tuple[str, ...]:
    """Modality names as a tuple, after a check that they are distinct and can stand in file names."""
    _require(
        not isinstance(modalities, str),
        f"data.modalities: {modalities!r}; expected a list as in [FLAIR,T1]",
    )
    names = tuple(str(name) for name in modalities or ())
    for name in names:
        _require(
            is_safe_name(name),
            f"data.modalities: {name!r}; expected letters, digits and _ . = + @ -",
        )
        _require(
            not is_reserved(name),
            f"data.modalities: {name!r} is a column with another meaning; rename it",
        )
    _require(
        len(set(names)) == len(names), f"data.modalities: {list(names)}; expected each name once"
    )
    return names


def check_classes(classes: Mapping[str, Any] | None) -> dict[str, tuple[int, ...]]:
    """Class name -> label values as tuples of int; None is `{"lesion": (1,)}`, a bare number a single value."""
    if classes is None:
        return {"lesion": (1,)}
    _require(
        isinstance(classes, Mapping) and len(classes) > 0,
        f"data.classes: {classes}; expected e.g. {{lesion: [1]}}",
    )
    checked = {}
    for name, values in classes.items():
        members = (
            tuple(values)
            if isinstance(values, Sequence) and not isinstance(values, str)
            else (values,)
        )
        _require(
            is_safe_name(str(name)),
            f"data.classes: {name!r}; expected letters, digits and _ . = + @ -",
        )
        _require(
            len(members) > 0 and all(type(value) is int and value != 0 for value in members),
            f"data.classes.{name}: {values}; expected label values, whole numbers other than 0 (the background)",
        )
        checked[str(name)] = members
    return checked


def check_spacing(spacing_mm: Any) -> tuple[float | None, float | None, float | None] | None:
    """Three positive voxel sizes in mm; one number stands for all three axes, None for the files' own."""
    if spacing_mm is None:
        return None
    try:
        spacing = np.broadcast_to(np.asarray(spacing_mm, dtype=float), 3)  # None becomes NaN
        fine = bool(np.all(np.isnan(spacing) | np.isfinite(spacing) & (spacing > 0)))
    except (TypeError, ValueError):
        fine = False
    _require(fine, f"data.spacing_mm: {spacing_mm}; expected three positive numbers in mm, as in [1,1,1], null for an "
             "axis that stays as it is, or native, median or null")  # fmt: skip
    x, y, z = (None if np.isnan(size) else float(size) for size in spacing)
    return None if (x, y, z) == (None, None, None) else (x, y, z)


def check_limits(limits: Sequence[float] | None, normalization: str) -> tuple[float, float] | None:
    """The two limits that a normalisation has, the lower first, or None for a normalisation without.

    None for one that has limits: percentiles 0.5 and 99.5, and the window of -300 to 300 HU.
    """
    _require(normalization in NORMALIZATIONS,
             f"data.normalization: {normalization!r}; expected one of {', '.join(NORMALIZATIONS)}")  # fmt: skip
    standard = {"percentile": (0.5, 99.5), "window": (-300.0, 300.0)}.get(normalization)
    if limits is None or standard is None:
        _require(
            limits is None,
            f"data.limits: {limits}; expected null, normalization {normalization} has none",
        )
        return standard
    fine = (
        len(limits) == 2
        and all(type(limit) in (int, float) for limit in limits)
        and limits[0] < limits[1]
    )
    fine = fine and (normalization == "window" or (limits[0] >= 0 and limits[1] <= 100))
    _require(fine, f"data.limits: {list(limits)}; expected two numbers as in {list(standard)}, the smaller first"
             + ", in per cent" * (normalization == "percentile"))  # fmt: skip
    return (float(limits[0]), float(limits[1]))


def check_crop(values: Sequence[int] | None, margin: int) -> tuple[int, ...]:
    """Label values to crop to, as a tuple."""
    values = tuple(values or ())
    _require(all(type(value) is int and value != 0 for value in values),
             f"data.crop_values: {list(values)}; expected label values, whole numbers other than 0")  # fmt: skip
    _require(margin >= 0, f"data.crop_margin: {margin}; expected 0 or more voxels")
    return values


def check_rater(rater: int | str | None) -> int | str | None:
    """Whose label to train on, as it was given."""
    fine = rater is None or rater in RATERS or (type(rater) is int and rater >= 1)
    _require(
        fine, f"data.rater: {rater!r}; expected null, a number from 1 or one of {', '.join(RATERS)}"
    )
    return rater


def with_modalities(dataset: Dataset) -> Dataset:
    """The data set with its modalities named: where the user names none, those of the case that has most.

    Raises:
        DataError: The manifest or the folder is at fault.
    """
    if dataset.modalities:
        return dataset
    return replace(
        dataset, modalities=max((tuple(case.images) for case in _list_cases(dataset)), key=len)
    )


def find_cases(dataset: Dataset) -> list[Case]:
    """The cases of a data set; of a downloaded one the incomplete are left out and named in one warning.

    Incomplete is a case without one of `dataset.modalities`, and one without label outside the official test set.

    Raises:
        DataError: The manifest is at fault, or no case is complete.
    """
    cases = _list_cases(dataset)
    if dataset.importer is None:
        return cases
    check_cases(cases, source=str(dataset.root))
    missing = {case.case_id: _what_is_missing(case, dataset.modalities) for case in cases}
    complete = [
        _with_modalities(case, dataset.modalities) for case in cases if not missing[case.case_id]
    ]
    _say_incomplete(missing)
    _require(len(complete) > 0, f"{dataset.root}: no case is complete, {cases[0].case_id} has no "
             f"{missing[cases[0].case_id]}; download the files or name other data.modalities")  # fmt: skip
    return complete


def survey_cases(dataset: Dataset) -> tuple[list[Case], dict[str, str], list[DataError]]:
    """As `find_cases`, with what it would raise or warn of as values, for the check of the data.

    Returns:
        The cases to work with, what each incomplete case of a downloaded data set lacks, and the faults of the listing.

    Raises:
        DataError: Nothing is listed.
    """
    if dataset.importer is None:
        assert dataset.manifest is not None
        cases, faults = inspect_manifest(dataset.manifest, modalities=dataset.modalities or None)
        return cases, {}, faults
    cases = _list_cases(dataset)
    missing = {case.case_id: _what_is_missing(case, dataset.modalities) for case in cases}
    complete = [
        _with_modalities(case, dataset.modalities) for case in cases if not missing[case.case_id]
    ]
    faults = faults_between_cases(cases, source=str(dataset.root))
    return complete, {case_id: lack for case_id, lack in missing.items() if lack}, faults


def _list_cases(dataset: Dataset) -> list[Case]:
    if dataset.importer is None:
        assert dataset.manifest is not None
        return read_manifest(dataset.manifest, modalities=dataset.modalities or None)
    assert dataset.root is not None
    try:
        cases = dataset.importer(dataset.root)
    except DataError as fault:
        if str(fault).startswith(f"{dataset.root}: ") and not dataset.root.exists():
            raise DataError(
                dataset.root, "no such folder", "expected that of the data set as downloaded"
            ) from fault
        raise
    _require(
        len(cases) > 0,
        f"{dataset.root}: no case found; expected the folder of the data set as downloaded",
    )
    return cases


def _what_is_missing(case: Case, modalities: Sequence[str]) -> str:
    missing = [name for name in modalities if name not in case.images]
    return ", ".join(missing + ["label"] * (not case.labels and case.split != "test"))


def _with_modalities(case: Case, modalities: Sequence[str]) -> Case:
    return replace(case, images={name: case.images[name] for name in modalities or case.images})


def _say_incomplete(missing: Mapping[str, str]) -> None:
    by_reason: dict[str, list[str]] = defaultdict(list)
    for case_id, reason in missing.items():
        if reason:
            by_reason[reason].append(case_id)
    if by_reason:
        lists = "; ".join(f"no {reason}: {', '.join(ids)}" for reason, ids in by_reason.items())
        n_incomplete = sum(map(len, by_reason.values()))
        logger.warning(
            "%d of %d cases are incomplete and left out (%s)", n_incomplete, len(missing), lists
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise DataError(message)
