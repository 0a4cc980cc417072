"""The CSV that lists the cases of a cohort: read, inspected for the data check, written."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from tversky_seg.data.case import (
    SPLITS,
    Case,
    case_faults,
    check_cases,
    missing_modalities,
    normal_form,
    same_file_name,
)
from tversky_seg.data.errors import DataError
from tversky_seg.data.image_files import file_and_frame, why_absent
from tversky_seg.data.manifest_columns import (
    LABELS_AT,
    check_header,
    is_file_column,
    is_label,
    is_reserved,
    number_of_label,
)
from tversky_seg.data.manifest_faults import baseline_faults, missing_file_faults, repeat_faults
from tversky_seg.data.manifest_rows import (
    ManifestRow,
    columns_of_images,
    holds_images,
    read_rows,
)
from tversky_seg.runtime.files import write_csv

logger = logging.getLogger("tversky_seg")


def read_manifest(
    path: Path | str,
    *,
    modalities: Sequence[str] | None = None,
    may_lack_modalities: bool = False,
    require: Sequence[str] | None = None,
) -> list[Case]:
    """Read the cases that a CSV lists, in its order.

    Columns: `case_id, subject_id, <one per modality>, label[, label_2, …][, consensus]
    [, brain_mask][, ignore_mask][, site][, session][, split | fold][, label@1, label@2]
    [, baseline][, space][, repeat_of]`; others whose cells name no files, such as age, are
    metadata. File names are relative to the manifest's folder; `<file>@0` is the first frame of a
    4D file. With an empty label cell a case is predicted, not evaluated. `FLAIR@1` and `FLAIR@2`
    are an earlier and a later image of the subject, `label@1` and `label@2` all lesions of both;
    `baseline` is the case_id of an earlier examination, where each has a line of its own. `space`
    is MNI where the affine places the case in MNI space; `repeat_of` is the case_id of the first
    scan of a scan-rescan pair.
    `consensus` is yes if `label` is the consensus of the raters; the first rater's is then
    `label_2`.

    Args:
        path: CSV (comma, semicolon or tab), UTF-8.
        modalities: Columns to read as images, in this order; None: every other column that names
            files; () none.
        may_lack_modalities: Whether columns and cells of modalities may be missing.
        require: Modalities whose cells must be filled; of the others a case needs one if it has
            none of these. None: all.

    Raises:
        DataError: The file cannot be read, holds no case, lacks a column, a cell or a file, has a
            duplicate or unsafe case_id, or puts a subject in two splits or folds.
    """
    cases, faults = inspect_manifest(
        path, modalities=modalities, may_lack_modalities=may_lack_modalities, require=require
    )
    if faults:
        raise DataError.gather(faults)
    return cases


def inspect_manifest(
    path: Path | str,
    *,
    modalities: Sequence[str] | None = None,
    may_lack_modalities: bool = False,
    require: Sequence[str] | None = None,
) -> tuple[list[Case], list[DataError]]:
    """Read the sound cases of a CSV, and list every fault of the others, for the data check.

    Args:
        path: As in `read_manifest`.
        modalities: As in `read_manifest`.
        may_lack_modalities: As in `read_manifest`.
        require: As in `read_manifest`.

    Raises:
        DataError: As `read_manifest`, if no line can be understood.
    """
    path = Path(path).expanduser()
    header, rows = read_rows(path)
    if modalities is None:
        check_header(header, (), path=path)
        names = columns_of_images(header, rows, path)
        metadata = [name for name in header if not is_reserved(name) and name not in names]
        if metadata:
            # Said, since a column of misspelt files would be one of these.
            logger.info("%s: no files in %s: taken as metadata", path, ", ".join(metadata))
    else:
        names = tuple(modalities)
        others = [name for name in header if not is_reserved(name) and name not in names]
        metadata = [name for name in others if not holds_images(name, rows, path)]
    check_header(header, () if may_lack_modalities else names, path=path)
    if may_lack_modalities:
        require = ()
    faults: list[DataError] = []
    cases: dict[str, Case] = {}  # the first case of each name
    for row in rows:
        try:
            case = _case_of(row, names, metadata, path=path)
            if not may_lack_modalities:
                _check_modalities(case, names, require, source=f"{path} line {row.line}")
            name = same_file_name(case.case_id)
            # Here, so that the fault of the second line does not cost the first its place.
            if name in cases:
                check_cases([cases[name], case], source=str(path))
            cases[name] = case
        except DataError as fault:
            faults.append(fault)
    # Of all lines together: a subject in two splits shows in no single one.
    faults += case_faults(list(cases.values()), source=str(path))
    faults += baseline_faults(list(cases.values()), path)
    faults += repeat_faults(list(cases.values()), path)
    complete = []
    for case in cases.values():
        missing = missing_file_faults(case, path)
        faults += missing
        if not missing:
            complete.append(case)
    return complete, faults


def read_header(path: Path | str) -> list[str]:
    """Read the names of the columns.

    Raises:
        DataError: As `read_manifest`, if no line can be understood.
    """
    header, _ = read_rows(Path(path).expanduser())
    return header


def write_manifest(
    cases: Sequence[Case],
    path: Path | str,
    *,
    modalities: Sequence[str] | None = None,
    metadata: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Write cases as the CSV that `read_manifest` reads; the file is whole or absent.

    File names are relative if the file lies below the manifest's folder, otherwise absolute.

    Args:
        cases: At least one.
        path: CSV to write; its folder is made.
        modalities: Image columns; None: every modality that a case has.
        metadata: Case id -> further column -> value, such as {"c1": {"age": "45"}}, besides the
            cases' own.
    """
    path = Path(path)
    header, lines = manifest_table(cases, path, modalities=modalities, metadata=metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(path, header, lines)


def manifest_table(
    cases: Sequence[Case],
    path: Path,
    *,
    modalities: Sequence[str] | None = None,
    metadata: Mapping[str, Mapping[str, str]] | None = None,
) -> tuple[list[str], list[list[str]]]:
    """Return the header and the lines that `write_manifest` writes, with the same arguments.

    Raises:
        DataError: A case id is unsafe or not unique, a subject is in two splits or folds, or a name
            is not in UTF-8.
    """
    check_cases(cases, source=str(path))
    if modalities is None:
        modalities = _modalities_of(cases)
    # A column of labels stays where no case has one, as a place to fill in.
    n_labels = 1
    for case in cases:
        n_labels = max(n_labels, len(case.labels))
    folder = path.parent.absolute()
    # As an ordered set, with the empty cell of a case that lacks the column.
    extra_columns: dict[str, str] = {}
    values_of = {case.case_id: {**case.metadata} for case in cases}
    for case_id, values in (metadata or {}).items():
        values_of.setdefault(case_id, {}).update(values)
    for values in values_of.values():
        extra_columns.update(dict.fromkeys(values, ""))
    rows: list[dict[str, str]] = []
    for case in cases:
        cells = _cells_of(case, modalities, n_labels=n_labels, folder=folder)
        rows.append({**cells, **extra_columns, **values_of[case.case_id]})
    # Other columns are left out where no case has a value.
    always = {"case_id", "subject_id", "label", *modalities}
    header = []
    for column in rows[0]:
        if column in always or any(row[column] for row in rows):
            header.append(column)
    lines = []
    for row in rows:
        lines.append([_as_utf8(row[column]) for column in header])
    return header, lines


def _as_utf8(name: str) -> str:
    """Return a name as a UTF-8 file can hold it; in other locales its bytes come as surrogates."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(ascii(name), "is no name in UTF-8", "rename the file or folder") from error


def _check_modalities(
    case: Case, modalities: Sequence[str], require: Sequence[str] | None, *, source: str
) -> None:
    missing = missing_modalities(case, modalities, require)
    if not missing:
        return
    remedy = "fill it, remove the line or name other data.modalities"
    if case.images and require is None:
        remedy += f"; cases without may be kept by data.require=[{','.join(case.images)}]"
    raise DataError(source, f"empty cell for {', '.join(missing)}", remedy, case_id=case.case_id)


def _case_of(
    row: ManifestRow, modalities: Sequence[str], metadata: Sequence[str], *, path: Path
) -> Case:
    """Make the case of one line, with absolute file names."""
    source = f"{path} line {row.line}"
    empty = [name for name in ("case_id", "subject_id") if not row.cell(name)]
    if empty:
        raise DataError(source, f"empty cell for {', '.join(empty)}", "fill it or remove the line")
    folder = path.parent.absolute()
    files: dict[str, Path] = {}
    for column, cell in row.cells.items():
        if "\0" in cell:
            raise DataError(source, f"a zero byte in column {column}", "save the file as text")
        # Other cells, such as a subject, are not looked for on the disk.
        if cell and (column in modalities or is_file_column(column)):
            # Unlike Path.expanduser, this keeps ~nobody, which is then a file that is missing.
            file = folder / os.path.expanduser(cell)  # noqa: PTH111
            files[column] = _in_existing_form(file)
    images: dict[str, Path] = {}
    for name in modalities:
        if name in files:
            images[name] = files[name]
    return Case(
        case_id=normal_form(row.cells["case_id"]),
        subject_id=normal_form(row.cells["subject_id"]),
        images=images,
        labels=_labels_of(files, source=source),
        brain_mask=files.get("brain_mask"),
        ignore_mask=files.get("ignore_mask"),
        metadata={name: row.cells[name] for name in metadata if row.cell(name)},
        site=row.cell("site"),
        session=row.cell("session"),
        split=_split_of(row, source=source),
        fold=_fold_of(row, source=source),
        consensus=_consensus_of(row, source=source),
        labels_at=_labels_at(files, source=source),
        baseline=_name_or_none(row.cell("baseline")),
        space=row.cell("space"),
        repeat_of=_name_or_none(row.cell("repeat_of")),
    )


def _in_existing_form(path: Path) -> Path:
    """Return a path in the Unicode form that the file system has: é as one character or two."""
    file, _ = file_and_frame(path)
    if why_absent(file) is None:
        return path
    for form in ("NFC", "NFD"):
        candidate = Path(unicodedata.normalize(form, str(path)))
        file, _ = file_and_frame(candidate)
        if why_absent(file) is None:
            return candidate
    return path


def _labels_of(files: Mapping[str, Path], *, source: str) -> tuple[Path, ...]:
    """Order the labels by number: label, label_2, label_3 and so on."""
    columns = [column for column in files if is_label(column)]
    columns.sort(key=number_of_label)
    if columns and columns[0] != "label":
        raise DataError(source, f"{columns[0]} without label", "fill the label cell first")
    return tuple(files[column] for column in columns)


def _labels_at(files: Mapping[str, Path], *, source: str) -> tuple[Path, ...]:
    """List the masks of both time points; none where the case has neither."""
    masks = tuple(files[column] for column in LABELS_AT if column in files)
    if len(masks) == 1:
        expected = f"fill {' and '.join(LABELS_AT)}, or neither"
        raise DataError(source, "a mask of one time point", expected)
    return masks


def _split_of(row: ManifestRow, *, source: str) -> str | None:
    split = row.cell("split")
    if split is not None and split not in SPLITS:
        raise DataError(source, f"split {split!r}", "expected train, val or test")
    return split


def _fold_of(row: ManifestRow, *, source: str) -> int | None:
    fold = row.cell("fold")
    if fold is None:
        return None
    if not fold.isdecimal():
        raise DataError(source, f"fold {fold!r}", "expected a whole number from 0")
    return int(fold)


def _name_or_none(cell: str | None) -> str | None:
    return None if cell is None else normal_form(cell)


def _consensus_of(row: ManifestRow, *, source: str) -> bool:
    consensus = row.cell("consensus") or "no"
    if consensus not in ("yes", "no"):
        raise DataError(source, f"consensus {consensus!r}", "expected yes or no")
    return consensus == "yes"


def _modalities_of(cases: Sequence[Case]) -> list[str]:
    names: dict[str, None] = {}  # as an ordered set
    for case in cases:
        names.update(dict.fromkeys(case.images))
    return list(names)


def _cells_of(
    case: Case, modalities: Sequence[str], *, n_labels: int, folder: Path
) -> dict[str, str]:
    """Return the cells of one line by column, in the order of the columns."""
    label_columns = ["label"]
    for number in range(2, n_labels + 1):
        label_columns.append(f"label_{number}")
    labels = dict(zip(label_columns, case.labels, strict=False))
    cells = {"case_id": case.case_id, "subject_id": case.subject_id}
    for name in modalities:
        cells[name] = _cell_of_file(case.images.get(name), folder)
    for column in label_columns:
        cells[column] = _cell_of_file(labels.get(column), folder)
    # Of a single label it makes no difference who drew it.
    is_consensus = case.consensus and len(case.labels) > 1
    cells["consensus"] = "yes" if is_consensus else ""
    cells["brain_mask"] = _cell_of_file(case.brain_mask, folder)
    cells["ignore_mask"] = _cell_of_file(case.ignore_mask, folder)
    cells["site"] = case.site or ""
    cells["session"] = case.session or ""
    cells["split"] = case.split or ""
    cells["fold"] = "" if case.fold is None else str(case.fold)
    masks = dict(zip(LABELS_AT, case.labels_at, strict=False))
    for column in LABELS_AT:
        cells[column] = _cell_of_file(masks.get(column), folder)
    cells["baseline"] = case.baseline or ""
    cells["space"] = case.space or ""
    cells["repeat_of"] = case.repeat_of or ""
    return cells


def _cell_of_file(file: Path | None, folder: Path) -> str:
    if file is None:
        return ""
    absolute = file.absolute()
    if absolute.is_relative_to(folder):
        absolute = absolute.relative_to(folder)
    return absolute.as_posix()
