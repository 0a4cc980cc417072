"""Which files belong to which case: the manifest, what a user hands to `predict.py`, and the split by subject."""

import csv
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from tversky_seg.data.errors import DataError

logger = logging.getLogger("tversky_seg")

SPLITS = ("train", "val", "test")
NORMALIZATIONS = ("zscore", "robust", "percentile", "window", "none")
RATERS = ("consensus", "majority", "random")
SPACINGS = ("native", "median")
SUBJECT_FOLDS = {
    "loso": "subject_id",
    "site": "site",
}  # leave one out: each value of this attribute is a fold
_RESERVED = ("case_id", "subject_id", "consensus", "brain_mask", "site", "session", "split", "fold")
_LABEL_COLUMN = re.compile(r"label(_[2-9]|_[1-9]\d+)?")
_SAFE_NAME = re.compile(r"\w([\w .=+@-]{0,126}[\w=+@-])?")
_NIFTI = (".nii.gz", ".nii")
_FRAME = re.compile(r"(.+\.nii(?:\.gz)?)@(\d+)")


@dataclass(frozen=True)
class Case:
    """One examination of one subject: its image files, and its label where someone drew one.

    Attributes:
        case_id: Unique, and safe as part of a file name.
        subject_id: Who was examined; splits never part the cases of one subject.
        images: Modality name -> file, in the order of modalities of the cohort.
        labels: The label to train on and judge by, then those of other raters; empty for a case that is predicted only.
        consensus: Whether the first of several labels is what the raters agreed on, and not that of the first rater.
        brain_mask: Where the brain (or organ) is; None: the voxels that are not background.
        site: Hospital or scanner.
        session: Time point.
        split: "train", "val", "test" or None.
        fold: Which fold holds this case out, or None.
    """

    case_id: str
    subject_id: str
    images: Mapping[str, Path]
    labels: tuple[Path, ...] = ()
    brain_mask: Path | None = None
    site: str | None = None
    session: str | None = None
    split: str | None = None
    fold: int | None = None
    consensus: bool = False

    @property
    def label(self) -> Path | None:
        """The label to train on and judge by, or None."""
        return self.labels[0] if self.labels else None

    @property
    def raters(self) -> tuple[Path, ...]:
        """The labels that one rater each drew, the first rater's first."""
        return self.labels[1:] if self.consensus else self.labels


@dataclass(frozen=True)
class Split:
    """The cases to train on, to choose checkpoint and threshold by, and to report on; no subject is in two."""

    train: tuple[Case, ...]
    val: tuple[Case, ...]
    test: tuple[Case, ...]


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


def file_and_frame(path: Path | str) -> tuple[Path, int | None]:
    """The file that a path names, and which of its 3D frames where it is a 4D one: `scan.nii.gz@1` is the second."""
    match = _FRAME.fullmatch(str(path))
    return (Path(path), None) if match is None else (Path(match[1]), int(match[2]))


def check_modalities(modalities: Sequence[str] | None) -> tuple[str, ...]:
    """Modality names as a tuple, after a check that they are distinct and can stand in file names."""
    _require(
        not isinstance(modalities, str),
        f"data.modalities: {modalities!r}; expected a list as in [FLAIR,T1]",
    )
    names = tuple(str(name) for name in modalities or ())
    for name in names:
        _require(
            _is_safe(name), f"data.modalities: {name!r}; expected letters, digits and _ . = + @ -"
        )
        _require(
            not _is_reserved(name),
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
            _is_safe(str(name)), f"data.classes: {name!r}; expected letters, digits and _ . = + @ -"
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
    _check_cases(cases, source=str(dataset.root))
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
    faults = _faults_between(cases, source=str(dataset.root))
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


def read_manifest(path: Path | str, *, modalities: Sequence[str] | None = None) -> list[Case]:
    """The cases that a CSV lists, in its order.

    Columns: `case_id, subject_id, <one per modality>, label[, label_2, …][, consensus][, brain_mask][, site]
    [, session][, split | fold]`; file names are relative to the manifest's folder, `<file>@0` is the first frame of a
    4D file. An empty label cell: predicted, not
    judged. `consensus` is yes where `label` is what the raters agreed on, and the first rater's is `label_2`.

    Args:
        path: The CSV (comma, semicolon or tab).
        modalities: Columns to read as images, in this order; None: every column that is none of the above; () none.

    Raises:
        DataError: The file cannot be read, holds no case, lacks a column, a cell or a file, names a case twice or by
            a name that is unsafe in a path, or puts a subject in two splits or folds.
    """
    cases, faults = inspect_manifest(path, modalities=modalities)
    if faults:
        raise DataError.gather(faults)
    return cases


def inspect_manifest(
    path: Path | str, *, modalities: Sequence[str] | None = None
) -> tuple[list[Case], list[DataError]]:
    """The cases of a CSV with which nothing is wrong, and every fault of its lines; for the check of the data.

    Raises:
        DataError: As `read_manifest`, where no line can be understood.
    """
    path = Path(path).expanduser()
    columns, rows = _read_rows(path)
    header = [name for name in columns if name]
    names = (
        tuple(modalities)
        if modalities is not None
        else tuple(n for n in header if not _is_reserved(n))
    )
    _check_header(header, names, path=path)
    _require(len(names) > 0 or modalities is not None, f"{path}: no column of images among {', '.join(header)}; "
             "expected one per modality")  # fmt: skip
    faults: list[DataError] = []
    cases: dict[str, Case] = {}  # of cases of one name, the first
    for number, row in rows:
        try:
            case = _case_of(dict(zip(columns, row, strict=False)), names, path=path, number=number)
            if case.case_id.casefold() in cases:
                _check_cases([cases[case.case_id.casefold()], case], source=str(path))
            cases[case.case_id.casefold()] = case
        except DataError as fault:
            faults.append(fault)
    faults += _faults_between([*cases.values()], source=str(path))
    missing = [
        (case, file)
        for case in cases.values()
        for file in _files(case)
        if not file_and_frame(file)[0].is_file()
    ]
    faults += [
        DataError(file, "no such file", f"{path} names it for case {case.case_id}")
        for case, file in missing
    ]
    incomplete = {case.case_id for case, _ in missing}
    return [case for case in cases.values() if case.case_id not in incomplete], faults


def write_manifest(
    cases: Sequence[Case], path: Path | str, *, modalities: Sequence[str] | None = None
) -> None:
    """Write cases as the CSV that `read_manifest` reads; the file appears whole or not at all.

    File names are relative where the file lies below the manifest's folder, else absolute.

    Args:
        cases: At least one.
        path: The CSV to write; its folder is made.
        modalities: Image columns; None: every modality that a case has.
    """
    path = Path(path)
    _check_cases(cases, source=str(path))
    names = (
        tuple(modalities)
        if modalities is not None
        else tuple(dict.fromkeys(m for c in cases for m in c.images))
    )
    n_labels = max((len(case.labels) for case in cases), default=1)
    rows = [
        _row_of(case, names, n_labels=max(n_labels, 1), folder=path.parent.absolute())
        for case in cases
    ]
    header = [
        name for name in rows[0] if name in ("label", *names) or any(row[name] for row in rows)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex}")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def split_cases(
    cases: Sequence[Case],
    *,
    folds: int | str = 5,
    fold: int | None = None,
    val_fraction: float = 0.2,
    seed: int = 0,
    loads: Mapping[str, float] | None = None,
) -> Split:
    """Part cases into training, validation and test set, by subject.

    With `fold` given: the fold column, else `folds` folds drawn over the subjects (as many as subjects where these
    are fewer); that fold is the test set. Without: the split column, else as with the first fold. Where no validation
    set is named, it is `val_fraction` of the remaining subjects, at least one when 4 or more remain, else none.
    Cases without label are never trained or validated on: they join the test set unless their subject is elsewhere.

    Args:
        cases: The cohort.
        folds: Number of folds, where they are drawn; or "loso" or "site", each subject or site a fold in the order of
            their names, which goes before the columns.
        fold: The fold held out, or None.
        val_fraction: In [0, 1); 0 is no validation set.
        seed: Of the split, which should stay the same when the seed of training changes.
        loads: Lesion load by case id; then folds are drawn such that each has its share of every site, and in a site
            of small and large loads.

    Raises:
        DataError: No labelled case to train on, a fold that is not there, a labelled case without split or fold where
            others have one, a subject in two splits, or an image of two subjects in two splits.
    """
    _check_cases(cases, source="data")
    labelled = [case for case in cases if case.labels]
    held_out = _column(labelled, "split") if fold is None and folds not in SUBJECT_FOLDS else None
    if held_out is None:
        held_out = _held_out_by_fold(labelled, folds=folds, fold=fold, seed=seed, loads=loads)
    for case in labelled:
        _require(
            case.subject_id in held_out,
            f"data: case {case.case_id} has a label but no split; fill the column",
        )
    if "val" not in held_out.values():
        remaining = sorted(
            {case.subject_id for case in labelled if held_out[case.subject_id] == "train"}
        )
        held_out |= dict.fromkeys(
            _draw_validation(remaining, val_fraction=val_fraction, seed=seed), "val"
        )
    parts: dict[str, list[Case]] = {name: [] for name in SPLITS}
    left_out = []
    for case in cases:
        part = held_out.get(case.subject_id, "test")
        if case.labels or part == "test":
            parts[part].append(case)
        else:
            left_out.append(case.case_id)
    if left_out:
        logger.warning("without label, of subjects in training, left out: %s", ", ".join(left_out))
    _require(len(parts["train"]) > 0, f"data: no labelled case to train on among {len(cases)} cases; "
             "label some, or give them split=train")  # fmt: skip
    _refuse_leaks(parts)
    return Split(*(tuple(parts[name]) for name in SPLITS))


def are_folds_drawn(cases: Sequence[Case], *, folds: int | str, fold: int | None) -> bool:
    """Whether `split_cases` draws folds: neither told to leave one out nor by a column."""
    labelled = [case for case in cases if case.labels]
    by_split = fold is None and any(case.split for case in labelled)
    return not (
        folds in SUBJECT_FOLDS or by_split or any(case.fold is not None for case in labelled)
    )


def cases_from_input(
    input: Mapping[str, Path | str] | Path | str,
    *,
    modalities: Sequence[str],
    case_id: str | None = None,
) -> list[Case]:
    """The cases that a user wants predicted.

    Args:
        input: One case as `{modality: file}` (also `brain_mask: file`), or the file alone where there is one modality;
            a manifest CSV; or a folder of `<case_id>_<MODALITY>.nii[.gz]` or `<case_id>/<MODALITY>.nii[.gz]`, in which
            a file for `brain_mask` is used too.
        modalities: What the network was trained on, in order.
        case_id: Names the one case (else the stem of its first file), or picks one out of several.

    Raises:
        DataError: A file or modality is missing, or nothing is found.
    """
    if isinstance(input, Mapping):
        return [_case_of_files(input, modalities, case_id=case_id)]
    path = Path(input).expanduser()
    _require(
        path.exists(),
        f"{path}: no such file or folder; expected images, a manifest CSV or a folder of images",
    )
    if path.is_dir():
        cases = _cases_in_folder(path, modalities)
    elif path.name.endswith(_NIFTI):
        _require(len(modalities) == 1, f"{path}: one image; expected one for each of {', '.join(modalities)}, as in "
                 f"input={{{','.join(f'{m}: {m}.nii.gz' for m in modalities)}}}")  # fmt: skip
        return [_case_of_files({modalities[0]: path}, modalities, case_id=case_id)]
    else:
        cases = read_manifest(path, modalities=modalities)
    chosen = [case for case in cases if case_id in (None, case.case_id)]
    _require(len(chosen) > 0, f"case_id: {case_id!r} is not in {path}; expected one of "
             f"{', '.join(case.case_id for case in cases[:5])}")  # fmt: skip
    return chosen


def check_case_id(case_id: str, *, source: str = "data") -> None:
    """Refuse a name that cannot be part of a file name: empty, with a slash, with a leading dot."""
    _require(
        _is_safe(case_id),
        f"{source}: case_id {case_id!r}; expected letters, digits and _ . = + @ -, since it becomes part of file names",
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise DataError(message)


def _is_safe(name: str) -> bool:
    """Whether a name can stand in a file name on any system: no separator, no leading dot, not empty."""
    return _SAFE_NAME.fullmatch(name) is not None


def _is_reserved(column: str) -> bool:
    return column in _RESERVED or _LABEL_COLUMN.fullmatch(column) is not None


def _read_rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header and rows of a CSV with their line numbers, cells stripped, empty rows dropped."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.reader(text.splitlines(), delimiter=delimiter, strict=True)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    except OSError as error:
        raise DataError(path, f"{error.strerror or error}", "expected a manifest CSV") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(path, "is no CSV text", "expected a manifest CSV in UTF-8") from error
    _require(
        len(rows) > 1, f"{path}: lists no case; expected a header line and a line for each case"
    )
    header = rows[0][1]
    for number, row in rows[1:]:
        _require(
            not any(row[len(header) :]),
            f"{path} line {number}: {len(row)} cells; expected {len(header)}, one for each column",
        )
    return header, rows[1:]


def _check_header(header: Sequence[str], modalities: Sequence[str], *, path: Path) -> None:
    twice = [name for name, count in Counter(header).items() if count > 1]
    _require(not twice, f"{path}: column {', '.join(twice)} stands twice; expected each once")
    for name in header:
        plain = name.lower().replace(" ", "_")
        _require(
            name == plain or not _is_reserved(plain),
            f"{path}: column {name!r}; write it as {plain!r}",
        )
    missing = [name for name in ("case_id", "subject_id", *modalities) if name not in header]
    _require(not missing, f"{path}: no column {', '.join(missing)} among {', '.join(header)}; add it"
             + (" or name other data.modalities" if set(missing) & set(modalities) else ""))  # fmt: skip


def _case_of(row: Mapping[str, str], modalities: Sequence[str], *, path: Path, number: int) -> Case:
    """The case of one line of a manifest, with absolute file names."""
    where, folder = f"{path} line {number}", path.parent.absolute()
    empty = [name for name in ("case_id", "subject_id", *modalities) if not row.get(name)]
    _require(not empty, f"{where}: empty cell for {', '.join(empty)}; fill it, remove the line or name other "
             "data.modalities")  # fmt: skip
    files = {name: folder / Path(cell).expanduser() for name, cell in row.items() if cell}
    labels = sorted(
        (name for name in files if _LABEL_COLUMN.fullmatch(name)), key=lambda n: int(n[6:] or 1)
    )
    _require(
        not labels or labels[0] == "label",
        f"{where}: {labels[:1]} without label; fill the label cell first",
    )
    split, fold, consensus = (
        row.get("split") or None,
        row.get("fold") or None,
        row.get("consensus") or "no",
    )
    _require(consensus in ("yes", "no"), f"{where}: consensus {consensus!r}; expected yes or no")
    _require(
        split is None or split in SPLITS, f"{where}: split {split!r}; expected train, val or test"
    )
    _require(
        fold is None or fold.isdecimal(), f"{where}: fold {fold!r}; expected a whole number from 0"
    )
    return Case(
        case_id=row["case_id"],
        subject_id=row["subject_id"],
        images={name: files[name] for name in modalities},
        labels=tuple(files[name] for name in labels),
        brain_mask=files.get("brain_mask"),
        site=row.get("site") or None,
        session=row.get("session") or None,
        split=split,
        fold=None if fold is None else int(fold),
        consensus=consensus == "yes",
    )


def _row_of(
    case: Case, modalities: Sequence[str], *, n_labels: int, folder: Path
) -> dict[str, str]:
    """One line of a manifest, columns in their order."""
    labels = dict(
        zip(["label", *(f"label_{i}" for i in range(2, n_labels + 1))], case.labels, strict=False)
    )
    row = {"case_id": case.case_id, "subject_id": case.subject_id}
    row |= {name: _written(case.images.get(name), folder) for name in modalities}
    row |= {
        name: _written(labels.get(name), folder)
        for name in ["label", *(f"label_{i}" for i in range(2, n_labels + 1))]
    }
    row |= {"consensus": "yes" if case.consensus and len(case.labels) > 1 else ""}
    row |= {
        "brain_mask": _written(case.brain_mask, folder),
        "site": case.site or "",
        "session": case.session or "",
    }
    return row | {"split": case.split or "", "fold": "" if case.fold is None else str(case.fold)}


def _written(file: Path | None, folder: Path) -> str:
    if file is None:
        return ""
    absolute = file.absolute()
    return (
        absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute
    ).as_posix()


def _files(case: Case) -> list[Path]:
    return [*case.images.values(), *case.labels, *([case.brain_mask] if case.brain_mask else [])]


def _check_cases(cases: Sequence[Case], *, source: str) -> None:
    """Refuse names that are unsafe or taken, and subjects in two splits or folds."""
    faults = _faults_between(cases, source=source)
    if faults:
        raise DataError.gather(faults)


def _faults_between(cases: Sequence[Case], *, source: str) -> list[DataError]:
    """One for each name that is unsafe or taken, and each subject in two splits or folds."""
    faults: list[DataError] = []
    seen: dict[str, str] = {}
    for case in cases:
        try:
            check_case_id(case.case_id, source=source)
            other = seen.get(case.case_id.casefold())
            _require(other is None, f"{source}: case_id {case.case_id!r} stands twice"
                     + (f" (as {other!r}, one file on some systems)" if other != case.case_id else "")
                     + "; expected each case once")  # fmt: skip
        except DataError as fault:
            faults.append(fault)
        seen.setdefault(case.case_id.casefold(), case.case_id)
    for column in ("split", "fold"):
        try:
            _column(cases, column, source=source)
        except DataError as fault:
            faults.append(fault)
    return faults


def _column(cases: Sequence[Case], column: str, *, source: str = "data") -> dict[str, Any] | None:
    """Subject -> its split or fold; None where no case has one."""
    found: dict[str, set[Any]] = defaultdict(set)
    for case in cases:
        if (value := getattr(case, column)) is not None:
            found[case.subject_id].add(value)
    faults = [
        DataError(source, f"subject {subject!r} is in {column} {' and '.join(sorted(map(str, values)))}", 'expected all cases of a subject in one')
        for subject, values in found.items() if len(values) > 1
    ]  # fmt: skip
    if faults:
        raise DataError.gather(faults)
    return {subject: values.pop() for subject, values in found.items()} or None


def _held_out_by_fold(
    cases: Sequence[Case],
    *,
    folds: int | str,
    fold: int | None,
    seed: int,
    loads: Mapping[str, float] | None,
) -> dict[str, Any]:
    """Subject -> "test" where its fold is held out, else "train"."""
    if folds in SUBJECT_FOLDS:
        fold_of: dict[str, Any] = _leave_one_out(cases, SUBJECT_FOLDS[str(folds)])
    else:
        fold_of = _column(cases, "fold") or _draw_folds(
            cases, folds=int(folds), seed=seed, loads=loads
        )
    for case in cases:
        _require(
            case.subject_id in fold_of,
            f"data: case {case.case_id} has a label but no fold; fill the column",
        )
    held_out = min(fold_of.values()) if fold is None else fold
    _require(held_out in fold_of.values(), f"data.fold: {held_out}; expected one of "
             f"{', '.join(map(str, sorted(set(fold_of.values()))))}")  # fmt: skip
    return {
        subject: "test" if number == held_out else "train" for subject, number in fold_of.items()
    }


def _leave_one_out(cases: Sequence[Case], attribute: str) -> dict[str, int]:
    """Subject -> the place of its attribute among all, in the order of names."""
    for case in cases:
        _require(
            getattr(case, attribute) is not None,
            f"data: case {case.case_id} has no {attribute}; fill the column",
        )
    value_of = {case.subject_id: getattr(case, attribute) for case in cases}
    split_up = [
        case.subject_id for case in cases if value_of[case.subject_id] != getattr(case, attribute)
    ]
    _require(
        not split_up,
        f"data: subject {split_up[:1]} has cases of two sites; expected one, or data.folds=loso",
    )
    values = sorted(set(value_of.values()))
    _require(
        len(values) > 1,
        f"data: one {attribute} in {len(cases)} labelled cases; expected two or more",
    )
    return {subject: values.index(value) for subject, value in value_of.items()}


def _draw_folds(
    cases: Sequence[Case], *, folds: int, seed: int, loads: Mapping[str, float] | None
) -> dict[str, int]:
    """Subject -> fold; with loads, subjects of one site and near loads go to different folds."""
    subjects = sorted({case.subject_id for case in cases})
    _require(
        bool(subjects),
        "data: 0 labelled subjects; expected label files, in a manifest in the column label",
    )
    _require(len(subjects) > 1, f"data: {len(subjects)} labelled subjects; expected two or more to hold one out, "
             "or a split column in the manifest")  # fmt: skip
    n_folds, rng = min(folds, len(subjects)), np.random.default_rng([seed, 0])
    if loads is None:
        return {
            subjects[s]: place % n_folds for place, s in enumerate(rng.permutation(len(subjects)))
        }
    site = {case.subject_id: case.site or "" for case in cases}
    load = {
        subject: max(loads.get(c.case_id, 0.0) for c in cases if c.subject_id == subject)
        for subject in subjects
    }
    ordered = sorted(subjects, key=lambda subject: (site[subject], load[subject], subject))
    blocks = [ordered[first : first + n_folds] for first in range(0, len(ordered), n_folds)]
    return {
        block[s]: place for block in blocks for place, s in enumerate(rng.permutation(len(block)))
    }


def _refuse_leaks(parts: Mapping[str, Sequence[Case]]) -> None:
    """An image that two subjects share must not be in two splits."""
    seen: dict[Path, tuple[str, str]] = {}
    for part, cases in parts.items():
        for case in cases:
            for file in case.images.values():
                other, subject = seen.setdefault(file.resolve(), (part, case.subject_id))
                _require(other == part, f"{file}: is an image of subject {subject!r} in {other} and of "
                         f"{case.subject_id!r} in {part}; expected one subject_id for it")  # fmt: skip


def _draw_validation(subjects: Sequence[str], *, val_fraction: float, seed: int) -> list[str]:
    if len(subjects) < 4 or val_fraction == 0:
        return []
    n = min(max(1, round(val_fraction * len(subjects))), len(subjects) - 1)
    return [subjects[i] for i in np.random.default_rng([seed, 1]).permutation(len(subjects))[:n]]


def _case_of_files(
    files: Mapping[str, Path | str], modalities: Sequence[str], *, case_id: str | None
) -> Case:
    """One case from `{modality: file}`."""
    paths = {name: Path(file).expanduser().absolute() for name, file in files.items()}
    for name in modalities:
        _require(
            name in paths,
            f"input: no file for modality {name}; expected one for each of {', '.join(modalities)}",
        )
    for name, path in paths.items():
        _require(name in modalities or name == "brain_mask",
                 f"input: {name} is no modality of this network; expected {', '.join(modalities)}")  # fmt: skip
        _require(
            file_and_frame(path)[0].is_file(), f"{path}: no such file; expected the image of {name}"
        )
    name = _stem(paths[modalities[0]]) if case_id is None else case_id
    _require(
        _is_safe(name), f"case_id: {name!r}; expected letters, digits and _ . = + @ -; set case_id="
    )
    images = {modality: paths[modality] for modality in modalities}
    return Case(case_id=name, subject_id=name, images=images, brain_mask=paths.get("brain_mask"))


def _stem(path: Path) -> str:
    path, _ = file_and_frame(path)
    return next(
        (path.name.removesuffix(end) for end in _NIFTI if path.name.endswith(end)), path.stem
    )


def _cases_in_folder(folder: Path, modalities: Sequence[str]) -> list[Case]:
    """Cases of `<case_id>_<MODALITY>.nii[.gz]` and `<case_id>/<MODALITY>.nii[.gz]`, sorted by id."""
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in sorted([*folder.glob("*.nii*"), *folder.glob("*/*.nii*")]):
        if not path.name.endswith(_NIFTI) or path.name.startswith("."):
            continue
        for name in sorted((*modalities, "brain_mask"), key=len, reverse=True):
            if path.parent == folder and _stem(path).endswith(f"_{name}"):
                case_id = _stem(path).removesuffix(f"_{name}")
            elif path.parent != folder and _stem(path) == name:
                case_id = path.parent.name
            else:
                continue
            taken = found[case_id].setdefault(name, path)
            _require(
                taken is path,
                f"{path}: a second {name} of case {case_id} beside {taken}; keep one of them",
            )
            break
    ids = [case_id for case_id, files in sorted(found.items()) if set(files) != {"brain_mask"}]
    _require(len(ids) > 0, f"{folder}: no image found; expected <case_id>_{modalities[0]}.nii.gz or "
             f"<case_id>/{modalities[0]}.nii.gz")  # fmt: skip
    faults = [DataError(folder, f'case {case_id} has no {name}', f'expected {case_id}_{name}.nii.gz')
              for case_id in ids for name in modalities if name not in found[case_id]]  # fmt: skip
    if faults:
        raise DataError.gather(faults)
    cases = [_case_of_files(found[case_id], modalities, case_id=case_id) for case_id in ids]
    _check_cases(cases, source=str(folder))
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
