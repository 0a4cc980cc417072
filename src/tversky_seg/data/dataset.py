"""A cohort as the `data` config describes it, and the cases that it lists."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tversky_seg.data.case import Case, case_faults, check_cases, missing_modalities
from tversky_seg.data.errors import DataError
from tversky_seg.data.manifest import inspect_manifest, read_header
from tversky_seg.data.settings import Spacing, check_spacing, set_checked
from tversky_seg.data.time_points import (
    BOTH,
    CLASSES_OF_BOTH,
    EARLIER,
    LATER,
    check_pair_label,
    pair_up,
    with_pair_labels,
    without_time,
)

logger = logging.getLogger("tversky_seg")

SPACINGS = ("native", "median")
LEAVE_ONE_OUT = {"loso": "subject_id", "site": "site"}
"""Value of `folds` -> attribute of a case; each value of the attribute is one fold."""


@dataclass(frozen=True)
class Dataset:
    """A cohort as a user describes it: its cases, channels, classes, and split.

    Attributes:
        modalities: Input channels in order; empty: every modality column of the manifest.
        classes: Class name -> label values that belong to it (values may be shared: nested
            classes). None: `default_classes`.
        default_classes: Classes if the user names none; None: `{"lesion": (1,)}`.
        manifest: CSV that lists the cases; otherwise `root` and `importer`.
        root: Folder of a public data set as downloaded.
        importer: `importer(root)` lists the cases of such a folder.
        spacing_mm: Voxel size that the network sees, along R, A, S, null for an axis that keeps
            its own; "median" of the labelled cases; "native": each case keeps its own; None: that
            of most cases.
        cache_dir: Folder for preprocessed cases.
        folds: Number of folds to draw if no split or fold column decides; "loso": each subject is
            one, "site": each site is one, whatever the columns say.
        fold: Number of the fold held out for testing; None: the split column, otherwise the first
            fold.
        val_fraction: Share of the remaining subjects to validate on, in [0, 1).
        normalization: "zscore", "robust", "percentile", "window", "window_minmax" or "none",
            see `preprocessing.Preprocessing`.
        limits: Limits of "percentile" in per cent, of "window" in the file's units; None: see
            `preprocessing.Preprocessing`.
        crop_values: Label values to crop around; empty: the brain (`preprocessing.Preprocessing`).
        crop_margin: Voxels around that box.
        require: Modalities that every case has; others may be missing from a case, if not all are.
            None: all of `modalities`.
        ignore: Label values whose voxels count neither in training nor in evaluation.
        rater: Rater whose label to train on: None the first, "consensus", 1, 2, …, "majority",
            "staple", "mean" (soft labels) or "random" (another for each patch).
        stratify: Whether each fold gets its share of small and large lesion loads, and of each
            site.
        pair_label: What is learnt from the masks of all lesions at two times (`label@1`, `label@2`,
            or the labels of a case and its baseline): "new" lesions, or "both" as the classes
            baseline and follow_up; None: the pair's own label, new lesions if it has none.

    Raises:
        DataError: A setting is out of range, or not exactly one of a manifest and a root is
            given.
    """

    modalities: tuple[str, ...] = ()
    classes: Mapping[str, tuple[int, ...]] = None  # type: ignore[assignment]  # filled below
    default_classes: Mapping[str, tuple[int, ...]] | None = None
    manifest: Path | None = None
    root: Path | None = None
    importer: Callable[[Path], list[Case]] | None = None
    spacing_mm: Spacing | float | str | None = None
    cache_dir: Path = Path("data/cache")
    folds: int | str = 5
    fold: int | None = None
    val_fraction: float = 0.2
    normalization: str = "zscore"
    limits: tuple[float, float] | None = None
    crop_values: tuple[int, ...] = ()
    crop_margin: int = 5
    require: tuple[str, ...] | None = None
    ignore: tuple[int, ...] = ()
    rater: int | str | None = None
    stratify: bool = True
    pair_label: str | None = None

    def __post_init__(self) -> None:
        check_pair_label(self.pair_label)
        default_classes = self.default_classes
        if default_classes is None and self.pair_label == BOTH:
            default_classes = CLASSES_OF_BOTH
        classes = default_classes if self.classes is None else self.classes
        object.__setattr__(self, "classes", classes)
        set_checked(self)
        # "native" and "median" are resolved by the cases, in preprocessing.
        if self.spacing_mm not in SPACINGS:
            object.__setattr__(self, "spacing_mm", check_spacing(self.spacing_mm))
        for name in ("manifest", "root", "cache_dir"):
            path = getattr(self, name)
            if path is not None:
                object.__setattr__(self, name, Path(path).expanduser())
        self._check_split()
        self._check_source()

    def _check_split(self) -> None:
        is_number = isinstance(self.folds, int) and self.folds >= 2
        if not is_number and self.folds not in LEAVE_ONE_OUT:
            raise DataError("data.folds", str(self.folds), "expected 2 or more, loso or site")
        if self.fold is not None and self.fold < 0:
            raise DataError("data.fold", str(self.fold), "expected 0 or more")
        if not 0 <= self.val_fraction < 1:
            raise DataError("data.val_fraction", str(self.val_fraction), "expected 0 to below 1")

    def _check_source(self) -> None:
        if self.importer is None and self.manifest is None:
            remedy = "set data.manifest=FILE.csv (python scripts/make_manifest.py writes one)"
            raise DataError("data.manifest", "none given", remedy)
        if self.importer is not None and self.root is None:
            raise DataError("data.root", "none given", "set data.root=FOLDER, as downloaded")
        if self.importer is not None and self.manifest is not None:
            raise DataError("data.manifest", str(self.manifest), "add data=manifest to read it")


def with_modalities(dataset: Dataset) -> Dataset:
    """Name the modalities of a data set: if the user names none, those of the case with most.

    Raises:
        DataError: The manifest or the folder is at fault.
    """
    if dataset.modalities:
        return dataset
    # With `require` a case may have fewer than the cohort, and no case all of them.
    if dataset.require is not None:
        names: dict[str, None] = {}  # as an ordered set
        for case in _list_cases(dataset):
            names.update(dict.fromkeys(case.images))
        return replace(dataset, modalities=tuple(names))
    # A case of fewer modalities is then incomplete, rather than the others cut down to its own.
    richest = max(_list_cases(dataset), key=lambda case: len(case.images))
    return replace(dataset, modalities=tuple(richest.images))


def find_cases(dataset: Dataset) -> list[Case]:
    """List the cases of a data set; of a downloaded one, log which are incomplete and left out.

    A case is incomplete without one of the required modalities, without any image, or without a
    label outside the official test set.

    Raises:
        DataError: The manifest is at fault, or no case is complete.
    """
    cases = _list_cases(dataset)
    if dataset.importer is None:
        return cases
    check_cases(cases, source=str(dataset.root))
    complete, missing = _part_incomplete(cases, dataset)
    if missing:
        _warn_of_incomplete(missing, n_cases=len(cases))
    if not complete:
        first = cases[0].case_id
        raise DataError(
            dataset.root,
            f"no case is complete, {first} has no {missing[first]}",
            "download the files or name other data.modalities",
        )
    return complete


def survey_cases(dataset: Dataset) -> tuple[list[Case], dict[str, str], list[DataError]]:
    """List the cases like `find_cases`, with its errors and warnings as values, for the data check.

    Returns:
        The cases to work with; case id -> missing files of each incomplete case of a downloaded
        data set; and the faults of the listing.

    Raises:
        DataError: Nothing is listed.
    """
    if dataset.importer is None:
        assert dataset.manifest is not None
        cases, faults = _inspect(dataset)
        return cases, {}, faults
    cases = _list_cases(dataset)
    complete, missing = _part_incomplete(cases, dataset)
    return complete, missing, case_faults(cases, source=str(dataset.root))


def _list_cases(dataset: Dataset) -> list[Case]:
    if dataset.importer is None:
        cases, faults = _inspect(dataset)
        if faults:
            raise DataError.gather(faults)
        return cases
    # `Dataset` refuses an importer without a root, and a cohort without a manifest or importer.
    assert dataset.root is not None
    expected = "expected the folder of the data set as downloaded"
    try:
        cases = dataset.importer(dataset.root)
    except DataError as fault:
        # An importer only sees that its files are missing.
        if fault.where == str(dataset.root) and not dataset.root.exists():
            raise DataError(dataset.root, "no such folder", expected) from fault
        raise
    if not cases:
        raise DataError(dataset.root, "no case found", expected)
    return with_pair_labels(cases, pair_label=dataset.pair_label, cache_dir=dataset.cache_dir)


def _inspect(dataset: Dataset) -> tuple[list[Case], list[DataError]]:
    """List the cases of a manifest and its faults; pairs of examinations are made here."""
    assert dataset.manifest is not None
    modalities: tuple[str, ...] | None = dataset.modalities or None
    makes_pairs = modalities is not None and _names_pairs(dataset.manifest, modalities)
    if modalities is not None and makes_pairs:
        require = None if dataset.require is None else without_time(dataset.require)
        cases, faults = inspect_manifest(
            dataset.manifest, modalities=without_time(modalities), require=require
        )
        cases = pair_up(cases, modalities)
        if not cases and not faults:
            found = "no case has a baseline"
            raise DataError(dataset.manifest, found, "fill the column, with case_ids")
    else:
        cases, faults = inspect_manifest(
            dataset.manifest, modalities=modalities, require=dataset.require
        )
    labelled = with_pair_labels(cases, pair_label=dataset.pair_label, cache_dir=dataset.cache_dir)
    return labelled, faults


def _names_pairs(manifest: Path, modalities: Sequence[str]) -> bool:
    """Tell whether FLAIR@1 stands for the FLAIR of a baseline, rather than for a column."""
    if not any(name.endswith((EARLIER, LATER)) for name in modalities):
        return False
    header = read_header(manifest)
    return "baseline" in header and not set(modalities) & set(header)


def _part_incomplete(cases: Sequence[Case], dataset: Dataset) -> tuple[list[Case], dict[str, str]]:
    """Return the complete cases with its modalities alone, and case id -> what others lack."""
    complete = []
    missing = {}
    for case in cases:
        files = _missing_files(case, dataset)
        if files:
            missing[case.case_id] = ", ".join(files)
        else:
            images: dict[str, Path] = {}
            for name in dataset.modalities or case.images:
                if name in case.images:
                    images[name] = case.images[name]
            complete.append(replace(case, images=images))
    return complete, missing


def _missing_files(case: Case, dataset: Dataset) -> list[str]:
    missing = missing_modalities(case, dataset.modalities, dataset.require)
    # Labels of official test sets are not published.
    if not case.labels and case.split != "test":
        missing.append("label")
    return missing


def _warn_of_incomplete(missing: Mapping[str, str], *, n_cases: int) -> None:
    """Log which cases are left out, by the files that they lack."""
    ids_by_files: dict[str, list[str]] = defaultdict(list)
    for case_id, files in missing.items():
        ids_by_files[files].append(case_id)
    lists: list[str] = []
    for files, ids in ids_by_files.items():
        lists.append(f"no {files}: {', '.join(ids)}")
    logger.warning(
        "%d of %d cases are incomplete and left out (%s)", len(missing), n_cases, "; ".join(lists)
    )
