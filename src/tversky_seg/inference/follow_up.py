"""Lesions over time: the masks of two examinations compared, as a table and as images."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tversky_seg.data.alignment import Alignment, measure_alignment
from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import Volume, read_label, read_volume, write_volume
from tversky_seg.data.time_points import on_grid_of, pairs_of
from tversky_seg.inference.output_errors import writing
from tversky_seg.inference.prediction_folder import prediction_files
from tversky_seg.metrics.lesion_change import (
    KINDS,
    NEW,
    ChangeRule,
    LesionChange,
    LesionChanges,
    lesion_changes,
)
from tversky_seg.runtime.files import write_csv

logger = logging.getLogger("tversky_seg")

TABLE_FILE = "lesions_over_time.csv"
NEW_LESIONS_ENDING = "_new_lesions.nii.gz"
CHANGES_ENDING = "_changes.nii.gz"
COLUMNS = (
    "subject_id",
    "baseline",
    "follow_up",
    "class",
    "change",
    "baseline_mm3",
    "follow_up_mm3",
    "change_mm3",
    "change_percent",
    "n_baseline_lesions",
    "n_follow_up_lesions",
    "x_mm",
    "y_mm",
    "z_mm",
)
PAIR_CLASSES = ("baseline", "follow_up")
"""Classes of a network that segments both time points at once."""

Row = list[Any]


@dataclass(frozen=True, eq=False)
class FollowUp:
    """The lesions of one class of a subject at two times, on the grid of the later one.

    Attributes:
        changes: Every lesion of either time, and a map of them.
        affine: (4, 4) of that grid.
        is_resampled: Whether the earlier mask lay on another grid.
    """

    changes: LesionChanges
    affine: Any
    is_resampled: bool


def compare_masks(
    baseline: Volume, follow_up: Volume, *, rule: ChangeRule | None = None
) -> FollowUp:
    """Compare the masks of two examinations on the grid of the later one.

    A mask on another grid is resampled by its affine: linearly, a voxel is lesion from one half
    on. It is not registered.

    Args:
        baseline: 0/1 mask of the earlier examination.
        follow_up: 0/1 mask of the later one.
        rule: Rule of what a change is; None: `ChangeRule()`.

    Raises:
        ValueError: Other values than 0 and 1.
    """
    earlier, is_resampled = on_grid_of(baseline, follow_up)
    changes = lesion_changes(earlier, follow_up.data, spacing_mm=follow_up.spacing_mm, rule=rule)
    return FollowUp(changes, follow_up.affine, is_resampled)


def compare_predictions(
    cases: Sequence[Case],
    folder: Path,
    *,
    classes: Sequence[str],
    rule: ChangeRule | None = None,
    output_dir: Path | None = None,
) -> list[Row]:
    """Compare the predicted masks of each subject's examinations, and write what has changed.

    A pair is a case and its baseline, or successive sessions of a subject; or one case whose
    network segments both times, as the classes baseline and follow_up. Writes
    `lesions_over_time.csv` and for each pair `<case_id>_new_lesions.nii.gz`, a mask, and
    `<case_id>_changes.nii.gz`, whose values are the kinds of change, from 1 (`KINDS`).
    Where the images of a pair do not lie on each other, a warning says so.

    Args:
        cases: Cases with a prediction in the folder; others are left out.
        folder: Folder of predictions.
        classes: Names of its classes.
        rule: Rule of what a change is; None: `ChangeRule()`.
        output_dir: Folder to write to; None: that of the predictions.

    Returns:
        The rows of the table; nothing is written without a pair.

    Raises:
        DataError: A mask cannot be read, or a file cannot be written.
    """
    output_dir = output_dir or folder
    rows: list[Row] = []
    pairs = _mask_pairs(cases, folder, classes)
    for pair in pairs:
        result = compare_masks(read_mask(pair.earlier), read_mask(pair.later), rule=rule)
        rows += table_rows(result, pair.names, class_name=pair.class_name)
        stem = pair.later_case.case_id
        if pair.class_name and tuple(classes) != PAIR_CLASSES:
            stem += f"_{pair.class_name}"
        write_maps(output_dir, stem, result, like=pair.later)
    if pairs:
        table = output_dir / TABLE_FILE
        # Jobs that predict other cases into this folder have rows there, too.
        others = _rows_of_others(table, {pair.names[1:] for pair in pairs})
        with writing(table):
            write_csv(table, COLUMNS, [*others, *rows])
        log_misaligned(cases)
    return rows


def read_mask(path: Path) -> Volume:
    """Read a mask of 0 and 1.

    Raises:
        DataError: As `read_label`, or it holds other values.
    """
    mask = read_label(path)
    others = np.setdiff1d(np.unique(mask.data), (0, 1))
    if others.size:
        found = f"values {others[:5].tolist()}"
        raise DataError(path, found, "expected a mask of 0 and 1")
    return mask


def write_maps(folder: Path, stem: str, result: FollowUp, *, like: Path | None = None) -> None:
    """Write the mask of new lesions and the map of all changes."""
    files = {
        folder / f"{stem}{NEW_LESIONS_ENDING}": result.changes.of_kind(NEW),
        folder / f"{stem}{CHANGES_ENDING}": result.changes.kind_map,
    }
    for path, data in files.items():
        with writing(path):
            write_volume(path, data, result.affine, like=like)


def table_rows(result: FollowUp, names: Sequence[str], *, class_name: str = "") -> Iterable[Row]:
    """List the rows of a pair: its lesions, those that changed most first.

    Args:
        result: The comparison.
        names: Subject, earlier and later examination.
        class_name: Class of the lesions; empty if there is one.
    """
    for change in result.changes.changes:
        yield [*names, class_name, change.kind, *_numbers(change, result.affine)]


def _numbers(change: LesionChange, affine: Any) -> Row:
    percent = ""
    if not math.isnan(change.change_percent):
        percent = f"{change.change_percent:.1f}"
    centre_mm = (affine @ [*change.centre, 1])[:3]
    return [
        f"{change.baseline_mm3:.3f}",
        f"{change.follow_up_mm3:.3f}",
        f"{change.change_mm3:.3f}",
        percent,
        change.n_baseline,
        change.n_follow_up,
        *(f"{mm:.2f}" for mm in centre_mm),
    ]


def summarize_changes(changes: LesionChanges) -> dict[str, Any]:
    """Count the changes of each kind, and add up volumes in mm3, as plain values."""
    # Exact sums: a change is the small difference of two large volumes.
    baseline_mm3 = math.fsum(change.baseline_mm3 for change in changes.changes)
    follow_up_mm3 = math.fsum(change.follow_up_mm3 for change in changes.changes)
    # Not 0 %: from nothing no share can be told.
    percent = None
    if baseline_mm3:
        percent = round(100 * (follow_up_mm3 - baseline_mm3) / baseline_mm3, 2)
    kinds: dict[str, Mapping[str, Any]] = {}
    for kind in KINDS:
        of_kind = [change.change_mm3 for change in changes.changes if change.kind == kind]
        kinds[kind] = {"n": len(of_kind), "change_mm3": round(math.fsum(of_kind), 3)}
    return {
        "baseline_mm3": round(baseline_mm3, 3),
        "follow_up_mm3": round(follow_up_mm3, 3),
        "change_mm3": round(follow_up_mm3 - baseline_mm3, 3),
        "change_percent": percent,
        "kinds": kinds,
    }


def log_misaligned(cases: Sequence[Case]) -> None:
    """Warn of pairs whose images do not lie on each other; one that cannot be read is left out."""
    for before, after in pairs_of(cases):
        # Of one modality, since edges of two contrasts hardly correlate.
        common = [name for name in after.images if name in before.images]
        if not common:
            continue
        fault = alignment_fault(before.images[common[0]], after.images[common[0]])
        if fault is not None:
            logger.warning("%s and %s: %s", before.case_id, after.case_id, fault)


def alignment_fault(earlier: Path, later: Path) -> str | None:
    """Say in one line how two images fail to lie on each other; None if they do."""
    try:
        alignment = measure_alignment(read_volume(earlier), read_volume(later))
    except DataError as fault:
        return f"not measured whether they lie on each other ({fault})"
    return describe_fault(alignment)


def describe_fault(alignment: Alignment) -> str | None:
    """Add to a fault what to do."""
    if alignment.fault is None:
        return None
    return f"{alignment.fault}; register the earlier image to the later one, nothing is moved here"


def _rows_of_others(table: Path, names: set[tuple[str, str]]) -> list[Row]:
    """Read the rows of pairs other than these; none from a file with other columns."""
    with (
        suppress(OSError, UnicodeDecodeError, csv.Error),
        table.open(newline="", encoding="utf-8") as file,
    ):
        header, *rows = csv.reader(file)
        # A table of an older version, whose rows would land in other columns, is written anew.
        if tuple(header) == COLUMNS:
            return [row for row in rows if (row[1], row[2]) not in names]
    return []


@dataclass(frozen=True)
class _MaskPair:
    """The masks of one class at two times."""

    earlier: Path
    later: Path
    names: tuple[str, str, str]
    class_name: str
    later_case: Case


def _mask_pairs(cases: Sequence[Case], folder: Path, classes: Sequence[str]) -> list[_MaskPair]:
    """List the pairs of masks that are there."""
    pairs: list[_MaskPair] = []
    # One network saw both times, so each case is a pair by itself.
    if tuple(classes) == PAIR_CLASSES:
        for case in cases:
            files = prediction_files(folder, case.case_id, classes)
            earlier, later = (files[name].mask for name in PAIR_CLASSES)
            names = (case.subject_id, case.case_id, case.case_id)
            pairs.append(_MaskPair(earlier, later, names, "", case))
    else:
        for before, after in pairs_of(cases):
            of_before = prediction_files(folder, before.case_id, classes)
            of_after = prediction_files(folder, after.case_id, classes)
            for name in classes:
                earlier, later = of_before[name].mask, of_after[name].mask
                names = (after.subject_id, before.case_id, after.case_id)
                class_name = name if len(classes) > 1 else ""
                pairs.append(_MaskPair(earlier, later, names, class_name, after))
    return [pair for pair in pairs if pair.earlier.is_file() and pair.later.is_file()]
